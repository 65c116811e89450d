"""Random changes to a batch of images, as tensor operations: what a reader must not depend on."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from captcha.data.samples import Sample
from captcha.reading.images import stack
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
    pixels = _recolour(pixels, strength, generator, full)
    _cross(pixels, strength, generator, full)
    _erase(pixels, strength, generator, full)
    return _blur_and_noise(pixels, strength, generator, full)


def augmented(
    samples: Sequence[Sample], passes: int, seed: int, full: Augmentation = recipe.DEFAULT.augmentation
) -> Iterator[Sample]:
    """Yield every sample `passes` times, its image changed at full strength; seed and place say how."""
    for place, sample in enumerate(samples[i] for _ in range(passes) for i in range(len(samples))):
        (number,) = np.random.SeedSequence([seed, place]).generate_state(1, np.uint64).tolist()
        pixels = augment(torch.from_numpy(stack([sample.image])), 1.0, torch.Generator().manual_seed(number), full)[0]
        changed = pixels.clamp(0, 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        yield replace(sample, pixels=changed, digest="")


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
    # A coarse grid from edge to edge, enlarged: between its points the affine map is linear, as the enlargement is.
    coarse = (4, max(2, 4 * width // height))
    grid = F.affine_grid(rows, [count, 2, *coarse], align_corners=True).permute(0, 3, 1, 2)
    # A random field on it bends letters (Simard et al., 2003, doi:10.1109/ICDAR.2003.1227801).
    bend = torch.randn((count, 2, *coarse), generator=generator, device=images.device)
    pixel = torch.tensor([2 / width, 2 / height], device=images.device).view(2, 1, 1)
    grid = grid + bend * pixel * (full.bend * height * strength)
    vertical, horizontal = (
        _enlargement(few, many, images.device) for few, many in zip(coarse, (height, width), strict=True)
    )
    grid = (vertical.T @ grid @ horizontal).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=True)


def _enlargement(few: int, many: int, device: torch.device) -> Tensor:
    """Return the matrix (few, many) that enlarges linearly, ends upon ends: faster than F.interpolate on the images."""
    return F.interpolate(torch.eye(few, device=device)[None], many, mode="linear", align_corners=True)[0]


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
    # x + k·x·(1 - x), as x · (1 + k - k·x): a gamma curve's bend without its powers.
    bend = _uniform(images, -full.contrast, full.contrast, generator, (1, 1, 1)) * strength
    return images.mul_(torch.addcmul(1 + bend, images, bend, value=-1 / 255))


def _cross(images: Tensor, strength: float, generator: Generator, full: Augmentation) -> None:
    """Draw up to `lines` thin waves across each image, in random colours: lines are no part of a letter."""
    count, _, height, width = images.shape
    device = images.device
    columns = torch.linspace(0, 1, width, device=device)
    widest = 1.2 * height / 64
    reach = math.ceil(widest + 0.5)
    around = torch.arange(-reach, reach + 1, device=device).view(-1, 1)
    flat = images.view(-1)
    first = torch.arange(0, flat.numel(), height * width, device=device).view(count, 3, 1, 1) + torch.arange(
        width, device=device
    )
    """The place in `flat` of each channel's first row."""
    for _ in range(full.lines):
        drawn = torch.rand((count, 1, 1), generator=generator, device=device) < full.line_share * strength
        phase = _uniform(images, 0, 2 * math.pi, generator, (1, 1))
        waves = _uniform(images, 0.3, 1.5, generator, (1, 1)) * (2 * math.pi)
        swing = _uniform(images, 0, height / 4, generator, (1, 1))
        start, end = (_uniform(images, 0, height, generator, (1, 1)) for _ in range(2))
        middle = start + (end - start) * columns + swing * torch.sin(phase + waves * columns)
        half_width = _uniform(images, 0.25 * widest, widest, generator, (1, 1))
        colour = _uniform(images, 0, 255, generator, (3, 1, 1))
        # Only the rows that the line can touch, (N, rows, W), inside the image: a few in place of all.
        rows = middle.round().clamp(reach, height - 1 - reach) + around
        cover = (half_width + 0.5 - (rows - middle).abs()).clamp(0, 1) * drawn
        places = (first + rows.long().unsqueeze(1) * width).flatten()
        before = flat.index_select(0, places).view(count, 3, -1, width)
        flat.index_copy_(0, places, before.lerp(colour, cover.unsqueeze(1)).flatten())


def _erase(images: Tensor, strength: float, generator: Generator, full: Augmentation) -> None:
    """Cover small boxes of each image with its mean colour, taken from every fourth row and column."""
    _, _, height, width = images.shape
    fill = images[:, :, ::4, ::4].mean((2, 3), keepdim=True)
    top = _uniform(images, 0, height, generator, (full.boxes,))
    left = _uniform(images, 0, width, generator, (full.boxes,))
    high = _uniform(images, 0, full.box_size * height, generator, (full.boxes,)) * strength
    wide = _uniform(images, 0, full.box_size * height, generator, (full.boxes,)) * strength
    edges = torch.stack([top, top + high, left, left + wide], 2).ceil().int().tolist()
    for image, colour, boxes in zip(images, fill, edges, strict=True):
        for first_row, end_row, first_column, end_column in boxes:
            image[:, first_row:end_row, first_column:end_column] = colour


def _blur_and_noise(images: Tensor, strength: float, generator: Generator, full: Augmentation) -> Tensor:
    """Blur some images a little, over a pixel and its neighbours below and right, and add some noise to each."""
    share = _uniform(images, -1, 1, generator, (1, 1, 1)).clamp(min=0) * (strength * full.blur)
    for axis in (2, 3):
        length = images.shape[axis] - 1
        blurred = torch.empty_like(images)
        first, last = images.narrow(axis, 0, length), images.narrow(axis, length, 1)
        torch.lerp(first, images.narrow(axis, 1, length), share, out=blurred.narrow(axis, 0, length))
        blurred.narrow(axis, length, 1).copy_(last)
        images = blurred
    # Each image takes its part from one row of random numbers: to draw new ones for each takes longer than all else.
    size = images[0].numel()
    row = torch.rand(2 * size, generator=generator, device=images.device).sub_(0.5)
    begins = torch.randint(size + 1, (len(images),), generator=generator, device=images.device).tolist()
    ranges = (_uniform(images, 0, full.noise, generator) * strength).tolist()
    for image, begin, noise in zip(images, begins, ranges, strict=True):
        image.add_(row[begin : begin + size].view(image.shape), alpha=noise)
    return images
