"""The registered model: a request's images → `Recognizer` → texts, as MLflow's pyfunc.

MLflow runs a copy of this file in the serving process ("models from code": nothing is pickled), and beside it
the package `captcha.reading`. Nothing imports it.
"""

import base64
import binascii
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, overload

import mlflow
import numpy as np
import pandas as pd
import PIL.Image
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import DEADLINE_EXCEEDED, INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PyFuncModel
from mlflow.pyfunc.model import PythonModel

from captcha.reading.constraints import CONSTRAINTS, ConstraintError, constraints_of
from captcha.reading.engine import RecognizerError, engine_of_environment
from captcha.reading.images import (
    Image,
    ImageError,
    checked_width,
    decode_image,
    holds_pixels,
    load_image,
    resize_to_height,
)
from captcha.reading.limits import (
    DEADLINE,
    MAX_BEAM_COLUMNS,
    MAX_BEAM_WIDTH,
    MAX_BYTES,
    MAX_REQUEST_COLUMNS,
    MAX_REQUEST_PIXELS,
    MAX_ROWS,
)
from captcha.reading.recognizer import ARTIFACT, COLUMNS_AT_ONCE, Decoder, Recognizer
from captcha.reading.stopping import StoppedError, deadline, stop_if_unwanted

COLUMNS_KEPT = 2 * COLUMNS_AT_ONCE
"""Columns of a request's resized images that are kept between check and reading: 3 MB at a height of 64."""


class RequestError(MlflowException):
    """The line that a caller gets: HTTP status 400, 500 where the model is at fault, 504 where the time is over."""

    def __init__(self, line: str, error_code: int = INVALID_PARAMETER_VALUE) -> None:
        super().__init__(line, error_code=error_code)
        self.line = line

    def serialize_as_json(self) -> str:
        """Return the body of the server's answer: the line alone; MLflow would put the whole request first."""
        self.message = self.line
        return str(super().serialize_as_json())  # type: ignore[no-untyped-call]


