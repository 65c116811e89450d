from collections.abc import Callable

import numpy as np
import onnx.helper
import onnx.numpy_helper
import onnx.reference
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from captcha.reading.vocabulary import Vocabulary
from captcha.training.export import QuantisationError, to_int8, to_onnx
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


def test_int8_computes_about_what_fp32_does_for_any_batch_and_width(model: Crnn, random_images: Noise) -> None:
    graph = to_onnx(model)
    images = [image.numpy().transpose(1, 2, 0) for image in random_images(8, 96)]
    sessions = [
        onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"])
        for each in (graph, to_int8(graph, model.height, images))
    ]
    for count, width in ((1, 128), (3, 208)):
        batch = {"images": random_images(count, width).numpy()}
        (fp32,), (int8,) = (session.run(["log_probs"], batch) for session in sessions)
        assert int8.shape == fp32.shape
        assert 0 < np.abs(np.exp(int8) - np.exp(fp32)).max() < 0.05


def test_int8_holds_the_convolutions_in_seven_bits_but_not_the_first(model: Crnn, random_images: Noise) -> None:
    graph = to_onnx(model)
    int8 = to_int8(graph, model.height, [random_images(1, 96)[0].numpy().transpose(1, 2, 0)])
    quantised = onnx.load_model_from_string(int8).graph
    convolutions = [node for node in quantised.node if node.op_type == "Conv"]
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in quantised.initializer}
    made_by = {name: node for node in quantised.node for name in node.output}
    kinds = [made_by[node.input[1]].op_type if node.input[1] in made_by else "fp32" for node in convolutions]
    heads = len(kinds) - 1 - kinds[::-1].index("DequantizeLinear")  # what follows the features
    assert kinds == ["fp32", *["DequantizeLinear"] * heads, *["fp32"] * (len(kinds) - 1 - heads)]
    assert heads == sum(isinstance(module, torch.nn.Conv2d) for module in model.modules()) - 1
    for node in convolutions[1 : 1 + heads]:
        whole, scale, _ = (weights[name] for name in made_by[node.input[1]].input)
        assert whole.dtype == np.int8
        assert np.abs(whole).max() <= 64  # a byte times 64, twice, is below 2**15
        assert scale.shape == (len(whole),)
    assert len(int8) < len(graph)


def test_a_sum_of_products_fits_what_any_cpu_adds_them_in(random_images: Noise) -> None:
    """Against ONNX's own reference, which computes in floating point: with weights of one sign, sums are large."""
    torch.manual_seed(0)
    model = Crnn("compact", VOCABULARY, 32).train()
    with torch.no_grad():
        for weights in model.backbone.parameters():
            weights.abs_()
        model(random_images(4, 96))
    graph = to_onnx(model)
    int8 = to_int8(graph, model.height, [image.numpy().transpose(1, 2, 0) for image in random_images(4, 96)])
    images = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (1, 3, model.height, 48))
    session = onnxruntime.InferenceSession(int8, providers=["CPUExecutionProvider"])
    (computed,) = session.run(["log_probs"], {"images": images})
    reference = onnx.reference.ReferenceEvaluator(onnx.load_model_from_string(int8))
    with np.errstate(over="ignore"):  # its sigmoid takes the exponential of large numbers
        (expected,) = reference.run(None, {"images": images})
    assert np.abs(np.exp(computed) - np.exp(expected)).max() < 0.02


def test_what_cannot_be_quantised_is_one_line(model: Crnn) -> None:
    graph = to_onnx(model)
    with pytest.raises(QuantisationError, match=r"^int8 needs images to calibrate with[^\n]*$"):
        to_int8(graph, model.height, [])
    old = onnx.load_model_from_string(graph)
    del old.opset_import[:]
    old.opset_import.append(onnx.helper.make_opsetid("", 12))
    with pytest.raises(QuantisationError, match=r"^the model's ONNX opset is 12, int8 needs 13 or later[^\n]*$"):
        to_int8(old.SerializeToString(), model.height, [np.zeros((model.height, 64, 3), np.uint8)])


def test_exporting_leaves_the_model_as_it_is() -> None:
    model = Crnn("compact", VOCABULARY, 32).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = to_onnx(model), to_onnx(model)
    assert first == second
    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
