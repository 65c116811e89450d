"""What a recogniser reads of labelled images, and the metrics that follow."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

from captcha.data.samples import Sample
from captcha.evaluation.metrics import character_error_rate, exact_match, mcnemar, wilson_interval
from captcha.reading.constraints import Constraints
from captcha.reading.ctc import text_log_probability
from captcha.reading.recognizer import Reading, Recognizer


@dataclass(frozen=True)
class Evaluation:
    """The readings of some samples beside their labels."""

    samples: Sequence[Sample]
    readings: Sequence[Reading]
    loss: float
    """CTC loss per image: the mean of -log P(label), over the labels that the vocabulary can spell."""
    seen: "Evaluation | None" = None
    """The readings of images that were put apart, since the model's training saw them."""
    label_log_probabilities: Sequence[float] = ()
    """log P(label) of each sample, -inf where the model cannot spell it; () where they were not asked for."""

    @classmethod
    def of(cls, samples: Sequence[Sample], readings: Sequence[Reading], labels: Sequence[float]) -> Self:
        """Return the readings of samples, with the log P(label) of each, from which the loss follows."""
        finite = [-each for each in labels if math.isfinite(each)]
        loss = sum(finite) / len(finite) if finite else math.nan
        return cls(samples, readings, loss, label_log_probabilities=labels)

    @property
    def predictions(self) -> list[str]:
        """The texts read."""
        return [reading.text for reading in self.readings]

    @property
    def references(self) -> list[str]:
        """The labels."""
        return [sample.text for sample in self.samples]

    @property
    def exact_match(self) -> float:
        """Share of the images whose whole text is right."""
        return exact_match(self.predictions, self.references)

    @property
    def cer(self) -> float:
        """Character error rate: edits over characters, in total."""
        return character_error_rate(self.predictions, self.references)

    @property
    def wrong(self) -> int:
        """How many images are not read exactly."""
        return sum(p != r for p, r in zip(self.predictions, self.references, strict=True))

    def metrics(self) -> dict[str, float]:
        """Return exact match with its 95 % Wilson interval, character error rate, count and mistakes."""
        count = len(self.samples)
        low, high = wilson_interval(count - self.wrong, count)
        return {
            "exact_match": self.exact_match,
            "exact_match_low": low,
            "exact_match_high": high,
            "cer": self.cer,
            "n": count,
            "wrong": self.wrong,
        }

    def mistakes_first(self) -> "Evaluation":
        """Return the same readings in the order in which a person looks at them: what is wrong, then what is doubtful.

        Of the wrong ones the most confident come first: they show doubtful labels, and which characters the model
        really takes for each other. Of the right ones the least confident come first: they were nearly wrong.
        """

        def rank(i: int) -> tuple[bool, float]:
            reading = self.readings[i]
            right = reading.text == self.samples[i].text
            return right, reading.confidence if right else -reading.confidence

        return replace(self._at(sorted(range(len(self.samples)), key=rank)), loss=self.loss)

    def with_repeats(self) -> "Evaluation":
        """Return the part whose labels have the same character twice in a row; its loss is not known (nan)."""
        return self._part(any(a == b for a, b in pairwise(text)) for text in self.references)

    def put_apart(self, seen: Sequence[bool]) -> "Evaluation":
        """Return the images that are not marked; those that are become its `seen`. Both losses are not known (nan)."""
        if not any(seen):
            return self
        return replace(self._part(not mark for mark in seen), seen=self._part(seen))

    def metrics_of_all(self) -> dict[str, float]:
        """Return the metrics of all images, those put apart among them."""
        if self.seen is None:
            return self.metrics()
        samples = [*self.samples, *self.seen.samples]
        return Evaluation(samples, [*self.readings, *self.seen.readings], math.nan).metrics()

    def _part(self, kept: Iterable[bool]) -> "Evaluation":
        return self._at([i for i, keep in enumerate(kept) if keep])

    def _at(self, places: Sequence[int]) -> "Evaluation":
        """Return the samples at these places; their loss is not known (nan)."""
        labels = [self.label_log_probabilities[i] for i in places] if self.label_log_probabilities else ()
        samples, readings = [self.samples[i] for i in places], [self.readings[i] for i in places]
        return Evaluation(samples, readings, math.nan, label_log_probabilities=labels)


@dataclass(frozen=True)
class Comparison:
    """What two models read of the same images, in the same order."""

    first: Evaluation
    second: Evaluation

    @property
    def only_first(self) -> list[int]:
        """The places of the images that the first reads right and the second wrong."""
        return [i for i, right in enumerate(self._right()) if right == (True, False)]

    @property
    def only_second(self) -> list[int]:
        """The places of the images that the second reads right and the first wrong."""
        return [i for i, right in enumerate(self._right()) if right == (False, True)]

    @property
    def both(self) -> int:
        """How many images both read right."""
        return self._right().count((True, True))

    @property
    def neither(self) -> int:
        """How many images both read wrong."""
        return self._right().count((False, False))

    @property
    def p(self) -> float:
        """The exact McNemar p: how probable such a difference is if the two are equally good."""
        return mcnemar(len(self.only_first), len(self.only_second))

    def _right(self) -> list[tuple[bool, bool]]:
        references = self.first.references
        texts = zip(self.first.predictions, self.second.predictions, references, strict=True)
        return [(first == reference, second == reference) for first, second, reference in texts]


def evaluate(recognizer: Recognizer, samples: Sequence[Sample], constraints: Constraints | None = None) -> Evaluation:
    """Return what is read of the samples, as served by default: greedily, but by a beam where there are constraints.

    An image is loaded when it is needed.
    """
    vocabulary = recognizer.vocabulary
    readings: dict[int, Reading] = {}
    labels = [-math.inf] * len(samples)
    for members, log_probs in recognizer.log_probs(sample.image for sample in samples):
        readings |= zip(members, recognizer.decode(log_probs, constraints=constraints), strict=True)
        spelled = [n for n, i in enumerate(members) if not vocabulary.missing(samples[i].text)]
        targets = [vocabulary.encode(samples[members[n]].text) for n in spelled]
        for n, log_probability in zip(spelled, text_log_probability(log_probs[:, spelled], targets), strict=True):
            labels[members[n]] = float(log_probability)
    return Evaluation.of(samples, [readings[i] for i in range(len(samples))], labels)
