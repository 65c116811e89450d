"""Random changes to a batch of images, as tensor operations: what a reader must not depend on."""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from captcha.training import recipe
from captcha.training.recipe import Augmentation


def augment(
    images: Tensor, strength: float, generator: Generator, full: Augmentation = recipe.DEFAULT.augmentation
) -> Tensor:
    """Return float images (N, 3, H, W), values about 0 to 255, each changed in its own way.

    Args:
        images: (N, 3, H, W), uint8.
        strength: 0 changes nothing, 1 is the full range of every change.
        full: the full ranges.
        generator: on the images' device; the same state gives the same changes.
    """
    pixels = images.float()
    if strength == 0:
        return pixels
    pixels = _warp(pixels, strength, generator, full)
    pixels = _cross(pixels, strength, generator, full)
    pixels = _recolour(pixels, strength, generator, full)
    pixels = _erase(pixels, strength, generator, full)
    return _blur_and_noise(pixels, strength, generator, full)


def _uniform(images: Tensor, low: float, high: float, generator: Generator, shape: tuple[int, ...] = ()) -> Tensor:
    """Return random numbers from low to high, (N, *shape)."""
    return torch.rand((len(images), *shape), generator=generator, device=images.device) * (high - low) + low


def _warp(images: Tensor, strength: float, generator: Generator, full: Augmentation) -> Tensor:
    """Rotate, slant, scale, shift and bend each image; what comes in from outside repeats the border."""
    count, _, height, width = images.shape
    angle = _uniform(images, -full.rotation, full.rotation, generator) * (math.pi / 180 * strength)
    slant = _uniform(images, -full.slant, full.slant, generator) * strength
    size = _uniform(images, -full.size, full.size, generator) * strength
    stretch = _uniform(images, -full.stretch, full.stretch, generator) * strength
    scale_x, scale_y = torch.exp(size + stretch), torch.exp(size - stretch)
    shift_x = _uniform(images, -full.shift_x, full.shift_x, generator) * strength * height / width
    shift_y = _uniform(images, -full.shift_y, full.shift_y, generator) * strength
    # Rows of the affine map from output to input in pixels, then in grid_sample's units of half an edge.
    aspect = height / width
    rows = torch.stack(
        [
            torch.stack([scale_x * torch.cos(angle), (slant - torch.sin(angle)) * aspect, shift_x], 1),
            torch.stack([torch.sin(angle) / aspect, scale_y * torch.cos(angle), shift_y], 1),
        ],
        1,
    )
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    # A coarse random field, enlarged, bends letters (Simard et al., 2003, doi:10.1109/ICDAR.2003.1227801).
    coarse = torch.randn((count, 2, 4, max(2, 4 * width // height)), generator=generator, device=images.device)
    bend = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    pixel = torch.tensor([2 / width, 2 / height], device=images.device)
    grid = grid + bend.permute(0, 2, 3, 1) * pixel * (full.bend * height * strength)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _cross(images: Tensor, strength: float, generator: Generator, full: Augmentation) -> Tensor:
    """Draw up to `lines` thin waves across each image, in random colours: lines are no part of a letter."""
    _, _, height, width = images.shape
    rows = torch.arange(height, device=images.device).view(1, height, 1)
    columns = torch.linspace(0, 1, width, device=images.device).view(1, 1, width)
    for _ in range(full.lines):
        selected = torch.rand(len(images), generator=generator, device=images.device) < full.line_share * strength
        crossed = images[selected]
        phase = _uniform(crossed, 0, 2 * math.pi, generator, (1, 1))
        waves = _uniform(crossed, 0.3, 1.5, generator, (1, 1)) * (2 * math.pi)
        swing = _uniform(crossed, 0, height / 4, generator, (1, 1))
        start, end = (_uniform(crossed, 0, height, generator, (1, 1)) for _ in range(2))
        middle = start + (end - start) * columns + swing * torch.sin(phase + waves * columns)
        half_width = _uniform(crossed, 0.3, 1.2, generator, (1, 1)) * (height / 64)
        cover = (half_width + 0.5 - (rows - middle).abs()).clamp(0, 1).unsqueeze(1)
        colour = _uniform(crossed, 0, 255, generator, (3, 1, 1))
        images[selected] = crossed.lerp(colour, cover)
    return images


def _recolour(images: Tensor, strength: float, generator: Generator, full: Augmentation) -> Tensor:
    """Mix the colour channels of each image, towards another hue or towards grey, and bend its contrast."""
    count = len(images)
    device = images.device
    order = torch.rand((count, 3), generator=generator, device=device).argsort(1)
    permuted = torch.eye(3, device=device)[order]
    share = (torch.rand((count, 1, 1), generator=generator, device=device) < full.hue_share * strength).float()
    mix = permuted * share + torch.eye(3, device=device) * (1 - share)
    weights = torch.softmax(torch.randn((count, 1, 3), generator=generator, device=device), 2)
    grey = (torch.rand((count, 1, 1), generator=generator, device=device) < full.grey_share * strength).float()
    mix = weights * grey + mix * (1 - grey)
    images = torch.einsum("nij,njhw->nihw", mix, images)
    # x + k·x·(1 - x): a gamma curve's bend without its powers.
    bend = _uniform(images, -full.contrast, full.contrast, generator, (1, 1, 1)) * (strength / 255)
    return images + bend * images * (255 - images)


def _erase(images: Tensor, strength: float, generator: Generator, full: Augmentation) -> Tensor:
    """Cover small boxes of each image with its mean colour."""
    _, _, height, width = images.shape
    rows = torch.arange(height, device=images.device).view(1, height, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, width)
    fill = images.mean((2, 3), keepdim=True)
    for _ in range(full.boxes):
        top = _uniform(images, 0, height, generator, (1, 1))
        left = _uniform(images, 0, width, generator, (1, 1))
        high = _uniform(images, 0, full.box_size * height, generator, (1, 1)) * strength
        wide = _uniform(images, 0, full.box_size * height, generator, (1, 1)) * strength
        covered = (rows >= top) & (rows < top + high) & (columns >= left) & (columns < left + wide)
        images = torch.where(covered.unsqueeze(1), fill, images)
    return images


def _blur_and_noise(images: Tensor, strength: float, generator: Generator, full: Augmentation) -> Tensor:
    """Blur some images a little, over a pixel and its neighbours below and right, and add some noise to each."""
    share = _uniform(images, -1, 1, generator, (1, 1, 1)).clamp(min=0) * (strength * full.blur)
    for axis in (2, 3):
        length = images.shape[axis] - 1
        neighbours = torch.cat([images.narrow(axis, 1, length), images.narrow(axis, length, 1)], axis)
        images = images.lerp(neighbours, share)
    noise = torch.rand(images.shape, generator=generator, device=images.device).sub_(0.5)
    return images.addcmul_(noise, _uniform(images, 0, full.noise, generator, (1, 1, 1)) * strength)
