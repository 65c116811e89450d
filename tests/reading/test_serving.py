import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import cv2
import mlflow
import numpy as np
import onnx.parser
import pandas as pd
import PIL.Image
import psutil  # type: ignore[import-untyped]
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel, scoring_server
from numpy.typing import NDArray

from captcha.reading import images
from captcha.reading.confidence import Calibration
from captcha.reading.constraints import Constraints
from captcha.reading.engine import RecognizerError
from captcha.reading.limits import MAX_BYTES, MAX_ROWS
from captcha.reading.recognizer import ARTIFACT, Recognizer, save_recognizer
from captcha.reading.serving import CaptchaModel
from captcha.reading.vocabulary import Vocabulary
from captcha.tracking.models import log_model, own_model_id
from captcha.tracking.runs import tracked_run

README = Path(__file__).parents[2] / "README.md"
HEIGHT = 16

# Each column of pixels is a frame, its brightness the class: white is the blank, black "a", then "b" and "c".
STRIPES = (Path(__file__).parent / "stripes.onnxtxt").read_text()


def png(text: str, pixels: NDArray[np.uint8] | None = None) -> bytes:
    """A PNG that STRIPES reads as the text, or one of these pixels."""
    shades = {"a": 0, "b": 85, "c": 170}
    row = [shade for character in text for shade in (255, 255, shades[character], shades[character])]
    image = np.tile(np.array([*row, 255], np.uint8), (HEIGHT, 1)) if pixels is None else pixels
    return cv2.imencode(".png", image)[1].tobytes()


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder that MLflow tracks into while these tests run."""
    folder = tmp_path_factory.mktemp("a folder with spaces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        patch.chdir(folder)
        patch.setattr(PyFuncModel, "predict", PyFuncModel.predict)  # a model that is loaded changes it
        patch.setattr(sys, "path", [*sys.path])  # MLflow puts a loaded model's code first, for other tests' workers too
        yield folder


@pytest.fixture(scope="module")
def model_folder(workplace: Path) -> Path:
    """The logged model as it stands on the disk."""
    model = onnx.parser.parse_model(STRIPES).SerializeToString()
    calibration = Calibration(0.5, 0.5, 0.9)
    save_recognizer(workplace / "recognizer", model, Vocabulary("abc"), HEIGHT, calibration=calibration)
    with tracked_run("a training") as run:
        log_model(workplace / "recognizer", png("abc"), step=0)
    model_id = own_model_id(run.info.run_id)
    (workplace / "recognizer" / "model.onnx").unlink()  # the model must not need what it was made from
    return Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> Any:
    """The model as a person loads it in a notebook."""
    return mlflow.pyfunc.load_model(str(model_folder))


@pytest.fixture
def model(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same as MLflow's server runs it."""
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    return loaded


