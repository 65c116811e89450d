import os
from collections.abc import Callable
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from captcha.tracking.models import load_parent, load_recognizer
from captcha.tracking.runs import RegistryError

Trained = Callable[..., str]
FORMS = "use models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID"


@pytest.fixture
def registered(trained_run: Trained) -> MlflowClient:
    """`read` with versions 1 to 3 and the aliases champion (1) and old (2), `plain` with versions 1 and 2, `empty`."""
    client = MlflowClient()
    if not client.search_registered_models():
        run_id = trained_run(0.9)
        for name, count in (("read", 3), ("plain", 2), ("empty", 0)):
            client.create_registered_model(name)
            for _ in range(count):
                client.create_model_version(name, "a folder", run_id)
        client.set_registered_model_alias("read", "champion", "1")
        client.set_registered_model_alias("read", "old", "2")
    return client


def test_where_no_model_is_registered_training_comes_first() -> None:
    assert MlflowClient().search_registered_models() == []
    for load in (load_recognizer, load_parent):
        with pytest.raises(RegistryError, match=r"names no model: no model is registered, train one first$"):
            load("models:/read@champion")


READ = "Versions: 1, 2, 3; aliases: champion, old"


def test_a_wrong_name_is_told_the_one_that_works_and_what_there_is(registered: MlflowClient) -> None:
    wrong = {
        "read": f"did you mean models:/read@champion? {READ}",
        "champion": f"did you mean models:/read@champion? {READ}",
        "old": f"did you mean models:/read@old? {READ}",
        "read@old": f"did you mean models:/read@old? {READ}",
        "models:read@champion": f"did you mean models:/read@champion? {READ}",
        "models:/read": f"did you mean models:/read@champion? {READ}",
        "models:/read@best": f"did you mean models:/read@champion? {READ}",
        "models:/read/4": f"did you mean models:/read@champion? {READ}",
        "models:/read/old": f"did you mean models:/read@old? {READ}",
        "models:/read@2": f"did you mean models:/read/2? {READ}",
        "plain": "did you mean models:/plain/2? Versions: 1, 2",
        "models:/plain@champion": "did you mean models:/plain/2? Versions: 1, 2",
        "models:/empty/1": "empty has no version, train one first",
        "models:/nobody@champion": f"the registered models are empty, plain, read; {FORMS}",
        "nobody": f"the registered models are empty, plain, read; {FORMS}",
        "0123456789abcdef0123456789abcdef": "did you mean runs:/0123456789abcdef0123456789abcdef?",
        "models:/": f"the registered models are empty, plain, read; {FORMS}",
    }
    for written, told in wrong.items():
        folder = "" if written.startswith("models:/") else "there is no such folder; "
        for load, looked_for in ((load_recognizer, folder), (load_parent, "")):
            with pytest.raises(RegistryError) as caught:
                load(written)
            assert str(caught.value) == f"{written!r} names no model: {looked_for}{told}"


def test_the_forms_that_are_offered_are_followed(registered: MlflowClient) -> None:
    for uri in ("models:/read@champion", "models:/read@old", "models:/read/2", "models:/plain/2"):
        with pytest.raises(RegistryError, match="has no weights"):  # the version and its run are found
            load_parent(uri)


def test_a_server_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    retries: list[str] = []

    def unreachable() -> Any:
        retries.append(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
        raise MlflowException("no answer")

    monkeypatch.setattr(mlflow, "search_registered_models", unreachable)
    for before in ("1", "7"):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", before)
        with pytest.raises(RegistryError, match=rf"^'read' names no model: there is no such folder; {FORMS}$"):
            load_recognizer("read")
        assert os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES") == before
    assert retries == ["0", "0"]


def test_of_many_versions_the_last_are_named(registered: MlflowClient) -> None:
    for _ in range(8):
        registered.create_model_version("read", "a folder")
    with pytest.raises(RegistryError, match=r"Versions: …, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11; aliases: champion, old$"):
        load_recognizer("read")
