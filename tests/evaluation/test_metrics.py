from collections import Counter
from functools import cache
from itertools import product
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from captcha.evaluation.metrics import (
    character_confusion,
    character_error_rate,
    edit_distance,
    exact_match,
    loss_bound,
    mcnemar,
    wilson_interval,
)

TEXTS = st.text("abc", max_size=7)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6)


@cache
def fewest_edits(a: str, b: str) -> int:
    """The definition: what is left when the last characters are paired, or one of them is put in or taken out."""
    if not a or not b:
        return len(a) + len(b)
    paired = fewest_edits(a[:-1], b[:-1]) + (a[-1] != b[-1])
    return min(paired, fewest_edits(a[:-1], b) + 1, fewest_edits(a, b[:-1]) + 1)


@given(TEXTS, TEXTS)
def test_edit_distance_is_the_fewest_edits(prediction: str, reference: str) -> None:
    assert edit_distance(prediction, reference) == fewest_edits(prediction, reference)


@given(TEXTS, TEXTS, TEXTS)
def test_edit_distance_is_a_distance(one: str, other: str, third: str) -> None:
    assert edit_distance(one, other) == edit_distance(other, one)
    assert edit_distance(one, third) <= edit_distance(one, other) + edit_distance(other, third)
    assert abs(len(one) - len(other)) <= edit_distance(one, other) <= max(len(one), len(other))


@given(PAIRS)
def test_the_character_error_rate_lies_between_what_the_lengths_allow(pairs: list[tuple[str, str]]) -> None:
    predictions, references = zip(*pairs, strict=True)
    length = max(1, sum(map(len, references)))

    rate = character_error_rate(predictions, references)

    assert sum(abs(len(p) - len(r)) for p, r in pairs) <= rate * length + 1e-9
    assert rate * length <= sum(max(len(p), len(r)) for p, r in pairs) + 1e-9
    assert character_error_rate(predictions[::-1], references[::-1]) == rate


