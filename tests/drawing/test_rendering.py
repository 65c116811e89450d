import hashlib
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from captcha.drawing import rendering as synthesis
from captcha.drawing.rendering import FontError, draw, draw_one
from captcha.drawing.styles import STYLES, Style, StyleError

FONTS = synthesis.default_fonts()[-2:]  # a bold and a regular one
NOISE_X = ((20, 20, 50, 50), (20, 50, 100, 180))
KAPTCHA = STYLES["kaptcha"]
SHAPE = (50, 200)
GROUND = synthesis.gradient(SHAPE, (192, 192, 192), (255, 255, 255))[0]


@pytest.fixture(scope="module")
def drawn() -> list[tuple[str, synthesis.Pixels]]:
    return draw("kaptcha", 600, seed=1, fonts=FONTS)


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
    assert digest.hexdigest() == "c8ea6f382a331bc76bcb5a5814ae0f9a35a203db8c648939909f31ed28ed2d5f"


def test_the_same_text_is_drawn_differently_each_time() -> None:
    words = [synthesis.draw_word(np.random.default_rng(seed), KAPTCHA, "2b827", FONTS) for seed in range(8)]
    assert len({word.tobytes() for word in words}) == 8


def test_the_background_shows_and_nothing_is_lighter_than_it(drawn: list[tuple[str, synthesis.Pixels]]) -> None:
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


@pytest.mark.parametrize(("x", "y"), [(100, 24), (103, 29), (91, 25), (60, 10), (149, 25), (100, 0), (130, 49)])
def test_water_samples_where_its_formula_says(x: int, y: int) -> None:
    distance = math.dist((x, y), (100, 25))
    amount = 1.5 * math.sin(2 * math.pi * distance / 2 - 10) * (50 - distance) / 50 * 2 / distance
    expected = (x + (x - 100) * amount, y + (y - 25) * amount)
    assert synthesis.water_map(SHAPE)[:, y, x] == pytest.approx(expected)


def test_water_moves_nothing_in_its_centre_or_from_its_radius_on() -> None:
    moved = synthesis.water_map(SHAPE) - np.mgrid[0:50, 0:200][::-1]
    y, x = np.mgrid[0:50, 0:200]
    still = np.hypot(x - 100, y - 25) >= 50
    assert not moved[:, still].any()
    assert not moved[:, 25, 100].any()
    assert np.abs(moved[:, ~still]).max() > 2
    assert np.hypot(*moved).max() <= 3


@pytest.mark.parametrize(("x", "y"), [(0, 0), (5, 15), (37, 22), (199, 49)])
def test_the_ripple_samples_where_its_formula_says(x: int, y: int) -> None:
    expected = (x + 2.6 * math.sin(y / 15), y + 1.7 * math.sin(x / 5))
    assert synthesis.ripple_map(SHAPE)[:, y, x] == pytest.approx(expected)


