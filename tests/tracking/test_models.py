import hashlib
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import mlflow
import numpy as np
import onnx.parser
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput

from captcha.data.samples import Sample
from captcha.data.seen import SeenPixels, pixel_key
from captcha.reading.recognizer import save_recognizer
from captcha.reading.vocabulary import Vocabulary
from captcha.tracking.models import (
    SEEN_FILE,
    WEIGHTS_FILE,
    WEIGHTS_FOLDER,
    Resolved,
    load_parent,
    load_recognizer,
    load_seen,
    log_model,
    log_seen,
    logged_model,
    own_model_id,
    resolve,
)
from captcha.tracking.registry import register
from captcha.tracking.runs import RegistryError, tracked_run

Trained = Callable[..., str]
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


def test_an_unknown_run_is_one_line() -> None:
    with pytest.raises(RegistryError, match=r"^runs:/0123: [^\n]*; train one first, or name another$"):
        load_recognizer("runs:/0123")


@pytest.mark.parametrize("uri", ["runs:/0123/model", "models:/m/latest", "models:/m/1/artifacts"])
def test_what_mlflow_would_load_without_a_check_is_named_in_another_way(uri: str) -> None:
    with pytest.raises(RegistryError, match=rf"^'{uri}' names no model: [^\n]*$"):
        load_recognizer(uri)


def test_the_registered_recognizer_is_the_one_that_was_logged(tmp_path: Path) -> None:
    save_recognizer(tmp_path / "recognizer", onnx.parser.parse_model(BLANK).SerializeToString(), Vocabulary("a"), 16)
    with tracked_run("a training") as run:
        mlflow.log_params(
            {"backbone": "compact", "data": "folder", "vocabulary_used": "abc", "seed": "0", "test_digest": "d1"}
        )  # as the first versions logged them
        mlflow.log_metrics({f"test/{key}": 1.0 for key in ("exact_match", "exact_match_low", "exact_match_high")})
        mlflow.log_metrics({"test/cer": 0.0, "test/n": 1})
        mlflow.set_tag("sha256.model.onnx", "0123")
        paths = list(sys.path)
        log_model(tmp_path / "recognizer", EXAMPLE, step=0)
        model_id = own_model_id(run.info.run_id)
        assert sys.path == paths  # MLflow puts a copy of this package there where it tries a model out
    assert register(run.info.run_id, "logged")[1] == 1
    for uri in ("models:/logged@champion", "models:/logged/1", f"runs:/{run.info.run_id}", f"models:/{model_id}"):
        recognizer = load_recognizer(uri)
        assert (recognizer.vocabulary.characters, recognizer.height) == ("a", 16)
        assert [reading.text for reading in recognizer.read([np.zeros((20, 50, 3), np.uint8)])] == [""]


def test_a_runs_model_is_the_last_one_that_is_there_whole(trained_run: Trained) -> None:
    client = MlflowClient()
    run = client.get_run(trained_run(0.9))
    whole = logged_model(client, run)
    cut_off = client.create_logged_model(run.info.experiment_id, source_run_id=run.info.run_id)  # as a kill leaves one
    client.log_outputs(run.info.run_id, [LoggedModelOutput(cut_off.model_id, 1)])
    assert logged_model(client, client.get_run(run.info.run_id)).model_id == whole.model_id
    with tracked_run("cut off") as run:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(cut_off.model_id, 1)])
    with pytest.raises(RegistryError, match=rf"^run {run.info.run_id} holds no model: it did not end its training$"):
        logged_model(client, client.get_run(run.info.run_id))


def test_code_planted_in_a_model_is_not_run_by_reading_with_it_but_by_serving_it(tmp_path: Path) -> None:
    save_recognizer(tmp_path / "recognizer", onnx.parser.parse_model(BLANK).SerializeToString(), Vocabulary("a"), 16)
    with tracked_run("a training") as run:
        log_model(tmp_path / "recognizer", EXAMPLE, step=0)
    model_id = own_model_id(run.info.run_id)
    folder, proof = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}")), tmp_path / "was run"
    for code in folder.rglob("*.py"):
        code.write_text(f"{code.read_text()}\nopen({str(proof)!r}, 'w').close()\n")
    with suppress(RegistryError):  # it may be refused, too
        load_recognizer(f"models:/{model_id}")
    assert not proof.exists()
    loading = f"import mlflow; mlflow.pyfunc.load_model({str(folder)!r})"  # as MLflow's server does
    subprocess.run([sys.executable, "-c", loading], cwd=tmp_path, check=True)
    assert proof.exists()


# What another training goes on from


@pytest.fixture
def weighty(tmp_path: Path, trained_run: Trained) -> str:
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
        found = load_parent(uri)
        assert (found.uri, found.run_id, found.weights) == (resolved, weighty, b"some weights")
        assert found.meaning == {"backbone": "compact", "height": "32", "vocabulary": "abc"}
        assert (found.seen.count, found.seen.unknown) == (0, resolved)  # an earlier version trained it


