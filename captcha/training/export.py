"""Crnn → ONNX, in single precision and quantised; and the same model run by PyTorch."""

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import (  # type: ignore[import-untyped]
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from captcha import CaptchaError
from captcha.reading.engine import VNNI
from captcha.reading.images import FRAME_STRIDE, Image, resize_to_height, stack
from captcha.reading.recognizer import Recognizer
from captcha.training.model import Crnn

QUANTISED = ("Conv", "Add", "Relu", "MaxPool")
"""Operators of the convolutions, which take most of the time; ONNX Runtime quantises no GRU."""

OLDEST_OPSET = 13
"""The first with a scale for each channel of a convolution's weights."""


class QuantisationError(CaptchaError):
    """A model that cannot be quantised; one line that says why."""


def to_onnx(model: Crnn) -> bytes:
    """Return the model as an ONNX graph: uint8 `images` (N, 3, height, W) → float32 `log_probs` (T, N, C).

    N and W are free. The exporter is TorchScript's: the newer one unrolls the GRU over a fixed T.
    """
    twin = copy.deepcopy(model).cpu().eval()
    example = torch.zeros((1, 3, model.height, 16 * FRAME_STRIDE), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the pinned version still brings it
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]  # about the GRU's checks of its input
        warnings.simplefilter("ignore", UserWarning)  # about batches other than 1: the graph takes them, a test says so
        torch.onnx.export(
            twin,
            (example,),
            f"{folder}/model.onnx",
            input_names=["images"],
            output_names=["log_probs"],
            dynamic_axes={"images": {0: "N", 3: "W"}, "log_probs": {0: "T", 1: "N"}},
            dynamo=False,
        )
        return Path(folder, "model.onnx").read_bytes()


def to_int8(model: bytes, height: int, images: Sequence[Image]) -> bytes:
    """Return the ONNX graph of `to_onnx` with its convolutions in 8 bits, of the same inputs and outputs.

    Activations are unsigned, weights signed with a scale for each channel; the first convolution, which sees the
    pixels, and all from the GRU on stay fp32. Weights take 7 of their 8 bits: so the sum of two products fits 16 bits,
    which CPUs without VNNI instructions cut off, and every CPU reads the same (docs/decisions.md).

    Args:
        model: what `to_onnx` returned.
        height: of the model's images.
        images: (H, W, 3), not augmented; their activations set the ranges.

    Raises:
        QuantisationError: there are no images, or the graph's opset is too old.
    """
    if not images:
        raise QuantisationError("int8 needs images to calibrate with, and there are none: serve fp32")
    graph = onnx.load_model_from_string(model)
    opset = max(each.version for each in graph.opset_import if not each.domain)
    if opset < OLDEST_OPSET:
        raise QuantisationError(
            f"the model's ONNX opset is {opset}, int8 needs {OLDEST_OPSET} or later: serve fp32, or export it anew"
        )
    of_features = [node for node in graph.graph.node if node.op_type in QUANTISED and _before_the_gru(node.name)]
    first = next(node for node in of_features if node.op_type == "Conv")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.onnx").write_bytes(model)
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)  # that the graph could be optimised first; its norms are folded already
        try:
            quantize_static(
                f"{folder}/model.onnx",
                f"{folder}/model.int8.onnx",
                _Calibration(stack([resize_to_height(image, height)]) for image in images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                nodes_to_quantize=[node.name for node in of_features if node is not first],
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(disabled)
        return Path(folder, "model.int8.onnx").read_bytes()


def int8_instructions(model: Crnn) -> list[str]:
    """Return the instructions, as Linux names them, any of which makes a model's int8 engine faster than its fp32.

    With AVX2 alone, `compact` takes 0.7 and `student` 0.8 of fp32's time, but ResNet18 1.2 (docs/benchmarks/speed.md).
    """
    return [*VNNI, *(() if model.backbone_name == "resnet18" else ("avx2",))]


def _before_the_gru(node: str) -> bool:
    """Return whether a node of the graph makes the features: the exporter names nodes by the module they come from."""
    return node.startswith("/backbone/") or node in ("/conv/Conv", "/Relu")


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Iterator[Image]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, Image] | None:
        """Return the input of a run of the graph, None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch}


def torch_recognizer(model: Crnn) -> Recognizer:
    """Return a recogniser whose engine is PyTorch, in single precision, on the model's device."""
    device = next(model.parameters()).device

    def log_probs_of(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        model.eval()
        with torch.inference_mode():
            log_probs: NDArray[np.float32] = model(torch.from_numpy(images).to(device)).cpu().numpy()
        return log_probs

    return Recognizer(log_probs_of, model.vocabulary, model.height)
