"""What makes a drawn word hard to read: water, ripple, fish eye, noise curves, lines, dots, blur and JPEG."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from captcha.drawing.fonts import Pixels
from captcha.drawing.picking import pick, pick_colour, pick_whole
from captcha.drawing.styles import Style

NOISE_X = ((0.1, 0.25, 0.5, 0.9), (0.1, 0.1, 0.25, 0.25))  # x of even and odd curves' control points, shares of width
NOISE_WIDTHS = (3.6, 2.7, 1.8)  # pixels, of a curve's first, second and every further segment
FLATNESS = 2.0  # pixels between a curve and its chords, at most


def warp(rng: Generator, style: Style, papers: list[Pixels]) -> list[Pixels]:
    """Return the papers (H, W), all bent alike, after the style's water, ripple and fish eye, in this order.

    One after the other, not in one map: water tears neighbouring pixels apart, so a sample between two of its pixels
    is not the sample that water takes there.
    """
    for name, strengths in (("water", style.water), ("ripple", style.ripple)):
        if strength := round(pick(rng, strengths), 1):
            at = _fixed_point(name, (style.height, style.width), strength)
            papers = [_remap(paper, *at) for paper in papers]
    if strength := pick(rng, style.fish_eye):
        centre = (style.width * rng.uniform(0.2, 0.8), style.height * rng.uniform(0.3, 0.7))
        x, y = fish_eye_map((style.height, style.width), centre, strength)
        papers = [_remap(paper, x, y) for paper in papers]
    return papers


def _remap(paper: Pixels, x: NDArray[np.int16 | np.float32], y: NDArray[np.uint16 | np.float32]) -> Pixels:
    return np.asarray(cv2.remap(paper, x, y, cv2.INTER_LINEAR, borderValue=255), np.uint8)


def water_map(shape: tuple[int, ...], strength: float = 1.0) -> NDArray[np.float64]:
    """Return where each pixel of the water's image (H, W) comes from, (2, H, W): x and y.

    A radial ripple around the centre, amplitude 1.5, phase 10, wavelength 2, fading out at radius 50. At distance d
    the move is (dx, dy) times 1.5 sin(2 pi d / 2 - 10) (50 - d) / 50 * 2 / d.
    """
    y, x = np.mgrid[0.0 : shape[0], 0.0 : shape[1]]
    dx, dy = x - shape[1] / 2, y - shape[0] / 2
    distance = np.hypot(dx, dy)
    divisor = np.maximum(distance, 1e-9)  # in the centre itself dx and dy are 0
    amount = np.where(distance < 50, 1.5 * np.sin(np.pi * distance - 10) * (50 - distance) / 50 * 2 / divisor, 0)
    return np.stack([x + dx * amount * strength, y + dy * amount * strength])


def ripple_map(shape: tuple[int, ...], strength: float = 1.0) -> NDArray[np.float64]:
    """Return where each pixel of the ripple's image comes from, (2, H, W): x + 2.6 sin(y/15), y + 1.7 sin(x/5)."""
    y, x = np.mgrid[0.0 : shape[0], 0.0 : shape[1]]
    return np.stack([x + strength * 2.6 * np.sin(y / 15), y + strength * 1.7 * np.sin(x / 5)])


def fish_eye_map(shape: tuple[int, ...], centre: tuple[float, float], strength: float) -> NDArray[np.float32]:
    """Return where each pixel of the fish eye's image comes from, (2, H, W).

    Within a radius of 0.7 H around the centre, at distance d, the move from there is d times (d / radius) ** strength:
    the middle grows, the rim stands still.
    """
    dx = np.arange(shape[1], dtype=np.float32) - centre[0]
    dy = np.arange(shape[0], dtype=np.float32)[:, None] - centre[1]
    factor = np.minimum((dx * dx + dy * dy) / (0.7 * shape[0]) ** 2, 1) ** (strength / 2)
    return np.stack([centre[0] + dx * factor, centre[1] + dy * factor])


@lru_cache(maxsize=128)
def _fixed_point(warp: str, shape: tuple[int, int], strength: float) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """Return a map in OpenCV's whole and 1/32 pixels: faster than in floats, and rounded alike on every machine."""
    x, y = {"water": water_map, "ripple": ripple_map}[warp](shape, strength).astype(np.float32)
    return cv2.convertMaps(x, y, cv2.CV_16SC2)


def draw_curves(rng: Generator, style: Style, paper: Pixels) -> None:
    """Draw the style's noise curves across the paper (H, W)."""
    for number in range(style.curves):
        thickness = pick(rng, style.curve_width)
        control_x = NOISE_X[number % len(NOISE_X)]
        draw_noise_curve(paper, [complex(style.width * x, style.height * rng.random()) for x in control_x], thickness)


def draw_noise_curve(paper: Pixels, control_points: Sequence[complex], thickness: float = 1.0) -> None:
    """Draw a cubic Bézier curve's flattened segments between points rounded to pixels, the first ones wider."""
    points = [complex(round(point.real), round(point.imag)) for point in flatten(control_points)]
    widths = [thickness * NOISE_WIDTHS[min(number, len(NOISE_WIDTHS) - 1)] for number in range(len(points) - 1)]
    _draw_segments(paper, [(start, end, width) for (start, end), width in zip(pairwise(points), widths, strict=True)])


