"""What a cross-validation's models read of the images that each has not learned from: figures, and doubtful labels."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from captcha.data.samples import Sample
from captcha.evaluation.calibration import Flags, Floats, calibrate
from captcha.evaluation.metrics import edit_distance, wilson_interval
from captcha.evaluation.results import Evaluation
from captcha.reading.recognizer import Reading

LEAST = -30.0
"""log P of a label that a model cannot spell, or gives less: a model gives no class of a frame much less than e^-30."""

SURE = math.log(100)
"""Score from which on a proposed text may take the place of a label unseen."""


@dataclass(frozen=True)
class OutOfFold:
    """The reading of an image by a model that has learned from other labels alone, in fold `fold` of a seed."""

    file: str
    label: str
    text: str
    probability: float
    """P(text), exact."""
    confidence: float
    """How often a text of this probability is right: as its model says or, after `calibrated`, the other folds."""
    accepted: bool | None
    """Whether the confidence reaches the threshold of whoever said it; None where there is none."""
    label_log_probability: float
    """log P(label), exact; -inf where the model cannot spell the label."""
    fold: int
    seed: int

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Return the reading that JSON holds; as earlier versions wrote it, the confidence is P(text)."""
        known = {"probability": row["confidence"], "accepted": None} | dict(row)
        if known["label_log_probability"] is None:
            known["label_log_probability"] = -math.inf
        return cls(**{each.name: known[each.name] for each in fields(cls)})

    @property
    def right(self) -> bool:
        """Whether the text is the label."""
        return self.text == self.label


def out_of_fold(evaluation: Evaluation, fold: int, seed: int) -> list[OutOfFold]:
    """Return the readings of a fold's test, which `evaluate` made."""
    return [
        OutOfFold(
            file=sample.name,
            label=sample.text,
            text=reading.text,
            probability=reading.probability,
            confidence=reading.confidence,
            accepted=reading.accepted,
            label_log_probability=log_probability,
            fold=fold,
            seed=seed,
        )
        for sample, reading, log_probability in zip(
            evaluation.samples, evaluation.readings, evaluation.label_log_probabilities, strict=True
        )
    ]


def outcomes(readings: Iterable[OutOfFold]) -> tuple[Floats, Flags]:
    """Return the exact probability of each text and whether it is right, (n,) both."""
    readings = list(readings)
    return np.array([each.probability for each in readings]), np.array([each.right for each in readings], np.bool_)


def calibrated(readings: Sequence[OutOfFold], precision: float) -> list[OutOfFold]:
    """Return the readings with confidences, and accepted, by what all other folds of their seed have read.

    `precision` is the share of right texts among those accepted. A fold's own readings have no part in its curve.
    """
    curves = {
        (seed, fold): calibrate(*outcomes(r for r in readings if r.seed == seed and r.fold != fold), precision)
        for seed, fold in {(each.seed, each.fold) for each in readings}
    }

    def mapped(each: OutOfFold) -> OutOfFold:
        curve = curves[each.seed, each.fold]
        confidence = float(curve.confidences(each.probability))
        accepted = bool(each.text) and confidence >= curve.threshold
        return replace(each, confidence=confidence, accepted=accepted)

    return [mapped(each) for each in readings]


def pictured(readings: Iterable[OutOfFold], samples: Mapping[str, Sample]) -> Evaluation:
    """Return the readings beside their images, which have their files' names; the loss is not known (nan)."""
    readings = list(readings)
    beside = [samples[each.file] for each in readings]
    read = [Reading(each.text, each.confidence, [], each.probability, each.accepted) for each in readings]
    return Evaluation(beside, read, math.nan)


@dataclass(frozen=True)
class OutOfFoldFigures:
    """How well all images are read: by the models of one seed, or by those of all, as the mean over the seeds.

    The intervals are 95 % Wilson intervals of as many images, and characters, as one seed has: other models of the
    same images are no other images. Characters of one text are wrong together, so that theirs is a little too narrow.
    """

    seed: int | None
    """None for the mean."""
    right: float
    n: int
    exact_match_low: float
    exact_match_high: float
    edits: float
    """Characters to insert, delete or replace."""
    characters: int
    """Of all labels."""
    cer_low: float
    cer_high: float

    @property
    def exact_match(self) -> float:
        """Share of the images whose whole text is right."""
        return self.right / self.n

    @property
    def cer(self) -> float:
        """Character error rate: edits over characters."""
        return self.edits / self.characters


def figures(readings: Sequence[OutOfFold]) -> list[OutOfFoldFigures]:
    """Return the figures of each seed, and after those of several their mean."""
    by_seed: dict[int, list[OutOfFold]] = {}
    for each in readings:
        by_seed.setdefault(each.seed, []).append(each)
    rows = [_figures(seed, members, 1) for seed, members in sorted(by_seed.items())]
    return rows if len(rows) == 1 else [*rows, _figures(None, readings, len(rows))]


def _figures(seed: int | None, readings: Sequence[OutOfFold], seeds: int) -> OutOfFoldFigures:
    n, characters = len(readings) // seeds, sum(len(each.label) for each in readings) // seeds
    right = sum(each.right for each in readings) / seeds
    edits = sum(edit_distance(each.text, each.label) for each in readings) / seeds
    match, rate = wilson_interval(round(right), n), wilson_interval(min(round(edits), characters), characters)
    return OutOfFoldFigures(seed, right, n, *match, edits, characters, *rate)


@dataclass(frozen=True)
class Suspect:
    """An image whose label is probably wrong."""

    file: str
    label: str
    proposed: str
    """What most of the models read, each weighed by its confidence; never the label."""
    score: float
    sure: bool
    """Whether all seeds read the text proposed, which is not empty, and the score is SURE or more."""


def suspects(readings: Sequence[OutOfFold]) -> list[Suspect]:
    """Return the images that a seed reads otherwise than they are labelled, the most probably wrong label first.

    Their score is the mean over the seeds of confidence · (log P(text) - log P(label)), in nats: how much more probable
    the reading is than the label, as far as the model can be trusted, which `calibrated` readings say best. A seed that
    reads the label adds 0. A label with a character that no other label has cannot be spelled by its fold's model, and
    has a high score, right or wrong.
    """
    by_file: dict[str, list[OutOfFold]] = {}
    for each in readings:
        by_file.setdefault(each.file, []).append(each)
    found = [_suspect(members) for members in by_file.values() if not all(each.right for each in members)]
    return sorted(found, key=lambda each: (-each.score, each.file))


def _suspect(readings: Sequence[OutOfFold]) -> Suspect:
    """Return what the readings of one image say, at least one of which is not its label."""
    votes: dict[str, float] = {}
    for each in readings:
        if not each.right:
            votes[each.text] = votes.get(each.text, 0.0) + each.confidence
    proposed = max(votes, key=lambda text: votes[text])
    score = sum(map(_doubt, readings)) / len(readings)
    agreed = all(each.text == proposed for each in readings)
    return Suspect(readings[0].file, readings[0].label, proposed, score, agreed and bool(proposed) and score >= SURE)


def _doubt(reading: OutOfFold) -> float:
    if reading.right or not reading.probability:
        return 0.0
    return reading.confidence * (math.log(reading.probability) - max(reading.label_log_probability, LEAST))
