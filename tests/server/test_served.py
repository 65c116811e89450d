import json
import threading

import numpy as np
import pandas as pd
import pytest
from mlflow.models import Model

from captcha.reading.engine import RecognizerError
from captcha.reading.recognizer import Recognizer
from captcha.server.served import Served, Version, Watch
from captcha.tracking.models import SIGNATURE
from captcha.tracking.runs import RegistryError
from tests.server.stripes import encoded

FRAME = pd.DataFrame({"image": [encoded("abc")]})


@pytest.fixture
def served(stripes: Recognizer) -> Served:
    return Served(Version("m/1", stripes), Model(signature=SIGNATURE))


def test_a_moved_alias_is_taken_up(served: Served, stripes: Recognizer, capsys: pytest.CaptureFixture[str]) -> None:
    names = iter(["m/1", "m/2", "m/2"])
    loaded = []

    def load(name: str) -> Version:
        loaded.append(name)
        return Version(name, stripes)

    watch = Watch(served, lambda: next(names), load, 1)
    for name in ("m/1", "m/2", "m/2"):
        watch.look()
        assert served.name == name
    assert loaded == ["m/2"]
    assert json.loads(capsys.readouterr().err)["message"] == "m/2 is served from now on"
    assert served.predict(FRAME)["text"].tolist() == ["abc"]


def test_a_store_that_is_away_leaves_the_version_in_use_and_is_told_once(
    served: Served, stripes: Recognizer, capsys: pytest.CaptureFixture[str]
) -> None:
    def newest() -> str:
        raise RegistryError("the store\nis away")

    watch = Watch(served, newest, lambda name: Version(name, stripes), 1)
    for _ in range(3):
        watch.look()
    assert served.name == "m/1"
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "m/1 is served still: the store is away"


def test_a_model_that_does_not_load_or_does_not_read_leaves_the_version_in_use(
    served: Served, stripes: Recognizer, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(name: str) -> Version:
        raise RecognizerError("its sha256 differs")

    nonsense = Recognizer(lambda images: np.zeros((1, 1, 9), np.float32), stripes.vocabulary, stripes.height)
    for load in (damaged, lambda name: Version(name, nonsense)):
        Watch(served, lambda: "m/2", load, 1).look()
        assert served.name == "m/1"
        assert served.predict(FRAME)["text"].tolist() == ["abc"]
    told = capsys.readouterr().err
    assert "its sha256 differs" in told
    assert "model and vocabulary do not belong together" in told


def test_what_reads_as_a_version_is_replaced_reads_to_its_end(served: Served, stripes: Recognizer) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(images: object) -> object:
        begun.set()
        go_on.wait(10)
        return stripes.log_probs_of(images)  # type: ignore[arg-type]

    served = Served(Version("m/1", Recognizer(slow, stripes.vocabulary, stripes.height)), Model(signature=SIGNATURE))  # type: ignore[arg-type]
    texts: list[str] = []
    thread = threading.Thread(target=lambda: texts.extend(served.predict(FRAME)["text"]))
    thread.start()
    assert begun.wait(10)
    served.take_up(Version("m/2", stripes))
    assert served.predict(FRAME)["text"].tolist() == ["abc"]
    go_on.set()
    thread.join()
    assert texts == ["abc"]


def test_the_watch_looks_until_it_is_stopped(served: Served, stripes: Recognizer) -> None:
    looked = threading.Event()

    def newest() -> str:
        looked.set()
        return "m/1"

    watch = Watch(served, newest, lambda name: Version(name, stripes), 0.01)
    watch.start()
    assert looked.wait(10)
    watch.stopped.set()
    watch.join(10)
    assert not watch.is_alive()
