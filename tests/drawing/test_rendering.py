import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from captcha.drawing import distortion, rendering
from captcha.drawing.distortion import ripple_map, water_map
from captcha.drawing.fonts import Pixels, default_fonts, load_glyph
from captcha.drawing.rendering import draw, draw_background, draw_one, gradient
from captcha.drawing.styles import STYLES, Style, load_style

FONTS = default_fonts()[-2:]  # a bold and a regular one
KAPTCHA = load_style("kaptcha")
SHAPE = (50, 200)
GROUND = gradient(SHAPE, (192, 192, 192), (255, 255, 255))[0]
ImageOf = Callable[..., NDArray[np.int64]]


@pytest.fixture(scope="module")
def drawn() -> list[tuple[str, Pixels]]:
    return draw("kaptcha", 600, seed=1, fonts=FONTS)


def test_images_are_50_by_200_rgb_without_colour(drawn: list[tuple[str, Pixels]]) -> None:
    for _, image in drawn:
        assert image.shape == (50, 200, 3)
        assert image.dtype == np.uint8
        assert (image == image[:, :, :1]).all()


def test_texts_are_five_characters_of_kaptchas_list_with_n_twice_as_frequent(
    drawn: list[tuple[str, Pixels]],
) -> None:
    assert {len(text) for text, _ in drawn} == {5}
    counts = Counter("".join(text for text, _ in drawn))
    assert set(counts) == set("abcde2345678gfynmpwx")
    once = [counts[character] for character in counts if character != "n"]
    # 3,000 characters, 1/21 each: 143 expected, standard deviation 12; n: 286 and 16.
    assert max(once) < 195
    assert min(once) > 95
    assert 220 < counts["n"] < 352


def test_one_seed_draws_the_same_and_another_seed_something_else() -> None:
    first, again, other = (draw("kaptcha", 5, seed=seed) for seed in (7, 7, 8))
    assert [text for text, _ in first] == [text for text, _ in again]
    assert all(np.array_equal(one, two) for (_, one), (_, two) in zip(first, again, strict=True))
    assert {text for text, _ in first}.isdisjoint(text for text, _ in other)


def test_an_image_does_not_depend_on_how_many_are_drawn() -> None:
    few, many = draw("kaptcha", 3, seed=0), draw("kaptcha", 9, seed=0)
    assert [text for text, _ in few] == [text for text, _ in many[:3]]
    assert all(np.array_equal(one, two) for (_, one), (_, two) in zip(few, many, strict=False))
    assert draw("kaptcha", 0, seed=0) == []


def test_the_default_drawings_are_the_same_on_every_machine() -> None:
    """Figures measured on drawn images hold for these pixels: a change here makes them stale."""
    digest = hashlib.sha256()
    for text, image in draw("kaptcha", 50, seed=0):
        digest.update(text.encode() + image.tobytes())
    assert digest.hexdigest() == "697b3c7091e2da79fbeecd181f603b56fb9ac58f176a805b8be17668f41bb755"


def test_the_background_shows_and_nothing_is_lighter_than_it(drawn: list[tuple[str, Pixels]]) -> None:
    background = GROUND
    for _, image in drawn:
        assert (image[:, :, 0] <= background).all()
        assert (image[:, :, 0] == background).mean() > 0.5
        assert image.min() == 0


def test_the_gradient_runs_from_light_grey_to_white_along_the_diagonal() -> None:
    background = GROUND
    assert background[0, 0] == 192
    assert background[49, 199] == 254
    # Projected on the diagonal (200, 50), the other corners lie at 16/17 and 1/17 of the way.
    assert background[0, 199] == pytest.approx(192 + 63 * 16 / 17, abs=1)
    assert background[49, 0] == pytest.approx(192 + 63 / 17, abs=1)
    assert (np.diff(background.astype(int), axis=0) >= 0).all()
    assert (np.diff(background.astype(int), axis=1) >= 0).all()


