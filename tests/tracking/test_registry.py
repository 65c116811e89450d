import hashlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import cv2
import mlflow
import numpy as np
import onnx.parser
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Run
from mlflow.tracking import fluent
from mlflow.tracking._tracking_service import utils

from captcha.reading.recognizer import save_recognizer
from captcha.reading.vocabulary import Vocabulary
from captcha.tracking import models, runs
from captcha.tracking.models import LOGGED_MODEL, WEIGHTS_FILE, WEIGHTS_FOLDER, load_recognizer, load_trained
from captcha.tracking.registry import is_champion, register
from captcha.tracking.runs import RegistryError, tracked_run

# Reads nothing, whatever the image: log_probs (1, N, 2), the blank certain.
BLANK = """
<ir_version: 10, opset_import: ["": 18]>
blank (uint8[N, 3, H, W] images) => (float[1, N, C] log_probs)
<float[2] frame = {-0.01, -4.6}>
{
    shape = Shape(images)
    one = Constant<value_ints = [1]>()
    zero = Constant<value_ints = [0]>()
    count = Slice(shape, zero, one)
    two = Constant<value_ints = [2]>()
    wanted = Concat<axis = 0>(one, count, two)
    log_probs = Expand(frame, wanted)
}
"""
EXAMPLE = cv2.imencode(".png", np.zeros((16, 32, 3), np.uint8))[1].tobytes()


@pytest.fixture(autouse=True)
def place(tracking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that MLflow tracks into; what a test sets there in MLflow's process-wide state is undone."""
    monkeypatch.setattr(utils, "_tracking_uri", None)
    monkeypatch.setattr(fluent, "_active_experiment_id", None)
    with mock.patch.dict(os.environ):
        yield tracking
        while mlflow.active_run():
            mlflow.end_run()


def status(run: Run) -> str:
    return str(MlflowClient().get_run(run.info.run_id).info.status)


# Where runs are tracked


def test_without_a_tracking_uri_runs_go_to_the_projects_own_database(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(runs, "project_root", lambda: tmp_path)
    runs.connect()
    assert mlflow.get_tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_database_that_another_training_has_just_made_is_left_as_it_is(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(b"the other's")
    runs._make_database(database)
    assert database.read_bytes() == b"the other's"
    assert list(tmp_path.iterdir()) == [database]


def test_a_tracking_uri_that_a_person_has_set_is_obeyed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(runs, "project_root", lambda: tmp_path)
    runs.connect()
    assert mlflow.get_tracking_uri() == "http://127.0.0.1:9"


def test_a_new_experiment_in_the_projects_database_keeps_its_artifacts_in_mlruns(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "project_root", lambda: place)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "in our own")
    with tracked_run("a run"):
        mlflow.log_text("hello", "note.txt")
    assert [path.read_text() for path in (place / "mlruns" / "in our own").rglob("note.txt")] == ["hello"]


# Runs


def test_a_run_that_ends_is_finished_with_its_name_in_the_experiment_captcha() -> None:
    with tracked_run("a name") as run:
        assert status(run) == "RUNNING"
    assert status(run) == "FINISHED"
    assert run.info.run_name == "a name"
    assert MlflowClient().get_experiment(run.info.experiment_id).name == "captcha"
    assert mlflow.active_run() is None


def test_another_experiment_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another one")
    with tracked_run("a run") as run:
        pass
    assert MlflowClient().get_experiment(run.info.experiment_id).name == "another one"


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (ValueError("a fault"), "FAILED"),
        (MemoryError(), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),  # what the CLI makes of SIGTERM
    ],
    ids=["fault", "memory", "Ctrl-C", "SIGTERM"],
)
def test_a_run_that_is_broken_off_is_failed_or_killed(error: BaseException, ending: str) -> None:
    with pytest.raises(type(error)), tracked_run("a run") as run:
        raise error
    assert status(run) == ending
    assert mlflow.active_run() is None


