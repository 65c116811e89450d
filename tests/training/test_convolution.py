import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captcha.reading.vocabulary import Vocabulary
from captcha.training import convolution
from captcha.training.convolution import Convolution, weight_gradient
from captcha.training.model import BACKBONES, Crnn

SHAPES = [((3, 3), (1, 1), (1, 1)), ((3, 3), (2, 1), (1, 1)), ((3, 3), (2, 2), (1, 1)), ((4, 3), (1, 1), (0, 1))]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "stride", "padding"), SHAPES)
def test_the_weights_gradient_is_that_of_pytorch(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    images = torch.randn(3, 5, 8, 12, dtype=torch.double).contiguous(memory_format=layout)
    weight = torch.randn(7, 5, *kernel, dtype=torch.double, requires_grad=True)
    output = F.conv2d(images, weight, None, stride, padding)
    grad = torch.randn_like(output)
    (expected,) = torch.autograd.grad(output, weight, grad)
    torch.testing.assert_close(weight_gradient(images, weight, grad, stride, padding), expected)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_model_learns_the_same_with_these_convolutions_as_with_plain_ones(
    backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Crnn(backbone, Vocabulary("abc"), 32, dropout=0.0, gru_weight=0.0).double().train()
    images = torch.rand(2, 3, 32, 32)

    def gradients(enabled: bool) -> dict[str, Tensor]:
        monkeypatch.setattr(convolution, "ENABLED", enabled)
        model.zero_grad()
        features = model.backbone(images.double())
        model.conv(features).square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, ours = gradients(False), gradients(True)
    assert len(plain) > 15
    assert sum(type(module) is Convolution for module in model.modules()) >= 6
    assert not any(type(module) is nn.Conv2d for module in model.modules())
    for name, expected in plain.items():
        torch.testing.assert_close(ours[name], expected, msg=name)
