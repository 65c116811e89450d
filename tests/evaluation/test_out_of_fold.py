import itertools
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from captcha.data.samples import Sample
from captcha.evaluation.calibration import calibrate
from captcha.evaluation.metrics import wilson_interval
from captcha.evaluation.out_of_fold import SURE, OutOfFold, calibrated, figures, out_of_fold, pictured, suspects
from captcha.evaluation.results import Evaluation
from captcha.reading.recognizer import Reading


def read(
    file: str, label: str, text: str, confidence: float = 0.9, log_probability: float = -9.0, seed: int = 0
) -> OutOfFold:
    log_probability = math.log(confidence) if label == text else log_probability
    return OutOfFold(file, label, text, confidence, confidence, None, log_probability, 0, seed)


def test_the_readings_of_a_fold_are_those_of_its_evaluation() -> None:
    samples = [Sample(f"{text}.png", text, np.zeros((32, 48, 3), np.uint8)) for text in ("ab", "cd")]
    readings = [Reading("ab", 0.75, [0.9, 0.8]), Reading("xd", 0.125, [0.6, 0.8], 0.5, False)]  # calibrated
    evaluation = Evaluation(samples, readings, 1.0, label_log_probabilities=[-0.25, -3.0])
    rows = out_of_fold(evaluation, 3, 7)
    assert rows == [
        OutOfFold("ab.png", "ab", "ab", 0.75, 0.75, None, -0.25, 3, 7),
        OutOfFold("cd.png", "cd", "xd", 0.5, 0.125, False, -3.0, 3, 7),
    ]
    assert [each.right for each in rows] == [True, False]
    shown = pictured(rows[::-1], {sample.name: sample for sample in samples})
    assert shown.samples == samples[::-1]
    assert [vars(each) | {"character_confidences": []} for each in readings[::-1]] == [
        vars(each) for each in shown.readings
    ]


def test_a_fold_is_calibrated_by_the_other_folds_of_its_seed() -> None:
    random = np.random.default_rng(0)
    readings = []
    for number in range(240):
        probability, seed = float(random.uniform(0.01, 1)), number % 2
        right = random.uniform() < probability ** (3 if seed else 1)  # the second seed is too sure of itself
        text = "ab" if right else ""
        readings.append(OutOfFold(str(number), "ab", text, probability, 0.5, None, -1.0, number // 2 % 3, seed))
    found = calibrated(readings, 0.9)
    assert [replace(each, confidence=0.5, accepted=None) for each in found] == readings
    for seed, fold in itertools.product((0, 1), (0, 1, 2)):
        others = [each for each in readings if each.seed == seed and each.fold != fold]
        curve = calibrate(
            np.array([each.probability for each in others]), np.array([bool(each.text) for each in others]), 0.9
        )
        own = [each for each in found if (each.seed, each.fold) == (seed, fold)]
        assert [each.confidence for each in own] == [curve.confidences(each.probability) for each in own]
        assert [each.accepted for each in own] == [
            bool(each.text) and each.confidence >= curve.threshold for each in own
        ]
    mean = [np.mean([each.confidence for each in found if each.seed == seed]) for seed in (0, 1)]
    assert mean[1] < mean[0] - 0.1


def test_a_row_of_earlier_versions_has_the_probability_as_its_confidence() -> None:
    row = {"file": "1", "label": "ab", "text": "ax", "confidence": 0.7, "fold": 1, "seed": 2, "right": False}
    known = OutOfFold.of(row | {"label_log_probability": None})
    assert known == OutOfFold("1", "ab", "ax", 0.7, 0.7, None, -math.inf, 1, 2)
    assert OutOfFold.of(asdict(known)) == known


def test_one_seed_has_no_mean_and_of_several_the_interval_is_of_the_images_of_one() -> None:
    first = [read("1", "ab", "ab"), read("2", "cd", "cx"), read("3", "ef", "ef"), read("4", "gh", "")]
    (alone,) = figures(first)
    assert (alone.seed, alone.right, alone.n, alone.edits, alone.characters) == (0, 2, 4, 3, 8)
    second = [read(each.file, each.label, each.label, seed=1) for each in first]
    *_, mean = figures([*second, *first])
    assert (mean.seed, mean.right, mean.n, mean.edits, mean.characters) == (None, 3, 4, 1.5, 8)
    assert (mean.exact_match, mean.cer) == (0.75, 1.5 / 8)
    assert (mean.exact_match_low, mean.exact_match_high) == wilson_interval(3, 4)


def test_more_edits_than_characters_have_an_interval() -> None:
    (row,) = figures([read("1", "a", "xyz")])
    assert (row.cer, row.cer_high) == (3, 1)


def test_planted_wrong_labels_come_first() -> None:
    random = np.random.default_rng(0)
    alphabet = "abcdefgh"
    readings, planted = [], set()
    for number in range(500):
        text = "".join(random.choice(list(alphabet), 5))
        if number % 50 == 0:  # labelled wrongly: read right, with the label far off
            label = ("b" if text[0] == "a" else "a") + text[1:]
            planted.add(str(number))
            readings.append(read(str(number), label, text, random.uniform(0.9, 1), random.uniform(-20, -5)))
        elif number % 10 == 0:  # read wrongly: in doubt, with the label not far off
            readings.append(read(str(number), text, text[1:], random.uniform(0.3, 0.7), random.uniform(-3, -1)))
        else:
            readings.append(read(str(number), text, text, random.uniform(0.9, 1)))
    found = suspects(readings)
    assert {each.file for each in found[: len(planted)]} == planted
    assert all(each.sure for each in found[: len(planted)])
    assert not any(each.sure for each in found[len(planted) :])
    assert len(found) == 50
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_the_score_is_how_much_more_probable_the_reading_is_weighed_by_its_confidence() -> None:
    other = replace(read("1", "ab", "ax", 0.8, math.log(0.01)), confidence=0.5)  # calibrated
    (found,) = suspects([other, read("1", "ab", "ab", 0.6, seed=1)])
    assert found.score == pytest.approx(0.5 * math.log(0.8 / 0.01) / 2)
    assert (found.proposed, found.sure) == ("ax", False)


def test_only_what_all_seeds_read_alike_and_surely_is_sure() -> None:
    def sure(*texts: str, confidence: float = 0.99, log_probability: float = -9.0) -> bool:
        members = [read("1", "ab", text, confidence, log_probability, seed) for seed, text in enumerate(texts)]
        return suspects(members)[0].sure

    assert sure("ax")
    assert sure("ax", "ax", "ax")
    assert not sure("ax", "ay")
    assert not sure("ax", "ab")
    assert not sure("")
    assert not sure("ax", log_probability=-4.6)  # 0.99 · (log 0.99 + 4.6) is below log 100
    assert sure("ax", log_probability=-4.7)
    assert math.exp(SURE) == pytest.approx(100)


def test_the_text_proposed_has_most_confidence_behind_it() -> None:
    texts = [("ax", 0.4), ("ay", 0.7), ("ax", 0.5), ("ab", 0.99)]
    (found,) = suspects([read("1", "ab", text, sure, seed=seed) for seed, (text, sure) in enumerate(texts)])
    assert found.proposed == "ax"


def test_a_label_that_cannot_be_spelled_and_a_reading_that_is_impossible_have_finite_scores() -> None:
    unknown = read("1", "aé", "ae", 1.0, -math.inf)
    assert suspects([unknown])[0].score == 30
    assert suspects([read("1", "ab", "ax", 0.0, -math.inf)])[0].score == 0