def test_a_nested_run_ends_with_its_own_and_takes_the_one_above_with_it_where_it_is_broken_off() -> None:
    with tracked_run("above") as above:
        with tracked_run("first", nested=True) as first:
            assert status(above) == status(first) == "RUNNING"
        assert (status(above), status(first)) == ("RUNNING", "FINISHED")
        with pytest.raises(ValueError, match="a fault"), tracked_run("second", nested=True) as second:
            raise ValueError("a fault")
        assert (status(above), status(second)) == ("RUNNING", "FAILED")
    assert status(above) == "FINISHED"
    assert second.data.tags["mlflow.parentRunId"] == above.info.run_id
    with pytest.raises(SystemExit), tracked_run("above") as above, tracked_run("nested", nested=True) as nested:
        raise SystemExit(143)
    assert status(above) == status(nested) == "KILLED"


@pytest.fixture
def parent_run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """What `mlflow run` leaves its child: a run in the default experiment, named by the environment."""
    run = MlflowClient().create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    return run


def test_the_run_of_mlflow_run_is_gone_on_with(parent_run: Run) -> None:
    with tracked_run("a name") as run:
        mlflow.log_param("epochs", 3)
    assert run.info.run_id == parent_run.info.run_id
    after = MlflowClient().get_run(run.info.run_id)
    assert after.data.params == {"epochs": "3"}
    assert after.info.status == "FINISHED"
    assert after.info.run_name == "a name"


def test_a_run_whose_artifacts_nobody_can_write_is_left_for_one_of_our_own(place: Path, parent_run: Run) -> None:
    # As where `mlflow ui` has made the database. MLflow's client makes no such run, so its row is changed.
    with sqlite3.connect(place / "mlflow.db") as database:
        database.execute(
            "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?",
            (f"mlflow-artifacts:/0/{parent_run.info.run_id}/artifacts", parent_run.info.run_id),
        )
    database.close()

    with tracked_run("a name") as run:
        mlflow.log_text("hello", "note.txt")

    assert run.info.run_id != parent_run.info.run_id
    assert MlflowClient().get_experiment(run.info.experiment_id).name == "captcha"
    assert status(run) == "FINISHED"
    tags = MlflowClient().get_run(parent_run.info.run_id).data.tags
    assert "stands in the experiment `captcha`" in tags["mlflow.note.content"]


# The registry

PARAMS = {"backbone": "compact", "data": "folder", "vocabulary_used": "abc", "seed": "0"}


def trained_run(match: float | None, test_digest: str = "d1") -> str:
    """Return the id of a run as `experiment.train` leaves one; its logged model is a stand-in without files.

    Without a match, as a self-training without labels leaves one.
    """
    with tracked_run("a training") as run:
        model = mlflow.initialize_logged_model(LOGGED_MODEL)
        mlflow.log_params(PARAMS | {"test_digest": test_digest})
        if match is not None:
            figures = {"exact_match": match, "exact_match_low": 0.5, "exact_match_high": 0.99, "cer": 0.1, "n": 40}
            mlflow.log_metrics({f"test/{key}": value for key, value in figures.items()})
        mlflow.set_tag("sha256.model.onnx", "0123")
        MlflowClient().log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
        mlflow.finalize_logged_model(model.model_id, "READY")
    return str(run.info.run_id)


def champion(name: str) -> int:
    return int(MlflowClient().get_model_version_by_alias(name, "champion").version)


def test_the_first_version_is_champion_and_says_what_it_is() -> None:
    assert register(trained_run(0.925), "first") == ("first", 1, "first version 1 registered, the first champion")
    assert champion("first") == 1
    version = MlflowClient().get_model_version("first", "1")
    assert {
        "backbone": "compact",
        "data": "folder",
        "vocabulary": "abc",
        "exact_match": "0.9250",
        "cer": "0.1000",
        "test_images": "40",
        "test_digest": "d1",
        "onnx_sha256": "0123",
    }.items() <= version.tags.items()
    assert "exact match 92.50% (50.00% to 99.00%) on 40 test images" in str(version.description)
    assert "Reads text CAPTCHAs" in str(MlflowClient().get_registered_model("first").description)


