import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, redirect_stderr
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Dataset, Run
from mlflow.tracking import fluent
from numpy.typing import NDArray
from safetensors.torch import load_file

import captcha
from captcha import CaptchaError
from captcha.cli.terminal import train_summary
from captcha.data import sources
from captcha.data.folders import read_samples
from captcha.data.samples import DataError, Sample, Split, digest, split
from captcha.data.seen import SeenError, SeenPixels, pixel_key
from captcha.drawing.styles import StyleError
from captcha.evaluation.engines import disagreement
from captcha.evaluation.results import Evaluation, evaluate
from captcha.jobs import train as job
from captcha.jobs.evaluate import evaluate as evaluate_job
from captcha.jobs.pack import pack
from captcha.jobs.predict import predict
from captcha.jobs.train import Control, Fitted, TrainOutcome, batches_of, parse_sources, schedule_of, split_of, train
from captcha.reading.images import FRAME_STRIDE, ImageError
from captcha.reading.recognizer import Reading
from captcha.reading.vocabulary import Vocabulary
from captcha.settings import TrainSettings
from captcha.tracking.held_out import of_run
from captcha.tracking.models import load_parent, load_recognizer, load_seen
from captcha.tracking.records import log_inputs
from captcha.tracking.runs import RegistryError, tracked_run
from captcha.training import batches as batching
from captcha.training.batches import Batches
from captcha.training.checkpoint import CheckpointError
from captcha.training.export import to_onnx, torch_recognizer
from captcha.training.loop import EpochResult, TrainingError, TrainingState
from captcha.training.model import Crnn
from captcha.training.recipe import DEFAULT, Recipe
from captcha.training.schedule import Schedule, Standing

DIGITS = Vocabulary("0123456789")
HEIGHT, EPOCHS = 32, 3
Draw = Callable[..., NDArray[np.uint8]]
Listen = Callable[[], AbstractContextManager[list[str]]]
Spoil = Callable[[Path, Path], Path]
NoRun = Callable[[], AbstractContextManager[None]]

KINDS = ["contradicting labels", "contradicting labels", "empty label", "unreadable image"]
"""What `spoil` adds to a folder, in the order of a run's problems.csv."""


@pytest.fixture(scope="module", autouse=True)
def small(tracking: Path, one_thread: None) -> Iterator[None]:
    """Trainings of seconds, tracked into a folder of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
        patch.setattr(batching, "WORKERS", 0)  # a process takes seconds
        patch.setattr(job, "EPOCHS_PER_PICTURE", 2)
        yield


@pytest.fixture(scope="module")
def folder(tracking: Path, draw_digits: Callable[[Path, int], Path]) -> Path:
    """100 images of two digits, named by their label."""
    return draw_digits(tracking / "two digits", 100)


def settings(**chosen: object) -> TrainSettings:
    small = {"backbone": "compact", "height": HEIGHT, "batch_size": 8, "epochs": 1, "dropout": 0.0}
    return TrainSettings.model_validate(small | chosen)


def fit(asked: TrainSettings, parts: Split, recipe: Recipe = DEFAULT, keep_last: bool = False) -> Fitted:
    """Train on the parts as a training does that was asked so, in the active run."""
    course = schedule_of(parts, asked.epochs, asked.batch_size, asked.learning_rate, asked.patience, recipe)
    row = batches_of(parse_sources(asked), parts, asked.batch_size, asked.seed, asked.height, DIGITS)
    return job.fit(Crnn("compact", DIGITS, HEIGHT), row, parts, course, Control(), keep_last)


@dataclass(frozen=True)
class Trained:
    """A training, what it printed and what MLflow knows of it."""

    settings: TrainSettings
    outcome: TrainOutcome
    lines: list[str]
    run: Run
    artifacts: Path

    def json(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a logged table, with the texts that stand in it in quotes."""
        return rows_of(json.loads((self.artifacts / name).read_text()))