def bodies(images: list[Any]) -> dict[str, dict[str, Any]]:
    """Every form of JSON body that MLflow's protocol has for these images."""
    records = [{"image": image} for image in images]
    return {
        "inputs": {"inputs": images},
        "inputs by column": {"inputs": {"image": images}},
        "inputs by row": {"inputs": records},
        "instances": {"instances": images},
        "instances by column": {"instances": {"image": images}},
        "instances by row": {"instances": records},
        "dataframe_split": {"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}},
        "dataframe_records": {"dataframe_records": records},
    }


FORMS = list(bodies([]))
OVERSIZED = png("", np.zeros((3200, 3200), np.uint8))
HUGE = "*" * (-(-MAX_BYTES // 3) * 4 + 4)  # no base64 either: the length must be refused before that shows

# What one row may hold that is not an image in base64, and what the answer says of it.
BAD_IMAGES = {
    "null": (None, "the image is null"),
    "a number": (5, "base64"),
    "a fraction": (1.5, "base64"),
    "not base64": ("*" + encoded(png("a")), "the image is not base64"),
    "no padding": (encoded(png("a")).rstrip("=") + "A", "the image is not base64"),
    "not ASCII": ("é" * 8, "the image is not base64"),
    "a path": ("/etc/passwd", "the image is not base64"),
    "a URL": ("http://127.0.0.1:9/image.png", "the image is not base64"),
    "a file URL": ("file:///etc/passwd", "the image is not base64"),
    "a data URL in percents": ("data:image/png,%89PNG", "must end in ;base64"),
    "empty": ("", "empty"),
    "an empty data URL": ("data:image/png;base64,", "empty"),
    "not an image": (encoded(b"hello, world"), "not an image"),
    "truncated": (encoded(png("abc")[:-20]), "truncated"),
    "too many pixels": (encoded(OVERSIZED), "more than the 10 megapixels"),
    "too many bytes": (HUGE, "more than the 10 MB"),
}
# Bad parameters that come as far as our code; MLflow itself refuses those of a wrong type.
BAD_PARAMS = [
    ({"decoder": "best"}, "decoder must be greedy or beam, not 'best'"),
    ({"decoder": ""}, "decoder must be greedy or beam, not ''"),
    ({"decoder": None}, "decoder must be greedy or beam, not None"),
    ({"beam_width": 0}, "beam_width must be 1 to 100, not 0"),
    ({"beam_width": 101}, "beam_width must be 1 to 100, not 101"),
    ({"beam_width": None}, "beam_width must be 1 to 100, not None"),
    ({"min_confidence": -0.1}, "min_confidence must be 0 to 1, not -0.1"),
    ({"min_confidence": 1.1}, "min_confidence must be 0 to 1, not 1.1"),
]
# Requests that MLflow refuses before our code is asked: its own words, but a 400 without a stack trace.
MALFORMED: list[Any] = [
    {},
    [],
    {"inputs": None},
    {"inputs": "/etc/passwd"},
    {"inputs": encoded(png("a"))},
    {"inputs": {"picture": ["x"]}},
    {"inputs": {"picture": [encoded(png("a"))]}},
    {"inputs": ["x"], "instances": ["x"]},
    {"instances": [{"picture": "x"}]},
    {"dataframe_split": {"columns": ["picture"], "data": [["x"]]}},
    {"dataframe_split": {"columns": ["picture"], "data": [[encoded(png("a"))]]}},
    {"image": encoded(png("a"))},
    {"dataframe_split": {"columns": ["image"], "data": [["x", "y"]]}},
    {"dataframe_records": [{}]},
    {"inputs": ["x"], "params": {"decoder": 5}},
    {"inputs": ["x"], "params": {"beam_width": "5"}},
    {"inputs": ["x"], "params": {"beam_width": 2.5}},
    {"inputs": ["x"], "params": {"min_confidence": "0.5"}},
    {"inputs": ["x"], "params": ["beam"]},
]


def post(model: Any, body: Any) -> tuple[int, Any]:
    """Status and answer of MLflow's scoring server, without the HTTP around it."""
    try:
        response = scoring_server.invocations(
            json.dumps(body), "application/json", model, model.metadata.get_input_schema()
        )
    except MlflowException as error:
        return error.get_http_status_code(), json.loads(error.serialize_as_json())
    return response.status, json.loads(response.response)


def check_refusal(status: int, answer: Any) -> str:
    """The message of a 400 that holds one line and no stack trace."""
    assert status == 400
    assert "stack_trace" not in answer
    message: str = answer["message"]
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_request_reads_its_images(model: Any, form: str) -> None:
    status, answer = post(model, bodies([encoded(png(text)) for text in ("abc", "c", "abbaca")])[form])

    assert status == 200
    assert [row["text"] for row in answer["predictions"]] == ["abc", "c", "abbaca"]
    for row in answer["predictions"]:
        assert set(row) == {"text", "confidence", "probability", "accepted", "character_confidences"}
        assert 0.9 < row["confidence"] < 1
        assert row["confidence"] == Calibration(0.5, 0.5, 0.9).confidences(row["probability"])
        assert row["accepted"] is True
        assert len(row["character_confidences"]) == len(row["text"])
        assert all(0.9 < share <= 1 for share in row["character_confidences"])


@pytest.mark.parametrize(
    "params", [{}, {"decoder": "greedy"}, {"decoder": "beam"}, {"decoder": "beam", "beam_width": 2}]
)
def test_decoders_are_chosen_by_params(model: Any, params: dict[str, Any]) -> None:
    status, answer = post(model, {"inputs": [encoded(png("cab"))], "params": params})

    assert (status, answer["predictions"][0]["text"]) == (200, "cab")


def test_params_reach_the_recognizer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int, Constraints | None]] = []

    class Listener:
        height = HEIGHT

        def read(self, images: Any, decoder: str, beam_width: int, known: Constraints | None) -> list[Any]:
            calls.append((decoder, beam_width, known))
            return []

    captcha_model = CaptchaModel()
    monkeypatch.setattr(captcha_model, "recognizer", Listener(), raising=False)
    frame = pd.DataFrame({"image": []})
    captcha_model.predict(None, frame)
    captcha_model.predict(None, frame, {"decoder": "beam", "beam_width": 7})
    captcha_model.predict(None, frame, {"length": "5", "characters": "", "texts": "a\nb"})

    known = Constraints(length="5", texts="a\nb")
    assert calls == [("greedy", 10, None), ("beam", 7, None), ("greedy", 10, known)]


@pytest.mark.parametrize(
    ("params", "texts"),
    [
        ({}, "cab"),
        ({"length": "2", "characters": "", "texts": "", "pattern": ""}, "[abc]{2}"),
        ({"texts": "abc\ncaab"}, "caab"),
        ({"characters": "bc", "pattern": ".{3,4}"}, "[bc]{3,4}"),
    ],
)
def test_texts_keep_to_what_a_request_knows_of_them(model: Any, params: dict[str, Any], texts: str) -> None:
    status, answer = post(model, {"inputs": [encoded(png("cab"))], "params": params})

    assert status == 200
    assert re.fullmatch(texts, answer["predictions"][0]["text"])


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"length": "many"}, "the length must be a number of characters such as 5"),
        ({"pattern": "(a"}, "the pattern is not of the subset"),
        ({"pattern": "(a|b)*a(a|b){30}"}, "more than 100000 transitions"),
        ({"characters": "xyz"}, "no text of the 3 characters that the model reads keeps to what is given"),
    ],
)
def test_what_cannot_be_known_is_refused_in_one_line(model: Any, params: dict[str, Any], line: str) -> None:
    assert line in check_refusal(*post(model, {"inputs": [encoded(png("a"))], "params": params}))


