import math
from fractions import Fraction

import numpy as np
import pytest

from captcha.reading.confidence import Calibration, log_odds


@pytest.mark.parametrize("slope", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("intercept", [-2.0, 0.0, 1.5])
def test_the_odds_are_raised_to_the_slope_and_multiplied(slope: float, intercept: float) -> None:
    """A logistic curve over log-odds, written without logarithms: odds · e^intercept."""
    probabilities = [0.001, 0.2, 0.5, 0.9, 0.9999]
    odds = [(p / (1 - p)) ** slope * math.exp(intercept) for p in probabilities]
    expected = [each / (1 + each) for each in odds]
    assert Calibration(slope, intercept, 0.5).confidences(probabilities).tolist() == pytest.approx(expected, rel=1e-9)


def test_log_odds_keep_their_digits_near_one() -> None:
    probability = 0.99999
    exact = Fraction(probability) / (1 - Fraction(probability))
    assert log_odds(probability) == pytest.approx(math.log(exact), rel=1e-14)


def test_confidences_never_fall_and_stay_between_0_and_1_whatever_the_curve() -> None:
    probabilities = np.concatenate([[0.0], np.geomspace(1e-300, 0.5, 400), 1 - np.geomspace(0.4, 1e-16, 400), [1.0]])
    for calibration in (Calibration(1e-6, 0.0, 0.5), Calibration(50.0, 300.0, 0.5), Calibration(7.0, -80.0, 0.5)):
        confidences = calibration.confidences(probabilities)
        assert (np.diff(confidences) >= 0).all()
        assert confidences.min() > 0
        assert confidences.max() < 1


@pytest.mark.parametrize(
    ("slope", "intercept", "threshold"),
    [(0.0, 0.0, 0.5), (-1.0, 0.0, 0.5), (math.nan, 0.0, 0.5), (math.inf, 0.0, 0.5), (1.0, math.nan, 0.5)]
    + [(1.0, 0.0, threshold) for threshold in (-0.1, 1.1, math.nan)],
)
def test_numbers_that_map_nothing_are_refused(slope: float, intercept: float, threshold: float) -> None:
    with pytest.raises(ValueError, match="maps no probabilities"):
        Calibration(slope, intercept, threshold)
    with pytest.raises(ValueError, match="maps no probabilities"):
        Calibration.of({"slope": slope, "intercept": intercept, "threshold": threshold})
