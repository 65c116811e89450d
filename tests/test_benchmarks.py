"""What the benchmark makes of its rounds, and that a contestant answers as the controller asks. Nothing is timed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import report
from benchmarks.bench import BenchError, Entry, Results, Worker, images_of, model_named, right_of, written
from benchmarks.report import Contestant, Spread
from benchmarks.training import Training, ratio, trained, write_split
from captcha.data.samples import Sample, unit_hash
from captcha.reading.recognizer import Recognizer, save_recognizer
from captcha.reading.vocabulary import Vocabulary
from captcha.settings import TrainSettings
from captcha.training.export import to_onnx
from captcha.training.model import Crnn

FAST, SLOW, OURS = "ddddocr", "ddddocr beta", "compact fp32"


def rounds_of(ours: list[float], fast: list[float], slow: list[float]) -> dict[str, dict[str, list[float]]]:
    return {measure: {OURS: ours, FAST: fast, SLOW: slow} for measure in report.MEASURES}


def contestants(right: int | None = 9) -> list[Contestant]:
    return [
        Contestant(FAST, "ddddocr", False, 13.6, 7),
        Contestant(SLOW, "ddddocr", False, 54.1, 8),
        Contestant(OURS, "compact", True, 4.6, right),
    ]


def test_ratios_are_taken_round_by_round_and_not_of_medians() -> None:
    """The machine is slower by ten in the second round; in each by itself the ratios are 3, 4 and 2, of medians 2."""
    assert report.times_faster([1, 10, 4], [3, 40, 8]) == Spread(3, 2, 4)


def test_a_ratio_of_rounds_that_have_no_partner_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        report.times_faster([1, 2], [1])


def test_images_a_second_are_given_with_their_least_and_greatest() -> None:
    assert str(report.images_per_second([0.1, 0.002, 0.02])) == "50.0 (10.0 to 500)"


def test_a_target_is_reached_by_speed_and_a_higher_exact_match_together() -> None:
    fast_enough = rounds_of([0.01, 0.01], [0.1, 0.08], [0.2, 0.2])
    too_slow = rounds_of([0.01, 0.01], [0.05, 0.05], [0.2, 0.2])

    def reached(right: int | None, rounds: dict[str, dict[str, list[float]]]) -> list[bool]:
        return [each.reached for each in report.verdicts(contestants(right), rounds, FAST)]

    assert reached(9, fast_enough) == [True, True]  # 9 times: at least 8 for the model, 6 for file to text
    assert reached(9, too_slow) == [False, False]
    assert reached(7, fast_enough) == [False, False]  # no more than the 7 that ddddocr reads
    assert reached(None, fast_enough) == [True, True]  # an untrained model is there for its speed alone


def test_the_target_is_measured_by_the_faster_engine_but_not_by_pytorch() -> None:
    rounds = {
        measure: {FAST: [1.0], OURS: [0.5], "compact int8": [0.25], "compact PyTorch": [0.125]}
        for measure in report.MEASURES
    }
    names = [(OURS, True), ("compact int8", True), ("compact PyTorch", True), (FAST, False)]
    found = [Contestant(name, "compact" if ours else "ddddocr", ours, 1.0, 5) for name, ours in names]
    assert {each.contestant.name for each in report.verdicts(found, rounds, FAST)} == {"compact int8"}


def test_the_report_has_every_contestant_its_speed_and_the_machine() -> None:
    results = Results(contestants(), {1: rounds_of([0.01], [0.1], [0.2])}, notes=["All went well."])
    text = written(results, FAST, {"processor": "a slow one"}, images=10, data="10 of a folder")
    assert "| compact fp32 | 4.6 | 90.0% (9 of 10) |" in text
    assert "| compact fp32 | 100 (100 to 100) | 10.0 (10.0 to 10.0) | 100 (100 to 100) |" in text
    assert "| ddddocr beta | 5.00 (5.00 to 5.00) | 0.50 (0.50 to 0.50) |" in text
    assert "| compact fp32 | model alone, batches of 16 | ≥ 8 | 10.0 (10.0 to 10.0) |" in text
    assert "- processor: a slow one" in text
    assert "All went well." in text


def test_the_picture_has_a_bar_for_each_contestant_in_both_panels() -> None:
    rounds = {threads: rounds_of([0.01, 0.02], [0.1, 0.1], [0.2, 0.2]) for threads in (1, 2)}
    figure = report.speed_figure(contestants(None), rounds, FAST, 10, "a machine")
    model, text = figure.axes
    assert [round(bar.get_width(), 3) for bar in model.patches] == [10, 5, 75]  # type: ignore[attr-defined]
    assert len(text.patches) == 3
    assert [label.get_text() for label in model.get_yticklabels()][-1] == "compact fp32\nnot trained"


def test_the_machine_says_which_instructions_it_has_and_which_not(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx_vnni\n\nprocessor\t: 1\n")
    described = report.machine(cpuinfo)
    assert described["processor"] == "Some CPU"
    assert described["instructions"] == "avx2, avx_vnni (not avx512_vnni, amx_int8)"


def test_what_a_machine_does_not_tell_is_not_known(tmp_path: Path) -> None:
    assert report.machine(tmp_path / "none")["instructions"] == "not known"


def test_upper_and_lower_case_are_the_same_and_a_refused_image_is_wrong() -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    samples = [Sample(f"{text}.png", text, pixels) for text in ("ab1", "cd2", "ef3")]
    assert right_of(["AB1", None, "ef4"], samples) == 1


def test_a_contestant_reads_files_and_times_its_model(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    """The texts are those of the recogniser read here; an image that is none is answered by None."""
    torch.manual_seed(0)
    vocabulary = Vocabulary("ab")
    save_recognizer(tmp_path / "recognizer", to_onnx(Crnn("compact", vocabulary, 32)), vocabulary, 32)
    files = [write_image(tmp_path / "images" / f"{text}.png") for text in ("ab", "ba")]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    entry = Entry(Contestant("ours", "compact", True, 1.0), Path(sys.executable), "fp32", str(tmp_path / "recognizer"))
    worker = Worker(entry, threads=1)
    try:
        assert "onnxruntime" in worker.heard()["versions"]
        reader = Recognizer.load(tmp_path / "recognizer")
        assert worker.ask("read", [*files, broken]) == [*(reader.read(file).text for file in files), None]
        assert worker.ask("model", files, 16) > 0
        assert worker.ask("text", files, 1) > 0
        assert worker.processor_seconds() > 0
    finally:
        worker.close()


def test_a_contestant_that_cannot_load_says_why(tmp_path: Path) -> None:
    worker = Worker(Entry(Contestant("none", "x", True, 0.0), Path(sys.executable), "fp32", str(tmp_path)), threads=1)
    try:
        assert "recognizer.json" in worker.heard()["error"]
    finally:
        worker.close()


def test_few_images_are_chosen_over_the_whole_folder(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    for number in range(7):
        write_image(tmp_path / f"a{number}.png")
    model = model_named("compact", str(tmp_path), tmp_path / "unused")
    samples, left_out = images_of(tmp_path, [model], 3)
    assert [sample.name for sample in samples] == ["a0.png", "a3.png", "a6.png"]
    assert left_out == 0


def training_that_prints(*exact_matches: float, then: str = "") -> Training:
    lines = [
        {"epoch": n, "seconds": 10.0 * n, "processor_seconds": 9.0 * n, "exact_match": match}
        for n, match in enumerate(exact_matches, 1)
    ]
    printed = "\n".join(map(json.dumps, [{"parameters": 5}, *lines]))
    script = f"import time; print({printed!r}, flush=True); {then}"
    return trained([sys.executable, "-c", script], target=0.99, minutes=0.05)


def test_a_training_is_ended_at_its_first_epoch_at_the_target() -> None:
    found = training_that_prints(0.5, 0.99, 0.7, then="time.sleep(600)")
    assert found == Training([10.0, 20.0], [0.5, 0.99], 0.99, 5, 18.0)
    assert str(found) == "20 s (18 s), 2 epochs"


def test_a_training_that_does_not_reach_the_target_is_ended_and_shown_with_a_greater_sign() -> None:
    ours, keras = training_that_prints(0.99), training_that_prints(0.2, 0.8, 0.7, then="time.sleep(600)")
    assert str(keras) == "> 30 s (27 s), 3 epochs; at best 80.0%"
    assert ratio(ours, keras) == "< 0.333 (0.333)"
    assert ratio(ours, training_that_prints(0.2, 1.0)) == "0.500 (0.500)"
    assert ratio(keras, ours) == "not known"


def test_a_training_that_fails_is_named() -> None:
    with pytest.raises(BenchError, match="no epoch"):
        trained([sys.executable, "-c", "raise SystemExit(1)"], target=0.99, minutes=1)


def test_both_trainings_are_given_the_split_of_the_seed(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    names = [f"{a}{b}{c}" for a in "abcd" for b in "efgh" for c in "23"]
    for name in names:
        write_image(tmp_path / "images" / f"{name}.png", width=64)
    file = tmp_path / "split.json"
    sizes = write_split(TrainSettings(data=str(tmp_path / "images"), backbone="compact", seed=1), file)
    written_down = json.loads(file.read_text())
    train, validation = ([text for _, text in written_down[side]] for side in ("train", "validation"))
    assert (len(train), len(validation)) == sizes
    assert sorted(train) == [name for name in names if unit_hash(1, name) < 0.8]
    assert sorted(validation) == [name for name in names if 0.8 <= unit_hash(1, name) < 0.9]
    assert all(Path(path).stem == text for path, text in written_down["train"])
