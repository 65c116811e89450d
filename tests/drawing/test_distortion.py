import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from captcha.drawing.distortion import FLATNESS, draw_noise_curve, fish_eye_map, flatten, ripple_map, water_map
from captcha.drawing.fonts import Pixels

NOISE_X = ((20, 20, 50, 50), (20, 50, 100, 180))
SHAPE = (50, 200)
ImageOf = Callable[..., NDArray[np.int64]]
heights = st.lists(st.floats(0, 50, exclude_max=True), min_size=4, max_size=4)


def blank_paper() -> Pixels:
    return np.full((50, 200), 255, np.uint8)


def ink(paper: Pixels) -> NDArray[np.float64]:
    return 1 - paper / 255


@pytest.mark.parametrize(("x", "y"), [(100, 24), (103, 29), (91, 25), (60, 10), (149, 25), (100, 0), (130, 49)])
def test_water_samples_where_its_formula_says(x: int, y: int) -> None:
    distance = math.dist((x, y), (100, 25))
    amount = 1.5 * math.sin(2 * math.pi * distance / 2 - 10) * (50 - distance) / 50 * 2 / distance
    expected = (x + (x - 100) * amount, y + (y - 25) * amount)
    assert water_map(SHAPE)[:, y, x] == pytest.approx(expected)


def test_water_moves_nothing_in_its_centre_or_from_its_radius_on() -> None:
    moved = water_map(SHAPE) - np.mgrid[0:50, 0:200][::-1]
    y, x = np.mgrid[0:50, 0:200]
    still = np.hypot(x - 100, y - 25) >= 50
    assert not moved[:, still].any()
    assert not moved[:, 25, 100].any()
    assert np.abs(moved[:, ~still]).max() > 2
    assert np.hypot(*moved).max() <= 3


@pytest.mark.parametrize(("x", "y"), [(0, 0), (5, 15), (37, 22), (199, 49)])
def test_the_ripple_samples_where_its_formula_says(x: int, y: int) -> None:
    expected = (x + 2.6 * math.sin(y / 15), y + 1.7 * math.sin(x / 5))
    assert ripple_map(SHAPE)[:, y, x] == pytest.approx(expected)


@pytest.mark.parametrize("of", [water_map, ripple_map])
def test_a_warp_of_half_the_strength_moves_half_as_far(of: Callable[..., NDArray[np.float64]]) -> None:
    still = np.mgrid[0:50, 0:200][::-1]
    assert of(SHAPE, 0.5) - still == pytest.approx((of(SHAPE) - still) / 2)
    assert np.array_equal(of(SHAPE, 0), still)


def test_the_fish_eye_moves_nothing_at_its_rim_and_magnifies_its_middle() -> None:
    x, y = fish_eye_map((50, 200), (100, 25), 0.5)
    assert x[25, 150] == 150  # farther than 35 pixels
    assert x[25, 100] == 100
    assert x[25, 107] == pytest.approx(100 + 7 * (7 / 35) ** 0.5)
    assert y[32, 100] == pytest.approx(25 + 7 * (7 / 35) ** 0.5)


@pytest.mark.parametrize("name", ["water", "ripple", "fish_eye"])
def test_images_are_bent_as_strongly_as_the_style_says(image_of: ImageOf, name: str) -> None:
    straight = image_of()
    weak, strong = (np.abs(image_of(**{name: strength}) - straight).sum() for strength in (0.2, 0.8))
    assert 0 < weak < 0.8 * strong


@given(heights, st.sampled_from(NOISE_X))
@settings(max_examples=50, deadline=None)
def test_a_flattened_curve_keeps_its_ends_and_stays_near_the_curve(ys: list[float], xs: tuple[int, ...]) -> None:
    control = np.array([complex(x, y) for x, y in zip(xs, ys, strict=True)])
    points = flatten(control.tolist())
    assert (points[0], points[-1]) == (control[0], control[3])
    t = np.linspace(0, 1, 400)
    curve = np.stack([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], axis=1) @ control
    polyline = np.concatenate([a + (b - a) * np.linspace(0, 1, 400) for a, b in pairwise(points)])
    for point in points:
        assert np.abs(curve - point).min() < 0.5
    for point in curve[::20]:
        assert np.abs(polyline - point).min() < FLATNESS


