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

from captcha.tracking.models import LOGGED_MODEL
from captcha.tracking.runs import tracked_run

PARAMS = {"backbone": "compact", "data": "folder", "vocabulary_used": "abc", "seed": "0"}


@pytest.fixture(autouse=True)
def place(tracking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that MLflow tracks into; what a test sets there in MLflow's process-wide state is undone."""
    monkeypatch.setattr(utils, "_tracking_uri", None)
    monkeypatch.setattr(fluent, "_active_experiment_id", None)
    with mock.patch.dict(os.environ):
        yield tracking
        while mlflow.active_run():
            mlflow.end_run()


@pytest.fixture(scope="session")
def trained_run() -> Callable[..., str]:
    """A function that gives the id of a run as a training leaves one; its logged model is a stand-in without files.

    Without a match, as a self-training without labels leaves one.
    """

    def make(match: float | None, test_digest: str = "d1") -> str:
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

    return make