def rows_of(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a table as `Trained.json` does."""
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    return [row | {name: json.loads(row[name]) for name in ("label", "prediction")} for row in rows]


@pytest.fixture(scope="module")
def trained(tracking: Path, folder: Path, quick: Recipe, listen: Listen) -> Trained:
    asked = settings(data=str(folder), name="two-digits", epochs=EPOCHS)
    with listen() as lines:
        outcome = train(asked, quick)
    artifacts = Path(mlflow.artifacts.download_artifacts(run_id=outcome.run_id, dst_path=str(tracking / "downloaded")))
    return Trained(asked, outcome, lines, mlflow.get_run(outcome.run_id), artifacts)


def steps(run_id: str, metric: str) -> list[int]:
    return [entry.step for entry in MlflowClient().get_metric_history(run_id, metric)]


def latest_run() -> Run:
    tracked = mlflow.get_experiment_by_name("captcha")
    assert tracked
    (run,) = MlflowClient().search_runs([tracked.experiment_id], max_results=1, order_by=["start_time DESC"])
    return run


def inputs(run: Run) -> dict[str, Dataset]:
    """Return the data sets of a run by the part that each was for."""
    assert run.inputs
    return {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}


def versions(name: str) -> int:
    return len(MlflowClient().search_model_versions(f"name = '{name}'"))


# What a training logs


def test_a_training_ends_finished_and_registered(trained: Trained) -> None:
    assert trained.run.info.status == "FINISHED"
    assert (trained.outcome.model_name, trained.outcome.model_version) == ("two-digits", 1)
    assert trained.outcome.message == "two-digits version 1 registered, the first champion"
    assert mlflow.active_run() is None


def test_the_settings_alone_are_params_as_mlflow_prints_all_of_them_under_each_picture(
    trained: Trained, quick: Recipe
) -> None:
    params = dict(trained.run.data.params)
    assert params.pop("recipe.average_decay") == "0.5"  # what is not the default; all is in the file
    recipe = mlflow.artifacts.load_dict(f"{trained.run.info.artifact_uri}/recipe.json")
    assert Recipe.model_validate(recipe) == quick
    settings = {name: value for name, value in params.items() if not name.startswith("recipe.")}
    assert settings == {
        name: "none" if value is None else str(value) for name, value in trained.settings.shaping().items()
    }


def test_what_follows_from_the_settings_is_in_tags(trained: Trained, folder: Path) -> None:
    tags = trained.run.data.tags
    samples, _, _ = read_samples(folder, HEIGHT)
    parts = split(samples, trained.settings.seed)
    for side in ("train", "validation", "test"):
        members = getattr(parts, side)
        assert tags[f"{side}_images"] == str(len(members))
        assert tags[f"{side}_digest"] == digest(members)
    assert tags["split_digest"] == parts.digest
    assert tags["vocabulary"] == "0123456789"
    assert tags["device"] in ("cpu", "cuda", "mps")
    model = Crnn("compact", DIGITS, HEIGHT)
    assert tags["parameters"] == str(sum(p.numel() for p in model.parameters()))
    assert tags["job"] == "train"


def test_every_epoch_has_its_metrics(trained: Trained) -> None:
    for name in ("val/loss", "val/exact_match", "val/cer"):
        assert steps(trained.outcome.run_id, name) == list(range(EPOCHS + 1)), name
    for name in ("train/loss", "train/lr", "train/images_per_second", "train/epoch_seconds"):
        assert steps(trained.outcome.run_id, name) == list(range(1, EPOCHS + 1)), name
    assert all(math.isfinite(value) for value in trained.run.data.metrics.values())
    assert 1 <= trained.run.data.metrics["best_epoch"] <= EPOCHS
    assert any(name.startswith("system/") for name in trained.run.data.metrics)


def test_the_test_figures_are_those_of_the_table_of_predictions(trained: Trained) -> None:
    run, rows = trained.run, trained.json("test_predictions.json")
    figures = json.loads((trained.artifacts / "test.json").read_text())
    right = [row["label"] == row["prediction"] for row in rows]
    assert [row["right"] for row in rows] == right
    assert figures["n"] == len(rows) == int(run.data.tags["test_images"])
    assert figures["wrong"] == right.count(False)
    assert figures["exact_match"] == pytest.approx(sum(right) / len(rows))
    assert 0 <= figures["exact_match_low"] <= figures["exact_match"] <= figures["exact_match_high"] <= 1
    twice = [good for good, row in zip(right, rows, strict=True) if row["label"][0] == row["label"][1]]
    assert twice, "choose a seed that puts a repeat into the test part"
    assert figures["n_repeats"] == len(twice)
    assert figures["exact_match_repeats"] == sum(twice) / len(twice)
    assert trained.outcome.metrics.items() <= figures.items()
    # MLflow draws a bar for each metric, so there are the two that versions are compared by, at the step of bars.
    shown = {name: value for name, value in run.data.metrics.items() if name.startswith("test/")}
    assert shown == {"test/exact_match": figures["exact_match"], "test/cer": figures["cer"]}
    assert steps(run.info.run_id, "test/exact_match") == [0]
    assert run.data.tags["test_right"] == str(right.count(True))
    assert float(run.data.tags["test_low"]) == pytest.approx(figures["exact_match_low"], abs=1e-4)
    assert float(run.data.tags["test_high"]) == pytest.approx(figures["exact_match_high"], abs=1e-4)


def test_the_models_page_has_the_metrics_of_the_epoch_kept_its_data_sets_and_its_version(trained: Trained) -> None:
    run = trained.run
    [logged] = mlflow.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'", output_format="list"
    )
    assert logged.name == "compact · two digits · 32 px · epochs 3 · batch 8 · dropout 0-0"
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "two-digits", "version": 1}]
    shown = {(metric.key, metric.dataset_name): metric.value for metric in logged.metrics or []}
    epoch = int(run.data.metrics["best_epoch"])
    assert epoch > 0
    for key in ("val/loss", "val/exact_match", "val/cer"):
        history = MlflowClient().get_metric_history(run.info.run_id, key)
        assert shown[key, "two digits-validation"] == {entry.step: entry.value for entry in history}[epoch]
        assert len(history) == EPOCHS + 1  # linked, not logged once more
    assert shown["test/exact_match", "two digits-test"] == run.data.metrics["test/exact_match"]
    assert not any(key.startswith("system/") for key, _ in shown)


def test_the_best_model_is_found_by_its_validation(trained: Trained, gone_on: Trained) -> None:
    order = [{"field_name": "metrics.`val/loss`", "ascending": True}]
    found = mlflow.search_logged_models([trained.run.info.experiment_id], order_by=order, output_format="list")
    losses = {}
    for each in (trained, gone_on):
        history = MlflowClient().get_metric_history(each.run.info.run_id, "val/loss")
        losses[each.run.info.run_id] = {m.step: m.value for m in history}[int(each.run.data.metrics["best_epoch"])]
    assert found[0].source_run_id == min(losses, key=lambda run_id: losses[run_id])
    assert len(set(losses.values())) == 2


def test_the_model_has_learned_something(trained: Trained) -> None:
    # So that texts which agree below are not all empty.
    assert len({row["prediction"] for row in trained.json("test_predictions.json")} - {""}) > 2


def test_predictions_keep_their_leading_zeros_and_name_their_files(trained: Trained, folder: Path) -> None:
    for row in trained.json("test_predictions.json"):
        assert row["file"] == str(folder / f"{row['label']}.png")
        assert len(row["label"]) == 2
        assert isinstance(row["prediction"], str)
        assert 0 <= row["confidence"] <= 1


def test_the_confusion_counts_every_character_of_the_test(trained: Trained) -> None:
    counts = trained.json("test_confusion.json")
    labels = "".join(row["label"] for row in trained.json("test_predictions.json"))
    for character in set(labels):
        assert sum(row["count"] for row in counts if row["label"] == character) == labels.count(character)


def test_pictures_of_the_validation_come_every_few_epochs_from_step_0_on(trained: Trained) -> None:
    pictures = [path.name for path in (trained.artifacts / "images").glob("val*predictions*.png")]
    assert {int(name.split("%")[2]) if "%" in name else int(name.split("+")[2]) for name in pictures} == {0, 2, 3}


@pytest.mark.parametrize(
    "name",
    ["test_confusion.png", "test_predictions.png", "test_mistakes.png", "learning_curves.png", "test_confidence.png"],
)
def test_the_figures_at_the_end_are_pictures(trained: Trained, name: str) -> None:
    picture = cv2.imread(str(trained.artifacts / name))
    assert picture is not None
    assert np.unique(picture).size > 10


def test_the_three_parts_are_inputs_of_the_run(trained: Trained) -> None:
    parts = inputs(trained.run)
    assert set(parts) == {"train", "validation", "test"}
    for side, dataset in parts.items():
        assert dataset.name == f"two digits-{side}"
        assert dataset.digest == trained.run.data.tags[f"{side}_digest"]
        assert json.loads(str(dataset.profile)) == {"num_rows": int(trained.run.data.tags[f"{side}_images"])}


def test_tags_tell_the_backbone_the_data_and_the_files_of_the_model(trained: Trained, folder: Path) -> None:
    tags = trained.run.data.tags
    assert (tags["backbone"], tags["data"]) == ("compact", str(folder))
    model = Path(mlflow.artifacts.download_artifacts("models:/two-digits/1"))
    content = (model / "artifacts" / "recognizer" / "model.onnx").read_bytes()
    assert tags["sha256.model.onnx"] == hashlib.sha256(content).hexdigest()


def test_the_model_has_two_engines_and_the_run_says_how_they_differ(trained: Trained) -> None:
    facts = json.loads((trained.artifacts / "engines.json").read_text())
    tags, metrics = trained.run.data.tags, trained.run.data.metrics
    readers = {name: load_recognizer("models:/two-digits@champion", name) for name in ("fp32", "int8")}
    assert {name: reader.precision for name, reader in readers.items()} == {"fp32": "fp32", "int8": "int8"}
    assert facts["validation"]["images"] == int(tags["validation_images"])
    assert facts["test"]["images"] == int(tags["test_images"])
    assert facts["test"][f"{facts['tested']}_right"] == int(tags["test_right"])
    assert facts["served"] == tags["engine"] == MlflowClient().get_model_version("two-digits", "1").tags["engine"]
    assert metrics["engine/int8_ms"] > 0 < metrics["engine/fp32_ms"]
    assert load_recognizer("models:/two-digits@champion").precision == facts["tested"]


def test_the_model_is_calibrated_on_augmented_readings_of_validation_and_the_run_says_so(trained: Trained) -> None:
    facts = json.loads((trained.artifacts / "calibration.json").read_text())
    count = int(trained.run.data.tags["validation_images"])
    said = f"validation, augmented: 8 x {count} readings"
    assert (facts["readings_of"], facts["precision"]) == (said, 0.999)
    assert re.fullmatch(rf"{said}, \d+ of them wrong", trained.run.data.tags["calibration"])
    calibration = captcha.load("models:/two-digits/1", "fp32").calibration
    assert calibration == captcha.load("models:/two-digits/1", "int8").calibration
    assert calibration
    assert calibration.as_dict().items() <= facts.items()
    rows = trained.json("test_predictions.json")
    probabilities = [row["probability"] for row in rows]
    assert [row["confidence"] for row in rows] == pytest.approx(calibration.confidences(probabilities).tolist())
    # Brier's score by its definition, from the table.
    errors = [(row["confidence"] - row["right"]) ** 2 for row in rows]
    assert trained.run.data.metrics["calibration/brier"] == pytest.approx(sum(errors) / len(rows))
    accepted = [row["accepted"] for row in rows]
    assert trained.run.data.metrics["calibration/coverage"] == sum(accepted) / len(rows)


def test_the_weights_can_be_trained_on_and_are_those_of_the_registered_model(trained: Trained, folder: Path) -> None:
    model = Crnn("compact", DIGITS, HEIGHT)
    model.load_state_dict(load_file(trained.artifacts / "weights" / "model.safetensors"), strict=True)
    samples, _, _ = read_samples(folder, HEIGHT)
    engine = torch_recognizer(model)
    assert disagreement(engine, load_recognizer("models:/two-digits@champion", "fp32"), samples) is None


def test_nothing_that_a_training_keeps_or_registers_is_a_pickle(
    trained: Trained, assert_no_pickle: Callable[[Path], None], tmp_path: Path
) -> None:
    uri = f"models:/two-digits/{trained.outcome.model_version}"
    model = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path)))
    assert {path.name for path in model.rglob("*")} >= {"MLmodel", "model.onnx", "serving.py"}
    assert (trained.artifacts / "weights" / "model.safetensors").exists()
    assert_no_pickle(model)
    assert_no_pickle(trained.artifacts)


def test_the_epoch_of_the_registered_model_is_the_last_one_marked(trained: Trained) -> None:
    marked = [line.split()[1] for line in trained.lines if line.startswith("epoch") and line.endswith("*")]
    assert marked
    assert f"{trained.run.data.metrics['best_epoch']:.0f}/{EPOCHS}" == marked[-1]


def test_the_weights_kept_are_those_of_the_last_epoch_kept_and_the_end_is_diagnosed(
    folder: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = settings(data=str(folder), epochs=9)
    parts = split_of(asked, parse_sources(asked))
    nothing = Evaluation(parts.validation, [Reading("", 0.5, []) for _ in parts.validation], 9.0)

    def improve_once(state: TrainingState, *_: object) -> Iterator[EpochResult]:
        for number in range(10):
            kept = number in (0, 5)
            with torch.no_grad():
                state.average.head.weight.fill_(number)
            if kept:
                state.keep(number)
            state.standing = Standing(number, 9, 0.0, 9.0)
            yield EpochResult(number, state.average, nothing, kept, 9.0 if number else None, 0.001, 100.0, 1.0)

    monkeypatch.setattr(job, "train_epochs", improve_once)
    with tracked_run("a training") as run, listen() as lines:
        fitted = fit(asked, parts)
    assert fitted.epoch == 5
    assert fitted.model.head.weight.unique().tolist() == [5]
    assert ["train/loss" in metrics for metrics in fitted.history] == [False] + [True] * 9
    assert mlflow.get_run(run.info.run_id).data.metrics["best_epoch"] == 5
    assert [line[:44] for line in lines if "warning" in line] == ["warning: after 9 epochs every reading is emp"]


def test_the_last_epochs_weights_can_be_asked_for(folder: Path, quick: Recipe) -> None:
    asked = settings(data=str(folder), epochs=2)
    with tracked_run("a training") as run:
        fit(asked, split_of(asked, parse_sources(asked)), quick, keep_last=True)
    assert mlflow.get_run(run.info.run_id).data.metrics["best_epoch"] == 2


def test_a_person_is_told_each_epoch_and_what_to_do_next(trained: Trained) -> None:
    assert [line.split()[1] for line in trained.lines if line.startswith("epoch")] == ["1/3", "2/3", "3/3"]
    summary = train_summary(trained.outcome)
    assert f"{trained.outcome.metrics['exact_match']:.2%} of {trained.outcome.metrics['n']:.0f} images" in summary
    for command in ("mlflow ui", "mlflow models serve -m models:/two-digits@champion", "captcha predict"):
        assert command in summary
    assert Path(trained.outcome.example).is_file()


class Terminal(io.StringIO):
    """A stand-in for a terminal of 80 columns, without Unicode: a bar is made of #."""

    def isatty(self) -> bool:
        return True

    def bars(self) -> list[tuple[str, float]]:
        """Return each state of the bar that was shown: its text, and how far it had come, from 0 to 1."""
        cut = [re.fullmatch(r"(.*?)  ([#\d ]+)  +\S+ left *", frame) for frame in self.getvalue().split("\r")]
        return [(found[1], found[2].count("#") / len(found[2])) for found in cut if found]


def test_a_terminal_shows_one_bar_for_all_epochs(folder: Path, quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked = settings(data=str(folder), epochs=2)
    with redirect_stderr(Terminal()) as terminal, tracked_run("a training"):
        history = fit(asked, split_of(asked, parse_sources(asked)), quick).history
    texts, shares = zip(*terminal.bars(), strict=True)
    fast = ("epoch 1/2", f"epoch 2/2  {figures(history[1])}")  # while an epoch of a moment lasts, perhaps not shown
    assert [text for text in dict.fromkeys(texts) if text not in fast] == [
        *("reading the validation images", "preparing the first images"),
        *(f"epoch 1/2  {figures(history[1])}", f"epoch 2/2  {figures(history[2])}"),
    ]
    assert list(shares) == sorted(shares)  # a bar for each epoch would begin anew
    assert shares[-1] == 1


def figures(metrics: dict[str, float]) -> str:
    return f"loss {metrics['train/loss']:.2f}  val {metrics['val/exact_match']:.1%}"


def show_bar_of_early_stop() -> None:
    """Show a round of eight epochs planned that stops after three."""
    evaluation = Evaluation([Sample("1", "1", np.zeros((HEIGHT, 64, 3), np.uint8))], [Reading("1", 1.0, [1.0])], 0.5)
    model = Crnn("compact", DIGITS, HEIGHT)
    with job._Bar("round 2/8", Schedule(8, 3, 0.1, 1, DEFAULT), 0) as bar:
        for epoch, last in ((1, 8), (2, 3), (3, 3)):
            list(bar.steps(range(3 * epoch - 3, 3 * epoch)))
            bar.show(EpochResult(epoch, model, evaluation, True, 1.0, 0.1, 1.0, 1.0), last)


def test_the_bar_of_a_training_that_stops_early_ends_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with redirect_stderr(Terminal()) as terminal:
        show_bar_of_early_stop()
    assert terminal.bars()[-1] == ("round 2/8  epoch 3/3  loss 1.00  val 100.0%", 1)


def test_what_is_no_terminal_gets_no_bar() -> None:
    with redirect_stderr(io.StringIO()) as file:
        show_bar_of_early_stop()
    assert file.getvalue() == ""


def test_a_version_that_is_no_champion_is_served_by_its_number(trained: Trained) -> None:
    summary = train_summary(replace(trained.outcome, model_version=7))
    assert "mlflow models serve -m models:/two-digits/7 " in summary
    assert summary.endswith("--model models:/two-digits/7")


# What is measured is what is served


def test_training_evaluate_and_predict_give_the_same_texts(
    trained: Trained, folder: Path, tmp_path: Path, listen: Listen
) -> None:
    rows = trained.json("test_predictions.json")
    tested = tmp_path / "test part"
    tested.mkdir()
    files = [Path(shutil.copy(folder / row["file"], tested)) for row in rows]

    with listen() as lines:
        measured = evaluate_job(str(tested), "models:/two-digits@champion")
        readings = predict(files, "models:/two-digits@champion", "greedy", 10)

    assert lines == []
    assert measured.metrics == measured.metrics_of_all == trained.outcome.metrics
    assert measured.data_digest == trained.run.data.tags["test_digest"]
    assert (measured.overlap, measured.unknown) == (0, None)
    run = latest_run()
    assert run.info.run_id == measured.run_id
    logged = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/eval_predictions.json")
    apart = {"confidence": None, "probability": None, "image": None}  # compared below; named after the table
    here = [row | {"file": str(file)} | apart for row, file in zip(rows, files, strict=True)]
    assert [row | apart for row in rows_of(logged)] == here
    for reading, row in zip(readings, rows, strict=True):
        assert isinstance(reading, Reading)
        assert reading.text == row["prediction"]
        assert reading.confidence == pytest.approx(row["confidence"], abs=1e-6)
        assert reading.probability == pytest.approx(row["probability"], abs=1e-6)
        assert reading.accepted == row["accepted"]


def test_predict_says_of_each_file_why_it_cannot_be_read(trained: Trained, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    files = [tmp_path / "absent.png", folder / "11.png", tmp_path / "text.png", tmp_path]
    absent, reading, text, a_folder = predict(files, "models:/two-digits/1", "beam", 3)
    assert isinstance(reading, Reading)
    assert [str(error) for error in (absent, a_folder)] == [
        f"{tmp_path / 'absent.png'}: cannot be read: No such file or directory",
        f"{tmp_path}: cannot be read: Is a directory",
    ]
    assert isinstance(text, ImageError)


def test_an_evaluation_of_a_folder_with_errors_leaves_no_run(trained: Trained, tmp_path: Path, listen: Listen) -> None:
    (tmp_path / "1.png").write_text("no image")
    before = latest_run().info.run_id
    with listen() as lines, pytest.raises(DataError, match="1 problem in the data, see above"):
        evaluate_job(str(tmp_path), "models:/two-digits/1")
    assert "1.png" in lines[0]
    assert latest_run().info.run_id == before


def test_an_evaluation_leaves_out_what_is_wrong_and_measures_the_others(
    trained: Trained, folder: Path, spoil: Spoil, tmp_path: Path
) -> None:
    spoilt = spoil(folder, tmp_path / "spoilt")
    outcome = evaluate_job(str(spoilt), "models:/two-digits/1", "leave-out")
    run = latest_run()
    assert outcome.metrics_of_all["n"] == 100
    unseen = trained.run.data.tags["test_digest"]  # training saw the others
    assert (outcome.data_digest, run.data.tags["eval_digest"]) == (unseen, unseen)
    assert (run.data.params["problems"], run.data.tags["left_out"]) == ("leave-out", "4")
    assert [row["kind"] for row in left_out_of(run)] == KINDS


# Going on from a trained model


@pytest.fixture(scope="module")
def gone_on(trained: Trained, folder: Path, quick: Recipe, listen: Listen) -> Trained:
    asked = settings(data=str(folder), name="gone on", init="models:/two-digits@champion", vocabulary="9x876543210")
    with listen() as lines:
        outcome = train(asked, quick)
    return Trained(asked, outcome, lines, mlflow.get_run(outcome.run_id), Path())


def test_a_training_goes_on_from_a_registered_model_with_other_characters(
    trained: Trained, gone_on: Trained, folder: Path
) -> None:
    parts = split_of(gone_on.settings, parse_sources(gone_on.settings))
    before = evaluate(load_recognizer("models:/two-digits/1"), parts.validation)
    history = MlflowClient().get_metric_history(gone_on.outcome.run_id, "val/cer")
    assert history[0].step == 0
    # What it knows it reads as before; the new class can take a frame of a model so little trained, not many.
    assert history[0].value == pytest.approx(before.cer, abs=0.1)
    assert before.cer < 0.8, "else an untrained model would do"
    assert "starting from models:/two-digits/1, new characters: x" in gone_on.lines
    assert any(line.startswith("before training the model reads ") for line in gone_on.lines)
    assert not any("warning" in line for line in gone_on.lines)


def test_the_run_and_the_version_tell_what_they_went_on_from(trained: Trained, gone_on: Trained) -> None:
    tags = gone_on.run.data.tags
    assert gone_on.run.data.params["init"] == "models:/two-digits@champion"
    assert tags["init_used"] == "models:/two-digits/1"  # an alias moves
    assert tags["init_run"] == trained.outcome.run_id
    assert gone_on.run.info.run_name.endswith(" · from two-digits v1")
    version = MlflowClient().get_model_version("gone on", "1")
    assert version.tags["init"] == "models:/two-digits/1"
    assert "compact started from models:/two-digits/1, trained on `" in str(version.description)
    assert "init" not in MlflowClient().get_model_version("two-digits", "1").tags


@pytest.mark.parametrize(
    ("chosen", "line"),
    [
        ({"init": "models:/nobody@champion"}, r"'models:/nobody@champion' names no model: [^\n]*"),
        (
            {"init": "models:/two-digits/1", "height": 48},
            "models:/two-digits/1 is compact for height 32, not compact for 48: "
            "pass --backbone compact --height 32 to start from it",
        ),
        (
            {"init": "models:/two-digits/1", "backbone": "resnet18"},
            "models:/two-digits/1 is compact for height 32, not resnet18 for 32: "
            "pass --backbone compact --height 32 to start from it",
        ),
    ],
    ids=["nobody", "height", "backbone"],
)
def test_a_model_that_cannot_be_gone_on_from_is_told_of_before_a_run_begins(
    trained: Trained, tmp_path: Path, chosen: dict[str, object], line: str
) -> None:
    (tmp_path / "not looked at").mkdir()
    before = latest_run().info.run_id
    with pytest.raises((RegistryError, CheckpointError), match=f"^{line}$"):
        train(settings(data=str(tmp_path / "not looked at"), name="unstarted", **chosen))
    assert latest_run().info.run_id == before
    assert versions("unstarted") == 0


def test_weights_that_are_damaged_are_told_of_with_their_run(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    torn = replace(load_parent("models:/two-digits/1"), weights=b"torn")
    monkeypatch.setattr(job, "load_parent", lambda uri: torn)
    with pytest.raises(CheckpointError, match=r"^models:/two-digits/1, run \w+: the weights are damaged: [^\n]*$"):
        job.read_parent("models:/two-digits/1")


def test_a_person_is_warned_where_no_character_is_known(trained: Trained, listen: Listen) -> None:
    parent, checkpoint = job.read_parent("models:/two-digits/1")

    def warnings(characters: str) -> list[str]:
        with tracked_run("a training"), listen() as lines:
            job.log_parent(parent, checkpoint, Vocabulary(characters))
        return [line[9:] for line in lines if line.startswith("warning: ")]

    (line,) = warnings("xy")
    assert line.startswith("none of the characters xy is known to models:/two-digits/1")
    assert warnings("xy0") == []


# Images that a training saw, and tests on them


def keys_of(samples: Sequence[Sample]) -> set[int]:
    return {pixel_key(sample.digest) for sample in samples}


def test_a_model_keeps_the_pixels_that_its_training_and_those_before_it_saw(trained: Trained, folder: Path) -> None:
    samples, _, _ = read_samples(folder, HEIGHT)
    parts = split(samples, trained.settings.seed)
    seen = keys_of([*parts.train, *parts.validation])
    assert set(load_seen(trained.run, "it").keys.tolist()) == seen
    assert trained.run.data.tags["training_pixels"] == str(len(seen)) == "91"
    assert trained.run.data.tags["overlap"] == "0"
    description = MlflowClient().get_model_version("two-digits", "1").description
    first = str(description).splitlines()[0]
    assert first.endswith(" None of the test images is among the 91 images that training saw.")


def test_drawn_images_that_were_learned_from_are_kept_each_by_its_pixels(
    folder: Path, quick: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = settings(data=str(folder), drawn="outlined", name="half drawn")
    outcome = train(asked, quick)
    parts = split_of(asked, parse_sources(asked))
    vocabulary = job.vocabulary_of(asked, parse_sources(asked), parts)
    row = batches_of(parse_sources(asked), parts, 8, asked.seed, HEIGHT, vocabulary).from_step(0)
    steps = -(-len(parts.train) // 8)
    learned = [sample for batch in islice(row, steps) for sample in batch]
    assert len([sample for sample in learned if len(sample.text) > 2]) == 4 * steps
    seen = load_seen(mlflow.get_run(outcome.run_id), "it")
    assert set(seen.keys.tolist()) == keys_of([*learned, *parts.train, *parts.validation])


def test_a_test_on_images_that_the_model_started_from_saw_is_refused_or_leaves_them_out(
    trained: Trained, folder: Path, quick: Recipe, no_run: NoRun
) -> None:
    samples, _, _ = read_samples(folder, HEIGHT)
    before = split(samples, 0)
    both = (seed for seed in range(1, 99) if len(keys_of(split(samples, seed).test) & keys_of(before.test)) > 1)
    now = split(samples, seed := next(both))
    unseen = keys_of(now.test) & keys_of(before.test)
    overlap = len(now.test) - len(unseen)
    asked = settings(data=str(folder), name="overlapping", init="models:/two-digits@champion", seed=seed)
    with (
        no_run(),
        pytest.raises(
            SeenError,
            match=rf"^the training of models:/two-digits/1 saw {overlap} of the {len(now.test)} test images, so a test "
            "on them would say too much: test on other images with --test-data, or leave them out of the test with "
            "--allow-overlap$",
        ),
    ):
        train(asked, quick)
    assert versions("overlapping") == 0

    outcome = train(asked.model_copy(update={"allow_overlap": True}), quick)
    assert (outcome.metrics["n"], outcome.metrics_of_all["n"]) == (len(unseen), len(now.test))
    run = mlflow.get_run(outcome.run_id)
    assert run.data.tags["test_images"] == str(len(unseen))
    assert run.data.tags["test_digest"] == digest([s for s in now.test if pixel_key(s.digest) in unseen])
    assert run.data.tags["overlap"] == str(overlap)
    right = round(outcome.metrics_of_all["exact_match"] * len(now.test) - outcome.metrics["exact_match"] * len(unseen))
    assert run.data.tags["overlap_right"] == str(right)
    everything = keys_of([*before.train, *before.validation, *now.train, *now.validation])
    assert set(load_seen(run, "it").keys.tolist()) == everything  # what the first model saw is inherited
    description = str(MlflowClient().get_model_version("overlapping", "1").description)
    assert f"of {len(unseen)} test images read exactly" in description
    assert f"None of the test images is among the {len(everything)} images" in description
    assert f"({overlap} that training saw are left out; {right} of those are right)" in description
    assert f"these and those left out, {overlap} that training saw: " in train_summary(outcome)


def test_a_test_whose_images_the_model_started_from_all_saw_is_refused_though_overlap_is_allowed(
    trained: Trained, folder: Path, tmp_path: Path, draw: Draw
) -> None:
    known = split(read_samples(folder, HEIGHT)[0], 0).train[:3]
    others = tmp_path / "others"
    others.mkdir()
    for number in range(60):
        cv2.imwrite(str(others / f"{number:02}.png"), draw(f"{number:02}", 48, HEIGHT, seed=7))
    (tmp_path / "test").mkdir()
    for sample in known:
        shutil.copy(folder / sample.name, tmp_path / "test")
    for allow in (False, True):
        asked = settings(data=str(others), test_data=str(tmp_path / "test"), init="models:/two-digits/1")
        with pytest.raises(SeenError, match=r"saw 3 of the 3 test images, .*: test on other images with --test-data$"):
            train(asked.model_copy(update={"allow_overlap": allow}))


def test_where_nobody_noted_what_the_model_started_from_saw_a_person_is_warned(
    trained: Trained, folder: Path, listen: Listen
) -> None:
    parts = split(read_samples(folder, HEIGHT)[0], 1)
    old = replace(load_parent("models:/two-digits/1"), seen=SeenPixels.not_noted("models:/old/1"))
    with listen() as lines:
        assert job.with_unseen_test(parts, old, False, "test on others") is parts
        assert job.with_unseen_test(replace(parts, test=[]), old, False, "test on others").test == []
    (line,) = lines
    assert line.startswith("warning: which images models:/old/1 was trained on is not known, ")


# What goes wrong


def test_an_export_that_is_not_the_trained_model_is_not_registered(
    folder: Path, quick: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_another(model: Crnn) -> bytes:
        with torch.no_grad():
            model.local_head.weight[0] += 0.01
            content = to_onnx(model)
            model.local_head.weight[0] -= 0.01
        return content

    monkeypatch.setattr(job, "to_onnx", export_another)
    with pytest.raises(
        TrainingError, match=r"^the exported model is not the trained one: [^\n]*; nothing is registered"
    ):
        train(settings(data=str(folder), name="another"), quick)
    run = latest_run()
    assert run.info.status == "FAILED"
    assert versions("another") == 0
    assert not run.outputs or not run.outputs.model_outputs
    assert [file.path for file in MlflowClient().list_artifacts(run.info.run_id, "weights")] == [
        "weights/model.safetensors",
        "weights/training_pixels.npy",
    ]
    assert "test/exact_match" not in run.data.metrics


@pytest.mark.parametrize("seed", [0, 1])
def test_a_training_that_has_diverged_names_the_learning_rate_and_registers_nothing(
    seed: int, folder: Path, quick: Recipe
) -> None:
    line = (
        r"^the training has diverged: after epoch \d its loss is [\d.]+ on the validation images, [^\n]* knows nothing"
    )
    with pytest.raises(
        TrainingError, match=line + r" \d\.\d; train again with a lower learning rate than 1; nothing is "
    ):
        train(settings(data=str(folder), name="diverged", learning_rate=1, epochs=2, seed=seed), quick)
    assert latest_run().info.status == "FAILED"
    assert versions("diverged") == 0


def test_all_problems_of_the_data_are_said_and_nothing_is_left_half_done(
    folder: Path, tmp_path: Path, listen: Listen, no_run: NoRun
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    (bad / "torn.png").write_bytes((bad / "11.png").read_bytes()[:60])
    (bad / "text.png").write_text("no image")
    shutil.copy(bad / "12.png", bad / "21 again.png")  # the same picture under another label
    with (
        listen() as lines,
        no_run(),
        pytest.raises(DataError, match=r"^4 problems in the data, see above; mend them"),
    ):
        train(settings(data=str(bad), name="bad"))
    for file in ("torn.png", "text.png", "12.png", "21 again.png"):
        assert f"error: {file}: " in "\n".join(lines)
    assert versions("bad") == 0


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"data": "draw:absent"}, "no drawing style 'absent': did you mean"),
        ({"data": "absent.toml"}, "no such folder: .*absent.toml"),
        ({"data": "draw:absent.toml"}, "absent.toml cannot be read: No such file"),
        ({"drawn": "absent"}, "no drawing style 'absent': did you mean"),
        ({"drawn": "kaptcha", "vocabulary": "0123456789"}, "the style kaptcha draws 'abcdefgmnpwxy', which is outside"),
        ({"data": "empty"}, "empty: no images in this folder"),
        ({"data": "absent"}, "no such folder: .*absent"),
        ({"data": "few"}, "too few to split: 3 images with 3 different labels"),
        ({"data": "bad labels"}, "labels.csv: needs the columns file,label; its first line is"),
        ({"test_data": "empty"}, "empty: no images in this folder"),
        ({"init": "nope"}, "'nope' names no model: "),
        ({"init": "models:/nope@champion"}, "'?models:/nope@champion'?"),
        ({"init": "runs:/nope"}, "runs:/nope: "),
    ],
    ids=str,
)
def test_a_mistake_that_needs_no_run_starts_none(
    asked: dict[str, str], line: str, folder: Path, no_run: NoRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("few", "bad labels"):
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("?[3-9].png", "[1-9]?.png"))
    (tmp_path / "bad labels" / "labels.csv").write_text("name,text\n00.png,00\n")
    with no_run(), pytest.raises(CaptchaError, match=f"^[^\n]*{line}[^\n]*$"):
        train(settings(**{"data": str(folder)} | asked))


def test_a_stuck_training_says_so_and_an_interrupted_one_is_killed(
    folder: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_nothing_until_ctrl_c(
        state: TrainingState, batches: Batches, samples: list[Sample], schedule: Schedule, *rest: object
    ) -> Iterator[EpochResult]:
        validation = Evaluation(samples, [Reading("", 0.5, []) for _ in samples], 9.0)
        state.standing = Standing(schedule.epochs // 3, schedule.epochs, 0.0, 9.0)
        yield EpochResult(schedule.epochs // 3, state.average, validation, True, 9.0, 0.001, 100.0, 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "train_epochs", read_nothing_until_ctrl_c)
    with listen() as lines, pytest.raises(KeyboardInterrupt):
        train(settings(data=str(folder), name="interrupted", epochs=21))
    assert lines[-2].startswith("warning: after 7 epochs every reading is empty (loss 9.0)")
    assert lines[-1] == f"go on with: captcha train --resume {latest_run().info.run_id}"
    assert latest_run().info.status == "KILLED"
    assert versions("interrupted") == 0


# Under `mlflow run`, from drawn images


def test_a_parent_run_with_params_in_another_spelling_is_gone_on_with(
    tracking: Path, quick: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "DRAWN_IMAGES", 60)
    monkeypatch.setattr(job, "project_root", lambda: tracking)
    parent = MlflowClient().create_run(mlflow.create_experiment("another"))
    for key, value in {"learning_rate": "1e-3", "epochs": "01", "pretrained": "false", "data": "draw:kaptcha"}.items():
        MlflowClient().log_param(parent.info.run_id, key, value)
    monkeypatch.setattr(fluent, "_active_experiment_id", None)  # as in a process of its own
    with mock.patch.dict(
        os.environ, {"MLFLOW_RUN_ID": parent.info.run_id, "MLFLOW_EXPERIMENT_ID": parent.info.experiment_id}
    ):
        outcome = train(settings(data="draw:kaptcha", name="drawn"), quick)
    assert outcome.run_id == parent.info.run_id
    run = mlflow.get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "1e-3"
    assert run.data.params["backbone"] == "compact"
    names = {part: dataset.name for part, dataset in inputs(run).items()}
    assert names == {part: f"draw:kaptcha-{part}" for part in ("train", "validation", "test")}
    assert Path(outcome.example).resolve().parent == tracking / "mlruns"
    (reading,) = predict([Path(outcome.example)], "models:/drawn/1", "greedy", 10)
    assert isinstance(reading, Reading)


# The parts


def test_training_on_a_style_is_on_images_drawn_for_it_with_no_text_that_is_held_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "DRAWN_IMAGES", 200)
    monkeypatch.setattr(job, "DRAWN_IMAGES", 200)
    asked = settings(data="draw:kaptcha", batch_size=4)
    named = parse_sources(asked)
    parts = split_of(asked, named)
    drawn_first = {sample.digest for sample in [*parts.train, *parts.validation, *parts.test]}
    assert len(drawn_first) == 200
    row = batches_of(named, parts, 4, asked.seed, HEIGHT, Vocabulary.from_texts(texts_of(parts.train)))
    trained_on = [sample for batch in islice(row.from_step(0), 3) for sample in batch]
    assert len(trained_on) == 12
    assert not {sample.digest for sample in trained_on} & drawn_first
    assert row.drawn
    assert row.drawn.without == texts_of(parts.validation) | texts_of(parts.test)


@pytest.fixture
def other_folders(tmp_path: Path, draw: Draw) -> tuple[Path, Path]:
    """A folder for validation and one for the test, of two letters each."""
    folders = tmp_path / "val", tmp_path / "test"
    for folder, texts in zip(folders, (["ab", "12"], ["cd", "34", "56"]), strict=True):
        folder.mkdir()
        for text in texts:
            cv2.imwrite(str(folder / f"{text}.png"), draw(text, 48, HEIGHT, seed=9))
    return folders


def parts_of(asked: TrainSettings) -> Split:
    return split_of(asked, parse_sources(asked))


def texts_of(samples: Sequence[Sample]) -> set[str]:
    return {sample.text for sample in samples}


def test_a_fixed_part_takes_the_place_of_the_one_split_off(folder: Path, other_folders: tuple[Path, Path]) -> None:
    val, test = map(str, other_folders)
    usual = parts_of(settings(data=str(folder)))

    both = parts_of(settings(data=str(folder), val_data=val, test_data=test))
    assert (texts_of(both.validation), texts_of(both.test)) == ({"ab", "12"}, {"cd", "34", "56"})
    assert len(both.train) == 100

    one = parts_of(settings(data=str(folder), test_data=test))
    assert texts_of(one.validation) == texts_of(usual.validation)
    assert texts_of(one.train) == texts_of(usual.train) | texts_of(usual.test)
    assert texts_of(one.test) == {"cd", "34", "56"}


def test_a_fixed_part_is_an_input_of_its_own_and_gives_the_example(
    folder: Path, other_folders: tuple[Path, Path]
) -> None:
    val, test = other_folders
    asked = settings(data=str(folder), val_data=str(val), test_data=str(test))
    parts = parts_of(asked)
    with tracked_run("a training") as run:
        log_inputs(parts, parse_sources(asked).by_side())
    names = {part: dataset.name for part, dataset in inputs(mlflow.get_run(run.info.run_id)).items()}
    assert names == {"train": "two digits-train", "validation": "val-validation", "test": "test-test"}
    path = job.example_of(parse_sources(asked), parts.test[0])
    assert path.samefile(test / parts.test[0].name)


def test_a_picture_that_is_trained_on_cannot_be_tested_on(
    folder: Path, other_folders: tuple[Path, Path], listen: Listen
) -> None:
    shutil.copy(folder / "77.png", other_folders[1])
    with listen() as lines, pytest.raises(DataError, match="1 problem in the data"):
        parts_of(settings(data=str(folder), test_data=str(other_folders[1])))
    assert "77.png" in lines[0]


def test_characters_that_training_never_saw_are_named(
    folder: Path, other_folders: tuple[Path, Path], listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "train_epochs", mock.Mock(side_effect=TrainingError("far enough")))
    with listen() as lines, pytest.raises(TrainingError, match="far enough"):
        train(settings(data=str(folder), test_data=str(other_folders[1])))
    assert lines[0] == "warning: no training label holds c d: no validation or test label with them can be read right"
    assert latest_run().data.tags["vocabulary"] == "0123456789"


def test_a_training_leaves_out_what_is_wrong_and_uses_exactly_the_others(
    trained: Trained, folder: Path, spoil: Spoil, tmp_path: Path, quick: Recipe, listen: Listen
) -> None:
    spoilt = spoil(folder, tmp_path / "spoilt")
    with listen() as lines:
        outcome = train(settings(data=str(spoilt), problems="leave-out", name="left"), quick)
    run = mlflow.get_run(outcome.run_id)
    for name in ("train_digest", "validation_digest", "test_digest", "split_digest"):
        assert run.data.tags[name] == trained.run.data.tags[name]  # of the folder without these files
    assert run.data.tags["left_out"] == "4"
    assert [(row["file"], row["kind"]) for row in left_out_of(run)] == [
        (f"{spoilt}/{name}.png", kind) for name, kind in zip(("one", "two", " ", "torn"), KINDS, strict=True)
    ]
    assert left_out_of(run)[0]["message"] == "the same picture as two.png, but labelled 'one' here and 'two' there"
    said = "\n".join(lines)
    assert "left out: torn.png: " in said
    assert "left out 4 of 104 images: 2 contradicting labels, 1 empty label, 1 unreadable image" in said


def test_a_training_on_a_folder_without_problems_says_that_nothing_is_left_out(trained: Trained) -> None:
    assert trained.run.data.tags["left_out"] == "0"
    assert not (trained.artifacts / "problems.csv").exists()


def left_out_of(run: Run) -> list[dict[str, str]]:
    """Return the rows of a run's problems.csv."""
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/problems.csv")
    return list(csv.DictReader(text.splitlines()))


def test_a_given_vocabulary_is_used_and_labels_outside_it_are_refused(folder: Path, listen: Listen) -> None:
    with listen() as lines, pytest.raises(DataError):
        parts_of(settings(data=str(folder), vocabulary="012345678"))
    assert "outside the vocabulary: '9'" in lines[0]


def test_a_label_too_long_for_the_models_frames_is_refused_by_name(
    folder: Path, tmp_path: Path, listen: Listen
) -> None:
    long = tmp_path / "long"
    shutil.copytree(folder, long)
    label = "1234567890" * (48 // FRAME_STRIDE // 10 + 1)
    shutil.copy(long / "55.png", long / f"{label}.png")
    (long / "55.png").unlink()
    with listen() as lines, pytest.raises(DataError):
        parts_of(settings(data=str(long)))
    assert f"{label}.png" in lines[0]
    assert "frames" in lines[0]


# Drawn images beside a folder's


def test_half_of_every_batch_is_drawn_and_every_image_of_the_folder_comes_before_any_comes_again(folder: Path) -> None:
    asked = settings(data=str(folder), drawn="kaptcha", batch_size=9)
    parts = parts_of(asked)
    vocabulary = job.vocabulary_of(asked, parse_sources(asked), parts)
    row = batches_of(parse_sources(asked), parts, 9, asked.seed, HEIGHT, vocabulary).from_step(0)
    seen: list[str] = []
    while len(seen) < len(parts.train):
        batch = next(row)
        real = [s.digest for s in batch if len(s.text) == 2]
        assert (len(batch), len(real)) == (9, 5)
        seen += real
    assert set(seen[: len(parts.train)]) == {s.digest for s in parts.train}


def test_images_are_drawn_beside_a_folders_not_beside_drawn_ones() -> None:
    with pytest.raises(DataError, match="drawn beside a folder's images"):
        parse_sources(settings(data="draw:kaptcha", drawn="kaptcha"))


def test_the_vocabulary_holds_the_characters_that_are_drawn_beside_the_labels(folder: Path) -> None:
    asked = settings(data=str(folder), drawn="kaptcha")
    found = job.vocabulary_of(asked, parse_sources(asked), parts_of(asked))
    assert found.characters == "".join(sorted("0123456789" + "abcdegfynmpwx"))


def test_the_vocabulary_holds_all_that_a_style_draws_though_only_held_back_texts_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "DRAWN_IMAGES", 80)
    words = [f"{number:02}" for number in range(20)]
    (tmp_path / "words.toml").write_text(f"texts = {words + [chr(97 + i) * 2 for i in range(10)]}")
    asked = settings(data=f"draw:{tmp_path}/words.toml")
    parts = parts_of(asked)
    vocabulary = job.vocabulary_of(asked, parse_sources(asked), parts)
    assert vocabulary.characters == "0123456789abcdefghij"
    assert vocabulary.missing("".join(texts_of(parts.train))) == ""
    assert batches_of(parse_sources(asked), parts, 8, asked.seed, HEIGHT, vocabulary).drawn


def test_a_style_that_draws_what_the_model_cannot_say_is_refused(folder: Path) -> None:
    asked = settings(data=str(folder), drawn="kaptcha")
    with pytest.raises(StyleError, match=r"^the style kaptcha draws 'defgmnpwxy', which is outside the vocabulary: "):
        batches_of(parse_sources(asked), parts_of(asked), 8, 0, HEIGHT, Vocabulary("0123456789abc"))
    assert batches_of(parse_sources(asked), parts_of(asked), 8, 0, HEIGHT, Vocabulary("2345678abcdefgmnpwxyz"))


@pytest.mark.slow
def test_a_training_on_shards_makes_the_weights_of_one_on_their_folder_and_its_test_can_be_read_again(
    trained: Trained, folder: Path, tmp_path: Path, quick: Recipe
) -> None:
    pack(str(folder), tmp_path / "packed")
    outcome = train(trained.settings.model_copy(update={"data": str(tmp_path / "packed"), "name": "packed"}), quick)
    runs = [each.run_id for each in (trained.outcome, outcome)]
    weights = [load_parent(f"runs:/{run_id}").weights for run_id in runs]
    assert weights[0] == weights[1]
    assert outcome.metrics == trained.outcome.metrics
    of_folder, of_shards = (load_seen(mlflow.get_run(run_id), "").keys for run_id in runs)
    assert np.array_equal(of_folder, of_shards)
    again = of_run(mlflow.get_run(outcome.run_id))
    assert [sample.text for sample in again.samples] == [s.text for s in of_run(trained.run).samples]
    assert again.contents == of_run(trained.run).contents
    seen = evaluate_job(str(tmp_path / "packed"), "models:/packed/1")
    assert (seen.metrics["n"], seen.overlap) == (outcome.metrics["n"], 100 - outcome.metrics["n"])