def test_noise_lines_end_where_their_curve_does_and_are_as_wide_as_java_draws_them() -> None:
    paper = blank_paper()
    draw_noise_curve(paper, [20 + 20j, 50 + 20j, 100 + 20j, 180 + 20j])
    marks = ink(paper)
    assert marks[:, 100].sum() == pytest.approx(3.6, abs=0.02)  # flat, so one segment, the first
    assert marks[20, 20:181].min() == 1
    assert marks.sum() == pytest.approx(3.6 * (160 + 3.6), rel=0.002)  # square ends reach half a width farther
    assert not marks[:, :18].any()
    assert not marks[:, 183:].any()


def test_of_a_curve_only_what_lies_on_the_paper_is_drawn() -> None:
    for curve in ((-20 + 60j, 3 - 30j, 60 + 20j, 230 + 55j), (1 + 1j, 0 + 20j, 2 + 40j, 1 + 48j)):
        wide, paper = np.full((150, 400), 255, np.uint8), blank_paper()
        draw_noise_curve(wide, [point + 100 + 50j for point in curve])
        draw_noise_curve(paper, curve)
        assert np.array_equal(paper, wide[50:100, 100:300])
        assert not paper.all()


def test_only_the_first_two_segments_of_a_curve_are_wide() -> None:
    control = [20 + 2j, 50 + 48j, 100 + 48j, 180 + 2j]
    points = [complex(round(point.real), round(point.imag)) for point in flatten(control)]
    paper = blank_paper()
    draw_noise_curve(paper, control)
    assert len(points) >= 5
    expected = [3.6, 2.7, *[1.8] * (len(points) - 3)]
    for start, end, width in zip(points, points[1:], expected, strict=False):
        column = round((start.real + end.real) / 2)
        cosine = (end - start).real / abs(end - start)
        assert ink(paper)[:, column].sum() * cosine == pytest.approx(width, abs=0.1)


def test_curves_and_lines_are_as_wide_as_asked_for(image_of: ImageOf) -> None:
    def inked(**settings: object) -> float:
        return float(np.mean([(255 - image_of(seed, texts=(".",), **settings)).sum() for seed in range(4)]))

    bare = inked()
    assert inked(curves=1, curve_width=2) - bare == pytest.approx(2 * (inked(curves=1) - bare), rel=0.15)
    one, five = (inked(lines=1, line_width=width) - bare for width in (1, 5))
    assert five > 2.5 * one


def test_lines_cross_the_image_from_side_to_side_in_their_own_colour(image_of: ImageOf) -> None:
    image = image_of(lines=3, line_width=2, line_colour="#ff0000")
    red = (image[:, :, 0] == 255) & (image[:, :, 1] < 50)
    assert red.any(axis=0).all()
    assert not ((image_of() != 255).any(axis=0)).all()


def test_dots_are_added_and_nothing_else_changes(image_of: ImageOf) -> None:
    plain, dotted = image_of(), image_of(dots=20, dot_size=3)
    assert (dotted <= plain).all()
    blue, plain_blue = image_of(dots=20, dot_size=3, ink="#0000ff"), image_of(ink="#0000ff")
    assert (blue[:, :, 2] == 255).all()
    assert (blue[:, :, 0] < plain_blue[:, :, 0]).sum() > 60
    assert 60 < (dotted < plain).all(axis=2).sum() < 20 * 25
    assert (image_of(dots=20, dot_size=8) < plain).all(axis=2).sum() > 20 * 25  # some overlap


def test_colours_survive_a_jpeg_and_a_blurred_or_shrunk_picture_loses_its_edges(image_of: ImageOf) -> None:
    colours = {"ink": "#c02010", "background": "#f0e0a0"}
    saved = image_of(jpeg_quality=95, **colours)
    assert np.abs(saved - image_of(**colours)).mean() < 3
    assert saved[0, 0] == pytest.approx([0xF0, 0xE0, 0xA0], abs=4)

    def steepest(**settings: object) -> int:
        return int(np.abs(np.diff(image_of(**settings), axis=1)).max())

    assert steepest() > 200
    assert steepest(blur=2) < steepest(blur=1) < 180
    assert steepest(shrink=0.3) < steepest(shrink=0.6) < 240
