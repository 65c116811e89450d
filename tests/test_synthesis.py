import hashlib
import math
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from captcha import synthesis
from captcha.synthesis import draw

FONTS = synthesis.default_fonts()
NOISE_X = ((20, 20, 50, 50), (20, 50, 100, 180))


@pytest.fixture(scope="module")
def drawn() -> list[tuple[str, synthesis.Pixels]]:
    return draw("kaptcha", 600, seed=1)


def blank_paper() -> synthesis.Pixels:
    return np.full((50, 200), 255, np.uint8)


def ink(paper: synthesis.Pixels) -> NDArray[np.float64]:
    return 1 - paper / 255


def test_images_are_50_by_200_rgb_without_colour(drawn: list[tuple[str, synthesis.Pixels]]) -> None:
    for _, image in drawn:
        assert image.shape == (50, 200, 3)
        assert image.dtype == np.uint8
        assert (image == image[:, :, :1]).all()


def test_texts_are_five_characters_of_kaptchas_list_with_n_twice_as_frequent(
    drawn: list[tuple[str, synthesis.Pixels]],
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
    assert digest.hexdigest() == "b337aaf2f906691232d8e9c28dd0476aa33b95337685bd3f316b5d4d14ab1c2c"


def test_the_same_text_is_drawn_differently_each_time() -> None:
    words = [synthesis.draw_word(np.random.default_rng(seed), "2b827", FONTS) for seed in range(8)]
    assert len({word.tobytes() for word in words}) == 8


def test_the_background_shows_and_nothing_is_lighter_than_it(drawn: list[tuple[str, synthesis.Pixels]]) -> None:
    background = synthesis.gradient()
    for _, image in drawn:
        assert (image[:, :, 0] <= background).all()
        assert (image[:, :, 0] == background).mean() > 0.5
        assert image.min() == 0


def test_the_gradient_runs_from_light_grey_to_white_along_the_diagonal() -> None:
    background = synthesis.gradient()
    assert background[0, 0] == 192
    assert background[49, 199] == 254
    # Projected on the diagonal (200, 50), the other corners lie at 16/17 and 1/17 of the way.
    assert background[0, 199] == pytest.approx(192 + 63 * 16 / 17, abs=1)
    assert background[49, 0] == pytest.approx(192 + 63 / 17, abs=1)
    assert (np.diff(background.astype(int), axis=0) >= 0).all()
    assert (np.diff(background.astype(int), axis=1) >= 0).all()


@pytest.mark.parametrize(("x", "y"), [(100, 24), (103, 29), (91, 25), (60, 10), (149, 25), (100, 0), (130, 49)])
def test_water_samples_where_its_formula_says(x: int, y: int) -> None:
    distance = math.dist((x, y), (100, 25))
    amount = 1.5 * math.sin(2 * math.pi * distance / 2 - 10) * (50 - distance) / 50 * 2 / distance
    expected = (x + (x - 100) * amount, y + (y - 25) * amount)
    assert synthesis.water_map()[:, y, x] == pytest.approx(expected)


def test_water_moves_nothing_in_its_centre_or_from_its_radius_on() -> None:
    moved = synthesis.water_map() - np.mgrid[0:50, 0:200][::-1]
    y, x = np.mgrid[0:50, 0:200]
    still = np.hypot(x - 100, y - 25) >= 50
    assert not moved[:, still].any()
    assert not moved[:, 25, 100].any()
    assert np.abs(moved[:, ~still]).max() > 2
    assert np.hypot(*moved).max() <= 3


@pytest.mark.parametrize(("x", "y"), [(0, 0), (5, 15), (37, 22), (199, 49)])
def test_the_ripple_samples_where_its_formula_says(x: int, y: int) -> None:
    expected = (x + 2.6 * math.sin(y / 15), y + 1.7 * math.sin(x / 5))
    assert synthesis.ripple_map()[:, y, x] == pytest.approx(expected)


def test_a_word_is_warped_by_water_then_ripple_and_lies_under_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The word is replaced by a smooth pattern, the noise left out: brute-force sampling must give the image."""
    y, x = np.mgrid[0.0:50, 0.0:200]
    smooth = 128 + 60 * np.sin(x / 9) + 60 * np.cos(y / 7)
    monkeypatch.setattr(synthesis, "draw_word", lambda *_: smooth.round().astype(np.uint8))
    monkeypatch.setattr(synthesis, "draw_noise_curve", lambda *_: None)
    _, image = synthesis.draw_kaptcha(np.random.default_rng(0), FONTS)

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

    expected = sample(sample(smooth, synthesis.water_map()), synthesis.ripple_map())
    visible = image[:, :, 0] / synthesis.gradient() * 255
    inner = (slice(5, 45), slice(5, 195))  # the white outside makes steps that 1/32 of a pixel shows
    assert np.abs(visible - expected)[inner].max() < 4


def test_bare_paper_stays_bare_to_its_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "draw_word", lambda *_: blank_paper())
    monkeypatch.setattr(synthesis, "draw_noise_curve", lambda *_: None)
    _, image = synthesis.draw_kaptcha(np.random.default_rng(0), FONTS)
    assert np.array_equal(image[:, :, 0], synthesis.gradient())


heights = st.lists(st.floats(0, 50, exclude_max=True), min_size=4, max_size=4)


@given(heights, st.sampled_from(NOISE_X))
@settings(max_examples=50, deadline=None)
def test_a_flattened_curve_keeps_its_ends_and_stays_near_the_curve(ys: list[float], xs: tuple[int, ...]) -> None:
    control = np.array([complex(x, y) for x, y in zip(xs, ys, strict=True)])
    points = synthesis.flatten(control.tolist())
    assert (points[0], points[-1]) == (control[0], control[3])
    t = np.linspace(0, 1, 400)
    curve = np.stack([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], axis=1) @ control
    polyline = np.concatenate([a + (b - a) * np.linspace(0, 1, 400) for a, b in pairwise(points)])
    for point in points:
        assert np.abs(curve - point).min() < 0.5
    for point in curve[::20]:
        assert np.abs(polyline - point).min() < synthesis.FLATNESS


def test_noise_lines_end_where_their_curve_does_and_are_as_wide_as_java_draws_them() -> None:
    paper = blank_paper()
    synthesis.draw_noise_curve(paper, [20 + 20j, 50 + 20j, 100 + 20j, 180 + 20j])
    marks = ink(paper)
    assert marks[:, 100].sum() == pytest.approx(3.6, abs=0.02)  # flat, so one segment, the first
    assert marks[20, 20:181].min() == 1
    assert marks.sum() == pytest.approx(3.6 * (160 + 3.6), rel=0.01)  # square ends reach half a width farther
    assert not marks[:, :18].any()
    assert not marks[:, 183:].any()


def test_only_the_first_two_segments_of_a_curve_are_wide() -> None:
    control = [20 + 2j, 50 + 48j, 100 + 48j, 180 + 2j]
    points = [complex(round(point.real), round(point.imag)) for point in synthesis.flatten(control)]
    paper = blank_paper()
    synthesis.draw_noise_curve(paper, control)
    assert len(points) >= 5
    expected = [3.6, 2.7, *[1.8] * (len(points) - 3)]
    for start, end, width in zip(points, points[1:], expected, strict=False):
        column = round((start.real + end.real) / 2)
        cosine = (end - start).real / abs(end - start)
        assert ink(paper)[:, column].sum() * cosine == pytest.approx(width, abs=0.1)


@pytest.mark.parametrize("font", FONTS, ids=lambda font: font.stem)
def test_every_character_is_drawn_and_no_two_alike(font: Path) -> None:
    shades = np.where(np.arange(256) < 128, 255, 0).astype(np.uint8)
    drawn = {}
    for character in synthesis.CHARACTERS:
        paper = blank_paper()
        glyph = synthesis.load_glyph(font, character)
        glyph.draw(paper, (80, 40), (1.0, 1.0), shades)
        left, _, width, height = cv2.boundingRect(255 - paper)
        assert width == pytest.approx(glyph.width, abs=1)
        assert height > 15
        assert abs(left - 80) < 6
        drawn[character] = paper.tobytes()
    assert len(set(drawn.values())) == 20


@pytest.mark.parametrize("font", FONTS, ids=lambda font: font.stem)
def test_strokes_get_the_width_asked_for_and_digits_keep_their_height(font: Path) -> None:
    class Fixed:
        """Stands for a generator: the given stroke, no scaling, the middle of every offset."""

        def __init__(self, stroke: float) -> None:
            self.uniforms = iter((stroke, 1.0))

        def uniform(self, low: float, high: float) -> float:
            value = next(self.uniforms)
            assert low <= value <= high
            return value

        def integers(self, low: int, high: int = 0) -> int:
            return 0

    for stroke in (4.8, 5.8, 6.8):
        eight, n = (ink(synthesis.draw_word(Fixed(stroke), text, (font,))) for text in "8n")  # type: ignore[arg-type]
        assert eight.max(axis=1).sum() == pytest.approx(29, abs=0.5)
        row = n[35]
        first = np.flatnonzero(row)[0]
        stem = row[first : first + np.flatnonzero(row[first:] == 0)[0]]
        assert stem.sum() == pytest.approx(stroke, abs=0.3)


@pytest.mark.parametrize("text", ["mmmmm", "wwwww", "77777", "f2f2f"])
def test_a_word_stays_on_the_paper_and_starts_near_its_left_end(text: str) -> None:
    for seed in range(30):
        marks = ink(synthesis.draw_word(np.random.default_rng(seed), text, FONTS))
        assert not marks[:, 196:].any()
        columns = np.flatnonzero(marks.any(axis=0))
        assert 20 <= columns[0] <= 36


def test_letters_stand_side_by_side() -> None:
    for seed in range(30):
        words = [synthesis.draw_word(np.random.default_rng(seed), "28n3w"[:length], FONTS) for length in range(1, 6)]
        ends = [np.flatnonzero(ink(word).any(axis=0))[-1] for word in words]
        assert (np.diff(ends) >= 12).all()


def test_an_unknown_style_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"^no drawing style 'captcha': did you mean 'kaptcha'\?$"):
        draw("captcha", 1, seed=0)


def test_fonts_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    text = tmp_path / "notes.ttf"
    text.write_text("no font")
    with pytest.raises(ValueError, match=r"notes\.ttf is not a TrueType font$"):
        draw("kaptcha", 1, seed=0, fonts=[text])
    with pytest.raises(ValueError, match=r"^cannot read the font .*gone\.ttf: No such file or directory$"):
        draw("kaptcha", 1, seed=0, fonts=[tmp_path / "gone.ttf"])
    with pytest.raises(ValueError, match="at least one TrueType file"):
        draw("kaptcha", 1, seed=0, fonts=[])


def test_drawing_does_not_import_matplotlib() -> None:
    code = (
        "import sys; from captcha.synthesis import draw; draw('kaptcha', 1, seed=0); print('matplotlib' in sys.modules)"
    )
    root = Path(synthesis.__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
