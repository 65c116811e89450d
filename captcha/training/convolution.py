"""Convolutions whose weights' gradient is a matrix product, for training on a CPU with AVX2 alone: the same values.

There oneDNN computes the forward pass and the inputs' gradient near the processor's peak, and that of the weights at
half of it (docs/decisions.md).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ENABLED = torch.backends.cpu.get_cpu_capability() == "AVX2"

Pair = tuple[int, int]


class Convolution(nn.Conv2d):
    """nn.Conv2d in all but the time that its training takes."""

    @classmethod
    def take_over(cls, net: nn.Module) -> None:
        """Make the plain convolutions of a net such ones; their weights stay."""
        for module in net.modules():
            if type(module) is nn.Conv2d and (module.groups, module.dilation, module.bias) == (1, (1, 1), None):
                module.__class__ = cls

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        learning = self.training and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        # One by one, or of three colours, there is too little to multiply.
        if ENABLED and learning and input.device.type == "cpu" and self.kernel_size != (1, 1) and self.in_channels > 3:
            return cast(Tensor, _Convolve.apply(input, weight, self.stride, self.padding))
        return cast(Tensor, super()._conv_forward(input, weight, bias))


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(images, weight, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        images, weight = ctx.saved_tensors
        image_grad = None
        if ctx.needs_input_grad[0]:
            ones, zeros, of_images = (1, 1), (0, 0), (True, False, False)
            image_grad, _, _ = torch.ops.aten.convolution_backward(
                grad, images, weight, None, ctx.stride, ctx.padding, ones, False, zeros, 1, of_images
            )
        return image_grad, weight_gradient(images, weight, grad, ctx.stride, ctx.padding), None, None


def weight_gradient(images: Tensor, weight: Tensor, grad: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Return the gradient of a convolution's weight (O, I, h, w) from its input (N, I, H, W) and its output's gradient.

    For each image, what the kernel sees at each place, (places, h · w · I), is laid out and multiplied with the
    gradient there: of a whole batch it would not stay in the processor's cache.
    """
    (outputs, channels, high, wide), (rows, columns) = weight.shape, grad.shape[2:]
    padded = F.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    padded = padded.permute(0, 2, 3, 1).contiguous()
    across_images, down, right, _ = padded.stride()
    steps = (across_images, down * stride[0], right * stride[1], down, 1)
    seen = padded.as_strided((len(images), rows, columns, high, wide * channels), steps)
    grads = grad.permute(0, 2, 3, 1).reshape(len(images), rows * columns, outputs)
    total = images.new_zeros(high * wide * channels, outputs)
    laid_out = torch.empty_like(seen[0], memory_format=torch.contiguous_format)
    places = laid_out.view(rows * columns, -1).T
    for one, its_grad in zip(seen, grads, strict=True):
        laid_out.copy_(one)
        total.addmm_(places, its_grad)
    return total.view(high, wide, channels, outputs).permute(3, 2, 0, 1)
