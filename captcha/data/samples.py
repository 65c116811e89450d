"""Samples: an image, its text, and who it is; the seeded split, and the digests by which samples are told apart."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from captcha import CaptchaError
from captcha.reading.images import Image

TRAIN_SHARE, VALIDATION_SHARE = 0.8, 0.1
LABELS_TO_SPLIT = 20  # different labels; with fewer a tenth of them is nothing to measure on


class DataError(CaptchaError):
    """A folder or split that nothing can be trained on; one line that says why and what to do."""


@dataclass(frozen=True)
class Sample:
    """One labelled image, decoded and resized once: (height, W, 3) uint8 RGB."""

    name: str
    text: str
    image: Image = field(repr=False)
    digest: str = ""  # of the pixels before they were resized, so of the file whatever the height; else of `image`

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", pixel_digest(self.image))


@dataclass(frozen=True)
class Split:
    """The three parts of a data set; no text stands in two of them."""

    train: list[Sample]
    validation: list[Sample]
    test: list[Sample]

    @property
    def digest(self) -> str:
        """16 hex digits that tell which sample stands where."""
        sides = {"train": self.train, "validation": self.validation, "test": self.test}
        return _short_hash(f"{side}:{digest(samples)}" for side, samples in sides.items())


def split(samples: Sequence[Sample], seed: int) -> Split:
    """Return 80 % of the texts for training, 10 % for validation, 10 % for the test.

    A text's side follows from the seed and the text alone (sha256 of "seed:text"), so one text never
    stands on two sides and new files move no old ones.

    Raises:
        DataError: if there are too few different texts, or a side is empty.
    """
    texts = {sample.text for sample in samples}
    if len(texts) < LABELS_TO_SPLIT:
        raise DataError(
            f"too few to split: {len(samples)} images with {len(texts)} different labels, "
            f"at least {LABELS_TO_SPLIT} different labels are needed; add images"
        )
    sides: dict[str, list[Sample]] = {"training": [], "validation": [], "test": []}
    for sample in samples:
        number = share(seed, sample.text)
        in_training, in_validation = number < TRAIN_SHARE, number < TRAIN_SHARE + VALIDATION_SHARE
        sides["training" if in_training else "validation" if in_validation else "test"].append(sample)
    for side, members in sides.items():
        if not members:
            raise DataError(
                f"too few to split: none of {len(texts)} different labels fell to the {side} part; "
                "add images or take another seed"
            )
    return Split(sides["training"], sides["validation"], sides["test"])


def share(seed: int, name: str) -> float:
    """Return a number from 0 to 1, evenly spread, that follows from the seed and the name alone."""
    return int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:16], 16) / 2**64


def digest(samples: Iterable[Sample]) -> str:
    """Return 16 hex digits of the samples' names, texts and pixels, whatever their order."""
    return _short_hash("\0".join((sample.name, sample.text, sample.digest)) for sample in samples)


def pixel_digest(image: Image) -> str:
    """Return the sha256 of an image's size and pixels, by which copies are known."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def _short_hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(parts)).encode(errors="surrogateescape")).hexdigest()[:16]
