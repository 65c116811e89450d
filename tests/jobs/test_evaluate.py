"""`evaluate` with a model that reads stripes, which took no training; MLflow and its registry are real."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import cv2
import mlflow
import numpy as np
import onnx.parser
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Run

import captcha
from captcha.cli.terminal import evaluation_summary
from captcha.data.folders import read_samples
from captcha.data.samples import Sample, digest
from captcha.data.seen import SeenError, SeenPixels
from captcha.evaluation.metrics import wilson_interval
from captcha.jobs.evaluate import evaluate
from captcha.reading.constraints import ConstraintError, Constraints
from captcha.reading.recognizer import ARTIFACT, save_recognizer
from captcha.reading.vocabulary import Vocabulary
from captcha.tracking.models import log_model, log_seen, own_model_id
from captcha.tracking.runs import RegistryError, tracked_run

# Each column of pixels is a frame, its brightness the class: white is the blank, black "a", then "b" and "c".
STRIPES = (Path(__file__).parents[1] / "reading" / "stripes.onnxtxt").read_text()
SHADES = {"a": 0, "b": 85, "c": 170}
TEXTS = ["a", "b", "c", "ab", "ac", "ba", "bc", "ca", "cb", "abc"]
EXAMPLE = cv2.imencode(".png", np.zeros((16, 32, 3), np.uint8))[1].tobytes()
PARAMS = {"backbone": "compact", "data": "folder", "vocabulary_used": "abc", "seed": "0", "test_digest": "d1"}

Train = Callable[..., Run]
NoRun = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module", autouse=True)
def place(tracking: Path) -> Path:
    """Where this module's runs are tracked."""
    return tracking


@pytest.fixture(scope="module")
def folder(tracking: Path) -> Path:
    """Ten images; a model of stripes reads the text of eight, and something else than the label of two."""
    folder = tracking / "striped"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        row = [shade for character in text for shade in (*[255] * 4, *[SHADES[character]] * 4)]
        image = np.tile(np.array([*row, *[255] * 4], np.uint8)[None, :, None], (16, 1, 3))
        cv2.imwrite(str(folder / f"{text}{'x' if number in (0, 5) else ''}.png"), image)
    return folder


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    """The images of the folder, wrong readings first."""
    return sorted(read_samples(folder, 16)[0], key=lambda sample: ("x" not in sample.text, sample.name))


@pytest.fixture(scope="module")
def recognizer(tracking: Path) -> Path:
    """A recogniser's folder."""
    model = onnx.parser.parse_model(STRIPES).SerializeToString()
    save_recognizer(tracking / ARTIFACT, model, Vocabulary("abc"), 16)
    return tracking / ARTIFACT


@pytest.fixture(scope="module")
def model_id(recognizer: Path) -> str:
    """The id of the one logged model that all stand-ins for trainings share: to log one takes seconds."""
    with tracked_run("the model's own training") as run:
        log_seen(seen_of([]))
        log_model(recognizer, EXAMPLE, step=0)
    return own_model_id(run.info.run_id)


@pytest.fixture(scope="module")
def train(model_id: str) -> Train:
    """A stand-in for a training: the run that it leaves, registered under a name with the champion's alias."""

    def make(name: str, seen: SeenPixels | None) -> Run:
        with tracked_run("a training") as run:
            mlflow.log_params(PARAMS)
            mlflow.set_tag("backbone", "compact")
            if seen:
                log_seen(seen)
        client = MlflowClient()
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model_id, step=0)])
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        version = client.create_model_version(name, f"models:/{model_id}", run_id=run.info.run_id)
        client.set_registered_model_alias(name, "champion", version.version)
        return mlflow.get_run(run.info.run_id)

    return make


def seen_of(samples: list[Sample]) -> SeenPixels:
    return SeenPixels.of([1, 2, 3], samples)


def artifacts(run: Run) -> set[str]:
    return {file.path for file in MlflowClient().list_artifacts(run.info.run_id)}


