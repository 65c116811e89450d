"""How well texts were read: exact match, character error rate, intervals, confusions, McNemar. Strings only."""

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from statistics import NormalDist

from rapidfuzz.distance import Levenshtein


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Return the share of predictions that equal their reference in every character.

    Raises:
        ValueError: if there are none, or not as many of one as of the other.
    """
    _check(predictions, references)
    return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)


def character_error_rate(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Return the edits (Levenshtein) over all samples / the length of all references; it can exceed 1.

    References that are all empty count as one character, so that the rate stays finite: the number of
    characters read where there are none. 0 exactly when all texts are equal.

    Raises:
        ValueError: if there are none, or not as many of one as of the other.
    """
    _check(predictions, references)
    edits = sum(edit_distance(p, r) for p, r in zip(predictions, references, strict=True))
    return edits / max(1, sum(map(len, references)))


def edit_distance(prediction: str, reference: str) -> int:
    """Return the fewest characters to insert, delete or replace to turn one text into the other."""
    return Levenshtein.distance(prediction, reference)


def character_confusion(predictions: Sequence[str], references: Sequence[str]) -> Counter[tuple[str, str]]:
    """Return how often each reference character was read as which: counts of (reference, prediction).

    Correct ones are counted too. ("a", "") is an `a` that was not read, ("", "a") one that was read where there
    is none. The texts are aligned by the fewest edits. Of several such alignments RapidFuzz's is taken, which is
    always the same: common beginnings and ends are paired; in between, from the right, a character counts as not
    read wherever one of the alignments has it so.

    Raises:
        ValueError: if there are none, or not as many of one as of the other.
    """
    _check(predictions, references)
    counts: Counter[tuple[str, str]] = Counter()
    for prediction, reference in zip(predictions, references, strict=True):
        for block in Levenshtein.opcodes(reference, prediction):
            wanted = reference[block.src_start : block.src_end]
            read = prediction[block.dest_start : block.dest_end]
            # One side of a block is empty, or both are equally long.
            counts.update(zip_longest(wanted, read, fillvalue=""))
    return counts


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval that holds the true share behind `successes` of `n`, with this confidence.

    Wilson, 1927, doi:10.1080/01621459.1927.10502953; unlike the normal approximation it stays
    within 0 and 1 and keeps a width where all or none succeeded.

    Raises:
        ValueError: if not 0 <= successes <= n, n >= 1 and 0 < confidence < 1.
    """
    if n < 1 or not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(f"no interval for {successes} of {n} at confidence {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    margin = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    # None and all are exact: rounding would put them a little off 0 and 1.
    return (0.0 if successes == 0 else centre - margin, 1.0 if successes == n else centre + margin)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p of the exact McNemar test for two readers of the same images.

    `only_first` images are read by the first reader alone, `only_second` by the second alone. The p is the probability
    that fair coins in place of these images would fall at least as unevenly (McNemar, 1947, doi:10.1007/BF02295996);
    1 where the two differ on no image.
    """
    from scipy.stats import binomtest  # its import takes a second

    differing = only_first + only_second
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0


def loss_bound(only_first: int, only_second: int, n: int, level: float) -> float:
    """Return an upper bound, at confidence 1 - level, of how much smaller the second's exact match is than the first's.

    Of n images, `only_first` are read by the first reader alone, `only_second` by the second alone. The two shares are
    bounded on one side each at level / 2 (Clopper and Pearson, 1934, doi:10.1093/biomet/26.4.404), and the bound is
    the difference of these: by Bonferroni's inequality the difference lies above it with probability `level` at most,
    whatever n and the shares are.
    """
    from scipy.stats import binomtest

    lost, gained = (
        binomtest(count, n, alternative=side).proportion_ci(1 - level / 2, method="exact")
        for count, side in ((only_first, "less"), (only_second, "greater"))
    )
    return float(lost.high - gained.low)


def _check(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions, but {len(references)} references")
    if not references:
        raise ValueError("there is nothing to measure: no predictions and no references")
