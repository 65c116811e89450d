"""Fuzz the request parser, guided by coverage: python -m tests.hostile.fuzz_requests [options of libFuzzer] [folder].

An input is one letter and what the letter says: J, the body of a request in JSON, as MLflow's scoring server gets it;
C, one in CSV; F, a line with the Content-Type and then a body, as `captcha serve` gets them; I, the text of one image;
P, JSON of parameters and of the values of a frame, as a caller in Python may give them.
"""

import base64
import contextlib
import functools
import json
import logging
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.pictures import saved, stripes

SEEDS = Path(__file__).parent / "seeds_requests.txt"
LIMITS = ["-timeout=20", "-rss_limit_mb=2048", "-max_len=2048"]
"""Seconds, megabytes and bytes that one input may take."""

HEIGHT = 16


def seeds() -> dict[str, bytes]:
    """Return what the fuzzer starts from: requests of every form, IMAGE in them a small image in base64."""
    lines = [line for line in SEEDS.read_text().splitlines() if line and not line.startswith("#")]
    return {f"line-{number}": _filled(line) for number, line in enumerate(lines)}


def _filled(line: str) -> bytes:
    """Return the bytes of a line of the seeds, which is written as in JSON's strings."""
    text: str = json.loads(f'"{line}"')
    return text.replace("IMAGE", base64.b64encode(_image()).decode()).encode("utf-8", "surrogatepass")


@functools.cache
def _image() -> bytes:
    import PIL.Image

    return saved(PIL.Image.fromarray(stripes("ab", 4)), "GIF")


@functools.cache
def _model() -> Any:
    """Return the served model as MLflow's scoring server holds it; the network is a function that reads stripes."""
    import mlflow.pyfunc
    from mlflow.models import Model
    from mlflow.pyfunc.model import _PythonModelPyfuncWrapper

    from captcha.reading.recognizer import Recognizer
    from captcha.reading.serving import CaptchaModel
    from captcha.reading.vocabulary import Vocabulary
    from captcha.tracking.models import SIGNATURE

    def log_probs_of(images: Any) -> Any:
        columns = images.mean(axis=(1, 2)).astype(np.float32).T  # (W, N)
        logits = -0.005 * (columns[:, :, None] - np.array([255, 0, 85, 170], np.float32)) ** 2
        return logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))

    model = CaptchaModel()
    model.recognizer = Recognizer(log_probs_of, Vocabulary("abc"), HEIGHT)
    signed = Model(signature=SIGNATURE, flavors={"python_function": {"loader_module": "mlflow.pyfunc.model"}})
    return mlflow.pyfunc.PyFuncModel(signed, _PythonModelPyfuncWrapper(model, None, SIGNATURE))


def check(data: bytes) -> None:
    """Send an input; whatever it holds, it is read or refused: no error but a RequestError comes out of our code."""
    kind, content = data[:1], data[1:]
    if kind == b"J":
        _send(content, "application/json")
    elif kind == b"C":
        _send(content, "text/csv")
    elif kind == b"F":
        _take(content)
    elif kind == b"I":
        _read(content)
    elif kind == b"P":
        _give(content)


def _send(content: bytes, content_type: str) -> None:
    """Give a body to MLflow's scoring server; what MLflow itself fails at is no matter here, unless we are in it."""
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import scoring_server

    model = _model()
    try:
        answer = scoring_server.invocations(content, content_type, model, model.metadata.get_input_schema())
    except MlflowException as error:
        trace = json.loads(error.serialize_as_json()).get("stack_trace", "")
        assert "/captcha/reading/" not in trace, trace
    except Exception:  # MLflow answers 500 for these
        trace = traceback.format_exc()
        assert "/captcha/reading/" not in trace, trace
    else:
        json.loads(answer.response, parse_constant=_no_json)


def _take(content: bytes) -> None:
    """Give a body to the parser of `captcha serve`; what it lets through is text that MLflow can take as well."""
    from captcha.server.forms import read_form
    from captcha.server.visits import RefusalError

    kind, _, body = content.partition(b"\n")
    try:
        form = read_form(kind.decode("latin-1"), body)
    except RefusalError as error:
        _check_line(str(error))
    else:
        assert len(form.images) <= 1024 or len(body) > 1024
        "".join(form.images).encode()  # pandas would raise at what is no text in UTF-8
        json.loads(form.as_json(), parse_constant=_no_json)


def _no_json(name: str) -> None:
    raise AssertionError(f"the answer holds {name}, which is no JSON")


def _read(content: bytes) -> None:
    """Read the text of one image as a request gives it; base64 of what it decodes to is the text again."""
    from captcha.reading.images import ImageError
    from captcha.reading.serving import _content

    text = content.decode("utf-8", "surrogateescape")
    try:
        decoded = _content(text)
    except ImageError as error:
        _check_line(str(error))
    else:
        body = "".join(text.split())
        body = body.partition(",")[2] if body[:5].lower() == "data:" else body
        again, body = base64.b64encode(decoded).decode().rstrip("="), body.rstrip("=")  # Python reads too many of these
        # The last character may hold bits that belong to no byte.
        assert (again[:-1], len(again)) == (body[:-1], len(body)), (again, body)


def _give(content: bytes) -> None:
    """Call `predict` with a frame of odd values and with odd parameters."""
    import pandas as pd

    from captcha.reading.serving import CaptchaModel, RequestError

    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        return
    if not isinstance(given, dict):
        return
    values = [_odd(value) for value in given.get("values", [])] if isinstance(given.get("values"), list) else []
    params = given.get("params") if isinstance(given.get("params"), dict) else None
    model: CaptchaModel = _model()._model_impl.python_model
    wanted = values if given.get("frame", True) else (values[0] if values else None)
    try:
        frame = (
            pd.DataFrame({"image": pd.Series(values, dtype=object)})
            if given.get("frame", True)
            else model.frame_of_images(wanted)
        )
        readings = model.predict(None, frame, params)
    except RequestError as error:
        _check_line(error.line)
    else:
        assert len(readings) == len(frame)
        assert readings["confidence"].between(0, 1).all()


def _odd(value: Any) -> Any:
    """Return what JSON cannot say but a caller in Python can: {"bytes": hex}, {"array": [shape, kind]}, and so on."""
    if isinstance(value, dict) and len(value) == 1:
        [(kind, content)] = value.items()
        if kind == "bytes" and isinstance(content, str):
            return content.encode("utf-8", "surrogatepass")
        if kind == "base64" and isinstance(content, str):
            with contextlib.suppress(ValueError):
                return bytearray(base64.b64decode(content))
        if kind == "array" and isinstance(content, list):
            shape = [min(n, 12) for n in content if isinstance(n, int) and n >= 0][:5]
            kinds = [each for each in content if each in ("uint8", "int64", "float32", "bool", "U1", "object")]
            return np.zeros(shape, kinds[0] if kinds else "uint8")
    return value


def _check_line(line: str) -> None:
    assert "\n" not in line, line
    assert 5 < len(line) < 700, line  # three rows' problems


def main() -> None:
    """Fuzz until libFuzzer's options say enough."""
    import atheris  # type: ignore[import-untyped]

    with atheris.instrument_imports(include=["captcha"]):
        import captcha.reading.serving  # what `check` uses
        import captcha.server.forms  # noqa: F401
    logging.disable()  # MLflow's advice about half of the requests
    warnings.simplefilter("ignore")  # and pandas'
    atheris.instrument_func(_odd)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in seeds().items():
            (Path(folder) / name).write_bytes(content)
        _model()
        atheris.Setup([*sys.argv, *LIMITS, folder], check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
