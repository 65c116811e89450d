"""The CRNN: convolutional features → GRU ×2 → log_probs (T, N, C)."""

import copy
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet18_Weights, resnet18

from captcha.config import FRAME_STRIDE, Backbone

HIDDEN = 128
"""Features of each direction of a GRU layer."""


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with batch norm beside a shortcut (He et al., 2016, doi:10.1109/CVPR.2016.90)."""

    def __init__(self, channels_in: int, channels_out: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out or stride != (1, 1):
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, channels_out, H / stride, W / stride) from (N, channels_in, H, W)."""
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(features)))))
        return F.relu(residual + self.shortcut(features))


def compact_backbone() -> tuple[nn.Module, int]:
    """Return a small residual net, (N, 3, H, W) → (N, 128, H/16, W/8), and its output channels."""
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, (2, 2), 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        ResidualBlock(32, 48, (2, 2)),
        ResidualBlock(48, 96, (2, 1)),
        ResidualBlock(96, 128, (2, 2)),
    )
    return net, 128


def resnet18_backbone(pretrained: bool) -> tuple[nn.Module, int]:
    """Return ResNet18 up to its third stage, (N, 3, H, W) → (N, 256, H/16, W/8), and its output channels.

    The horizontal stride of the third stage is 1 in place of 2: captchas need frames more than depth.
    """
    net = resnet18(weights=ResNet18_Weights.IMAGENET1K_V1 if pretrained else None)
    net.layer3[0].conv1.stride = (2, 1)
    net.layer3[0].downsample[0].stride = (2, 1)
    return nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3), 256


class Crnn(nn.Module):
    """Convolutional features, two bidirectional GRU layers and a linear layer over the vocabulary's classes.

    Args:
        classes: characters and the blank.
        height: of the images, in pixels; a multiple of 16.
        dropout: share of features dropped before, between and after the GRU layers.
    """

    def __init__(
        self, backbone: Backbone, classes: int, height: int, dropout: float = 0.1, pretrained: bool = False
    ) -> None:
        super().__init__()
        self.backbone, channels = compact_backbone() if backbone == "compact" else resnet18_backbone(pretrained)
        # One convolution as high as the feature map turns (N, channels, h, T) into (N, channels, 1, T).
        self.conv = nn.Conv2d(channels, channels, (height // 16, 3), 1, (0, 1), bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(channels, HIDDEN, num_layers=2, bidirectional=True, dropout=dropout)
        self.head = nn.Linear(2 * HIDDEN, classes)
        # Trained beside the GRU, left out when reading: its loss reaches the convolutions directly.
        self.shortcut_head = nn.Conv1d(channels, classes, 3, 1, 1)

    def features(self, images: Tensor) -> Tensor:
        """Return (T, N, channels) from uint8 or float images (N, 3, H, W) with values 0 to 255."""
        pixels = images.float()
        # Each image by its own mean and deviation: faint captchas look like strong ones.
        deviation, mean = torch.std_mean(pixels, dim=(1, 2, 3), keepdim=True)
        pixels = (pixels - mean) / (deviation + 1)
        feature_map = F.relu(self.norm(self.conv(self.backbone(pixels))))
        return feature_map.squeeze(2).permute(2, 0, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return log_probs (T, N, C), natural logarithm, from images (N, 3, H, W) with values 0 to 255."""
        return self._read(self.features(images))

    def forward_both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return forward's log_probs and those of the head that reads the convolutional features alone."""
        features = self.features(images)
        shortcut = self.shortcut_head(self.dropout(features).permute(1, 2, 0)).permute(2, 0, 1)
        return self._read(features), F.log_softmax(shortcut.float(), dim=2)

    def _read(self, features: Tensor) -> Tensor:
        # Single precision on a CPU too: there, the GRU's many small steps are slower in bfloat16.
        with torch.autocast(features.device.type, enabled=features.is_cuda):
            sequence, _ = self.gru(self.dropout(features.float()))
            return F.log_softmax(self.head(self.dropout(sequence)).float(), dim=2)


def to_onnx(model: Crnn, height: int) -> bytes:
    """Return the model as an ONNX graph: uint8 `images` (N, 3, height, W) → float32 `log_probs` (T, N, C).

    N and W are free. The exporter is TorchScript's: the newer one unrolls the GRU over a fixed T.
    """
    twin = copy.deepcopy(model).cpu().eval()
    example = torch.zeros((1, 3, height, 16 * FRAME_STRIDE), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the pinned version still brings it
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
