"""The CRNN: convolutional features → GRU ×2 → log_probs (T, N, C); the student has convolutions in the GRU's place."""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet18_Weights, resnet18

from captcha import CaptchaError
from captcha.reading.vocabulary import BLANK, Vocabulary
from captcha.training import recipe
from captcha.training.convolution import Convolution
from captcha.training.recurrence import run_gru

HIDDEN = 128
"""Features of each direction of a GRU layer."""

STUDENT = "student"
"""The backbone that learns from a teacher: small, and without a GRU."""

MIXED = 7
"""Pairs of frames that the student sees around each."""

LOGIT_LIMIT = 15.0
"""Logits lie between minus and plus this: e^-30 is unlikely enough, and single precision holds such logits to 1e-4."""


class PretrainedError(CaptchaError):
    """Pretrained weights that cannot be had; one line that says why and what to do."""


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


def compact_backbone(pretrained: bool = False) -> tuple[nn.Module, int]:
    """Return a small residual net, (N, 3, H, W) → (N, 128, H/16, W/4), and its output channels.

    Raises:
        PretrainedError: pretrained weights are asked for, and there are none.
    """
    _refuse(pretrained, "compact")
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, (2, 2), 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        ResidualBlock(32, 48, (2, 2)),
        ResidualBlock(48, 96, (2, 1)),
        ResidualBlock(96, 128, (2, 1)),
    )
    return net, 128


def student_backbone(pretrained: bool = False) -> tuple[nn.Module, int]:
    """Return five convolutions, (N, 3, H, W) → (N, 64, H/16, W/4), and their output channels.

    Raises:
        PretrainedError: pretrained weights are asked for, and there are none.
    """
    _refuse(pretrained, STUDENT)
    layers: list[nn.Module] = []
    for channels_in, channels_out, stride in (
        (3, 16, (2, 2)),
        (16, 24, (2, 2)),
        (24, 32, (1, 1)),
        (32, 48, (2, 1)),
        (48, 64, (2, 1)),
    ):
        layers += [
            nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers), 64


def _refuse(pretrained: bool, backbone: str) -> None:
    if pretrained:
        raise PretrainedError(f"pretrained weights exist for backbone resnet18 only, not for {backbone}")


def resnet18_backbone(pretrained: bool) -> tuple[nn.Module, int]:
    """Return ResNet18 up to its third stage, (N, 3, H, W) → (N, 256, H/16, W/4), and its output channels.

    The horizontal strides of the second and third stage are 1 in place of 2: a narrow letter needs frames of its own.

    Raises:
        PretrainedError: the pretrained weights are not here and cannot be downloaded.
    """
    net = resnet18()
    if pretrained:
        net.load_state_dict(_imagenet_weights())
    for stage in (net.layer2, net.layer3):
        stage[0].conv1.stride = (2, 1)
        stage[0].downsample[0].stride = (2, 1)
    return nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3), 256


def _imagenet_weights() -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = ResNet18_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
    except Exception as error:  # no network, no such file, half a file: each has classes of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        url = ResNet18_Weights.IMAGENET1K_V1.url
        raise PretrainedError(
            f"the pretrained weights cannot be had from {url}: {reason:.200}; train without --pretrained, or put that "
            f"file into {torch.hub.get_dir()}/checkpoints"
        ) from None
    return weights


BACKBONES: dict[str, Callable[[bool], tuple[nn.Module, int]]] = {
    "resnet18": resnet18_backbone,
    "compact": compact_backbone,
    STUDENT: student_backbone,
}


