"""Two engines of one model, such as fp32 and int8: whether they read the same, and how long each takes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from captcha.data.samples import Sample
from captcha.evaluation.results import Evaluation
from captcha.reading.images import resize_to_height, stack
from captcha.reading.recognizer import Recognizer

LOG_PROBS_TOLERANCE = 1e-4
"""How far two engines of one model may lie apart in a log-probability; where that is below -1, relative to it."""


DIFFERING = 0.01
"""Share of validation texts in which int8 may differ from fp32 and be served, but always one text."""

TIMED_IMAGES, TIMED_ROUNDS = 16, 5


@dataclass(frozen=True)
class EnginesCompared:
    """How fp32 and int8 read the same images."""

    images: int
    differing: int
    """Texts that are not the same."""
    fp32_right: int
    int8_right: int
    confidence_difference: float
    """The largest difference between the two confidences of an image."""

    @classmethod
    def of(cls, fp32: Evaluation, int8: Evaluation) -> "EnginesCompared":
        """Return how two evaluations of the same samples differ."""
        pairs = list(zip(fp32.readings, int8.readings, strict=True))
        return cls(
            images=len(pairs),
            differing=sum(a.text != b.text for a, b in pairs),
            fp32_right=len(pairs) - fp32.wrong,
            int8_right=len(pairs) - int8.wrong,
            confidence_difference=max((abs(a.confidence - b.confidence) for a, b in pairs), default=0.0),
        )

    @property
    def alike(self) -> bool:
        """Whether the texts are the same but for DIFFERING."""
        return self.differing <= max(1, DIFFERING * self.images)


def milliseconds(engines: Sequence[Recognizer], samples: Sequence[Sample]) -> list[float]:
    """Return how long each engine's model alone takes for an image, in ms, timed in turn on up to 16 of the samples.

    The median of 5 rounds, after one that is not counted.
    """
    images = [resize_to_height(sample.image, engines[0].height) for sample in samples[:TIMED_IMAGES]]
    batch = stack(images)
    seconds: list[list[float]] = [[] for _ in engines]
    for _ in range(TIMED_ROUNDS + 1):
        for engine, taken in zip(engines, seconds, strict=True):
            started = time.perf_counter()
            engine.log_probs_of(batch)
            taken.append(time.perf_counter() - started)
    return [1000 * median(taken[1:]) / len(batch) for taken in seconds]


def disagreement(first: Recognizer, second: Recognizer, samples: Sequence[Sample]) -> str | None:
    """Return in one line how two engines of one model differ on the samples, None where they agree.

    They agree when they read the same texts and no log-probability differs by more than LOG_PROBS_TOLERANCE: by
    itself down to -1, relative to it below, where single precision has no more digits.
    """
    differing = 0
    batches = (engine.log_probs(sample.image for sample in samples) for engine in (first, second))
    for (_, a), (_, b) in zip(*batches, strict=True):
        largest = float((np.abs(a - b) / np.maximum(1, np.abs(a))).max())
        if not largest <= LOG_PROBS_TOLERANCE:
            return f"log-probabilities differ by {largest:.2g}, more than {LOG_PROBS_TOLERANCE:g}"
        differing += sum(x.text != y.text for x, y in zip(first.decode(a), second.decode(b), strict=True))
    return f"{differing} of {len(samples)} texts differ" if differing else None