def test_a_model_is_resolved_to_the_version_that_an_alias_stands_for(weighty: str, tmp_path: Path) -> None:
    number = register(weighty, "weighty")[1]
    MlflowClient().set_registered_model_alias("weighty", "newest", str(number))
    model_id = logged_model(MlflowClient(), mlflow.get_run(weighty)).model_id
    for named in ("models:/weighty@newest", f"models:/weighty/{number}"):
        found = resolve(named)
        assert (found.uri, found.name, found.version) == (f"models:/weighty/{number}", "weighty", number)
        assert found.model_id == model_id
        assert found.run
        assert found.run.info.run_id == weighty
    for named in (f"runs:/{weighty}", f"models:/{model_id}"):
        found = resolve(named)
        assert (found.uri, found.version, found.model_id) == (named, None, model_id)
        assert found.run
        assert found.run.info.run_id == weighty
    assert resolve(str(tmp_path)) == Resolved(str(tmp_path))


@pytest.mark.parametrize("uri", ["models:/nobody@champion", "models:/nobody/1", "models:/m-0123", "runs:/0123"])
def test_a_model_to_resolve_that_is_not_there_is_one_line(uri: str) -> None:
    with pytest.raises(RegistryError, match=rf"^({uri}: |'{uri}' names no model: )[^\n]*$"):
        resolve(uri)


@pytest.mark.parametrize("named", ["captcha-crnn", "", "no/such/folder"])
def test_what_names_no_model_to_resolve_is_told_how_to(named: str) -> None:
    with pytest.raises(RegistryError, match=rf"^'{named}' names no model: there is no such folder; [^\n]*$"):
        resolve(named)


# Which pixels a training saw


def seen_of(*digests: str) -> SeenPixels:
    return SeenPixels.of([pixel_key(digest) for digest in digests])


def test_the_pixels_that_a_training_saw_are_kept_beside_its_weights(tmp_path: Path) -> None:
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(9)]
    with tracked_run("a training") as run:
        log_seen(seen_of(*digests[:5], digests[0]))
    assert [file.path for file in MlflowClient().list_artifacts(run.info.run_id, WEIGHTS_FOLDER)] == [
        "weights/training_pixels.npy"
    ]
    path = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/weights/training_pixels.npy")
    assert np.load(path).tolist() == sorted(int(digest[:16], 16) for digest in digests[:5])
    again = load_seen(mlflow.get_run(run.info.run_id), "models:/m/1")
    assert again.unknown is None
    images = np.zeros((1, 1, 3), np.uint8)
    assert again.among([Sample("x", "x", images, digest) for digest in digests]) == [True] * 5 + [False] * 4


def test_what_nobody_noted_of_the_model_started_from_stays_unknown() -> None:
    parent = load_seen(MlflowClient().create_run("0"), "models:/old/1")  # a run of an earlier version
    with tracked_run("a training") as run:
        log_seen(SeenPixels.of([7], parent=parent))
    again = load_seen(mlflow.get_run(run.info.run_id), "models:/new/1")
    assert (again.count, again.unknown) == (1, "models:/old/1")


@pytest.mark.parametrize("content", [b"", b"no array", seen_of("0" * 64).to_bytes()[:-3], seen_of("0" * 64).to_bytes()])
def test_training_pixels_that_are_damaged_are_one_line(content: bytes, tmp_path: Path) -> None:
    with tracked_run("a training") as run:
        log_seen(seen_of("0" * 64, "1" * 64))
        (tmp_path / SEEN_FILE).write_bytes(content)
        mlflow.log_artifact(str(tmp_path / SEEN_FILE), WEIGHTS_FOLDER)
    with pytest.raises(RegistryError, match=r"^weights/training_pixels.npy of run \w+ is missing or damaged [^\n]*$"):
        load_seen(mlflow.get_run(run.info.run_id), "models:/m/1")


def test_a_run_that_is_not_there_is_one_line() -> None:
    uri = "runs:/0123456789abcdef"
    with pytest.raises(RegistryError, match=rf"^{uri}: [^\n]*; train one first, or name another$"):
        load_parent(uri)


def test_a_run_without_weights_and_a_file_that_has_changed_are_one_line(
    weighty: str, tmp_path: Path, trained_run: Trained
) -> None:
    bare = trained_run(0.9)
    with pytest.raises(RegistryError, match=rf"^runs:/{bare}: run {bare} has no weights/model.safetensors [^\n]*$"):
        load_parent(f"runs:/{bare}")
    (tmp_path / WEIGHTS_FILE).write_bytes(b"some weightz")
    MlflowClient().log_artifact(weighty, str(tmp_path / WEIGHTS_FILE), WEIGHTS_FOLDER)
    with pytest.raises(RegistryError, match=rf"^runs:/{weighty}: weights/model.safetensors of run .* is damaged: "):
        load_parent(f"runs:/{weighty}")


def test_a_run_that_is_no_training_cannot_be_gone_on_from(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_FILE).write_bytes(b"some weights")
    with tracked_run("something else") as run:
        mlflow.log_artifact(str(tmp_path / WEIGHTS_FILE), WEIGHTS_FOLDER)
    with pytest.raises(
        RegistryError, match=r"^runs:/\w+: run \w+ is no training, it does not say its 'backbone'; [^\n]*$"
    ):
        load_parent(f"runs:/{run.info.run_id}")