def test_the_same_model_registered_twice_is_one_version() -> None:
    run_id = trained_run(0.9)
    register(run_id, "twice")
    assert register(run_id, "twice") == ("twice", 1, "twice version 1 is this model already")
    assert len(MlflowClient().search_model_versions("name = 'twice'")) == 1
    assert register(run_id, "under another name")[1] == 1


@pytest.mark.parametrize(
    ("match", "test_digest", "now", "reason"),
    [
        (0.95, "d1", 2, "0.9500 exact match; the new champion: 0.9500 in place of 0.9000 on the same test"),
        (0.90, "d1", 1, "0.9000 exact match; version 1 stays champion: 0.9000 on the same test"),
        (0.80, "d1", 1, "0.8000 exact match; version 1 stays champion: 0.9000 on the same test"),
        (0.95, "d2", 1, "0.9500 exact match; version 1 stays champion: the two were tested on different images"),
    ],
    ids=["better", "as good", "worse", "other test"],
)
def test_a_champion_is_beaten_on_its_own_test_images_alone(
    match: float, test_digest: str, now: int, reason: str, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    register(trained_run(0.9), name)
    assert register(trained_run(match, test_digest), name) == (name, 2, f"{name} version 2 registered with {reason}")
    assert champion(name) == now
    assert is_champion(name, now)
    assert not is_champion(name, 3 - now)


def test_a_version_that_was_not_tested_does_not_take_the_champions_place() -> None:
    register(trained_run(0.9), "untested")
    told = "untested version 2 registered; version 1 stays champion: no labels to test on"
    assert register(trained_run(None), "untested") == ("untested", 2, told)
    assert champion("untested") == 1
    version = MlflowClient().get_model_version("untested", "2")
    assert not {"exact_match", "cer", "test_images", "test_digest"} & version.tags.keys()
    assert version.description == "compact trained on `folder`, seed 0: not tested, there were no labels."


def test_no_version_of_an_unknown_model_is_champion() -> None:
    assert not is_champion("nobody has registered this", 1)


def test_an_unknown_run_is_one_line() -> None:
    with pytest.raises(RegistryError, match=r"^run 0123456789abcdef: [^\n]*not found[^\n]*$"):
        register("0123456789abcdef", "unknown")


def test_a_run_without_a_model_is_one_line_and_leaves_nothing_registered() -> None:
    with tracked_run("an evaluation") as run:
        pass
    with pytest.raises(RegistryError, match=rf"^run {run.info.run_id} holds no model named recognizer: [^\n]*$"):
        register(run.info.run_id, "empty")
    assert MlflowClient().search_registered_models("name = 'empty'") == []


@pytest.mark.parametrize("uri", ["models:/nobody@champion", "models:/nobody/1", "models:/m-0123", "runs:/0123/model"])
def test_an_unknown_model_is_one_line(uri: str) -> None:
    with pytest.raises(RegistryError, match=rf"^{uri}: [^\n]*; train one first, or name another$"):
        load_recognizer(uri)


def test_the_registered_recognizer_is_the_one_that_was_logged(tmp_path: Path) -> None:
    save_recognizer(tmp_path / "recognizer", onnx.parser.parse_model(BLANK).SerializeToString(), Vocabulary("a"), 16)
    with tracked_run("a training") as run:
        mlflow.log_params(PARAMS | {"test_digest": "d1"})
        mlflow.log_metrics({f"test/{key}": 1.0 for key in ("exact_match", "exact_match_low", "exact_match_high")})
        mlflow.log_metrics({"test/cer": 0.0, "test/n": 1})
        mlflow.set_tag("sha256.model.onnx", "0123")
        info = models.log_model(LOGGED_MODEL, tmp_path / "recognizer", EXAMPLE)
    register(run.info.run_id, "logged")
    for uri in ("models:/logged@champion", "models:/logged/1", f"runs:/{run.info.run_id}", info.model_uri):
        recognizer = load_recognizer(uri)
        assert (recognizer.vocabulary.characters, recognizer.height) == ("a", 16)
        assert [reading.text for reading in recognizer.read([np.zeros((20, 50, 3), np.uint8)])] == [""]


# What another training goes on from


@pytest.fixture
def weighty(tmp_path: Path) -> str:
    """The id of a run with weights, registered under `weighty`."""
    run_id = trained_run(0.9)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"some weights")
    with mlflow.start_run(run_id):
        mlflow.log_artifact(str(tmp_path / WEIGHTS_FILE), WEIGHTS_FOLDER)
        mlflow.set_tag(f"sha256.{WEIGHTS_FILE}", hashlib.sha256(b"some weights").hexdigest())
        mlflow.log_params({"height": 32, "test_data": "none"})
    register(run_id, "weighty")
    return run_id


