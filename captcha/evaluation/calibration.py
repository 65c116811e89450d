"""How well confidences say what is right: the calibration fitted on held-out readings, its figures, and abstaining."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from captcha.evaluation.results import Evaluation
from captcha.reading.confidence import Calibration, log_odds

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

BINS = 15
"""Bins of a reliability diagram, as in Guo et al., 2017, arXiv:1706.04599, but each with as many readings."""

LEAST_SLOPE = 1e-6
"""So flat a curve calls all texts equally likely, and still never falls."""


def outcomes(*evaluations: Evaluation) -> tuple[Floats, Flags]:
    """Return the exact probability of each text read and whether it is right, (n,) both, of all evaluations pooled."""
    pairs = [
        (reading.probability, reading.text == sample.text)
        for evaluation in evaluations
        for sample, reading in zip(evaluation.samples, evaluation.readings, strict=True)
    ]
    return np.array([p for p, _ in pairs], np.float64), np.array([right for _, right in pairs], np.bool_)


def calibrate(probabilities: Floats, right: Flags, precision: float) -> Calibration:
    """Return the calibration of held-out readings, with the threshold whose accepted ones have this precision.

    Platt's logistic curve over the probability's log-odds, by maximum likelihood. As in the rule of succession, one
    right reading and one wrong one are added. Half of each is spread evenly over all readings, as Platt's smoothed
    targets do, so that the curve stays finite where probability parts the right from the wrong; the other half as they
    are probable and improbable, so that it rises where all held-out readings are right, too. Where the wrong texts are
    the more probable ones, it is flat: every text gets the share that is right.

    Raises:
        ValueError: there are no readings, or not as many of one as of the other.
    """
    _check(probabilities, right)
    from sklearn.linear_model import LogisticRegression  # with it comes SciPy, a second: not before it is needed

    odds = log_odds(probabilities)
    likely = 1 / (1 + np.exp(-odds))
    added = [(share / share.sum() + 1 / len(right)) / 2 for share in (likely, 1 - likely)]
    weights = np.concatenate([right + added[0], ~right + added[1]])
    # So large a C bends nothing: it keeps the slope at 0 where all probabilities are equal.
    curve = LogisticRegression(C=1e6, solver="newton-cholesky", tol=1e-9, max_iter=1000)
    curve.fit(np.tile(odds, 2)[:, None], np.repeat([1, 0], len(right)), sample_weight=weights)
    slope, intercept = float(curve.coef_[0, 0]), float(curve.intercept_[0])
    if slope < LEAST_SLOPE:
        slope, intercept = LEAST_SLOPE, float(log_odds((right.sum() + 1) / (len(right) + 2)))
    fitted = Calibration(slope, intercept, 0.0)
    return Calibration(slope, intercept, threshold_for(fitted.confidences(probabilities), right, precision))


def expected_calibration_error(confidences: Floats, right: Flags) -> float:
    """Return the mean distance between confidence and share right over `reliability`'s bins, weighted by readings."""
    bins = reliability(confidences, right)
    return sum(abs(each.confidence - each.right) * each.readings for each in bins) / len(right)


@dataclass(frozen=True)
class Bin:
    """The readings of similar confidence: its mean, the share of them that is right, and how many they are."""

    confidence: float
    right: float
    readings: int


def reliability(confidences: Floats, right: Flags) -> list[Bin]:
    """Return BINS bins between the quantiles of the confidences; fewer where equal ones would fall into several.

    Most confidences are near 1: between bins of equal width, nearly all readings would fall into the last.
    """
    _check(confidences, right)
    edges = np.quantile(confidences, np.linspace(0, 1, BINS + 1)[1:-1])
    places = np.searchsorted(edges, confidences)
    members = (places == place for place in np.unique(places))
    return [Bin(float(confidences[m].mean()), float(right[m].mean()), int(m.sum())) for m in members]


@dataclass(frozen=True)
class RiskCoverage:
    """What is accepted at each threshold, from the highest confidence down; arrays of one length."""

    thresholds: Floats
    accepted: NDArray[np.int64]
    """How many readings have at least that confidence."""
    wrong: NDArray[np.int64]
    """How many of these are wrong."""


