from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from captcha.training.augmentation import augment

COUNT, HEIGHT, WIDTH = 8, 32, 96


@pytest.fixture(scope="module")
def images(draw: Callable[..., NDArray[np.uint8]]) -> Tensor:
    """One drawing, COUNT times: (COUNT, 3, HEIGHT, WIDTH) uint8."""
    drawing = torch.from_numpy(draw("2b8", WIDTH, HEIGHT)).permute(2, 0, 1)
    return drawing.repeat(COUNT, 1, 1, 1)


def changed(images: Tensor, strength: float, seed: int = 0) -> Tensor:
    return augment(images, strength, Generator().manual_seed(seed))


def test_without_strength_nothing_changes(images: Tensor) -> None:
    assert torch.equal(changed(images, 0), images.float())


def test_the_same_state_of_the_generator_gives_the_same_changes_and_another_gives_others(images: Tensor) -> None:
    assert torch.equal(changed(images, 1, seed=3), changed(images, 1, seed=3))
    assert not torch.equal(changed(images, 1, seed=3), changed(images, 1, seed=4))


def test_the_images_given_stay_as_they_are_and_only_the_generator_given_is_used(images: Tensor) -> None:
    before, state = images.clone(), torch.get_rng_state()
    changed(images, 1)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("strength", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("shape", [(1, 3, 32, 16), (3, 3, 64, 208), (2, 3, 48, 480)])
def test_any_shape_is_kept_and_values_stay_those_of_pixels(strength: float, shape: tuple[int, ...]) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=Generator().manual_seed(1))
    result = changed(images, strength)
    assert result.shape == shape
    assert result.dtype == torch.float32
    assert torch.isfinite(result).all()
    assert result.min() > -128
    assert result.max() < 383


@pytest.mark.parametrize("shade", [0, 255])
def test_plain_images_stay_finite(shade: int) -> None:
    assert torch.isfinite(changed(torch.full((4, 3, 32, 64), shade, dtype=torch.uint8), 1)).all()


def test_each_image_is_changed_in_its_own_way(images: Tensor) -> None:
    result = changed(images, 1)
    for i in range(COUNT):
        for j in range(i):
            # More than noise alone would do, whose deviation is a few grey levels.
            assert (result[i] - result[j]).abs().mean() > 8, (i, j)


def test_more_strength_changes_more(images: Tensor) -> None:
    changes = [(changed(images.repeat(8, 1, 1, 1), s) - images[0]).abs().mean().item() for s in (0.01, 0.1, 0.4, 1)]
    assert changes == sorted(changes)
    assert changes[0] < 5  # grey levels: the training begins with what the images are
    assert changes[-1] > 4 * changes[0]


def test_a_weakly_changed_image_still_shows_its_own_text_best(draw: Callable[..., NDArray[np.uint8]]) -> None:
    texts = ["274", "055", "918", "360"]
    originals = torch.stack([torch.from_numpy(draw(text, WIDTH, HEIGHT)).permute(2, 0, 1) for text in texts])
    greys = originals.float().mean(1).flatten(1)
    results = changed(originals, 0.3).mean(1).flatten(1)
    likeness = torch.corrcoef(torch.cat([results, greys]))[:4, 4:]
    assert likeness.argmax(1).tolist() == [0, 1, 2, 3]