@pytest.mark.parametrize(
    ("a", "b", "edits"), [("kitten", "sitting", 3), ("", "中😀", 2), ("é", "e\u0301", 2), ("ab", "ba", 2)]
)
def test_edit_distance_counts_code_points(a: str, b: str, edits: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == edits


@given(PAIRS)
def test_metrics_agree_on_what_is_perfect(pairs: list[tuple[str, str]]) -> None:
    predictions, references = zip(*pairs, strict=True)
    equal = predictions == references

    assert (exact_match(predictions, references) == 1) == equal
    assert (character_error_rate(predictions, references) == 0) == equal


def test_exact_match_is_the_share_of_equal_texts() -> None:
    assert exact_match(["ab", "Ab", "", "x"], ["ab", "ab", "", "xy"]) == 0.5


def test_character_error_rate_weighs_samples_by_their_length() -> None:
    # 1 edit of 1 character and 0 of 3: a mean of the samples' rates would say 0.5.
    assert character_error_rate(["b", "xyz"], ["a", "xyz"]) == 0.25


def test_character_error_rate_can_exceed_one() -> None:
    assert character_error_rate(["aaaa"], ["b"]) == 4


def test_an_empty_reference_adds_its_edits_and_no_length() -> None:
    assert character_error_rate(["xx", "abcd"], ["", "abcd"]) == 0.5


def test_empty_references_alone_count_as_one_character() -> None:
    assert character_error_rate(["", ""], ["", ""]) == 0
    assert character_error_rate(["xyz", ""], ["", ""]) == 3


@given(PAIRS)
def test_confusions_account_for_every_character_with_the_fewest_edits(pairs: list[tuple[str, str]]) -> None:
    predictions, references = zip(*pairs, strict=True)

    confusion = character_confusion(predictions, references)

    wanted, read = Counter[str](), Counter[str]()
    for (reference, prediction), count in confusion.items():
        wanted[reference] += count
        read[prediction] += count
    del wanted[""], read[""]
    assert wanted == Counter("".join(references))
    assert read == Counter("".join(predictions))
    wrong = sum(count for (reference, prediction), count in confusion.items() if reference != prediction)
    assert wrong == sum(fewest_edits(p, r) for p, r in pairs)


def test_confusions_tell_replaced_missing_and_extra_characters() -> None:
    assert character_confusion(["a0c", "ac", "abcd"], ["aoc", "abc", "abc"]) == {
        ("a", "a"): 3,
        ("o", "0"): 1,
        ("c", "c"): 3,
        ("b", ""): 1,
        ("b", "b"): 1,
        ("", "d"): 1,
    }


def test_of_alignments_with_as_few_edits_always_the_same_counts() -> None:
    # Two pairs of unequal characters would be two edits too, and so would "b" paired and "a" read too much.
    assert character_confusion(["ba"], ["ab"]) == {("", "b"): 1, ("a", "a"): 1, ("b", ""): 1}
    # The one edit too many could be either character of "bc"; the right one is paired.
    assert character_confusion(["bc"], ["a"]) == {("", "b"): 1, ("a", "c"): 1}
    # Which of two equal characters was not read does not show in the counts.
    assert character_confusion(["xa"], ["xaa"]) == {("x", "x"): 1, ("a", "a"): 1, ("a", ""): 1}


@pytest.mark.parametrize(
    ("successes", "n", "confidence"),
    [(0, 10, 0.95), (10, 10, 0.95), (83, 84, 0.95), (1, 2, 0.9), (417, 500, 0.99), (9500, 10000, 0.95)],
)
def test_wilson_interval_is_scipy_s(successes: int, n: int, confidence: float) -> None:
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")

    assert wilson_interval(successes, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    successes, n = counts

    low, high = wilson_interval(successes, n)

    assert 0 <= low <= successes / n <= high <= 1
    assert low < high
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("successes", "n", "confidence"), [(0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (3, 5, 1.0)])
def test_an_interval_of_nothing_is_refused(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="no interval for"):
        wilson_interval(successes, n, confidence)


@pytest.mark.parametrize("metric", [exact_match, character_error_rate, character_confusion])
def test_metrics_refuse_nothing_and_unequal_counts(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match="nothing to measure"):
        metric([], [])
    with pytest.raises(ValueError, match="1 predictions, but 2 references"):
        metric(["a"], ["a", "b"])


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_mcnemar_counts_the_falls_of_coins_that_are_at_least_as_uneven(n: int) -> None:
    falls = [sum(coins) for coins in product((0, 1), repeat=n)]
    for heads in range(n + 1):
        as_uneven = sum(abs(2 * each - n) >= abs(2 * heads - n) for each in falls)
        assert mcnemar(heads, n - heads) == pytest.approx(as_uneven / 2**n, rel=1e-12)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64, rel=1e-12)
    assert mcnemar(0, 0) == 1


def test_the_bound_of_a_loss_by_hand() -> None:
    assert loss_bound(0, 0, 81, 0.05) == pytest.approx(1 - 0.025 ** (1 / 81))
    assert loss_bound(81, 0, 81, 0.05) == 1
    assert loss_bound(0, 81, 81, 0.05) == pytest.approx(1 - 2 * 0.025 ** (1 / 81))
    # Of 10 images one is lost: the share at which 0 or 1 of 10 have a probability of 0.025 together.
    bound = loss_bound(1, 0, 10, 0.05)
    assert (1 - bound) ** 10 + 10 * bound * (1 - bound) ** 9 == pytest.approx(0.025)


@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.0), (0.1, 0.05), (0.3, 0.3), (0.5, 0.1)])
def test_the_loss_lies_below_its_bound_with_the_confidence_stated_or_more(lost: float, gained: float) -> None:
    n, covered = 12, 0.0
    for only_first, only_second in product(range(n + 1), repeat=2):
        neither = n - only_first - only_second
        if neither >= 0 and loss_bound(only_first, only_second, n, 0.05) >= lost - gained:
            ways = comb(n, only_first) * comb(n - only_first, only_second)
            covered += ways * lost**only_first * gained**only_second * (1 - lost - gained) ** neither
    assert covered >= 0.95
