import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from captcha.data.samples import Sample
from captcha.evaluation.metrics import wilson_interval
from captcha.evaluation.results import Comparison, Evaluation, evaluate
from captcha.reading.recognizer import Reading, Recognizer
from captcha.reading.vocabulary import Vocabulary

LogProbs = NDArray[np.float32]
HEIGHT = 16
VOCABULARY = Vocabulary("ab")
# What the stand-in for a model sees in an image of that brightness: two frames of (blank, a, b).
FRAMES = {
    0: [[0.1, 0.8, 0.1], [0.2, 0.1, 0.7]],  # "ab"
    100: [[0.2, 0.7, 0.1], [0.3, 0.6, 0.1]],  # "a"
    200: [[0.6, 0.2, 0.2], [0.8, 0.1, 0.1]],  # ""
}


def stand_in(images: NDArray[np.uint8]) -> LogProbs:
    frames = [FRAMES[int(image.max())] for image in images]
    return np.log(np.array(frames, np.float32)).transpose(1, 0, 2)


def sample(text: str, brightness: int, width: int = 16) -> Sample:
    return Sample(f"{text}.png", text, np.full((HEIGHT, width, 3), brightness, np.uint8))


def recognizer(log_probs_of: Callable[[NDArray[np.uint8]], LogProbs] = stand_in) -> Recognizer:
    return Recognizer(log_probs_of, VOCABULARY, HEIGHT)


def probability(text: str, frames: Sequence[Sequence[float]]) -> float:
    """P(text) as the sum over every path, the definition of CTC."""
    total = 0.0
    for path in itertools.product(range(3), repeat=len(frames)):
        if "".join("?ab"[label] for label, _ in itertools.groupby(path) if label) == text:
            total += math.prod(frame[label] for frame, label in zip(frames, path, strict=True))
    return total


def test_every_sample_is_read_in_its_order_whatever_its_width() -> None:
    samples = [sample("ab", 0), sample("a", 100, width=40), sample("b", 200), sample("ab", 0, width=40)]
    evaluation = evaluate(recognizer(), samples)
    assert evaluation.predictions == ["ab", "a", "", "ab"]
    assert evaluation.references == ["ab", "a", "b", "ab"]
    assert evaluation.samples == samples
    assert evaluation.wrong == 1


def test_the_readings_are_those_of_the_recognizer() -> None:
    samples = [sample("a", 0), sample("b", 100), sample("ab", 200)]
    assert evaluate(recognizer(), samples).readings == recognizer().read([s.image for s in samples])


def test_images_put_apart_count_in_the_metrics_of_all_alone() -> None:
    whole = evaluate(recognizer(), [sample("ab", 0), sample("a", 100), sample("b", 200), sample("a", 0)])
    assert whole.put_apart([False] * 4) is whole
    apart = whole.put_apart([True, False, False, True])
    assert (apart.references, apart.predictions) == (["a", "b"], ["a", ""])
    assert apart.seen
    assert (apart.seen.references, apart.seen.predictions) == (["ab", "a"], ["ab", "ab"])
    assert (apart.metrics()["n"], apart.exact_match, apart.metrics_of_all()) == (2, 0.5, whole.metrics())
    assert whole.metrics_of_all() == whole.metrics()
    labels = whole.label_log_probabilities
    assert (apart.label_log_probabilities, apart.seen.label_log_probabilities) == (labels[1:3], [labels[0], labels[3]])


def test_the_loss_is_the_mean_over_the_labels_that_can_be_spelled_and_aligned() -> None:
    read = [("ab", 0), ("b", 0), ("a", 100), ("", 200)]
    others = [("x", 0), ("aa", 100)]  # outside the vocabulary; three frames needed, two there
    expected = [-math.log(probability(text, FRAMES[brightness])) for text, brightness in read]
    evaluation = evaluate(recognizer(), [sample(text, brightness) for text, brightness in read + others])
    assert evaluation.loss == pytest.approx(sum(expected) / 4, abs=1e-5)
    assert evaluation.label_log_probabilities == pytest.approx([*(-each for each in expected), -math.inf, -math.inf])
    assert evaluation.wrong == 3  # but they count as images


def test_the_loss_does_not_depend_on_how_the_images_are_batched() -> None:
    random = np.random.default_rng(0)
    samples = [
        sample(str(random.choice(["ab", "a", "b", ""])), int(random.choice(list(FRAMES))), 16 * int(width))
        for width in random.integers(1, 5, 300)
    ]
    one_width = [sample(each.text, int(each.image.max())) for each in samples]
    assert evaluate(recognizer(), samples).loss == evaluate(recognizer(), one_width).loss


def test_the_loss_is_not_known_where_no_label_can_be_spelled() -> None:
    assert math.isnan(evaluate(recognizer(), [sample("x", 0)]).loss)


def made(pairs: Sequence[tuple[str, str]]) -> Evaluation:
    """An evaluation of (label, prediction) pairs."""
    samples = [sample(label, 0) for label, _ in pairs]
    return Evaluation(samples, [Reading(read, 0.5, [0.5] * len(read)) for _, read in pairs], 1.0)


def test_the_metrics_have_the_names_and_the_interval_that_reports_use() -> None:
    metrics = made([("abc", "abc"), ("abd", "ab"), ("aab", "aab"), ("a", "xa")]).metrics()
    low, high = wilson_interval(2, 4)
    assert metrics == {
        "exact_match": 0.5,
        "exact_match_low": low,
        "exact_match_high": high,
        "cer": 0.2,  # 2 edits over 10 characters
        "n": 4,
        "wrong": 2,
    }
    # Worked out from the formula (Wilson, 1927) by hand: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).
    assert [low, high] == pytest.approx([0.15004, 0.84996], abs=1e-4)


def test_labels_with_repeats_are_those_with_a_character_twice_in_a_row() -> None:
    pairs = [("aab", "aab"), ("aba", "aba"), ("bb", "b"), ("", ""), ("a", "aa")]
    part = made(pairs).with_repeats()
    assert (part.references, part.predictions) == (["aab", "bb"], ["aab", "b"])
    assert part.exact_match == 0.5
    assert math.isnan(part.loss)


def test_a_person_sees_confident_mistakes_first_and_then_doubtful_readings() -> None:
    pairs = [("a", "a", 0.9), ("b", "x", 0.2), ("c", "c", 0.1), ("d", "x", 0.7), ("e", "e", 0.1)]
    samples = [sample(label, 0) for label, _, _ in pairs]
    readings = [Reading(read, confidence, []) for _, read, confidence in pairs]
    ordered = Evaluation(samples, readings, 1.5).mistakes_first()
    assert ordered.references == ["d", "b", "c", "e", "a"]
    assert [reading.confidence for reading in ordered.readings] == [0.7, 0.2, 0.1, 0.1, 0.9]
    assert ordered.predictions == ["x", "x", "c", "e", "a"]
    assert ordered.loss == 1.5


def test_two_models_are_compared_image_by_image() -> None:
    labels = ["a", "b", "c", "d", "e", "f"]
    first = made(list(zip(labels, ["a", "b", "x", "d", "x", "y"], strict=True)))
    second = made(list(zip(labels, ["a", "x", "c", "x", "x", "z"], strict=True)))
    comparison = Comparison(first, second)
    assert (comparison.only_first, comparison.only_second) == ([1, 3], [2])
    assert (comparison.both, comparison.neither) == (1, 2)
    assert comparison.p == 1  # 2 of 3 coins: at least as uneven is every fall
    assert Comparison(made([("a", "a")] * 6), made([("a", "b")] * 6)).p == 2 / 64