def test_an_evaluation_names_the_version_that_the_alias_stood_for_and_links_it(
    folder: Path, model_id: str, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    train("captcha-crnn", seen_of([]))
    spy = mock.Mock(wraps=captcha.load)
    monkeypatch.setattr(captcha, "load", spy)
    outcome = evaluate(str(folder), "models:/captcha-crnn@champion")
    assert spy.call_args_list == [mock.call("models:/captcha-crnn/1", "auto")]
    train("captcha-crnn", seen_of([]))  # the alias moves on

    run = mlflow.get_run(outcome.run_id)
    assert run.info.run_name == "evaluate v1 on striped"
    assert run.info.status == "FINISHED"
    asked = {"data": str(folder), "model": "models:/captcha-crnn@champion", "problems": "stop", "engine": "auto"}
    assert run.data.params == asked
    whole = digest(read_samples(folder, 16)[0])
    wanted = {
        "job": "evaluate",
        "data": str(folder),
        "model": "models:/captcha-crnn/1",
        "model_version": "1",
        "model_id": model_id,
        "backbone": "compact",
        "eval_images": "10",
        "eval_digest": whole,
        "overlap": "0",
    }
    assert wanted.items() <= run.data.tags.items()
    assert run.inputs
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest, entry.tags[0].value) == ("striped-eval", whole, "eval")
    assert [each.model_id for each in run.inputs.model_inputs] == [model_id]
    figures = {"eval/exact_match": 0.8, "eval/cer": outcome.metrics["cer"]}
    assert figures.items() <= run.data.metrics.items()
    assert not any(name.startswith("test") for name in run.data.metrics)
    assert {entry.step for name in figures for entry in MlflowClient().get_metric_history(run.info.run_id, name)} == {0}
    # The logged model's own page shows the figures, and the data set that they are of.
    linked = {
        metric.key: metric
        for metric in MlflowClient().get_logged_model(model_id).metrics or []
        if metric.run_id == outcome.run_id
    }
    assert {name: linked[name].value for name in figures} == figures
    assert (linked["eval/cer"].dataset_name, linked["eval/cer"].dataset_digest) == ("striped-eval", whole)
    low, high = (f"{100 * limit:.1f}" for limit in wilson_interval(8, 10))
    assert run.data.tags["mlflow.note.content"] == (
        f"**80.0 %** of 10 images of `{folder}` read exactly (95 % interval {low} % to {high} %) by captcha-crnn "
        "version 1: none of them is among the 3 images that training saw."
    )


def test_several_versions_on_one_folder_have_the_same_names_and_the_same_data(folder: Path, train: Train) -> None:
    train("several", seen_of([]))
    train("several", seen_of([]))
    outcomes = [evaluate(str(folder), f"models:/several/{number}") for number in (1, 2)]
    assert [(outcome.model, outcome.version) for outcome in outcomes] == [
        ("models:/several/1", 1),
        ("models:/several/2", 2),
    ]
    assert outcomes[0].data_digest == outcomes[1].data_digest
    first, second = (mlflow.get_run(outcome.run_id) for outcome in outcomes)
    assert [first.info.run_name, second.info.run_name] == [
        "evaluate several v1 on striped",
        "evaluate several v2 on striped",
    ]
    assert first.data.metrics.keys() >= {"eval/exact_match", "eval/cer"}
    names = [{name for name in run.data.metrics if name.startswith("eval/")} for run in (first, second)]
    assert names[0] == names[1]
    files = {
        "eval.json",
        "eval_predictions.json",
        "eval_confusion.json",
        "eval_confusion.png",
        "eval_mistakes.png",
        "eval_predictions.png",
    }
    assert files <= artifacts(first) == artifacts(second)
    assert not any(name.startswith("test") for name in artifacts(first))


def test_images_that_training_saw_are_left_out_and_both_figures_are_told(
    folder: Path, samples: list[Sample], train: Train
) -> None:
    training = train("overlapping", seen_of(samples[1:4]))  # one that it reads wrong, two that it reads right
    outcome = evaluate(str(folder), "models:/overlapping@champion")
    assert (outcome.overlap, outcome.unknown) == (3, None)
    assert {name: outcome.metrics[name] for name in ("n", "wrong", "exact_match")} == {
        "n": 7,
        "wrong": 1,
        "exact_match": 6 / 7,
    }
    assert (outcome.metrics_of_all["n"], outcome.metrics_of_all["exact_match"]) == (10, 0.8)
    measured = digest([samples[0], *samples[4:]])
    run = mlflow.get_run(outcome.run_id)
    assert run.data.metrics["eval/exact_match"] == 6 / 7
    tags = {"overlap": "3", "overlap_right": "2", "eval_images": "7", "eval_digest": measured}
    assert tags.items() <= run.data.tags.items()
    assert run.inputs
    assert run.inputs.dataset_inputs[0].dataset.digest == outcome.data_digest == measured
    told = "training saw 3 of the folder's 10 images, which are left out here; of all 10, 80.00% are read exactly"
    assert run.data.tags["mlflow.note.content"].startswith("**85.7 %** of 7 images of `")
    assert run.data.tags["mlflow.note.content"].endswith(f" version 1: {told}.")
    assert evaluation_summary(outcome).splitlines()[1] == told
    logged = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/eval.json")
    assert logged.items() >= (outcome.metrics | {"all": outcome.metrics_of_all}).items()
    rows = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/eval_predictions.json")["data"]
    assert len(rows) == 7
    assert training.data.tags["training_pixels"] == "6"