def flatten(control_points: Sequence[complex], halvings: int = 10) -> list[complex]:
    """Return points x + iy on a cubic Bézier curve whose chords are flat, first and last included.

    As Java's FlatteningPathIterator: halved until both inner control points lie within FLATNESS of the chord.
    """
    first, second, third, last = control_points
    if not halvings or (_near(second, first, last) and _near(third, first, last)):
        return [first, last]
    a, b, c = (first + second) / 2, (second + third) / 2, (third + last) / 2
    ab, bc = (a + b) / 2, (b + c) / 2
    middle = (ab + bc) / 2
    return flatten((first, a, ab, middle), halvings - 1)[:-1] + flatten((middle, bc, c, last), halvings - 1)


def _near(point: complex, start: complex, end: complex) -> bool:
    """Return whether a point is nearer than FLATNESS to a segment."""
    chord = end - start
    square = chord.real * chord.real + chord.imag * chord.imag
    moved = (point - start) * chord.conjugate()  # along and across the chord, in pixels times its length
    if 0 < moved.real < square:
        return moved.imag * moved.imag < FLATNESS * FLATNESS * square
    return abs(point - (start if moved.real <= 0 else end)) < FLATNESS


def _draw_segments(paper: Pixels, segments: Sequence[tuple[complex, complex, float]]) -> None:
    """Draw antialiased lines (start, end, width) with square ends, as Java's; OpenCV's own are a pixel too wide.

    All at once, each in a box of the same size that is moved onto the paper: numpy's calls cost more than the pixels.
    """
    longest_x = max(abs(end.real - start.real) + 2 * width for start, end, width in segments)
    longest_y = max(abs(end.imag - start.imag) + 2 * width for start, end, width in segments)
    box_width, box_height = min(int(longest_x) + 4, paper.shape[1]), min(int(longest_y) + 4, paper.shape[0])
    corners, numbers = [], []
    for start, end, width in segments:
        length, centre = abs(end - start), (start + end) / 2
        direction = 255 * (end - start) / length if length else 255 + 0j  # a pixel's distances come out in shades
        left = min(max(round(centre.real - box_width / 2), 0), paper.shape[1] - box_width)
        top = min(max(round(centre.imag - box_height / 2), 0), paper.shape[0] - box_height)
        corners.append((left, top))
        edge = 255 * width / 2 - 128  # where half a pixel is inked
        numbers.append((left - centre.real, top - centre.imag, direction.real, direction.imag, 255 * length / 2, edge))
    marks = _segment_shades(np.array(numbers, np.float32), box_width, box_height)
    for (left, top), mark in zip(corners, marks, strict=True):
        part = paper[top : top + box_height, left : left + box_width]
        np.minimum(part, mark, out=part)


def _segment_shades(numbers: NDArray[np.float32], box_width: int, box_height: int) -> Pixels:
    """Return the paper's shades (N, box_height, box_width) around each of N segments.

    `numbers` (N, 6): the box's corner from the segment's centre (x, y) in pixels; in shades, 255 to a pixel, the
    segment's direction (x, y), half its length, and how far from its middle line the ink ends.
    """
    left_x, top_y, right, down, half_length, half_width = numbers.T[:, :, None, None]
    x = left_x + np.arange(box_width, dtype=np.float32)
    y = top_y + np.arange(box_height, dtype=np.float32)[:, None]
    shades = x * down - y * right  # across the line
    np.abs(shades, out=shades)
    along = x * right + y * down
    np.abs(along, out=along)
    along -= half_length
    np.maximum(shades, along, out=shades)
    shades -= half_width
    np.maximum(shades, 0, out=shades)
    np.minimum(shades, 255, out=shades)
    return np.asarray(shades, np.uint8)


def draw_lines(rng: Generator, style: Style, image: Pixels, ink: tuple[int, int, int]) -> None:
    """Draw the style's straight lines, from left to right across the whole image (H, W, 3)."""
    for _ in range(pick_whole(rng, style.lines)):
        colour = ink if style.line_colour is None else pick_colour(rng, style.line_colour)
        left, right = (int(y) for y in rng.integers(0, style.height, 2))
        width = pick_whole(rng, style.line_width)
        cv2.line(image, (0, left), (style.width, right), colour, width, cv2.LINE_AA)


def draw_dots(rng: Generator, style: Style, image: Pixels, ink: tuple[int, int, int]) -> None:
    """Scatter the style's dots over the image (H, W, 3)."""
    count = pick_whole(rng, style.dots)
    if not count:
        return
    centres = rng.uniform(0, (style.width, style.height), (count, 2)) * 16  # in sixteenths: four bits of fraction
    radii = rng.uniform(*style.dot_size, count) / 2 * 16
    for (x, y), radius in zip(centres.astype(int).tolist(), radii.astype(int).tolist(), strict=True):
        cv2.circle(image, (x, y), radius, ink, cv2.FILLED, cv2.LINE_AA, 4)


def degrade(rng: Generator, style: Style, image: Pixels) -> Pixels:
    """Return the image (H, W, 3) made small and large again, blurred and saved as JPEG, as the style says."""
    height, width = image.shape[:2]
    if (factor := pick(rng, style.shrink)) < 1:
        small = cv2.resize(image, (round(width * factor), round(height * factor)), interpolation=cv2.INTER_AREA)
        image = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    if blur := pick(rng, style.blur):
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), max(blur, 0.1)), np.uint8)
    if style.jpeg_quality:
        options = [cv2.IMWRITE_JPEG_QUALITY, pick_whole(rng, style.jpeg_quality)]
        _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
        image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)
    return image
