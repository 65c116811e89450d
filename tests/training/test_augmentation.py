from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from captcha.data.samples import Sample
from captcha.training.augmentation import augment, augmented
from captcha.training.recipe import Augmentation

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


def only(**ranges: float) -> Augmentation:
    """An augmentation that makes these changes and no others."""
    return Augmentation.model_validate(dict.fromkeys(Augmentation.model_fields, 0) | ranges)


def test_a_slope_of_shades_stays_one_however_it_is_turned_slanted_scaled_and_shifted() -> None:
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(160.0), indexing="ij")
    slope = (rows + columns / 2).byte()  # rounded down by less than 1
    full = only(rotation=5, slant=0.2, size=0.12, stretch=0.05, shift_x=0.1, shift_y=0.12)
    changes = augment(slope.repeat(COUNT, 3, 1, 1), 1, Generator().manual_seed(0), full)[:, 0, 16:-16, 32:-32].double()
    places = torch.stack([torch.ones(32, 96), *torch.meshgrid(torch.arange(32), torch.arange(96), indexing="ij")])
    places = places.double().flatten(1).T
    fitted = torch.linalg.lstsq(places.repeat(COUNT, 1, 1), changes.flatten(1).unsqueeze(2)).solution
    assert (places @ fitted - changes.flatten(1).unsqueeze(2)).abs().max() < 1
    turned, across = fitted[:, 1, 0], fitted[:, 2, 0]
    assert turned.std() > 0.03  # from 1 by the size,
    assert across.std() > 0.03  # from a half by angle and slant too
    assert turned.mean() == pytest.approx(1, abs=0.15)
    assert across.mean() == pytest.approx(0.5, abs=0.3)


def test_a_line_is_a_few_pixels_high_in_each_column_and_of_one_colour() -> None:
    plain = torch.full((64, 3, 64, 96), 90, dtype=torch.uint8)
    crossed = augment(plain, 1, Generator().manual_seed(0), only(lines=1, line_share=0.5)) - 90
    changed_rows = (crossed.abs() > 1e-3).any(1)
    with_line = changed_rows.any(2).any(1)
    assert 20 <= with_line.sum() <= 44  # half of 64 images
    heights = changed_rows[with_line].sum(1)
    assert heights.max() <= 4  # 2 · (1.2 + 0.5) at most, and what that touches
    assert (heights > 0).float().mean() > 0.9  # some waves leave the image for some columns
    firsts, lasts = changed_rows[with_line].int().argmax(1), 64 - changed_rows[with_line].flip(1).int().argmax(1)
    assert torch.equal((lasts - firsts)[heights > 0], heights[heights > 0])  # without gaps
    for image in crossed[with_line]:
        inks = image.flatten(1)[:, image.abs().amax(0).flatten() > 1]
        assert torch.linalg.matrix_rank(inks, rtol=1e-3) == 1  # more or less of one colour


def test_boxes_have_the_mean_colour_and_at_most_their_size(images: Tensor) -> None:
    covered = augment(images, 1, Generator().manual_seed(0), only(boxes=1, box_size=0.5))
    seen = 0
    for image, original in zip(covered, images.float(), strict=True):
        rows, columns = ((image - original).abs() > 0.01).any(0).nonzero(as_tuple=True)
        if not len(rows):
            continue  # a box of no height
        seen += 1
        assert int(rows.max() - rows.min()) <= HEIGHT // 2
        assert int(columns.max() - columns.min()) <= HEIGHT // 2
        inside = image[:, rows, columns]
        assert torch.equal(inside, inside[:, :1].expand_as(inside))
        assert (inside[:, 0] - original.mean((1, 2))).abs().max() < 12  # from one pixel in sixteen
    assert seen >= COUNT / 2


def test_noise_is_even_within_its_range_and_no_two_images_have_the_same(images: Tensor) -> None:
    noise = augment(images, 1, Generator().manual_seed(0), only(noise=40)) - images.float()
    assert noise.abs().max() <= 20.001
    for one in noise:
        widest = one.abs().max()
        assert one.abs().mean() == pytest.approx(widest.item() / 2, rel=0.05)
        assert one.mean().abs() < 0.05 * widest
    likeness = torch.corrcoef(noise.flatten(1)) - torch.eye(COUNT)
    assert likeness.abs().max() < 0.1


def test_a_blur_mixes_a_pixel_with_those_below_and_right_alone() -> None:
    dot = torch.zeros(COUNT, 3, 9, 9, dtype=torch.uint8)
    dot[:, :, 4, 4] = 200
    blurred = augment(dot, 1, Generator().manual_seed(0), only(blur=0.5))[:, 0]
    shares = blurred[:, 4, 3] / (blurred[:, 4, 3] + blurred[:, 4, 4])
    assert 1 <= (shares > 0).sum() < COUNT
    assert shares.max() <= 0.5
    kept = torch.stack([shares, 1 - shares], 1)
    expected = torch.zeros(COUNT, 9, 9)
    expected[:, 3:5, 3:5] = 200 * kept.unsqueeze(2) * kept.unsqueeze(1)
    torch.testing.assert_close(blurred, expected)


def test_samples_are_changed_anew_at_each_pass_the_same_for_the_same_seed(images: Tensor) -> None:
    drawing = images[0].permute(1, 2, 0).numpy()
    samples = [Sample("a.png", "2b8", drawing), Sample("b.png", "xy", drawing)]

    first, again, other = (list(augmented(samples, 3, seed)) for seed in (1, 1, 2))

    assert [(each.name, each.text) for each in first] == [("a.png", "2b8"), ("b.png", "xy")] * 3
    assert [each.digest for each in first] == [each.digest for each in again]
    assert len({each.digest for each in [*first, *other]}) == 12  # no change comes twice
    for each in first:
        assert each.image.shape == drawing.shape
        assert each.image.dtype == np.uint8
        assert 8 < np.abs(each.image.astype(int) - drawing).mean() < 128
