import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from captcha.data.samples import Sample
from captcha.evaluation.engines import LOG_PROBS_TOLERANCE, EnginesCompared, disagreement, milliseconds
from captcha.evaluation.results import Evaluation
from captcha.reading.engine import RecognizerError
from captcha.reading.recognizer import Reading, Recognizer
from captcha.reading.vocabulary import Vocabulary

LogProbs = NDArray[np.float32]
HEIGHT = 16


def stand_in(images: NDArray[np.uint8]) -> LogProbs:
    """Two frames of (blank, a, b): "ab" in dark images, "" in others."""
    dark, light = [[0.1, 0.8, 0.1], [0.2, 0.1, 0.7]], [[0.6, 0.2, 0.2], [0.8, 0.1, 0.1]]
    frames = [light if image.max() else dark for image in images]
    return np.log(np.array(frames, np.float32)).transpose(1, 0, 2)


def sample(text: str, brightness: int, width: int = 16) -> Sample:
    return Sample(f"{text}.png", text, np.full((HEIGHT, width, 3), brightness, np.uint8))


def recognizer(log_probs_of: Callable[[NDArray[np.uint8]], LogProbs] = stand_in) -> Recognizer:
    return Recognizer(log_probs_of, Vocabulary("ab"), HEIGHT)


def test_an_engine_agrees_with_itself() -> None:
    assert disagreement(recognizer(), recognizer(), [sample("ab", 0), sample("", 200, width=40)]) is None


def off_by(amount: float) -> Recognizer:
    """The stand-in, one log-probability of its last image off by that much, relative to it as it is below -1."""

    def log_probs_of(images: NDArray[np.uint8]) -> LogProbs:
        log_probs = stand_in(images)
        log_probs[1, -1, 2] += amount * max(1, abs(log_probs[1, -1, 2]))
        return log_probs

    return recognizer(log_probs_of)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_single_log_probability_beyond_the_tolerance_is_a_disagreement(sign: int) -> None:
    samples = [sample("ab", 0), sample("a", 100), sample("", 200, width=40)]
    assert disagreement(recognizer(), off_by(sign * 0.5 * LOG_PROBS_TOLERANCE), samples) is None
    line = disagreement(recognizer(), off_by(sign * 2 * LOG_PROBS_TOLERANCE), samples)
    assert line == "log-probabilities differ by 0.0002, more than 0.0001"


def test_the_tolerance_is_the_same_however_large_the_logits() -> None:
    def engine(third: float, raised: float = 0.0) -> Recognizer:
        """The second of three log-probabilities, about -1.3, is so much higher than it should be."""
        logits = np.array([0.0, -1.0, third], np.float32)
        frame = logits - np.log(np.exp(logits).sum()) + np.array([0.0, raised, 0.0], np.float32)
        return recognizer(lambda images: np.tile(frame, (2, len(images), 1)))

    samples = [sample("", 0)]
    for third in (-5, -30):
        assert disagreement(engine(third), engine(third, raised=0.5e-4), samples) is None
        assert disagreement(engine(third), engine(third, raised=2.5e-4), samples) is not None


def test_other_texts_are_a_disagreement_even_within_the_tolerance() -> None:
    def close_call(first: float, second: float) -> Recognizer:
        frame = np.log(np.array([0.1, first, second], np.float32))
        return recognizer(lambda images: np.tile(frame, (2, len(images), 1)))

    samples = [sample("a", 0), sample("b", 0), sample("a", 0, width=40)]
    assert disagreement(close_call(0.45001, 0.44999), close_call(0.44999, 0.45001), samples) == "3 of 3 texts differ"


def test_an_engine_that_gives_no_numbers_does_not_agree() -> None:
    with pytest.raises(RecognizerError, match="NaN"):
        disagreement(recognizer(), off_by(math.nan), [sample("ab", 0)])
    line = disagreement(recognizer(), off_by(-math.inf), [sample("ab", 0)])
    assert line is not None


def read(texts: str, confidences: list[float]) -> Evaluation:
    """Readings of images labelled a, b, a, b, …"""
    samples = [sample("ab"[i % 2], 0) for i in range(len(confidences))]
    readings = [Reading(text, confidence, []) for text, confidence in zip(texts, confidences, strict=True)]
    return Evaluation(samples, readings, math.nan)


def test_engines_are_compared_by_texts_right_ones_and_confidences() -> None:
    fp32, int8 = read("abaa", [0.9, 0.8, 0.7, 0.5]), read("abbb", [0.91, 0.8, 0.4, 0.6])
    compared = EnginesCompared.of(fp32, int8)
    assert compared == EnginesCompared(4, 2, 3, 3, compared.confidence_difference)
    assert compared.confidence_difference == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("images", "differing", "alike"), [(10, 1, True), (10, 2, False), (300, 3, True), (300, 4, False), (0, 0, True)]
)
def test_engines_are_alike_up_to_one_text_or_one_in_a_hundred(images: int, differing: int, alike: bool) -> None:
    assert EnginesCompared(images, differing, images, images, 0.5).alike == alike


def test_each_engine_is_timed_on_the_same_images_in_turn() -> None:
    asked: list[tuple[str, int]] = []

    def engine(name: str) -> Recognizer:
        def log_probs_of(images: NDArray[np.uint8]) -> LogProbs:
            asked.append((name, len(images)))
            return stand_in(images)

        return recognizer(log_probs_of)

    times = milliseconds([engine("a"), engine("b")], [sample("a", 0, width=8 * i) for i in range(1, 21)])
    assert asked == [("a", 16), ("b", 16)] * 6
    assert all(each > 0 for each in times)