def test_a_folder_whose_images_training_all_saw_is_refused_and_leaves_no_run(
    folder: Path, samples: list[Sample], train: Train
) -> None:
    training = train("known", seen_of(samples))
    runs = len(mlflow.search_runs(experiment_names=["captcha"]))
    for model in ("models:/known/1", f"runs:/{training.info.run_id}"):
        line = f"the training of {model} saw all 10 images in {folder}, so they can measure nothing; name images"
        with pytest.raises(SeenError, match=f"^{re.escape(line)} that it was not trained on$"):
            evaluate(str(folder), model)
    assert len(mlflow.search_runs(experiment_names=["captcha"])) == runs


@pytest.mark.parametrize("seen", ["nothing noted", "nothing noted of the one before"])
def test_what_is_not_known_is_said_and_not_claimed(
    seen: str, folder: Path, samples: list[Sample], train: Train
) -> None:
    name = "old" if seen == "nothing noted" else "after an old one"
    noted = None if name == "old" else SeenPixels.of([], samples[:2], SeenPixels.not_noted("models:/older/7"))
    train(name, noted)
    outcome = evaluate(str(folder), f"models:/{name}/1")
    run = mlflow.get_run(outcome.run_id)
    if name == "old":
        assert (outcome.overlap, outcome.metrics["n"], outcome.unknown) == (None, 10, "models:/old/1")
        assert "overlap" not in run.data.tags
        told = "which images models:/old/1 was trained on is not known"
    else:
        assert (outcome.overlap, outcome.metrics["n"], outcome.unknown) == (2, 8, "models:/older/7")
        told = (
            "training saw 2 of the folder's 10 images, which are left out here; of all 10, 80.00% are read exactly; "
            "which images models:/older/7 was trained on is not known"
        )
    assert run.data.tags["training_pixels_unknown"] == outcome.unknown
    assert outcome.checked() == told
    assert run.data.tags["mlflow.note.content"].endswith(f": {told}.")


def test_a_run_a_logged_model_and_a_folder_have_no_version_but_are_named(
    folder: Path, recognizer: Path, model_id: str, train: Train
) -> None:
    run_id = train("unversioned", seen_of([])).info.run_id
    for model, name in (
        (f"runs:/{run_id}", f"run {run_id[:8]}"),
        (f"models:/{model_id}", model_id),
        (str(recognizer), "folder recognizer"),
    ):
        outcome = evaluate(str(folder), model)
        assert (outcome.model, outcome.version, outcome.metrics["n"]) == (model, None, 10)
        run = mlflow.get_run(outcome.run_id)
        assert run.info.run_name == f"evaluate {name} on striped"
        assert run.data.tags["model"] == model
        assert "model_version" not in run.data.tags
        assert run.data.tags.get("model_id") == (None if model == str(recognizer) else model_id)
    assert outcome.unknown == str(recognizer)


def test_what_is_known_of_the_texts_is_kept_to_and_stands_in_the_run(
    folder: Path, recognizer: Path, no_run: NoRun
) -> None:
    known = Constraints(length="2", texts="ab\nac\nba\nbc\nca\ncb\nxy")
    run = mlflow.get_run(evaluate(str(folder), str(recognizer), constraints=known).run_id)
    told = f"length 2, texts {known.written()['texts']}"
    assert {"length": "2", "texts": known.written()["texts"]}.items() <= run.data.params.items()
    assert not {"characters", "pattern"} & run.data.params.keys()
    assert run.data.tags["constraints"] == told
    assert f" by {recognizer}, told {told}: " in run.data.tags["mlflow.note.content"]
    rows = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/eval_predictions.json")["data"]
    assert {json.loads(row[2]) for row in rows} <= {"ab", "ac", "ba", "bc", "ca", "cb"}
    with no_run(), pytest.raises(ConstraintError, match="no text of the 3 characters"):
        evaluate(str(folder), str(recognizer), constraints=Constraints(characters="xyz"))


def test_a_model_that_is_not_there_is_one_line_before_any_image_is_read_and_leaves_no_run(
    no_run: NoRun, tmp_path: Path
) -> None:
    with no_run(), pytest.raises(RegistryError, match=r"^'models:/nobody@champion' names no model: [^\n]*$"):
        evaluate(str(tmp_path), "models:/nobody@champion")
