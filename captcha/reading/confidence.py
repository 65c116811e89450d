"""The probability of a text → how often such a text is right: a model's calibration, and which texts it accepts."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CERTAIN = 1e-6
"""Probabilities within it of 0 and of 1 count as that far away: a model's float32 tells no more of them apart."""

MOST = 30.0
"""Natural log-odds that no confidence exceeds: it stays below 1, which no number of readings can prove."""


UNCALIBRATED = "has no calibration, as earlier versions made none: confidence is the raw probability of the text"
"""What is said of such a model."""


def log_odds(probabilities: ArrayLike) -> Floats:
    """Return ln(p / (1 - p)) of each probability, within those of CERTAIN."""
    kept = np.clip(np.asarray(probabilities, np.float64), CERTAIN, 1 - CERTAIN)
    return np.asarray(np.log(kept) - np.log1p(-kept))


@dataclass(frozen=True)
class Calibration:
    """Maps the exact probability of a text to the share of such texts that are right, and says which are accepted.

    The map is Platt's, a logistic curve over the probability's log-odds (1999): it never falls, so it changes no order.

    Raises:
        ValueError: the slope is not above 0, or a number is not finite or no probability.
    """

    slope: float
    intercept: float
    threshold: float
    """The least confidence of a text that is accepted."""

    def __post_init__(self) -> None:
        if not (0 < self.slope < math.inf and math.isfinite(self.intercept) and 0 <= self.threshold <= 1):
            raise ValueError(f"{self} maps no probabilities")

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Self:
        """Return what `saved` holds. Raises KeyError, TypeError or ValueError where that is no calibration."""
        return cls(*(float(saved[name]) for name in ("slope", "intercept", "threshold")))

    def as_dict(self) -> dict[str, float]:
        """Return what `of` takes."""
        return asdict(self)

    def confidences(self, probabilities: ArrayLike) -> Floats:
        """Return for each exact probability how often a text that has it is right."""
        odds = np.clip(self.slope * log_odds(probabilities) + self.intercept, -MOST, MOST)
        return np.asarray(1 / (1 + np.exp(-odds)))