def test_a_word_is_warped_by_water_then_ripple_and_lies_under_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The word is replaced by a smooth pattern, the noise left out: brute-force sampling must give the image."""
    y, x = np.mgrid[0.0:50, 0.0:200]
    smooth = 128 + 60 * np.sin(x / 9) + 60 * np.cos(y / 7)
    monkeypatch.setattr(rendering, "draw_word", lambda *_: smooth.round().astype(np.uint8))
    monkeypatch.setattr(distortion, "draw_noise_curve", lambda *_: None)
    _, image = draw_one(KAPTCHA, 0, 0, FONTS)

    def sample(paper: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sample bilinearly, white outside, pixel by pixel."""
        result = np.zeros((50, 200))
        padded = np.pad(paper, 8, constant_values=255.0)
        for row in range(50):
            for column in range(200):
                left, top = int(at[0, row, column] // 1), int(at[1, row, column] // 1)
                across, down = at[0, row, column] - left, at[1, row, column] - top
                corner = padded[top + 8 : top + 10, left + 8 : left + 10]
                result[row, column] = (1 - down, down) @ corner @ (1 - across, across)
        return result

    expected = sample(sample(smooth, water_map(SHAPE)), ripple_map(SHAPE))
    visible = image[:, :, 0] / GROUND * 255
    inner = (slice(5, 45), slice(5, 195))  # the white outside makes steps that 1/32 of a pixel shows
    assert np.abs(visible - expected)[inner].max() < 4


def test_bare_paper_stays_bare_to_its_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "draw_word", lambda *_: np.full(SHAPE, 255, np.uint8))
    monkeypatch.setattr(distortion, "draw_noise_curve", lambda *_: None)
    _, image = draw_one(KAPTCHA, 0, 0, FONTS)
    assert np.array_equal(image[:, :, 0], GROUND)


def test_an_unknown_style_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"^no drawing style 'captcha': did you mean 'kaptcha'\? "):
        draw("captcha", 1, seed=0)


def test_drawing_does_not_import_matplotlib() -> None:
    code = (
        "import sys; from captcha.drawing.rendering import draw; "
        "draw('kaptcha', 1, seed=0); print('matplotlib' in sys.modules)"
    )
    root = Path(rendering.__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize("name", STYLES)
def test_every_style_draws_its_size_its_characters_and_its_lengths(name: str) -> None:
    style = load_style(name)
    for text, image in draw(name, 40, seed=2, fonts=FONTS):
        assert image.shape == (style.height, style.width, 3)
        assert image.dtype == np.uint8
        assert set(text) <= set(style.characters)
        assert style.lengths[0] <= len(text) <= style.lengths[1]


@pytest.mark.parametrize("name", STYLES)
def test_image_i_depends_on_the_seed_and_on_i_alone_whoever_draws_it(name: str) -> None:
    listed = draw(name, 12, seed=4, fonts=FONTS)
    load_glyph.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda index: draw_one(load_style(name), 4, index, FONTS), reversed(range(12))))
    for (text, image), (other_text, other) in zip(listed, reversed(alone), strict=True):
        assert text == other_text
        assert np.array_equal(image, other)


def test_texts_of_a_list_are_drawn_and_no_others() -> None:
    drawn = draw(Style(texts=("3+4=", "ab")), 40, seed=0, fonts=FONTS)
    assert {text for text, _ in drawn} == {"3+4=", "ab"}


def test_a_border_is_black_and_as_wide_as_asked_for(image_of: ImageOf) -> None:
    image = image_of(border=2)
    inner = image[2:-2, 2:-2]
    assert image.sum() == inner.sum()
    assert inner[0].min() == inner[:, 0].min() == 255


def test_outlined_letters_have_background_inside_where_filled_ones_have_ink(image_of: ImageOf) -> None:
    outlined, filled = (image_of(texts=("8",), digit_height=40, stroke=9, outline=outline) for outline in (1, 0))
    assert (outlined < 128).sum() < 0.5 * (filled < 128).sum()
    cores = cv2.erode((filled[:, :, 0] < 128).astype(np.uint8), np.ones((5, 5)))
    assert cores.sum() > 50
    assert (outlined[cores > 0] == 255).all()