@pytest.mark.parametrize(
    "text",
    [
        "data:image/png;base64," + encoded(png("abc")),
        "DATA:;Base64," + encoded(png("abc")),
        base64.encodebytes(png("abc")).decode(),
        "data:image/png;base64,\r\n" + base64.encodebytes(png("abc")).decode().replace("\n", "\r\n") + "  ",
    ],
)
def test_prefix_and_line_breaks_are_allowed(model: Any, text: str) -> None:
    status, answer = post(model, {"inputs": [text]})

    assert (status, answer["predictions"][0]["text"]) == (200, "abc")


def grey(text: str) -> NDArray[np.uint8]:
    return np.asarray(opened(text))


def rgb(text: str) -> NDArray[np.uint8]:
    return np.asarray(opened(text).convert("RGB"))


def rgba(text: str) -> NDArray[np.uint8]:
    return np.asarray(opened(text).convert("RGBA"))


def opened(text: str) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(png(text)))


def objects(values: list[Any]) -> "pd.Series[Any]":
    return pd.Series(values, dtype=object)


BASE64 = [encoded(png("abc")), encoded(png("cab"))]
BYTES = [png("abc"), png("cab")]
ARRAYS = [rgb("abc"), rgb("cab")]
PICTURES = [opened("abc"), opened("cab")]

