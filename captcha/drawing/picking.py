"""Values picked at random between the two that a style gives; where the two are equal, no random number is used up."""

from functools import lru_cache

from numpy.random import Generator


def pick(rng: Generator, between: tuple[float, float]) -> float:
    """Return a number between the two, evenly distributed."""
    low, high = between
    return low if low == high else float(rng.uniform(low, high))


def pick_whole(rng: Generator, between: tuple[int, int]) -> int:
    """Return a whole number between the two, both included."""
    low, high = between
    return low if low == high else int(rng.integers(low, high + 1))


def pick_colour(rng: Generator, between: tuple[str, str]) -> tuple[int, int, int]:
    """Return red, green and blue (0 to 255), each picked for itself between those of two colours #rrggbb."""
    red, green, blue = _colour_ranges(between)
    return pick_whole(rng, red), pick_whole(rng, green), pick_whole(rng, blue)


@lru_cache(maxsize=128)
def _colour_ranges(between: tuple[str, str]) -> list[tuple[int, int]]:
    one, other = (bytes.fromhex(colour[1:]) for colour in between)
    return [(min(pair), max(pair)) for pair in zip(one, other, strict=True)]
