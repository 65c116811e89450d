import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.calibration import calibration_curve

from captcha.data.samples import Sample
from captcha.evaluation.calibration import (
    BINS,
    ConfidenceFigures,
    calibrate,
    error_bound,
    expected_calibration_error,
    outcomes,
    reliability,
    risk_coverage,
    threshold_for,
)
from captcha.evaluation.results import Evaluation
from captcha.reading.confidence import Calibration
from captcha.reading.recognizer import Reading


def drawn(n: int, seed: int, slope: float, intercept: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and texts that are right as often as a logistic curve over their log-odds says."""
    random = np.random.default_rng(seed)
    odds = random.normal(2.0, 2.0, n)
    shares = 1 / (1 + np.exp(-(slope * odds + intercept)))
    return 1 / (1 + np.exp(-odds)), random.random(n) < shares


def read(*rows: tuple[bool, float, float, bool | None]) -> Evaluation:
    """An evaluation of (right, probability, confidence, accepted)."""
    samples = [Sample(f"{i}.png", "a", np.zeros((1, 1, 3), np.uint8)) for i in range(len(rows))]
    readings = [Reading("a" if right else "b", c, [], p, accepted) for right, p, c, accepted in rows]
    return Evaluation(samples, readings, math.nan)


def test_outcomes_of_several_evaluations_are_pooled_by_their_raw_probability() -> None:
    probabilities, right = outcomes(read((True, 0.9, 0.1, None)), read((False, 0.2, 0.3, None), (True, 0.4, 0.5, None)))
    assert (probabilities.tolist(), right.tolist()) == ([0.9, 0.2, 0.4], [True, False, True])


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.5, 1.0), (2.0, -1.5)])
def test_the_curve_behind_many_readings_is_found(slope: float, intercept: float) -> None:
    found = calibrate(*drawn(200_000, 0, slope, intercept), 0.99)
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept), abs=0.03)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_curve_is_the_likeliest_one_of_the_readings_and_of_a_right_and_a_wrong_one_more(seed: int) -> None:
    """Against another minimiser, of the likelihood as it is defined."""
    probabilities, right = drawn(60, seed, 1.3, 0.5)
    more_right = probabilities / probabilities.sum() / 2 + 1 / 120
    more_wrong = (1 - probabilities) / (1 - probabilities).sum() / 2 + 1 / 120

    def loss(curve: np.ndarray) -> float:
        confident = 1 / (1 + np.exp(-(curve[0] * np.log(probabilities / (1 - probabilities)) + curve[1])))
        return float(-((right + more_right) @ np.log(confident) + (~right + more_wrong) @ np.log(1 - confident)))

    expected = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}).x
    found = calibrate(probabilities, right, 0.9)
    assert [found.slope, found.intercept] == pytest.approx(expected.tolist(), abs=1e-4)


def test_readings_that_are_all_right_or_all_wrong_or_parted_still_give_a_rising_curve() -> None:
    probabilities, _ = drawn(100, 4, 1.0, 0.0)
    for right in (np.ones(100, bool), np.zeros(100, bool), probabilities > 0.5):
        found = calibrate(probabilities, right, 0.9)
        confidences = found.confidences(np.sort(probabilities))
        assert (np.diff(confidences) > 0).all()
        # As many of them as the rule of succession expects are right.
        assert found.confidences(probabilities).mean() == pytest.approx((right.sum() + 1) / 102, abs=0.01)


@pytest.mark.parametrize("probabilities", [[0.5] * 8, [1.0] * 8, [0.0] * 8])
def test_probabilities_that_tell_nothing_give_every_text_the_share_that_is_right(probabilities: list[float]) -> None:
    right = np.arange(8) < 6
    found = calibrate(np.array(probabilities), right, 0.9)
    assert found.confidences([0.01, 0.99]).tolist() == pytest.approx([0.7, 0.7], abs=1e-4)  # (6 + 1) of (8 + 2)


def test_where_the_wrong_texts_are_the_more_probable_ones_no_confidence_falls() -> None:
    probabilities = np.linspace(0.1, 0.9, 50)
    found = calibrate(probabilities, probabilities < 0.5, 0.9)
    assert found.slope > 0
    assert found.confidences(probabilities).tolist() == pytest.approx([0.5] * 50, abs=1e-4)


def test_a_bin_s_mean_and_share_are_scikit_learn_s() -> None:
    confidences, right = drawn(1000, 5, 1.0, 0.0)
    shares, means = calibration_curve(right, confidences, n_bins=BINS, strategy="quantile")
    bins = reliability(confidences, right)
    assert [each.right for each in bins] == pytest.approx(shares.tolist())
    assert [each.confidence for each in bins] == pytest.approx(means.tolist())
    assert {each.readings for each in bins} <= {66, 67}


def test_the_calibration_error_of_known_bins_is_worked_out_by_hand() -> None:
    # 15 groups of 4 texts, three of four right: |confidence - 0.75| of each.
    levels = [(i + 1) / 16 for i in range(15)]
    confidences = np.repeat(levels, 4)
    right = np.tile([True, True, True, False], 15)
    expected = sum(abs(level - 0.75) for level in levels) / 15
    assert expected_calibration_error(confidences, right) == pytest.approx(expected)


def test_equal_confidences_stand_in_one_bin_whatever_their_order() -> None:
    confidences = np.array([1.0] * 90 + [0.2] * 10)
    right = np.array([True] * 45 + [False] * 45 + [True, False] * 5)
    mixed = np.random.default_rng(0).permutation(100)
    for order in (np.arange(100), mixed):
        assert expected_calibration_error(confidences[order], right[order]) == pytest.approx(0.9 * 0.5 + 0.1 * 0.3)


def brute_force_threshold(confidences: list[float], right: list[bool], precision: float) -> float:
    """Try every confidence as the threshold, the lowest first."""
    for threshold in sorted(confidences):
        accepted = [r for c, r in zip(confidences, right, strict=True) if c >= threshold]
        if accepted.count(True) >= precision * len(accepted):
            return threshold
    return 1.0


@pytest.mark.parametrize("precision", [0.5, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_the_threshold_is_the_lowest_that_keeps_the_precision_with_ties_too(seed: int, precision: float) -> None:
    random = np.random.default_rng(seed)
    confidences = random.integers(1, 9, 40) / 10  # many are equal
    right = random.random(40) < confidences
    expected = brute_force_threshold(confidences.tolist(), right.tolist(), precision)
    assert threshold_for(confidences, right, precision) == expected


def test_a_precision_is_kept_exactly_and_a_wrong_text_as_sure_as_the_right_ones_leaves_none() -> None:
    thousand = np.linspace(0.5, 0.9, 1000)
    one_wrong = np.arange(1000) != 400
    assert threshold_for(thousand, one_wrong, 0.999) == 0.5  # 999 of 1000
    assert threshold_for(thousand[1:], one_wrong[1:], 0.999) == thousand[401]  # 998 of 999 are too few
    assert threshold_for(np.array([0.9, 0.9, 0.2]), np.array([True, False, True]), 0.999) == 1.0


def test_risk_and_coverage_are_counted_at_every_threshold() -> None:
    curve = risk_coverage(np.array([0.2, 0.9, 0.5, 0.9]), np.array([True, True, False, False]))
    assert curve.thresholds.tolist() == [0.9, 0.5, 0.2]
    assert curve.accepted.tolist() == [2, 3, 4]
    assert curve.wrong.tolist() == [1, 2, 2]


@pytest.mark.parametrize("n", [1, 10, 300, 843])
def test_no_error_in_n_proves_at_most_three_in_n(n: int) -> None:
    assert (1 - error_bound(0, n)) ** n == pytest.approx(0.05)  # so rarely do n texts show none, were there so many
    assert error_bound(0, n) <= 3 / n


def test_errors_leave_more_possible_by_the_binomial_sum() -> None:
    bound = error_bound(2, 50)
    assert sum(math.comb(50, k) * bound**k * (1 - bound) ** (50 - k) for k in range(3)) == pytest.approx(0.05)
    assert error_bound(0, 0) == error_bound(7, 7) == 1.0
    assert all(a < b for a, b in pairwise(error_bound(k, 7) for k in range(7)))


def test_figures_are_worked_out_by_hand() -> None:
    figures = ConfidenceFigures.of(
        read((True, 0.9, 0.8, True), (True, 0.6, 0.5, True), (False, 0.7, 0.6, True), (False, 0.1, 0.2, False))
    )
    assert (figures.readings, figures.wrong, figures.accepted, figures.accepted_wrong) == (4, 2, 3, 1)
    assert figures.coverage == 0.75
    assert figures.brier == pytest.approx((0.2**2 + 0.5**2 + 0.6**2 + 0.2**2) / 4)
    assert figures.brier_raw == pytest.approx((0.1**2 + 0.4**2 + 0.7**2 + 0.1**2) / 4)
    assert figures.auc == 3 / 4  # of the four pairs of a right and a wrong text, one is in the wrong order
    assert figures.ece == pytest.approx((0.2 + 0.5 + 0.6 + 0.2) / 4)  # each text has a bin of its own
    assert figures.ece_raw == pytest.approx((0.1 + 0.4 + 0.7 + 0.1) / 4)
    assert figures.error_bound == error_bound(1, 3)


def test_without_a_threshold_or_without_mistakes_some_figures_are_not_there() -> None:
    figures = ConfidenceFigures.of(read((True, 0.9, 0.9, None), (True, 0.8, 0.8, None))).as_dict()
    names = ("accepted", "accepted_wrong", "error_bound", "coverage", "auc")
    assert [figures[name] for name in names] == [None] * 5


def test_nothing_calibrates_nothing() -> None:
    nothing = np.array([])
    for work in (lambda: calibrate(nothing, nothing.astype(bool), 0.9), lambda: reliability(nothing, nothing)):
        with pytest.raises(ValueError, match="there are no readings"):
            work()
    with pytest.raises(ValueError, match="2 confidences, but 1 readings"):
        threshold_for(np.array([0.1, 0.2]), np.array([True]), 0.9)


def test_a_calibration_s_threshold_accepts_what_was_held_out_with_the_precision_asked_for() -> None:
    probabilities, right = drawn(500, 6, 1.5, 0.0)
    found = calibrate(probabilities, right, 0.95)
    accepted = found.confidences(probabilities) >= found.threshold
    assert right[accepted].mean() >= 0.95
    assert Calibration.of(found.as_dict()) == found