# What one would try in a notebook, and what `Recognizer.read` takes for the same images.
GIVEN: dict[str, tuple[Any, list[Any]]] = {
    "one base64": (BASE64[0], BYTES[:1]),
    "a data URL": ("data:image/png;base64," + BASE64[0], BYTES[:1]),
    "a list of base64": (BASE64, BYTES),
    "a tuple of base64": (tuple(BASE64), BYTES),
    "an array of base64": (np.array(BASE64), BYTES),
    "one bytes": (BYTES[0], BYTES[:1]),
    "one bytearray": (bytearray(BYTES[0]), BYTES[:1]),
    "one memoryview": (memoryview(BYTES[0]), BYTES[:1]),
    "a list of bytes": (BYTES, BYTES),
    "an array of bytes": (np.array(BYTES, dtype=object), BYTES),
    "(H, W)": (grey("abc"), [grey("abc")]),
    "(H, W, 3)": (ARRAYS[0], ARRAYS[:1]),
    "(H, W, 4)": (rgba("abc"), [rgba("abc")]),
    "a list of (H, W)": ([grey("abc"), grey("c")], [grey("abc"), grey("c")]),
    "a list of (H, W, 3)": (ARRAYS, ARRAYS),
    "a list of (H, W, 4)": ([rgba("abc"), rgba("cab")], [rgba("abc"), rgba("cab")]),
    "(N, H, W, 3)": (np.stack(ARRAYS), ARRAYS),
    "(N, H, W, 4)": (np.stack([rgba("abc"), rgba("cab")]), [rgba("abc"), rgba("cab")]),
    "a PIL image": (PICTURES[0], PICTURES[:1]),
    "a list of PIL images": (PICTURES, PICTURES),
    "a list of each": ([BASE64[0], BYTES[0], ARRAYS[0], PICTURES[0]], [BYTES[0], BYTES[0], ARRAYS[0], PICTURES[0]]),
    "{image: one base64}": ({"image": BASE64[0]}, BYTES[:1]),
    "{image: [base64]}": ({"image": BASE64}, BYTES),
    "{image: one bytes}": ({"image": BYTES[0]}, BYTES[:1]),
    "{image: [bytes]}": ({"image": BYTES}, BYTES),
    "{image: (H, W, 3)}": ({"image": ARRAYS[0]}, ARRAYS[:1]),
    "{image: [(H, W, 3)]}": ({"image": ARRAYS}, ARRAYS),
    "{image: a PIL image}": ({"image": PICTURES[0]}, PICTURES[:1]),
    "{image: [PIL image]}": ({"image": PICTURES}, PICTURES),
    "[{image: base64}]": ([{"image": each} for each in BASE64], BYTES),
    "a Series": (pd.Series(BASE64), BYTES),
    "a Series of another name": (objects(BYTES).rename("picture"), BYTES),
    "a Series without its first rows": (pd.Series(["x", *BASE64])[1:], BYTES),
    "a frame": (pd.DataFrame({"image": BASE64}), BYTES),
    "a frame of bytes": (pd.DataFrame({"image": [*BYTES, bytearray(png("b"))]}), [*BYTES, png("b")]),
    "a frame of arrays": (pd.DataFrame({"image": objects(ARRAYS)}), ARRAYS),
    "a frame of PIL images": (pd.DataFrame({"image": objects(PICTURES)}), PICTURES),
    "a frame with another column": (pd.DataFrame({"label": ["abc", "cab"], "image": BASE64}), BYTES),
    "a frame with one column of another name": (pd.DataFrame({"picture": BASE64}), BYTES),
    "a frame with one column without a name": (pd.DataFrame(BASE64), BYTES),
    "nothing": ([], []),
}
# What is no image there, and what the answer says.
NOT_GIVEN: dict[str, tuple[Any, str]] = {
    "a path": ("abc.png", "row 0: the image is not base64, and no path is opened"),
    "a list of paths": (["abc.png"], "row 0: the image is not base64, and no path is opened"),
    "a URL": ("http://127.0.0.1:9/abc.png", "row 0: the image is not base64, and no path is opened"),
    "a Path": (Path("abc.png"), "give base64 text, bytes, "),
    "a list of Paths": ([Path("abc.png")], "row 0: the image must be text in base64, not PosixPath"),
    "an open file": (io.BytesIO(BYTES[0]), "give base64 text, bytes, "),
    "None": (None, "give base64 text, bytes, "),
    "a number": (5, "give base64 text, bytes, "),
    "a list with None": ([BASE64[0], None], "row 1: the image is null"),
    "bytes of no image": (b"hello", "row 0: not an image"),
    "text of no image": ("aGVsbG8=", "row 0: not an image"),
    "fractions": (
        ARRAYS[0] / 255,
        "row 0: the image must be text in base64 or pixels of uint8, not (16, 13, 3) of float64",
    ),
    "an array of other numbers": (ARRAYS[0].astype(int), "row 0: the image must be text in base64 or pixels of uint8"),
    "(N, H, W)": (np.stack([grey("abc"), grey("cab")]), "row 0: the image must be text in base64 or pixels of uint8"),
    "(N,) of uint8": (np.frombuffer(BYTES[0], np.uint8), "give base64 text, bytes, "),
    "an array without a pixel": (ARRAYS[0][:0], "row 0: the image must be text in base64 or pixels of uint8"),
    "an array as a list": ([[255, 0], [0, 255]], "row 0: the image must be text in base64, not list"),
    "a PIL image of fractions": (PICTURES[0].convert("F"), "row 0: a PIL image of mode F does not say which value is"),
    "{picture: base64}": ({"picture": BASE64[0]}, "give base64 text, bytes, "),
    "[{picture: base64}]": ([{"picture": BASE64[0]}], "row 0: the image must be text in base64, not dict"),
    "a frame with two columns": (pd.DataFrame({"a": BASE64, "b": BASE64}), "give base64 text, bytes, "),
    "a frame without columns": (pd.DataFrame(), "give base64 text, bytes, "),
    "a frame of numbers": (pd.DataFrame({"image": [1, 2]}), "row 0: the image must be text in base64, not int"),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_a_notebook_reads_what_the_recogniser_reads(loaded: Any, model_folder: Path, kind: str) -> None:
    given, images = GIVEN[kind]
    wanted = Recognizer.load(model_folder / "artifacts" / ARTIFACT).read(images)

    readings = loaded.predict(given)

    assert len(wanted) == len(images)
    assert readings["text"].tolist() == [reading.text for reading in wanted]
    assert readings["confidence"].tolist() == [reading.confidence for reading in wanted]
    assert set(readings["text"]) <= {"abc", "cab", "c", "b"}


@pytest.mark.parametrize("kind", NOT_GIVEN)
def test_a_notebook_is_told_in_one_short_line_what_to_give(
    loaded: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, expected = NOT_GIVEN[kind]
    (tmp_path / "abc.png").write_bytes(png("abc"))
    monkeypatch.chdir(tmp_path)

    with pytest.raises(MlflowException) as caught:
        loaded.predict(given)

    message = str(caught.value)
    assert message.startswith(expected)
    assert "\n" not in message
    assert len(message) < 200
    assert BASE64[0][:8] not in message


def test_a_notebook_chooses_decoders_by_params(loaded: Any) -> None:
    assert loaded.predict(BASE64, params={"decoder": "beam"})["text"].tolist() == ["abc", "cab"]
    with pytest.raises(MlflowException, match=r"^beam_width must be 1 to 100, not 0$"):
        loaded.predict(BASE64, params={"beam_width": 0})


def test_other_models_predict_as_they_did(loaded: Any, model_folder: Path) -> None:
    class Other:
        def predict(self, given: Any, params: Any = None) -> Any:
            return given

    changed = PyFuncModel.predict
    assert PyFuncModel(Model(), Other()).predict(["x"]) == ["x"]
    mlflow.pyfunc.load_model(str(model_folder))
    assert PyFuncModel.predict is changed  # not changed again by each model that is loaded


def test_the_input_example_is_an_image_it_reads(model: Any) -> None:
    assert model.predict(model.input_example)["text"].tolist() == ["abc"]


@pytest.mark.parametrize(("least", "accepted"), [(None, True), (0.5, True), (1, False), (1.0, False)])
def test_a_request_chooses_from_which_confidence_on_a_text_is_accepted(
    model: Any, least: float | None, accepted: bool
) -> None:
    status, answer = post(model, {"inputs": [encoded(png("abc"))], "params": {"min_confidence": least}})
    assert (status, answer["predictions"][0]["accepted"]) == (200, accepted)


def test_a_model_without_a_threshold_answers_null(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = loaded.unwrap_python_model().recognizer
    monkeypatch.setattr(recognizer, "calibration", None)
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    status, answer = post(loaded, {"inputs": [encoded(png("abc"))]})
    (row,) = answer["predictions"]
    assert (status, row["accepted"]) == (200, None)
    assert row["confidence"] == row["probability"]


def test_an_image_without_text_gives_an_empty_text(model: Any) -> None:
    status, answer = post(model, {"inputs": [encoded(png(""))]})

    (row,) = answer["predictions"]
    assert (status, row["text"], row["character_confidences"]) == (200, "", [])


def test_no_rows_give_no_predictions(model: Any) -> None:
    assert post(model, {"inputs": []}) == (200, {"predictions": []})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_refused_with_its_row(model: Any, form: str, kind: str) -> None:
    bad, expected = BAD_IMAGES[kind]

    message = check_refusal(*post(model, bodies([encoded(png("a")), bad])[form]))

    assert message.startswith("row 1: ")
    assert expected in message
    assert message.endswith("(the first row is row 0)")


@pytest.mark.parametrize("value", [["x"], ["x", "y"], {"x": "y"}, [[1, 2], [3, 4]], True])
@pytest.mark.parametrize("form", ["inputs by row", "instances by row", "dataframe_split", "dataframe_records"])
def test_what_is_no_text_is_refused_with_its_row(model: Any, form: str, value: Any) -> None:
    message = check_refusal(*post(model, bodies([value])[form]))

    assert message.startswith("row 0: ")
    assert "base64" in message or "not an image" in message


@pytest.mark.parametrize("null", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT])
def test_python_s_nulls_are_refused_with_their_row(loaded: Any, null: object) -> None:
    with pytest.raises(MlflowException, match=r"^row 1: the image is null"):
        loaded.predict(pd.DataFrame({"image": pd.Series([png("a"), null], dtype=object)}))


def test_several_bad_rows_are_counted(model: Any) -> None:
    good = encoded(png("a"))

    message = check_refusal(*post(model, {"inputs": ["*", good, "", "*", "*", "*"]}))

    assert re.findall(r"row (\d+):", message) == ["0", "2", "3"]
    assert "and 2 rows more" in message


def test_too_many_rows_are_refused(model: Any) -> None:
    good = encoded(png("a"))

    assert len(post(model, {"inputs": [good] * MAX_ROWS})[1]["predictions"]) == MAX_ROWS
    message = check_refusal(*post(model, {"inputs": [good] * (MAX_ROWS + 1)}))
    assert "1025 rows, more than the 1024 allowed" in message


def flat(width: int, height: int) -> str:
    return encoded(png("", np.full((height, width), 255, np.uint8)))


def test_an_image_too_wide_once_resized_is_refused_with_the_bound_and_what_it_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = pd.DataFrame({"image": [flat(320, 10), flat(321, 10), flat(1000, 10)]})
    with pytest.raises(MlflowException) as caught:
        unread(monkeypatch).predict(None, frame)
    assert str(caught.value) == (
        "row 1: the image of 321 x 10 pixels has 2054 columns once resized to a height of 64, more than the 2048 "
        "allowed; row 2: the image of 1000 x 10 pixels has 6400 columns once resized to a height of 64, more than the "
        "2048 allowed (the first row is row 0)"
    )
    assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize(
    ("size", "params", "problem"),
    [
        ((320, 10), {}, "the first 257 rows have 526336 columns of pixels once resized to a height of 64, {} 524288"),
        (
            (320, 10),
            {"decoder": "beam", "beam_width": 100},
            "the first 26 rows have 5324800 columns of pixels once resized to a height of 64, times beam_width 100, "
            "{} 5242880",
        ),
        ((5000, 2000), {}, "the first 5 rows have 50000000 pixels, {} 40000000"),
    ],
)
def test_rows_that_ask_for_too_much_together_are_refused_before_any_is_read(
    size: tuple[int, int], params: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MlflowException) as caught:
        unread(monkeypatch).predict(None, pd.DataFrame({"image": [flat(*size)] * 1024}), params)
    assert str(caught.value) == problem.format("one request may have")
    assert caught.value.get_http_status_code() == 400


def test_an_image_is_decoded_twice_only_beyond_the_columns_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []

    def decode_image(data: bytes) -> NDArray[np.uint8]:
        decoded.append(data)
        return images.decode_image(data)

    def shade(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        log_probs = np.full((1, len(batch), 4), -9.0, np.float32)
        log_probs[0, np.arange(len(batch)), batch[:, 0, 0, 0] // 85] = 0
        return log_probs

    captcha_model = CaptchaModel()
    monkeypatch.setattr(captcha_model, "recognizer", Recognizer(shade, Vocabulary("abc"), HEIGHT), raising=False)
    monkeypatch.setattr("captcha.reading.serving.decode_image", decode_image)
    monkeypatch.setattr("captcha.reading.serving.COLUMNS_KEPT", 4 * 20)
    files = [png("", np.full((HEIGHT, 20), shade, np.uint8)) for shade in (0, 85, 170, 255, 170, 85)]

    for count, twice in ((4, 0), (6, 2)):
        decoded.clear()
        answer = captcha_model.predict(None, pd.DataFrame({"image": files[:count]}))
        assert answer["text"].tolist() == ["", "a", "b", "c", "b", "a"][:count]
        assert decoded == files[:count] + files[4 : 4 + twice]


def unread(monkeypatch: pytest.MonkeyPatch) -> CaptchaModel:
    """The model with a recogniser that must not be asked."""
    captcha_model = CaptchaModel()
    recognizer = Recognizer(lambda images: pytest.fail("it was read"), Vocabulary("abc"), 64)
    monkeypatch.setattr(captcha_model, "recognizer", recognizer, raising=False)
    return captcha_model


def test_a_bad_last_row_is_told_before_any_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MlflowException, match=r"^row 900: the image is not base64"):
        unread(monkeypatch).predict(None, pd.DataFrame({"image": [*[encoded(png("a"))] * 900, "*"]}))


def test_a_request_past_its_deadline_is_answered_504_and_its_work_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []

    def slow(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        batches.append(len(images))
        time.sleep(0.05)
        return np.full((1, len(images), 4), np.log(0.25), np.float32)

    captcha_model = CaptchaModel()
    monkeypatch.setattr(captcha_model, "recognizer", Recognizer(slow, Vocabulary("abc"), HEIGHT), raising=False)
    monkeypatch.setattr("captcha.reading.serving.DEADLINE", 1)
    with pytest.raises(MlflowException, match=r"^not read within 1 seconds, the time for one request: ") as caught:
        captcha_model.predict(None, pd.DataFrame({"image": [flat(1000, 10)] * 300}))  # 60 batches, 3 s
    assert caught.value.get_http_status_code() == 504
    assert 0 < len(batches) <= 20


MEMORY = """
import base64, sys
import cv2, numpy as np, onnx.parser, pandas as pd
from captcha.reading.recognizer import Recognizer, save_recognizer
from captcha.reading.serving import CaptchaModel
from captcha.reading.vocabulary import Vocabulary

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

def asked(rows):
    frame = pd.DataFrame({"image": [image] * rows})
    assert model.predict(None, frame)["text"].tolist() == [""] * rows
    return peak()

width, height, first, second = map(int, sys.argv[1:])
image = np.full((height, width, 3), 255, np.uint8)
image = base64.b64encode(cv2.imencode(".png", image)[1].tobytes()).decode()
def blank(images):
    log_probs = np.full((images.shape[3] // 4, len(images), 4), -9.0, np.float32)
    log_probs[:, :, 0] = 0
    return log_probs
model = CaptchaModel()
model.recognizer = Recognizer(blank, Vocabulary("abc"), 64)
print(asked(1), asked(first), asked(second))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_rows() -> None:
    one, some, many = memory(200, 25, 64, 1024)  # 512 columns each: 100 MB of pixels at a height of 64

    assert many - some < 15
    assert many - one < 40


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")
def test_an_image_of_ten_megapixels_needs_a_third_of_what_it_did() -> None:
    small = memory(200, 50, 1, 1)[0]
    large = memory(5000, 2000, 1, 1)[0]

    assert large - small < 90  # 30 MB of pixels, and 40 as Pillow has them


def memory(*arguments: int) -> tuple[float, ...]:
    """The peaks, in MB, of a process that reads one image, some of it, and many."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", MEMORY, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return tuple(map(float, done.stdout.split()))


@pytest.mark.parametrize(("params", "expected"), BAD_PARAMS)
def test_a_bad_parameter_is_refused(model: Any, params: dict[str, Any], expected: str) -> None:
    message = check_refusal(*post(model, {"inputs": [encoded(png("a"))], "params": params}))

    assert message == expected


@pytest.mark.parametrize("body", MALFORMED)
def test_a_malformed_request_is_refused_without_a_stack_trace(model: Any, body: Any) -> None:
    status, answer = post(model, body)

    assert status == 400
    assert "stack_trace" not in answer
    assert "Traceback" not in answer["message"]


def test_no_file_that_a_request_names_is_opened(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A name that is sound base64 as well, of a file that holds an image.
    (tmp_path / "abcd").write_bytes(png("abc"))
    opened: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in ("open", "socket.connect", "urllib.Request", "subprocess.Popen"):
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for form in FORMS:
            for name in ("abcd", str(tmp_path / "abcd"), f"file://{tmp_path}/abcd", "http://127.0.0.1:9/abcd"):
                check_refusal(*post(model, bodies([name])[form]))
        monkeypatch.delenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT")
        for given in ("abcd", ["abcd"], Path("abcd"), [Path("abcd")], {"image": "abcd"}, np.array(["abcd"])):
            with pytest.raises(MlflowException):
                model.predict(given)
    watching = False

    assert not [name for name in opened if "abcd" in name or "127.0.0.1" in name]


def test_a_broken_model_is_no_fault_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        height = HEIGHT

        def read(self, *arguments: Any) -> list[Any]:
            raise RecognizerError("the model gave NaN")

    captcha_model = CaptchaModel()
    monkeypatch.setattr(captcha_model, "recognizer", Broken(), raising=False)
    with pytest.raises(MlflowException, match=r"^the model gave NaN$") as caught:
        captcha_model.predict(None, pd.DataFrame({"image": [png("a")]}))
    assert caught.value.get_http_status_code() == 500


def test_threads_may_share_the_model(model: Any) -> None:
    texts = ["abc", "c", "baba"] * 10
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        answers[number] = post(model, {"inputs": [encoded(png(texts[number]))]})[1]["predictions"][0]["text"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [answers[number] for number in range(len(texts))] == texts


def test_the_model_holds_what_serving_needs_and_nothing_else(model_folder: Path) -> None:
    code = model_folder / "code" / "captcha"
    served = Path(images.__file__).parent
    modules = {"__init__.py", *(f"reading/{path.name}" for path in served.glob("*.py"))}
    assert {path.relative_to(code).as_posix() for path in code.rglob("*") if path.is_file()} == modules
    files = {path.name for path in (model_folder / "artifacts" / ARTIFACT).iterdir()}
    assert files == {"model.onnx", "recognizer.json"}
    assert not list(model_folder.rglob("*.pkl"))
    requirements = (model_folder / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in requirements] == [
        "mlflow",
        "onnxruntime",
        "numpy",
        "opencv-python-headless",
        "pillow",
        "greenery",
    ]
    assert f"mlflow=={mlflow.__version__}" in requirements


def test_the_signature_says_what_goes_in_and_comes_out(model: Any) -> None:
    signature = model.metadata.signature.to_dict()

    assert json.loads(signature["inputs"]) == [{"type": "string", "name": "image", "required": True}]
    assert [(column["name"], column["type"]) for column in json.loads(signature["outputs"])] == [
        ("text", "string"),
        ("confidence", "double"),
        ("probability", "double"),
        ("accepted", "boolean"),
        ("character_confidences", "array"),
    ]
    assert [(param["name"], param["default"]) for param in json.loads(signature["params"])] == [
        ("decoder", "greedy"),
        ("beam_width", 10),
        ("min_confidence", None),
        *((name, "") for name in ("length", "characters", "texts", "pattern")),
    ]


def test_a_damaged_model_does_not_load(model_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(model_folder), str(copy)], check=True)
    (onnx_file,) = copy.rglob("model.onnx")
    onnx_file.write_bytes(onnx_file.read_bytes()[:-1] + b"!")

    with pytest.raises(Exception, match=r"model\.onnx is not the file that was saved"):
        mlflow.pyfunc.load_model(str(copy))


ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "onnx", "safetensors", "typer"):
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocked())
folder, project, image = sys.argv[1:]
sys.path[:] = [entry for entry in sys.path if entry not in ("", project)]
import mlflow
import pandas as pd

model = mlflow.pyfunc.load_model(folder)
readings = model.predict(pd.DataFrame({"image": [image]}), params={"decoder": "beam"})
import captcha.reading.recognizer
assert captcha.reading.recognizer.__file__.startswith(folder), captcha.reading.recognizer.__file__
assert not {"torch", "captcha.settings", "captcha.evaluation"} & set(sys.modules)
print(readings.to_json(orient="records"))
"""


def test_the_model_works_where_neither_the_project_nor_torch_is(model_folder: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    project = str(Path(__file__).parents[2])

    result = subprocess.run(
        [sys.executable, "-c", ALONE, str(model_folder), project, encoded(png("cab"))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)[0]["text"] == "cab"


@pytest.fixture(scope="module")
def server(model_folder: Path, workplace: Path) -> Iterator[str]:
    """The address of `mlflow models serve`, a real process."""
    scripts = Path(sys.executable).parent
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    with served([str(scripts / "mlflow")], model_folder, workplace, os.environ | {"PATH": path}) as address:
        yield address


@contextmanager
def served(
    mlflow_command: list[str], model: Path, cwd: Path, environment: dict[str, str], **options: Any
) -> Iterator[str]:
    """Run `mlflow models serve` with what `subprocess.Popen` takes, and give its address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*mlflow_command, "models", "serve", "-m", str(model), "--env-manager", "local", "-p", str(port)]
    with TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=log, stderr=log, start_new_session=True, **options
        )
        address = f"http://127.0.0.1:{port}"

        def printed() -> str:
            log.seek(0)
            return log.read().decode()

        try:
            deadline = time.monotonic() + 300
            while True:
                try:
                    with urllib.request.urlopen(f"{address}/ping", timeout=5):
                        break
                except OSError:
                    assert process.poll() is None, printed()
                    assert time.monotonic() < deadline, printed()
                    time.sleep(0.5)
            yield address
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def request(server: str, content: bytes, content_type: str = "application/json") -> tuple[int, Any]:
    status, answer = raw_request(server, content, content_type)
    return status, json.loads(answer)


def raw_request(server: str, content: bytes, content_type: str) -> tuple[int, str]:
    question = urllib.request.Request(f"{server}/invocations", content, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(question, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


UPLOAD = b'--X\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'


def check_alive(server: str) -> None:
    status, answer = request(server, json.dumps({"inputs": [encoded(png("cab"))]}).encode())
    assert (status, answer["predictions"][0]["text"]) == (200, "cab")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_server_reads_every_form_of_request(server: str, form: str) -> None:
    status, answer = request(server, json.dumps(bodies([encoded(png("abc")), encoded(png("bb"))])[form]).encode())

    assert status == 200
    assert [row["text"] for row in answer["predictions"]] == ["abc", "bb"]


@pytest.mark.slow
def test_the_server_reads_csv(server: str) -> None:
    status, answer = request(server, f"image\n{encoded(png('abc'))}\n".encode(), "text/csv")

    assert (status, answer["predictions"][0]["text"]) == (200, "abc")


@pytest.mark.slow
def test_the_server_reads_the_forms_of_the_readme(server: str) -> None:
    serve = README.read_text().partition("\n## Serve\n")[2].partition("\n## ")[0]
    forms = re.findall(r"^\| `([a-z/]+)` \| `(.+)` \|$", serve, re.MULTILINE)
    assert [kind for kind, _ in forms] == ["application/json"] * 4 + ["text/csv"]
    for kind, form in forms:
        body = form.replace("BASE64", encoded(png("abc"))).replace("\\n", "\n")
        status, answer = request(server, body.encode(), kind)
        assert (status, [row["text"] for row in answer["predictions"]]) == (200, ["abc"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "before", "after", "wanted"),
    [
        ("image/png", b"", b"", 415),
        ("application/octet-stream", b"", b"", 415),
        ("multipart/form-data; boundary=X", UPLOAD, b"\r\n--X--\r\n", 415),
        ("application/x-www-form-urlencoded", b"image=", b"", 415),
        ("application/json", b'{"image": "', b'"}', 400),
    ],
)
def test_the_server_takes_no_other_form(server: str, kind: str, before: bytes, after: bytes, wanted: int) -> None:
    image = encoded(png("abc")).encode() if kind.endswith(("json", "urlencoded")) else png("abc")

    status, answer = raw_request(server, before + image + after, kind)

    assert (status, "Traceback" in answer) == (wanted, False)
    check_alive(server)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_the_server_refuses_bad_images_and_goes_on(server: str, kind: str) -> None:
    bad, expected = BAD_IMAGES[kind]
    for body in bodies([encoded(png("a")), bad]).values():
        message = check_refusal(*request(server, json.dumps(body).encode()))
        assert message.startswith("row 1: ")
        assert expected in message
    check_alive(server)


@pytest.mark.slow
def test_the_server_refuses_bad_parameters_and_goes_on(server: str) -> None:
    for params, expected in BAD_PARAMS:
        body = {"inputs": [encoded(png("a"))], "params": params}
        assert check_refusal(*request(server, json.dumps(body).encode())) == expected
    check_alive(server)


@pytest.mark.slow
def test_the_server_refuses_malformed_requests_and_goes_on(server: str) -> None:
    for content in [*(json.dumps(body).encode() for body in MALFORMED), b"", b"{", b"\xff\xfe", b"null"]:
        status, answer = request(server, content)
        assert status == 400
        assert "stack_trace" not in answer
    check_alive(server)


@pytest.mark.slow
def test_the_server_answers_many_callers_at_once(server: str) -> None:
    texts = ["abc", "c", "baba", ""] * 8
    answers: dict[int, Any] = {}

    def ask(number: int) -> None:
        answers[number] = request(server, json.dumps({"inputs": [encoded(png(texts[number]))]}).encode())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [answers[number][1]["predictions"][0]["text"] for number in range(len(texts))] == texts


@pytest.fixture
def for_all(model_folder: Path) -> Iterator[Path]:
    """A folder that every user may enter, and in it `model`: a copy that its owner may read, and nobody may change."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(model_folder, folder / "model")
        for path in [folder / "model", *(folder / "model").rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield folder


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return what would show that a folder was written to."""
    found = [folder, *folder.rglob("*")]
    return {
        str(path): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in found
    }


@pytest.mark.slow
def test_an_ordinary_user_serves_a_model_that_he_may_not_change(
    for_all: Path, nobody: tuple[str, dict[str, Any]]
) -> None:
    """User `nobody` without groups, whose Python has this environment's packages but not the project."""
    python, user = nobody
    temporary = for_all / "temporary"
    temporary.mkdir()
    os.chown(temporary, user["user"], user["group"])
    environment = {"PYTHONPATH": sysconfig.get_path("purelib"), "TMPDIR": str(temporary), "HOME": "/nonexistent"}
    environment |= {"PATH": f"{for_all}:/usr/bin:/bin", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    (for_all / "uvicorn").write_text(f'#!/bin/sh\nexec "{python}" -m uvicorn "$@"\n')
    (for_all / "uvicorn").chmod(0o755)
    changing = subprocess.run(["touch", for_all / "model" / "MLmodel"], capture_output=True, text=True, **user)
    assert "Permission denied" in changing.stderr
    before = state(for_all / "model")

    with served([python, "-m", "mlflow"], for_all / "model", for_all, environment, **user) as address:
        port = int(address.rpartition(":")[2])
        [listening] = [
            each.pid for each in psutil.net_connections("tcp4") if each.status == "LISTEN" and each.laddr.port == port
        ]
        assert psutil.Process(listening).uids() == (user["user"],) * 3
        check_alive(address)
        assert request(address, json.dumps({"inputs": [encoded(b"no image")]}).encode())[0] == 400

    assert state(for_all / "model") == before
    assert {path.name for path in for_all.iterdir()} == {"model", "temporary", "uvicorn"}
    assert list(temporary.iterdir()) == []
