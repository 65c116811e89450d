"""MLflow's process-wide state, undone after each test, and runs as a training leaves them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.tracking import fluent
from mlflow.tracking._tracking_service import utils

from captcha.tracking.runs import tracked_run
from tests.tracking.standin import stand_in

PARAMS = {"backbone": "compact", "data": "folder", "seed": "0"}
FACTS = {"vocabulary": "abc", "sha256.model.onnx": "0123", "test_images": "40", "test_right": "36"}


@pytest.fixture(autouse=True)
def place(tracking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that MLflow tracks into; what a test sets there in MLflow's process-wide state is undone."""
    monkeypatch.setattr(utils, "_tracking_uri", None)
    monkeypatch.setattr(fluent, "_active_experiment_id", None)
    with mock.patch.dict(os.environ):
        yield tracking
        while mlflow.active_run():
            mlflow.end_run()


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No version is tried in a process of its own: the model of `trained_run` is a stand-in, too."""
    stand_in(monkeypatch.setattr)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A function that gives the id of a run as a training leaves one; its logged model is a stand-in of one file.

    Without a match, as a self-training without labels leaves one.
    """

    def make(match: float | None, test_digest: str = "d1") -> str:
        with tracked_run("a training") as run:
            model = mlflow.initialize_logged_model("a model")
            mlflow.log_params(PARAMS)
            mlflow.set_tags(FACTS | {"test_digest": test_digest, "test_low": "0.5000", "test_high": "0.9900"})
            if match is not None:
                mlflow.log_metrics({"test/exact_match": match, "test/cer": 0.1})
            MlflowClient().log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
            (model_file := tmp_path_factory.mktemp("model") / "MLmodel").write_text(f"model_id: {model.model_id}\n")
            MlflowClient().log_model_artifact(model.model_id, str(model_file))
            mlflow.finalize_logged_model(model.model_id, "READY")
        return str(run.info.run_id)

    return make
