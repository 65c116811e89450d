"""Crnn → ONNX, and the same model run by PyTorch."""

import copy
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from captcha.reading.images import FRAME_STRIDE
from captcha.reading.recognizer import Recognizer
from captcha.training.model import Crnn


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


def torch_recognizer(model: Crnn) -> Recognizer:
    """Return a recogniser whose engine is PyTorch, in single precision, on the model's device."""
    device = next(model.parameters()).device

    def log_probs_of(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        model.eval()
        with torch.inference_mode():
            log_probs: NDArray[np.float32] = model(torch.from_numpy(images).to(device)).cpu().numpy()
        return log_probs

    return Recognizer(log_probs_of, model.vocabulary, model.height)