def test_a_word_is_warped_by_water_then_ripple_and_lies_under_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The word is replaced by a smooth pattern, the noise left out: brute-force sampling must give the image."""
    y, x = np.mgrid[0.0:50, 0.0:200]
    smooth = 128 + 60 * np.sin(x / 9) + 60 * np.cos(y / 7)
    monkeypatch.setattr(synthesis, "draw_word", lambda *_: smooth.round().astype(np.uint8))
    monkeypatch.setattr(synthesis, "draw_noise_curve", lambda *_: None)
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

    expected = sample(sample(smooth, synthesis.water_map(SHAPE)), synthesis.ripple_map(SHAPE))
    visible = image[:, :, 0] / GROUND * 255
    inner = (slice(5, 45), slice(5, 195))  # the white outside makes steps that 1/32 of a pixel shows
    assert np.abs(visible - expected)[inner].max() < 4


def test_bare_paper_stays_bare_to_its_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "draw_word", lambda *_: blank_paper())
    monkeypatch.setattr(synthesis, "draw_noise_curve", lambda *_: None)
    _, image = draw_one(KAPTCHA, 0, 0, FONTS)
    assert np.array_equal(image[:, :, 0], GROUND)


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
    assert marks.sum() == pytest.approx(3.6 * (160 + 3.6), rel=0.002)  # square ends reach half a width farther
    assert not marks[:, :18].any()
    assert not marks[:, 183:].any()


def test_of_a_curve_only_what_lies_on_the_paper_is_drawn() -> None:
    for curve in ((-20 + 60j, 3 - 30j, 60 + 20j, 230 + 55j), (1 + 1j, 0 + 20j, 2 + 40j, 1 + 48j)):
        wide, paper = np.full((150, 400), 255, np.uint8), blank_paper()
        synthesis.draw_noise_curve(wide, [point + 100 + 50j for point in curve])
        synthesis.draw_noise_curve(paper, curve)
        assert np.array_equal(paper, wide[50:100, 100:300])
        assert not paper.all()


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
    for character in KAPTCHA.alphabet:
        paper = blank_paper()
        glyph = synthesis.load_glyph(font, character)
        glyph.draw(paper, (80, 25), (1.0, 0.0, 0.0, 1.0), shades)
        left, top, width, height = cv2.boundingRect(255 - paper)
        assert (width, height) == pytest.approx(glyph.size, abs=1)
        assert height > 15
        assert (left + width / 2, top + height / 2) == pytest.approx((80, 25), abs=1)
        drawn[character] = paper.tobytes()
    assert len(set(drawn.values())) == 20


@pytest.mark.parametrize("font", FONTS, ids=lambda font: font.stem)
def test_strokes_get_the_width_asked_for_and_digits_keep_their_height(font: Path) -> None:
    for stroke in (4.8, 5.8, 6.8):
        style = Style(digit_height=29, stroke=stroke, baseline=42, left=40)
        eight, n = (ink(synthesis.draw_word(np.random.default_rng(0), style, text, (font,))) for text in "8n")
        assert eight.max(axis=1).sum() == pytest.approx(29, abs=0.5)
        row = n[35]
        first = np.flatnonzero(row)[0]
        stem = row[first : first + np.flatnonzero(row[first:] == 0)[0]]
        assert stem.sum() == pytest.approx(stroke, abs=0.3)


@pytest.mark.parametrize("text", ["mmmmm", "wwwww", "77777", "f2f2f"])
def test_a_word_stays_on_the_paper_and_starts_near_its_left_end(text: str) -> None:
    for seed in range(30):
        marks = ink(synthesis.draw_word(np.random.default_rng(seed), KAPTCHA, text, FONTS))
        assert not marks[:, 196:].any()
        columns = np.flatnonzero(marks.any(axis=0))
        assert 20 <= columns[0] <= 36


def test_letters_stand_side_by_side() -> None:
    for seed in range(30):
        words = [
            synthesis.draw_word(np.random.default_rng(seed), KAPTCHA, "28n3w"[:length], FONTS) for length in range(1, 6)
        ]
        ends = [np.flatnonzero(ink(word).any(axis=0))[-1] for word in words]
        assert (np.diff(ends) >= 12).all()


def test_an_unknown_style_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"^no drawing style 'captcha': did you mean 'kaptcha'\? "):
        draw("captcha", 1, seed=0)


def test_fonts_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    text = tmp_path / "notes.ttf"
    text.write_text("no font")
    with pytest.raises(ValueError, match=r"notes\.ttf is not a TrueType or OpenType font$"):
        draw("kaptcha", 1, seed=0, fonts=[text])
    with pytest.raises(ValueError, match=r"^cannot read the font .*gone\.ttf: No such file or directory$"):
        draw("kaptcha", 1, seed=0, fonts=[tmp_path / "gone.ttf"])
    with pytest.raises(ValueError, match="at least one font file"):
        draw("kaptcha", 1, seed=0, fonts=[])


def test_drawing_does_not_import_matplotlib() -> None:
    code = (
        "import sys; from captcha.drawing.rendering import draw; "
        "draw('kaptcha', 1, seed=0); print('matplotlib' in sys.modules)"
    )
    root = Path(synthesis.__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


# Styles: each setting does what it says. PLAIN is black on white without anything else.
PLAIN = Style(characters="n8", lengths=3, stroke=5)


def image_of(seed: int = 0, /, **settings: object) -> NDArray[np.int64]:
    style = Style.model_validate(PLAIN.model_dump() | settings)
    return draw_one(style, seed, 0, FONTS)[1].astype(np.int64)


@pytest.mark.parametrize("name", STYLES)
def test_every_style_draws_its_size_its_characters_and_its_lengths(name: str) -> None:
    style = STYLES[name]
    for text, image in draw(name, 40, seed=2, fonts=FONTS):
        assert image.shape == (style.height, style.width, 3)
        assert image.dtype == np.uint8
        assert set(text) <= set(style.characters)
        assert style.lengths[0] <= len(text) <= style.lengths[1]


@pytest.mark.parametrize("name", STYLES)
def test_image_i_depends_on_the_seed_and_on_i_alone_whoever_draws_it(name: str) -> None:
    listed = draw(name, 12, seed=4, fonts=FONTS)
    synthesis.load_glyph.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda index: draw_one(STYLES[name], 4, index, FONTS), reversed(range(12))))
    for (text, image), (other_text, other) in zip(listed, reversed(alone), strict=True):
        assert text == other_text
        assert np.array_equal(image, other)


@pytest.mark.parametrize("name", ["tilted", "outlined", "textured"])
def test_no_letter_of_a_centred_style_is_cut_off_at_the_edge(name: str) -> None:
    style = STYLES[name]
    for seed in range(60):
        rng = np.random.default_rng(seed)
        text = "".join(rng.choice(list(style.characters), style.lengths[1]))
        marks = ink(synthesis.draw_word(rng, style, text, FONTS))
        assert marks.any()
        for edge in (marks[0], marks[-1], marks[:, 0], marks[:, -1]):
            assert not edge.any(), text


def test_texts_of_a_list_are_drawn_and_no_others() -> None:
    drawn = draw(Style(texts=("3+4=", "ab")), 40, seed=0, fonts=FONTS)
    assert {text for text, _ in drawn} == {"3+4=", "ab"}


def test_a_border_is_black_and_as_wide_as_asked_for() -> None:
    image = image_of(border=2)
    inner = image[2:-2, 2:-2]
    assert image.sum() == inner.sum()
    assert inner[0].min() == inner[:, 0].min() == 255


def test_outlined_letters_have_background_inside_where_filled_ones_have_ink() -> None:
    outlined, filled = (image_of(texts=("8",), digit_height=40, stroke=9, outline=outline) for outline in (1, 0))
    assert (outlined < 128).sum() < 0.5 * (filled < 128).sum()
    cores = cv2.erode((filled[:, :, 0] < 128).astype(np.uint8), np.ones((5, 5)))
    assert cores.sum() > 50
    assert (outlined[cores > 0] == 255).all()


def test_of_a_letter_only_what_lies_on_the_paper_is_drawn() -> None:
    glyph, shades = synthesis.load_glyph(FONTS[0], "8"), np.where(np.arange(256) < 128, 255, 0).astype(np.uint8)
    wide, paper = np.full((150, 400), 255, np.uint8), blank_paper()
    for x, y in ((0, 25), (198, 25), (100, 0), (60, 48), (-90, 25), (290, 25), (100, -40), (100, 90)):
        glyph.draw(wide, (100 + x, 50 + y), (1.0, 0.0, 0.0, 1.0), shades)
        glyph.draw(paper, (x, y), (1.0, 0.0, 0.0, 1.0), shades)
    assert np.array_equal(paper, wide[50:100, 100:300])
    assert not paper.all()


def test_a_turned_letter_is_the_upright_one_turned() -> None:
    """An oracle of its own: the letter is turned back by OpenCV and compared with the upright one."""
    glyph = synthesis.load_glyph(FONTS[0], "n")
    shades = np.where(np.arange(256) < 128, 255, 0).astype(np.uint8)
    upright, turned = np.full((61, 61), 255, np.uint8), np.full((61, 61), 255, np.uint8)
    glyph.draw(upright, (30.5, 30.5), (1.0, 0.0, 0.0, 1.0), shades)
    cosine, sine = math.cos(math.radians(30)), math.sin(math.radians(30))
    glyph.draw(turned, (30.5, 30.5), (cosine, -sine, sine, cosine), shades)
    back = cv2.warpAffine(turned, cv2.getRotationMatrix2D((30, 30), 30, 1), (61, 61), borderValue=(255,))

    def overlap(one: synthesis.Pixels, other: synthesis.Pixels) -> float:
        return float(np.minimum(ink(one), ink(other)).sum() / np.maximum(ink(one), ink(other)).sum())

    assert overlap(np.asarray(back, np.uint8), upright) > 0.8
    assert overlap(turned, upright) < 0.6


def test_letters_turn_only_where_the_style_says_so() -> None:
    def left_edge_slants(**settings: object) -> float:
        slants = []
        for seed in range(20):
            rows = image_of(seed, texts=("l",), **settings)[:, :, 0] < 128
            heights = np.flatnonzero(rows.any(axis=1))
            slants.append(int(rows[heights[5]].argmax()) - int(rows[heights[-5]].argmax()))
        return float(np.ptp(slants))

    assert left_edge_slants() <= 1
    assert left_edge_slants(rotation=30) > 8
    assert left_edge_slants(shear=0.4) > 8


def test_letters_turn_slant_and_bounce_to_both_sides() -> None:
    seeds = range(12)
    tops, slants = [], {"rotation": [], "shear": []}  # type: ignore[var-annotated]
    for seed in seeds:
        tops.append(
            int(np.flatnonzero((image_of(seed, texts=("l",), baseline=40, bounce=6) < 128).any(axis=(1, 2)))[0])
        )
        for name, strength in (("rotation", 30), ("shear", 0.5)):
            inked = image_of(seed, texts=("l",), **{name: strength})[:, :, 0] < 128
            rows = np.flatnonzero(inked.any(axis=1))
            slants[name].append(int(inked[rows[6]].argmax()) - int(inked[rows[-6]].argmax()))
    still = int(np.flatnonzero((image_of(texts=("l",), baseline=40) < 128).any(axis=(1, 2)))[0])
    for moved in (slants["rotation"], slants["shear"], [top - still for top in tops]):
        assert min(moved) < -1
        assert max(moved) > 1
    assert max(abs(top - still) for top in tops) <= 7


def test_curves_and_lines_are_as_wide_as_asked_for() -> None:
    def inked(**settings: object) -> float:
        return float(np.mean([(255 - image_of(seed, texts=(".",), **settings)).sum() for seed in range(4)]))

    bare = inked()
    assert inked(curves=1, curve_width=2) - bare == pytest.approx(2 * (inked(curves=1) - bare), rel=0.15)
    one, five = (inked(lines=1, line_width=width) - bare for width in (1, 5))
    assert five > 2.5 * one


def test_every_length_of_the_range_is_drawn() -> None:
    assert {len(text) for text, _ in draw(Style(lengths=(1, 3), characters="ab"), 30, seed=0, fonts=FONTS)} == {1, 2, 3}


@pytest.mark.parametrize("of", [synthesis.water_map, synthesis.ripple_map])
def test_a_warp_of_half_the_strength_moves_half_as_far(of: Callable[..., NDArray[np.float64]]) -> None:
    still = np.mgrid[0:50, 0:200][::-1]
    assert of(SHAPE, 0.5) - still == pytest.approx((of(SHAPE) - still) / 2)
    assert np.array_equal(of(SHAPE, 0), still)


@pytest.mark.parametrize("name", ["water", "ripple", "fish_eye"])
def test_images_are_bent_as_strongly_as_the_style_says(name: str) -> None:
    straight = image_of()
    weak, strong = (np.abs(image_of(**{name: strength}) - straight).sum() for strength in (0.2, 0.8))
    assert 0 < weak < 0.8 * strong


def test_colours_survive_a_jpeg_and_a_blurred_or_shrunk_picture_loses_its_edges() -> None:
    colours = {"ink": "#c02010", "background": "#f0e0a0"}
    saved = image_of(jpeg_quality=95, **colours)
    assert np.abs(saved - image_of(**colours)).mean() < 3
    assert saved[0, 0] == pytest.approx([0xF0, 0xE0, 0xA0], abs=4)

    def steepest(**settings: object) -> int:
        return int(np.abs(np.diff(image_of(**settings), axis=1)).max())

    assert steepest() > 200
    assert steepest(blur=2) < steepest(blur=1) < 180
    assert steepest(shrink=0.3) < steepest(shrink=0.6) < 240


def test_a_shadow_falls_right_and_down_and_is_lighter_than_the_ink() -> None:
    plain, shadowed = image_of(), image_of(shadow=4)
    assert np.array_equal(plain == 0, shadowed == 0)
    fallen = np.zeros_like(plain)
    fallen[4:, 4:] = plain[:-4, :-4] == 0
    grey = (fallen == 1) & (plain == 255)
    assert grey.any()
    assert shadowed[grey].min() == shadowed[grey].max() == pytest.approx(128, abs=2)


def test_each_letter_has_a_width_of_its_own_within_the_range_and_its_height_stays() -> None:
    def letters(**settings: object) -> NDArray[np.int32]:
        """Width and height of each letter of 200, as drawn."""
        plain = Style(texts=("ooooo",), lengths=(5, 5), spacing=(4, 4), stroke=(5, 5), **settings)
        papers = (synthesis.draw_word(np.random.default_rng(i), plain, "ooooo", FONTS[:1]) for i in range(40))
        boxes = [cv2.connectedComponentsWithStats((paper < 128).astype(np.uint8))[2][1:] for paper in papers]
        return np.asarray(np.concatenate(boxes)[:, 2:4], np.int32)

    same, own = letters(), letters(own_width=(0.8, 1.3))
    assert len(same) == len(own) == 200
    width, height = same.mean(axis=0)
    assert np.ptp(same[:, 0]) <= 1
    assert own[:, 0].min() == pytest.approx(0.8 * width, abs=1)
    assert own[:, 0].max() == pytest.approx(1.3 * width, abs=1)
    assert own[:, 1].mean() == pytest.approx(height, abs=0.3)


def test_colours_lie_between_the_two_given() -> None:
    for seed in range(20):
        image = image_of(seed, ink=("#402060", "#105030"), background=("#c0c8d0", "#f0f0f0"))
        assert (image[0, 0] >= (0xC0, 0xC8, 0xD0)).all()
        assert (image[0, 0] <= 0xF0).all()
        darkest = image.reshape(-1, 3)[image.sum(axis=2).argmin()]
        assert (darkest >= (0x10, 0x20, 0x30)).all()
        assert (darkest <= (0x40, 0x50, 0x60)).all()


def test_letters_with_their_own_inks_have_one_colour_each_and_no_two_the_same() -> None:
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


def test_own_inks_of_one_colour_draw_what_a_single_ink_draws() -> None:
    for others in ({"water": 1, "ripple": 0.5, "shadow": 3}, {"fish_eye": (0.1, 0.8), "rotation": 20, "dots": 5}):
        own, single = (image_of(spacing=12, letter_inks=own, ink="#205080", **others) for own in (True, False))
        assert np.array_equal(own, single)


def test_lines_cross_the_image_from_side_to_side_in_their_own_colour() -> None:
    image = image_of(lines=3, line_width=2, line_colour="#ff0000")
    red = (image[:, :, 0] == 255) & (image[:, :, 1] < 50)
    assert red.any(axis=0).all()
    assert not ((image_of() != 255).any(axis=0)).all()


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
def test_every_setting_changes_the_picture(setting: dict[str, object]) -> None:
    assert not np.array_equal(image_of(texts=("n8n",), **setting), image_of(texts=("n8n",)))


def test_dots_are_added_and_nothing_else_changes() -> None:
    plain, dotted = image_of(), image_of(dots=20, dot_size=3)
    assert (dotted <= plain).all()
    blue, plain_blue = image_of(dots=20, dot_size=3, ink="#0000ff"), image_of(ink="#0000ff")
    assert (blue[:, :, 2] == 255).all()
    assert (blue[:, :, 0] < plain_blue[:, :, 0]).sum() > 60
    assert 60 < (dotted < plain).all(axis=2).sum() < 20 * 25
    assert (image_of(dots=20, dot_size=8) < plain).all(axis=2).sum() > 20 * 25  # some overlap


def test_the_fish_eye_moves_nothing_at_its_rim_and_magnifies_its_middle() -> None:
    x, y = synthesis.fish_eye_map((50, 200), (100, 25), 0.5)
    assert x[25, 150] == 150  # farther than 35 pixels
    assert x[25, 100] == 100
    assert x[25, 107] == pytest.approx(100 + 7 * (7 / 35) ** 0.5)
    assert y[32, 100] == pytest.approx(25 + 7 * (7 / 35) ** 0.5)


def test_a_texture_is_as_strong_as_asked_for() -> None:
    ground = synthesis.draw_background(
        np.random.default_rng(0), Style(background="#808080", texture=20, texture_size=1)
    )
    assert ground.astype(int).std() == pytest.approx(20 * 0.67, rel=0.35)  # resizing evens it out a little
    assert ground.astype(int).mean() == pytest.approx(128, abs=2)


def test_a_text_that_does_not_fit_is_named_with_the_space_it_needs() -> None:
    with pytest.raises(
        StyleError, match=r"^the text 'mmmmmmmmmm' does not fit: it needs a width of (\d+) pixels, not 90"
    ):
        draw(Style(texts=("mmmmmmmmmm",), width=90), 1, seed=0, fonts=FONTS)
    with pytest.raises(StyleError, match=r"^the text 'gf' does not fit: it needs a height of (\d+) pixels, not 16"):
        draw(Style(texts=("gf",), height=16, width=90), 1, seed=0, fonts=FONTS)


def test_a_word_that_is_too_high_is_made_smaller_and_not_cut_off() -> None:
    high, low = (Style(texts=("gfjb",), height=height) for height in (80, 30))
    for seed in range(5):
        whole, small = (255 - synthesis.draw_word(np.random.default_rng(seed), s, "gfjb", FONTS) for s in (high, low))
        rows = np.flatnonzero(small.max(axis=1) > 128)
        assert rows[0] > 0
        assert rows[-1] < 29
        smaller = len(rows) / np.count_nonzero(whole.max(axis=1) > 128)
        assert 0.6 < smaller < 0.85
        assert small.sum() / whole.sum() == pytest.approx(smaller**2, rel=0.12)  # narrower and thinner alike


def test_the_space_that_a_text_needs_is_enough() -> None:
    def needed(**size: int) -> int:
        with pytest.raises(StyleError) as caught:
            draw(Style(texts=("mmmgm",), stroke=5).model_copy(update=size), 1, seed=0, fonts=FONTS[:1])
        found = re.search(r"needs a \w+ of (\d+)", str(caught.value))
        assert found
        return int(found[1])

    for side, too_few in (("width", 20), ("height", 12)):
        enough = Style(texts=("mmmgm",), stroke=5).model_copy(update={side: needed(**{side: too_few}) + 1})
        assert len(draw(enough, 1, seed=0, fonts=FONTS[:1])) == 1


@pytest.fixture
def font_without_m(tmp_path: Path) -> Path:
    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont

    font = TTFont(FONTS[0])
    subsetter = Subsetter(Options())
    subsetter.populate(text="8nabc")
    subsetter.subset(font)
    path = tmp_path / "few.ttf"
    font.save(path)
    return path


def test_a_font_that_lacks_a_character_is_left_out_and_named(font_without_m: Path) -> None:
    style = Style(characters="anm")
    usable, lacking = synthesis.fonts_for(style, [font_without_m, FONTS[0]])
    assert usable == (FONTS[0],)
    assert lacking == {font_without_m: "m"}
    with pytest.raises(ValueError, match=r"^no font to draw with: few\.ttf lacks m$"):
        draw(style, 1, seed=0, fonts=[font_without_m])
    assert len(draw(Style(characters="abc"), 1, seed=0, fonts=[font_without_m])) == 1


def test_a_font_of_postscript_outlines_is_drawn_as_the_truetype_font_of_the_same_letters(tmp_path: Path) -> None:
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.t2CharStringPen import T2CharStringPen
    from fontTools.ttLib import TTFont

    font, path = TTFont(FONTS[0]), tmp_path / "few.otf"
    cmap, glyphs = font.getBestCmap(), font.getGlyphSet()
    outlines = {}
    for name in [".notdef", *(cmap[ord(character)] for character in "8nab")]:
        pen = T2CharStringPen(glyphs[name].width, glyphs)
        glyphs[name].draw(pen)
        outlines[name] = pen.getCharString()
    made = FontBuilder(font["head"].unitsPerEm, isTTF=False)
    made.setupGlyphOrder(list(outlines))
    made.setupCharacterMap({ord(character): cmap[ord(character)] for character in "8nab"})
    made.setupCFF("Few", {}, outlines, {})
    made.setupHorizontalMetrics({name: font["hmtx"][name] for name in outlines})
    made.setupHorizontalHeader(ascent=font["hhea"].ascent, descent=font["hhea"].descent)
    made.setupOS2()
    made.setupPost()
    made.save(path)
    assert path.read_bytes()[:4] == b"OTTO"
    style = Style(texts=("8nab",), stroke=5)
    (_, drawn), (_, expected) = (draw(style, 1, seed=0, fonts=[file])[0] for file in (path, FONTS[0]))
    inked, expected_ink = 255.0 - drawn, 255.0 - expected
    assert np.minimum(inked, expected_ink).sum() / np.maximum(inked, expected_ink).sum() > 0.9

    without_outlines = TTFont(path)
    del without_outlines["CFF "]
    without_outlines.save(tmp_path / "none.otf")
    with pytest.raises(ValueError, match=r"none\.otf has no outlines that can be drawn: neither glyf nor CFF$"):
        draw(style, 1, seed=0, fonts=[tmp_path / "none.otf"])


def test_fonts_of_packages_are_found_without_importing_them_and_one_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "fontpkg_hind"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert package / "files" / "Hind-Bold.ttf" in synthesis.default_fonts()
    monkeypatch.setattr(synthesis, "FONTS", (("no_such_package", "a.ttf"),))
    with pytest.raises(FontError, match=r"^no fonts to draw with: no_such_package, which brings some, is not"):
        synthesis.default_fonts()
