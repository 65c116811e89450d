"""The engine: a recogniser's ONNX graph, run by ONNX Runtime; which of its two graphs reads, fp32 or int8."""

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray

from captcha import CaptchaError
from captcha.reading.images import Image
from captcha.reading.limits import THREADS

Precision = Literal["fp32", "int8"]
Engine = Literal["auto", "fp32", "int8"]
"""`auto` is int8 where a training has found that it reads the same, on a CPU where it is faster for such a model."""

MODEL_FILES: dict[Precision, str] = {"fp32": "model.onnx", "int8": "model.int8.onnx"}

VNNI = ("amx_int8", "avx512_vnni", "avx_vnni")
"""As Linux names the instructions that multiply bytes four at a time."""


class RecognizerError(CaptchaError):
    """A folder that holds no sound recogniser, a model that does not answer as one, or an unknown setting; one line."""


def engine_of_environment() -> Engine:
    """Return the engine that the environment variable CAPTCHA_ENGINE names, `auto` where it is not set.

    Raises:
        RecognizerError: it names none.
    """
    named = os.environ.get("CAPTCHA_ENGINE", "").strip() or "auto"
    for engine in get_args(Engine):
        if named == engine:
            return cast(Engine, engine)
    raise RecognizerError(f"CAPTCHA_ENGINE must be {', '.join(get_args(Engine))}, not {named!r:.40}")


def cpu_has(any_of: Collection[str]) -> bool:
    """Return whether this CPU has one of these instructions; False where that is not known, as on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return any(flag in any_of for flag in flags.split())


def auto_on_this_cpu(served: Precision, int8_on: Collection[str]) -> Precision:
    """Return the engine that `auto` stands for here, of a model with what `save_recognizer` has noted."""
    return served if cpu_has(int8_on) else "fp32"


def onnx_runtime(model: bytes, path: Path) -> Callable[[Image], NDArray[np.float32]]:
    """Return the function that an ONNX graph is; `path` is for messages only.

    Raises:
        RecognizerError: it is no graph of a recogniser.
    """
    options = onnxruntime.SessionOptions()
    # A server reads in several threads of its own: few for each model, and none that waits by spinning.
    options.intra_op_num_threads = min(THREADS, os.cpu_count() or 1)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.use_deterministic_compute = True
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise RecognizerError(f"{path} is no model that ONNX Runtime can run: {_line(error)}") from None
    inputs = [(each.name, each.type) for each in session.get_inputs()]
    outputs = [(each.name, each.type) for each in session.get_outputs()]
    if inputs != [("images", "tensor(uint8)")] or outputs != [("log_probs", "tensor(float)")]:
        raise RecognizerError(
            f"{path} must take images, tensor(uint8), and give log_probs, tensor(float): "
            f"it takes {inputs} and gives {outputs}"
        )

    def log_probs_of(images: Image) -> NDArray[np.float32]:
        try:
            (log_probs,) = session.run(["log_probs"], {"images": images})
        except Exception as error:
            raise RecognizerError(f"the model failed on images of shape {images.shape}: {_line(error)}") from None
        return np.asarray(log_probs, np.float32)

    return log_probs_of


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