class Crnn(nn.Module):
    """Convolutional features, two bidirectional GRU layers and a linear layer over the vocabulary's classes.

    With the backbone `student`, a depthwise convolution over seven pairs of frames stands in place of the GRU.

    Args:
        backbone_name: one of BACKBONES.
        vocabulary: the characters that it tells apart; class 0 is the blank.
        height: of the images, in pixels; a multiple of 16.
        dropout: share of features dropped before, between and after the GRU layers.
        gru_weight: share of a training batch's images whose logits the GRU takes part in, and its weight in reading.
        blank_prior: probability of the blank in a frame, about, before training.
        pretrained: whether the backbone starts from ImageNet weights.

    Raises:
        PretrainedError: the pretrained weights cannot be had.
    """

    def __init__(
        self,
        backbone_name: str,
        vocabulary: Vocabulary,
        height: int,
        dropout: float = 0.1,
        *,
        gru_weight: float = recipe.DEFAULT.gru_weight,
        blank_prior: float = recipe.DEFAULT.blank_prior,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.backbone_name, self.vocabulary, self.height = backbone_name, vocabulary, height
        self.gru_weight = gru_weight
        classes = vocabulary.classes
        self.backbone, channels = BACKBONES[backbone_name](pretrained)
        # One convolution as high as the feature map turns (N, channels, h, T) into (N, channels, 1, T).
        self.conv = nn.Conv2d(channels, channels, (height // 16, 3), 1, (0, 1), bias=False)
        self.norm = nn.BatchNorm2d(channels)
        Convolution.take_over(self)
        self.dropout = nn.Dropout(dropout)
        self.gru = self.mixer = None
        if backbone_name == STUDENT:
            self.mixer = nn.Conv1d(channels, channels, MIXED, 1, MIXED // 2, groups=channels)
        else:
            self.gru = nn.GRU(channels, HIDDEN, num_layers=2, bidirectional=True, dropout=dropout)
        width = channels if self.mixer else 2 * HIDDEN
        self.head = nn.ConvTranspose1d(width, classes, 2, 2)  # a linear layer for each frame of a pair
        self.local_head = nn.Conv1d(channels, classes, 3, 1, 1)
        # The GRU's correction starts at zero, the blank at its prior: from even odds, some trainings learn where
        # characters stand for ten epochs before they tell them apart (see Lin et al., 2017, arXiv:1708.02002).
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            cast(Tensor, self.local_head.bias)[BLANK] = math.log(blank_prior / (1 - blank_prior) * (classes - 1))

    def features(self, images: Tensor) -> Tensor:
        """Return (T, N, channels) from uint8 or float images (N, 3, H, W) with values 0 to 255."""
        pixels = images.float()
        # Each image by its own mean and deviation: faint captchas look like strong ones.
        centred = pixels - pixels.mean((1, 2, 3), keepdim=True)
        # A mean of rows' means: over all pixels at once, ONNX Runtime loses so many digits that log_probs show it.
        deviation = centred.square().mean(3, keepdim=True).mean((1, 2), keepdim=True).sqrt()
        pixels = centred / (deviation + 1)
        feature_map = F.relu(self.norm(self.conv(self.backbone(pixels))))
        return feature_map.squeeze(2).permute(2, 0, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return log_probs (T, N, C), natural logarithm, from images (N, 3, H, W) with values 0 to 255.

        The logits are a sum: what the convolutions see at a frame, and what the GRU adds for its surroundings.
        In training the GRU takes part for a random share `gru_weight` of the images; in reading its logits are
        multiplied by `gru_weight` (as whole layers are in Huang et al., 2016, arXiv:1603.09382). So each character is
        learned by its looks first, and the GRU, which could learn training images by heart, stays a correction.
        """
        features = self.dropout(self.features(images))
        # On a CPU always in single precision: the GRU's many small steps are slower there in bfloat16.
        mixed = features.is_cuda and torch.is_autocast_enabled("cuda")
        with torch.autocast(features.device.type, enabled=mixed):
            features = features.float()
            local_logits = self.local_head(features.permute(1, 2, 0)).permute(2, 0, 1)
            if self.training:
                selected = (torch.rand(len(images), device=features.device) < self.gru_weight).nonzero().squeeze(1)
                logits = local_logits.float()
                if len(selected):  # the others need no GRU: half of its work
                    logits = logits.index_add(1, selected, self._gru_logits(features[:, selected]).float())
            else:
                logits = (local_logits + self.gru_weight * self._gru_logits(features)).float()
            return F.log_softmax(LOGIT_LIMIT * torch.tanh(logits / LOGIT_LIMIT), dim=2)

    def _gru_logits(self, features: Tensor) -> Tensor:
        """Return what the GRU, or the student's convolution, adds to the logits, (T, N, C), from (T, N, channels)."""
        # The GRU steps over pairs of frames: half the steps, which take most of its time on a CPU.
        pairs = F.avg_pool1d(features.permute(1, 2, 0), 2)
        if self.gru is None:
            assert self.mixer is not None
            sequence = F.relu(self.mixer(pairs)).permute(2, 0, 1)
        elif self.training and pairs.device.type == "cpu":
            sequence = run_gru(self.gru, pairs.permute(2, 0, 1))
        else:
            sequence = self.gru(pairs.permute(2, 0, 1))[0]
        return cast(Tensor, self.head(self.dropout(sequence).permute(1, 2, 0)).permute(2, 0, 1))
