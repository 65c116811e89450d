from collections.abc import Callable

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from captcha.reading.vocabulary import Vocabulary
from captcha.training.export import to_onnx
from captcha.training.model import Crnn

Noise = Callable[..., Tensor]
VOCABULARY = Vocabulary("abcdefghij")


@pytest.fixture(scope="module")
def onnx_log_probs(model: Crnn) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(to_onnx(model), providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        (log_probs,) = session.run(["log_probs"], {"images": images})
        return np.asarray(log_probs)

    return run


@pytest.mark.parametrize(("count", "width"), [(1, 128), (1, 16), (3, 208), (7, 96)])
def test_the_exported_graph_computes_what_pytorch_does_for_any_batch_and_width(
    model: Crnn,
    onnx_log_probs: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    count: int,
    width: int,
    random_images: Noise,
) -> None:
    images = random_images(count, width)
    with torch.inference_mode():
        expected = model(images).numpy()
    exported = onnx_log_probs(images.numpy())
    assert exported.dtype == np.float32
    np.testing.assert_allclose(exported, expected, atol=1e-4, rtol=0)


def test_the_exported_graph_keeps_its_digits_on_wide_images_and_with_large_weights() -> None:
    """A variance over all pixels at once, as ONNX Runtime sums it, is 20 times as far off here."""
    torch.manual_seed(0)
    model = Crnn("compact", VOCABULARY, 64).eval()
    with torch.no_grad():
        model.local_head.weight.mul_(30)
    images = torch.randint(0, 256, (1, 3, 64, 800), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images[..., 400:] = 250
    session = onnxruntime.InferenceSession(to_onnx(model), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model(images).numpy()
    (exported,) = session.run(["log_probs"], {"images": images.numpy()})
    np.testing.assert_allclose(exported, expected, atol=1e-5, rtol=0)


def test_exporting_leaves_the_model_as_it_is() -> None:
    model = Crnn("compact", VOCABULARY, 32).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = to_onnx(model), to_onnx(model)
    assert first == second
    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