def risk_coverage(confidences: Floats, right: Flags) -> RiskCoverage:
    """Return what each confidence accepts as a threshold; equal ones are accepted together."""
    _check(confidences, right)
    thresholds, groups = np.unique(-confidences, return_inverse=True)
    accepted = np.bincount(groups).cumsum()
    wrong = np.bincount(groups, weights=~right).cumsum().astype(np.int64)
    return RiskCoverage(-thresholds, accepted, wrong)


def threshold_for(confidences: Floats, right: Flags, precision: float) -> float:
    """Return the lowest of the confidences that accepts readings of at least this share of right ones.

    1 where none does, which no calibrated confidence reaches.
    """
    curve = risk_coverage(confidences, right)
    enough = np.flatnonzero((curve.accepted - curve.wrong) / curve.accepted >= precision)
    return float(curve.thresholds[enough[-1]]) if len(enough) else 1.0


def error_bound(wrong: int, n: int) -> float:
    """Return the share of errors that `wrong` among `n` leave possible: the exact one-sided 95 % bound.

    Clopper and Pearson, 1934, doi:10.1093/biomet/26.4.404; without an error it is at most 3 / n. 1 for no readings.
    """
    from scipy.stats import beta

    return float(beta.ppf(0.95, wrong + 1, n - wrong)) if wrong < n else 1.0


@dataclass(frozen=True)
class ConfidenceFigures:
    """How well the confidences of some readings say what is right, beside the raw probabilities."""

    readings: int
    wrong: int
    ece: float
    ece_raw: float
    brier: float
    brier_raw: float
    auc: float | None
    """Area under the ROC curve of right against wrong, which calibration does not change; None without either."""
    accepted: int | None
    """None where the model has no threshold."""
    accepted_wrong: int | None
    error_bound: float | None
    """Share of errors among what is accepted that so many readings leave possible."""

    @classmethod
    def of(cls, evaluation: Evaluation) -> "ConfidenceFigures":
        """Return the figures of an evaluation, which must have readings."""
        from sklearn.metrics import brier_score_loss, roc_auc_score

        probabilities, right = outcomes(evaluation)
        confidences = np.array([reading.confidence for reading in evaluation.readings], np.float64)
        flags: Sequence[bool | None] = [reading.accepted for reading in evaluation.readings]
        accepted = accepted_wrong = bound = None
        if None not in flags:
            accepted = sum(map(bool, flags))
            accepted_wrong = int((np.array(flags, np.bool_) & ~right).sum())
            bound = error_bound(accepted_wrong, accepted)
        return cls(
            readings=len(right),
            wrong=int((~right).sum()),
            ece=expected_calibration_error(confidences, right),
            ece_raw=expected_calibration_error(probabilities, right),
            brier=float(brier_score_loss(right, confidences)),
            brier_raw=float(brier_score_loss(right, probabilities)),
            auc=float(roc_auc_score(right, confidences)) if 0 < right.sum() < len(right) else None,
            accepted=accepted,
            accepted_wrong=accepted_wrong,
            error_bound=bound,
        )

    @property
    def coverage(self) -> float | None:
        """Share of the readings that is accepted."""
        return None if self.accepted is None else self.accepted / self.readings

    def as_dict(self) -> dict[str, float | None]:
        """Return all figures, as JSON holds them."""
        return {**asdict(self), "coverage": self.coverage}

    def drawn(self) -> dict[str, float]:
        """Return those that MLflow draws, by the names of their metrics."""
        known = self.as_dict()
        names = ("ece", "ece_raw", "brier", "brier_raw", "auc", "coverage")
        return {f"calibration/{name}": each for name in names if (each := known[name]) is not None}


def _check(confidences: Floats, right: Flags) -> None:
    if len(confidences) != len(right):
        raise ValueError(f"{len(confidences)} confidences, but {len(right)} readings")
    if not len(right):
        raise ValueError("there are no readings to calibrate by")
