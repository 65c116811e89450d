"""The front around a tiny recogniser, in this process, and a registry that has it."""

from collections.abc import Callable, Iterable
from pathlib import Path

import mlflow
import pytest
from mlflow.models import Model

from captcha.reading.recognizer import Recognizer
from captcha.server.front import Front
from captcha.server.keys import Keys
from captcha.server.monitoring import Monitor
from captcha.server.served import Served, Version
from captcha.tracking.models import SIGNATURE, log_model, own_model_id
from captcha.tracking.runs import tracked_run
from tests.server.stripes import Client, png, save_stripes

MakeClient = Callable[..., Client]


@pytest.fixture(scope="session")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    return Recognizer.load(save_stripes(tmp_path_factory.mktemp("recognizer")))


@pytest.fixture
def make_client(stripes: Recognizer, monkeypatch: pytest.MonkeyPatch) -> MakeClient:
    """A function that puts a front around a recogniser, STRIPES without one."""
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # set by MLflow's application: undone afterwards
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "60")

    def make(recognizer: Recognizer | None = None, keys: Keys | None = None, hosts: Iterable[str] = ()) -> Client:
        served = Served(Version("stripes/1", recognizer or stripes), Model(signature=SIGNATURE))
        return Client(Front(served, {"127.0.0.1", "localhost", "::1", *hosts}, keys, Monitor()))

    return make


@pytest.fixture
def client(make_client: MakeClient) -> Client:
    return make_client()


@pytest.fixture(scope="module")
def store(tracking: Path) -> Path:
    """A folder with a registry that has two versions of one model; version 1 is the champion."""
    client = mlflow.MlflowClient()
    client.create_registered_model("m")
    for _ in range(2):
        with tracked_run("a training") as run:
            log_model(save_stripes(tracking / "recognizer"), png("abc"), 0)
        model_id = own_model_id(run.info.run_id)
        client.create_model_version("m", f"models:/{model_id}", run_id=run.info.run_id, model_id=model_id)
    client.set_registered_model_alias("m", "champion", "1")
    return tracking
