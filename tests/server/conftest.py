"""The front around a tiny recogniser, in this process."""

from collections.abc import Callable, Iterable

import pytest
from mlflow.models import Model

from captcha.reading.recognizer import Recognizer
from captcha.server.front import Front
from captcha.server.keys import Keys
from captcha.server.monitoring import Monitor
from captcha.server.served import Served, Version
from captcha.tracking.models import SIGNATURE
from tests.server.stripes import Client, save_stripes

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
