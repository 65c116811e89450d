"""The model that reads, and the watch that takes up its successor without losing a request."""

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import Model

from captcha.reading.recognizer import Recognizer
from captcha.reading.serving import CaptchaModel, RequestError
from captcha.reading.stopping import caller_gone
from captcha.server.monitoring import write_line
from captcha.server.visits import current


@dataclass(frozen=True)
class Version:
    """A model as it is named, `captcha-crnn/3`, and its recogniser."""

    name: str
    recognizer: Recognizer


class Served:
    """The model that MLflow's application asks; whoever reads goes on with the version that was there at the start.

    The files of the registered model are read, and none of its code is run: the code is this package's.
    """

    def __init__(self, version: Version, metadata: Model) -> None:
        self.metadata = metadata
        self._use(version)

    @property
    def name(self) -> str:
        """The version in use."""
        return self._version.name

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return the readings of a frame's images, noting on the visit what was read, or why not."""
        version, model = self._version, self._model
        visit = current.get()
        if visit is None:  # a test, or a person
            return model.predict(None, data, params)
        visit.model = version.name
        token = caller_gone.set(visit.gone)
        try:
            readings = model.predict(None, data, params)
        except RequestError as error:
            visit.refusal = error.get_http_status_code(), error.line  # type: ignore[no-untyped-call]
            raise
        except Exception:  # MLflow would blame the caller, and tell it the trace
            trace = traceback.format_exc()
            write_line(message="a fault of the model", request_id=visit.request_id, trace=trace)
            raise
        finally:
            caller_gone.reset(token)
        visit.images, visit.texts = len(readings), int((readings["text"] != "").sum())
        return readings

    def take_up(self, version: Version) -> None:
        """Let another version read from now on, once it has read an image.

        Raises:
            RecognizerError: it cannot read.
        """
        height = version.recognizer.height
        version.recognizer.read(np.full((height, 4 * height, 3), 255, np.uint8))
        self._use(version)

    def _use(self, version: Version) -> None:
        model = CaptchaModel()
        model.recognizer = version.recognizer
        self._model, self._version = model, version


class Watch(threading.Thread):
    """Looks every few seconds which version an alias points to, and lets that one be served.

    Whatever fails, the version in use stays: a store that is away, a model that does not load.
    """

    def __init__(
        self, served: Served, newest: Callable[[], str], load: Callable[[str], Version], seconds: float
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self.served, self.newest, self.load, self.seconds = served, newest, load, seconds
        self.stopped = threading.Event()
        self._said = ""

    def run(self) -> None:
        """Look until `stopped` is set."""
        while not self.stopped.wait(self.seconds):
            self.look()

    def look(self) -> None:
        """Look once."""
        try:
            name = self.newest()
            if name != self.served.name:
                self.served.take_up(self.load(name))
                write_line(message=f"{self.served.name} is served from now on")
            self._said = ""
        except Exception as error:  # of any kind: the server must go on
            line = " ".join(str(error).split())[:300] or type(error).__name__
            if line != self._said:
                write_line(message=f"{self.served.name} is served still: {line}")
            self._said = line