class CaptchaModel(PythonModel):
    """Reads the images of a request; all of them, or none where one is bad."""

    def load_context(self, context: Any) -> None:
        """Load the recogniser, whose files are checked against their sha256."""
        self.recognizer = Recognizer.load(Path(context.artifacts[ARTIFACT]), engine_of_environment())
        _ask_for_frames()

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return text, confidence, probability, accepted and character_confidences of each row's `image`.

        An image is a file's content, in base64 with or without a `data:` prefix and line breaks, or as bytes; from
        Python also an array (H, W), (H, W, 3) or (H, W, 4) of uint8, or a PIL image.

        Raises:
            RequestError: naming the bad rows, the first being row 0, or the bad parameter.
        """
        params = params or {}
        decoder, beam_width = params.get("decoder", "greedy"), params.get("beam_width", 10)
        if decoder not in get_args(Decoder):
            raise RequestError(f"decoder must be {' or '.join(get_args(Decoder))}, not {decoder!r:.40}")
        if not isinstance(beam_width, int) or not 1 <= beam_width <= MAX_BEAM_WIDTH:
            raise RequestError(f"beam_width must be 1 to {MAX_BEAM_WIDTH}, not {beam_width}")
        least = params.get("min_confidence")
        if least is not None and not (isinstance(least, int | float) and 0 <= least <= 1):
            raise RequestError(f"min_confidence must be 0 to 1, not {least!r:.40}")
        if len(model_input) > MAX_ROWS:
            raise RequestError(f"{len(model_input)} rows, more than the {MAX_ROWS} allowed in one request")
        rows = _Rows(model_input["image"], self.recognizer.height)
        try:
            constraints = constraints_of(*(params.get(name) for name in CONSTRAINTS))
            with deadline(DEADLINE):
                rows.check(beam_width if constraints or decoder == "beam" else None)
                readings = self.recognizer.read(rows, decoder, beam_width, constraints)
                readings = [each.judged(least) for each in readings]
        except ConstraintError as error:
            raise RequestError(str(error)) from None
        except RecognizerError as error:  # the model's fault, not the caller's
            raise RequestError(str(error), INTERNAL_ERROR) from None
        except StoppedError:
            line = f"not read within {DEADLINE} seconds, the time for one request: send fewer or smaller images at once"
            raise RequestError(line, DEADLINE_EXCEEDED) from None
        return pd.DataFrame(
            {
                "text": pd.Series([reading.text for reading in readings], dtype=object),
                "confidence": pd.Series([reading.confidence for reading in readings], dtype=float),
                "probability": pd.Series([reading.probability for reading in readings], dtype=float),
                "accepted": pd.Series([reading.accepted for reading in readings], dtype=object),
                "character_confidences": pd.Series([r.character_confidences for r in readings], dtype=object),
            }
        )

    @staticmethod
    def frame_of_images(given: object) -> pd.DataFrame:
        """Return what one gives `predict` in a notebook as the frame that the signature asks for, `image` its column.

        Raises:
            RequestError: it is nothing that could hold images.
        """
        if isinstance(given, pd.DataFrame):
            named = [name for name in given.columns if name == "image"] or list(given.columns)
            if len(named) == 1:
                return pd.DataFrame({"image": given[named[0]].astype(object)})
        elif isinstance(given, dict):
            if "image" in given:
                return _frame(given["image"])
        elif isinstance(given, list) and given and all(isinstance(row, dict) and "image" in row for row in given):
            return _frame([row["image"] for row in given])
        else:
            return _frame(given)
        raise RequestError(f"{NO_IMAGE}, not a {type(given).__name__} without `image`")


class _Rows(Sequence[Image]):
    """The images of a request's rows, resized.

    The first COLUMNS_KEPT are those that `check` decoded; the others are decoded anew, so that memory does not grow
    with the rows.
    """

    def __init__(self, values: "pd.Series[Any]", height: int) -> None:
        self.values = list(values)
        self.height = height
        self.kept: dict[int, Image] = {}

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, row: int) -> Image: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Image]: ...
    def __getitem__(self, row: int | slice) -> Image | Sequence[Image]:
        if isinstance(row, slice):
            return [self[each] for each in range(len(self))[row]]
        kept = self.kept.pop(row, None)
        return resize_to_height(_image(self.values[row]), self.height) if kept is None else kept

    def check(self, beam_width: int | None) -> None:
        """Decode each image once; None stands for the greedy decoder.

        Raises:
            RequestError: rows are bad, or ask for too much, alone or together.
        """
        problems, pixels, columns = [], 0, 0
        for row, value in enumerate(self.values):
            stop_if_unwanted()
            try:
                image = _image(value)
                height, width = image.shape[:2]
                asked = checked_width(image, self.height)
            except ImageError as error:
                problems.append(f"row {row}: {error}")
                continue
            pixels += width * height
            columns += asked
            for bound, given, what in self._bounds(pixels, columns, beam_width):
                if given > bound:
                    raise RequestError(f"the first {row + 1} rows have {given} {what}, one request may have {bound}")
            if columns <= COLUMNS_KEPT and not problems:
                self.kept[row] = resize_to_height(image, self.height)
            del image  # it may be large: not beside the next
        if problems:
            more = f"; and {len(problems) - 3} rows more" if len(problems) > 3 else ""
            raise RequestError("; ".join(problems[:3]) + more + " (the first row is row 0)")

    def _bounds(self, pixels: int, columns: int, beam_width: int | None) -> Iterator[tuple[int, int, str]]:
        """Yield what one request may have, what this one has so far, and of what."""
        resized = f"columns of pixels once resized to a height of {self.height}"
        yield MAX_REQUEST_PIXELS, pixels, "pixels"
        yield MAX_REQUEST_COLUMNS, columns, resized
        if beam_width is not None:
            yield MAX_BEAM_COLUMNS, columns * beam_width, f"{resized}, times beam_width {beam_width}"


NO_IMAGE = (
    "give base64 text, bytes, uint8 arrays (H, W), (H, W, 3) or (H, W, 4), or PIL images: "
    "one, a list, or a column `image`"
)


def _frame(given: object) -> pd.DataFrame:
    """Return a frame with a row for the one image, or for each of several."""
    if isinstance(given, np.ndarray):
        one = given.ndim in (2, 3)
        several = given.ndim == 4 or (given.ndim == 1 and given.dtype.kind in "OSU")  # objects, bytes, text
    else:
        one = isinstance(given, str | bytes | bytearray | memoryview | PIL.Image.Image)
        several = isinstance(given, list | tuple | pd.Series)
    if not one and not several:
        raise RequestError(f"{NO_IMAGE}, not {type(given).__name__}")
    return pd.DataFrame({"image": pd.Series([given] if one else list(given), dtype=object)})  # type: ignore[call-overload]


def _ask_for_frames() -> None:
    """Let `PyFuncModel.predict` take what one has in a notebook; what comes to a server stays as it is.

    MLflow compares the input with the signature before it asks the model, and no signature lets plain lists, arrays
    and PIL images through and still takes every form of HTTP request; its message holds the whole input.
    """
    predict = PyFuncModel.predict
    if hasattr(predict, "asks_for_frames"):  # by another of these models in this process
        return

    @functools.wraps(predict)
    def ask(self: PyFuncModel, data: Any, params: dict[str, Any] | None = None) -> Any:
        frame_of_images = getattr(getattr(self._model_impl, "python_model", None), "frame_of_images", None)
        if frame_of_images and os.environ.get("_MLFLOW_IS_IN_SERVING_ENVIRONMENT") != "true":
            data = frame_of_images(data)
        return predict(self, data, params)

    ask.asks_for_frames = True  # type: ignore[attr-defined]
    PyFuncModel.predict = ask  # type: ignore[method-assign]


def _image(value: object) -> Image:
    """Return the image that a row holds; a path or URL is none.

    Raises:
        ImageError: it is no image, or a bad one.
    """
    if isinstance(value, PIL.Image.Image) or (isinstance(value, np.ndarray) and holds_pixels(value)):
        return load_image(value)
    return decode_image(_content(value))


def _content(value: object) -> bytes:
    """Return the bytes of an image file as a request gives them.

    Raises:
        ImageError: null, neither text nor bytes, not base64, or too long.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        if pd.Series([value], dtype=object).isna().item():
            raise ImageError("the image is null")
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            raise ImageError(f"the image must be text in base64 or pixels of uint8, not {value.shape} of {value.dtype}")
        raise ImageError(f"the image must be text in base64, not {type(value).__name__}")
    if value == "None":  # what MLflow makes of a null in `inputs` and `instances`
        raise ImageError("the image is null")
    text = "".join(value.split())
    if text[:5].lower() == "data:":
        kind, _, text = text.partition(",")
        if not kind.lower().endswith(";base64"):
            raise ImageError("the image's data: prefix must end in ;base64 and a comma")
    if len(text) > -(-MAX_BYTES // 3) * 4:
        raise ImageError(f"the image has more than the {MAX_BYTES / 2**20:g} MB allowed")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("the image is not base64, and no path is opened") from None


mlflow.models.set_model(CaptchaModel())