def test_a_trained_model_is_found_by_alias_version_and_run(weighty: str) -> None:
    number = register(weighty, "weighty")[1]
    MlflowClient().set_registered_model_alias("weighty", "newest", str(number))
    exact = f"models:/weighty/{number}"
    for uri, resolved in {
        "models:/weighty@newest": exact,
        exact: exact,
        f"runs:/{weighty}": f"runs:/{weighty}",
    }.items():
        found = load_trained(uri)
        assert (found.uri, found.run_id, found.weights) == (resolved, weighty, b"some weights")
        assert (found.backbone, found.height, found.vocabulary) == ("compact", 32, Vocabulary("abc"))
        assert (found.data, found.test_data, found.seed) == ("folder", "none", 0)


@pytest.mark.parametrize("uri", ["models:/nobody@champion", "models:/nobody/1", "runs:/0123456789abcdef"])
def test_a_trained_model_that_is_not_there_is_one_line(uri: str) -> None:
    with pytest.raises(RegistryError, match=rf"^{uri}: [^\n]*; train one first, or name another$"):
        load_trained(uri)


@pytest.mark.parametrize("uri", ["captcha-crnn", "models:/weighty", "models:/weighty/newest", "/tmp/model", "runs:/"])
def test_what_names_no_trained_model_is_told_how_to(uri: str) -> None:
    with pytest.raises(RegistryError, match=rf"^'{uri}' names no model: use models:/NAME@ALIAS, [^\n]*$"):
        load_trained(uri)


def test_a_run_without_weights_and_a_file_that_has_changed_are_one_line(weighty: str, tmp_path: Path) -> None:
    bare = trained_run(0.9)
    with pytest.raises(RegistryError, match=rf"^runs:/{bare}: run {bare} has no weights/model.safetensors [^\n]*$"):
        load_trained(f"runs:/{bare}")
    (tmp_path / WEIGHTS_FILE).write_bytes(b"some weightz")
    MlflowClient().log_artifact(weighty, str(tmp_path / WEIGHTS_FILE), WEIGHTS_FOLDER)
    with pytest.raises(RegistryError, match=rf"^runs:/{weighty}: weights/model.safetensors of run .* is damaged: "):
        load_trained(f"runs:/{weighty}")


def test_a_run_that_is_no_training_cannot_be_gone_on_from(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_FILE).write_bytes(b"some weights")
    with tracked_run("something else") as run:
        mlflow.log_artifact(str(tmp_path / WEIGHTS_FILE), WEIGHTS_FOLDER)
    with pytest.raises(RegistryError, match=r"^runs:/\w+: run \w+ is no training, it has no param 'backbone'; [^\n]*$"):
        load_trained(f"runs:/{run.info.run_id}")