def test_every_length_of_the_range_is_drawn() -> None:
    assert {len(text) for text, _ in draw(Style(lengths=(1, 3), characters="ab"), 30, seed=0, fonts=FONTS)} == {1, 2, 3}


def test_a_shadow_falls_right_and_down_and_is_lighter_than_the_ink(image_of: ImageOf) -> None:
    plain, shadowed = image_of(), image_of(shadow=4)
    assert np.array_equal(plain == 0, shadowed == 0)
    fallen = np.zeros_like(plain)
    fallen[4:, 4:] = plain[:-4, :-4] == 0
    grey = (fallen == 1) & (plain == 255)
    assert grey.any()
    assert shadowed[grey].min() == shadowed[grey].max() == pytest.approx(128, abs=2)


def test_colours_lie_between_the_two_given(image_of: ImageOf) -> None:
    for seed in range(20):
        image = image_of(seed, ink=("#402060", "#105030"), background=("#c0c8d0", "#f0f0f0"))
        assert (image[0, 0] >= (0xC0, 0xC8, 0xD0)).all()
        assert (image[0, 0] <= 0xF0).all()
        darkest = image.reshape(-1, 3)[image.sum(axis=2).argmin()]
        assert (darkest >= (0x10, 0x20, 0x30)).all()
        assert (darkest <= (0x40, 0x50, 0x60)).all()


def test_letters_with_their_own_inks_have_one_colour_each_and_no_two_the_same(image_of: ImageOf) -> None:
    word: dict[str, object] = {"texts": ("n8n8",), "spacing": 8}
    curve = {"curves": 1, "curve_width": 2}
    inks = {"letter_inks": True, "ink": ("#002040", "#a0c0e0")}
    for seed in range(8):
        black = image_of(seed, **word)[:, :, 0]
        count, labels = cv2.connectedComponents((black < 255).astype(np.uint8))
        assert count == 5  # the ground and four letters
        image, crossed = image_of(seed, **word, **inks), image_of(seed, **word, **curve, **inks)
        on_the_curve = (image_of(seed, **word, **curve)[:, :, 0] == 0) & (black == 255)
        found = [image[(labels == number) & (black == 0)] for number in range(1, count)] + [crossed[on_the_curve]]
        for pixels in found:
            assert len(pixels) > 20
            assert (pixels == pixels[0]).all()
            assert (pixels[0] >= (0x00, 0x20, 0x40)).all()
            assert (pixels[0] <= (0xA0, 0xC0, 0xE0)).all()
        assert len({tuple(pixels[0]) for pixels in found}) == 5


def test_own_inks_of_one_colour_draw_what_a_single_ink_draws(image_of: ImageOf) -> None:
    for others in ({"water": 1, "ripple": 0.5, "shadow": 3}, {"fish_eye": (0.1, 0.8), "rotation": 20, "dots": 5}):
        own, single = (image_of(spacing=12, letter_inks=own, ink="#205080", **others) for own in (True, False))
        assert np.array_equal(own, single)


@pytest.mark.parametrize(
    "setting",
    [
        {"dots": 20},
        {"curves": 1},
        {"water": 1},
        {"ripple": 1},
        {"fish_eye": 0.5},
        {"blur": 1},
        {"shrink": 0.5},
        {"jpeg_quality": 20},
        {"texture": 20},
        {"bounce": 5},
        {"background_end": "#808080"},
        {"letter_width": 0.8},
        {"own_width": 0.8},
        {"spacing": 8},
        {"digit_height": 36},
        {"left": 5},
        {"baseline": 45},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_every_setting_changes_the_picture(image_of: ImageOf, setting: dict[str, object]) -> None:
    assert not np.array_equal(image_of(texts=("n8n",), **setting), image_of(texts=("n8n",)))


def test_a_texture_is_as_strong_as_asked_for() -> None:
    ground = draw_background(np.random.default_rng(0), Style(background="#808080", texture=20, texture_size=1))
    assert ground.astype(int).std() == pytest.approx(20 * 0.67, rel=0.35)  # resizing evens it out a little
    assert ground.astype(int).mean() == pytest.approx(128, abs=2)
