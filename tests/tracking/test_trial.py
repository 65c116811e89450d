"""Versions that are really run, each in a process of its own: models that read one character whatever the image."""

import shutil
import subprocess
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from captcha.data.seen import SeenPixels
from captcha.tracking import promotion, trial
from captcha.tracking.champion import history
from captcha.tracking.digests import FILES_TAG
from captcha.tracking.models import download, log_seen, own_model_id
from captcha.tracking.promotion import Rule, promote
from captcha.tracking.runs import RegistryError, tracked_run
from captcha.tracking.trial import try_version
from tests.tracking.conftest import FACTS, PARAMS
from tests.tracking.readers import READS_A, READS_B, log_reader

LABELS = ["b"] * 8 + ["a"] * 2


@pytest.fixture(autouse=True)
def _no_processes() -> None:
    """Take no stand-in for the processes that try versions."""


@pytest.fixture(scope="module", autouse=True)
def two(tracking: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registered model: version 1, the champion, reads a; version 2 reads b."""
    client = MlflowClient()
    client.create_registered_model("two")
    for frame in (READS_A, READS_B):
        with tracked_run("a training") as run:
            mlflow.log_params(PARAMS | {"height": 16})
            mlflow.set_tags(FACTS)
            log_seen(SeenPixels.of([]))
            log_reader(tmp_path_factory.mktemp("model"), frame, 16)
        model_id = own_model_id(run.info.run_id)
        tags = {"model_id": model_id, FILES_TAG: client.get_logged_model(model_id).tags[FILES_TAG]}
        client.create_model_version("two", f"models:/{model_id}", run.info.run_id, tags=tags)
    client.set_registered_model_alias("two", "champion", "1")
    return "two"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of one colour each; of their labels eight are b and two a."""
    folder = tmp_path_factory.mktemp("some images")
    for number in range(len(LABELS)):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((20, 40, 3), 20 * number, np.uint8))
    rows = [f"{number}.png,{label}" for number, label in enumerate(LABELS)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    return folder


def test_each_version_runs_the_code_that_it_brings_along(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_other_code(uri: str, to: Path) -> Path:
        """Version 2 as a captcha of another time has made it, whose readings end in an exclamation mark."""
        model = download(uri, to)
        if uri.endswith("/2"):
            with (model / "code" / "captcha" / "reading" / "recognizer.py").open("a") as code:
                code.write("\n_decode = Recognizer.decode\nRecognizer.decode = lambda *given, **named: [")
                code.write("type(each)(each.text + '!', 1.0, [1.0, 1.0]) for each in _decode(*given, **named)]\n")
        return model

    monkeypatch.setattr(trial, "download", with_other_code)
    images = [file.read_bytes() for file in sorted(folder.glob("*.png"))] * 4  # more than one request
    for uri, text in {"models:/two/1": "a", "models:/two/2": "b!"}.items():
        tried = try_version(uri, images)
        assert [reading.text for reading in tried.readings] == [text] * 40
        assert tried.seconds > 0
        files = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / text))) / "artifacts"
        assert tried.bytes == sum(file.stat().st_size for file in files.rglob("*") if file.is_file())


def test_a_model_that_does_not_run_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(uri: str, to: Path) -> Path:
        model = download(uri, to)
        (model / "code" / "captcha" / "reading" / "recognizer.py").write_text("import nothing_of_this_name\n")
        return model

    monkeypatch.setattr(trial, "download", broken)
    line = r"^models:/two/1 does not run: [^\n]*No module named 'nothing_of_this_name'[^\n]*$"
    with pytest.raises(RegistryError, match=line):
        try_version("models:/two/1", [])


def test_what_a_model_runs_in_knows_of_no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(command: list[str], env: dict[str, str], **options: object) -> None:
        seen.append(env)
        raise RegistryError("enough")

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setattr(subprocess, "run", look)
    with pytest.raises(RegistryError, match="enough"):
        try_version("models:/two/1", [])
    assert seen[0]
    assert not [key for key in seen[0] if key.startswith("MLFLOW_")]


def test_a_champion_whose_files_are_damaged_is_named_and_stays_it(folder: Path, tmp_path: Path) -> None:
    client = MlflowClient()
    model_id = client.get_model_version("two", "1").tags["model_id"]
    stored = Path(client.get_logged_model(model_id).artifact_location) / "artifacts" / "recognizer" / "model.onnx"
    shutil.copy(stored, tmp_path)
    stored.write_bytes(stored.read_bytes() + b"more")
    try:
        line = r"^models:/two/1: 'artifacts/recognizer/model.onnx' is not the file that was logged: [^\n]*$"
        with pytest.raises(RegistryError, match=line):
            promote("two/2", str(folder))
    finally:
        shutil.copy(tmp_path / "model.onnx", stored)
    assert history(client, "two") == []


def test_of_two_versions_that_read_a_folder_the_better_one_becomes_champion(folder: Path) -> None:
    decision = promote("two/2", str(folder))
    assert not decision.promoted  # 2 * (1 + 10 + 45) / 2 ** 10
    assert decision.why == (
        "8 of 10 read, by version 1 2; alone 8 to 2, exact McNemar p = 0.11, and it takes more images read alone and "
        "p < 0.05"
    )
    assert promote("two/2", str(folder), Rule(level=0.2)).promoted
    assert MlflowClient().get_registered_model("two").aliases == {"champion": 2, "previous": 1}
    counts = decision.counts
    assert counts
    assert (counts.both, counts.only_challenger, counts.only_champion, counts.neither) == (0, 8, 2, 0)
    assert promotion.COUNTS_TAG in MlflowClient().get_model_version("two", "2").tags
