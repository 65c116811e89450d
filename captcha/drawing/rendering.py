"""Captchas drawn in memory, labelled and seeded: the data source that needs no download."""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from captcha import CaptchaError
from captcha.drawing.styles import Style, StyleError, load_style


class FontError(CaptchaError):
    """A font that nothing can be drawn with; one line that names it."""


Pixels = NDArray[np.uint8]
Transform = tuple[float, float, float, float]
"""A matrix (2, 2), row by row: the new x are a x + b y, the new y are c x + d y."""

NOISE_X = ((0.1, 0.25, 0.5, 0.9), (0.1, 0.1, 0.25, 0.25))  # a noise curve's control points, of the width
NOISE_WIDTHS = (3.6, 2.7, 1.8)  # pixels, of a curve's first, second and every further segment
FLATNESS = 2.0  # pixels that a flattened curve may be off

DIGIT_HEIGHT = 29.0  # pixels of the 8 in stored glyphs; fonts mean different things by size, all mean this by 8
SUPERSAMPLING = 8  # glyphs are stored this much larger
MEASURED = "8n"  # what a font is measured by: the height of the first, the left stem of the second
DISTANCE_STEPS = 42  # stored steps in one pixel: a byte reaches three pixels to each side of the outline
STORED_DISTANCES = (np.arange(256) - 128) / DISTANCE_STEPS  # pixels, by the byte that stands for them
MARGIN = 3  # pixels around a glyph's ink, room for a thicker stroke
SIDE = 5  # pixels that stay free at each side of a word where it can be moved or narrowed
TIGHTEST = 0.5  # a word that does not fit is made smaller, but not below this part of what the style asks for

# Humanist bolds near the Lucida Sans that drew the known sets, and what matplotlib brings (mlflow needs it).
FONTS = (
    ("fontpkg_noto_sans", "files/NotoSans[wdth,wght].ttf"),
    ("fontpkg_hind", "files/Hind-Bold.ttf"),
    ("fontpkg_oxygen", "files/Oxygen-Bold.ttf"),
    ("fontpkg_pt_sans", "files/PT_Sans-Web-Bold.ttf"),
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans-Bold.ttf"),
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf"),
)
BOLD = (int.from_bytes(b"wght"), 700 << 16)  # of a variable font: the axis, and 700 as OpenCV writes it
_FACES = Lock()  # OpenCV says nothing of one font in two threads


def draw(style: str | Style, count: int, *, seed: int, fonts: Sequence[Path] | None = None) -> list[tuple[str, Pixels]]:
    """Return `count` texts with their images, each (H, W, 3) uint8 RGB of the style's own size.

    `style`: a built-in one's name, a TOML file's, or the style itself. Image i is `draw_one`'s, so a longer list
    begins with the shorter one. Fonts that lack a character of the style are left out.

    Raises:
        StyleError: there is no such style, or a text does not fit its images.
        FontError: no font can draw it.
    """
    style = load_style(style) if isinstance(style, str) else style
    faces, _ = fonts_for(style, default_fonts() if fonts is None else fonts)
    return [draw_one(style, seed, index, faces) for index in range(count)]


def draw_one(style: Style, seed: int, index: int, fonts: Sequence[Path]) -> tuple[str, Pixels]:
    """Return the text and the image (H, W, 3) that depend on style, seed, index and fonts alone.

    May be called from several threads or processes at once. `fonts` are those that `fonts_for` gives.
    """
    rng = np.random.default_rng([seed, index])
    text = _pick_text(rng, style)
    papers = draw_letters(rng, style, text, fonts) if style.letter_inks else [draw_word(rng, style, text, fonts)]
    # One after the other: water tears neighbouring pixels apart, sampling between its pixels is not sampling it there.
    papers = warp(rng, style, papers)
    if style.letter_inks:
        papers.append(_bare_paper(style))  # for what has the word's ink
    for number in range(style.curves):
        thickness = _pick(rng, style.curve_width)
        control_x = NOISE_X[number % len(NOISE_X)]
        draw_noise_curve(
            papers[-1], [complex(style.width * x, style.height * rng.random()) for x in control_x], thickness
        )
    ink = _pick_colour(rng, style.ink)
    inks = [_pick_colour(rng, style.ink) for _ in papers[1:]]
    planes = draw_background(rng, style)
    if style.shadow:
        planes = _ink_over(planes, _shadow(np.minimum.reduce(papers), style.shadow), (0, 0, 0))
    for paper, colour in zip(papers, [*inks, ink], strict=True):
        planes = _ink_over(planes, paper, colour)
    image = np.asarray(cv2.merge(list(planes.astype(np.uint8))), np.uint8)
    draw_lines(rng, style, image, ink)
    draw_dots(rng, style, image, ink)
    if style.border:
        image[: style.border] = image[-style.border :] = image[:, : style.border] = image[:, -style.border :] = 0
    return text, spoil(rng, style, image)


def _pick_text(rng: Generator, style: Style) -> str:
    if style.texts:
        return style.texts[int(rng.integers(len(style.texts)))]
    length = _pick_whole(rng, style.lengths)
    return "".join(style.characters[i] for i in rng.integers(len(style.characters), size=length).tolist())


def _pick(rng: Generator, between: tuple[float, float]) -> float:
    low, high = between
    return low if low == high else float(rng.uniform(low, high))


def _pick_whole(rng: Generator, between: tuple[int, int]) -> int:
    low, high = between
    return low if low == high else int(rng.integers(low, high + 1))


def _pick_colour(rng: Generator, between: tuple[str, str]) -> tuple[int, int, int]:
    """Return red, green and blue."""
    red, green, blue = _colour_ranges(between)
    return _pick_whole(rng, red), _pick_whole(rng, green), _pick_whole(rng, blue)


@lru_cache(maxsize=128)
def _colour_ranges(between: tuple[str, str]) -> list[tuple[int, int]]:
    """Return the least and the greatest red, green and blue."""
    one, other = (bytes.fromhex(colour[1:]) for colour in between)
    return [(min(pair), max(pair)) for pair in zip(one, other, strict=True)]


def draw_word(rng: Generator, style: Style, text: str, fonts: Sequence[Path]) -> Pixels:
    """Return the paper (H, W) with the word on it before any warp: 255 is bare, 0 is ink.

    Raises:
        StyleError: the text does not fit.
    """
    paper = _bare_paper(style)
    _draw_text(rng, style, text, fonts, [paper] * len(text))
    return paper


def draw_letters(rng: Generator, style: Style, text: str, fonts: Sequence[Path]) -> list[Pixels]:
    """Return a paper for each letter of the word that `draw_word` draws.

    Raises:
        StyleError: the text does not fit.
    """
    papers = [_bare_paper(style) for _ in text]
    _draw_text(rng, style, text, fonts, papers)
    return papers


def _bare_paper(style: Style) -> Pixels:
    return np.full((style.height, style.width), 255, np.uint8)


def _draw_text(rng: Generator, style: Style, text: str, fonts: Sequence[Path], papers: Sequence[Pixels]) -> None:
    """Draw each letter of a word on its paper (H, W); several may share one.

    A word that is too wide is narrowed, one that is too high made smaller.

    Raises:
        StyleError: if this would have to go beyond reading.
    """
    font = fonts[int(rng.integers(len(fonts)))]  # one a word: in the known sets Java had but its fallback font
    digit_height, stroke = _pick(rng, style.digit_height), _pick(rng, style.stroke)
    letter_width, space = _pick(rng, style.letter_width), _pick_whole(rng, style.spacing)
    glyphs = [load_glyph(font, character) for character in text]
    # Added to each side of a line, and the scale that then gives digits their height back, from
    # (stem_width + 2 thicker) scale = stroke and (DIGIT_HEIGHT + 2 thicker) scale = digit_height.
    stem = measure(font).stem_width
    thicker = (stroke * DIGIT_HEIGHT - stem * digit_height) / (2 * max(digit_height - stroke, 1))
    thicker = min(
        max(thicker, -0.3 * stem), MARGIN - 0.5 - style.outline / 2
    )  # thin lines would vanish; distances end there
    scale = digit_height / (DIGIT_HEIGHT + 2 * thicker)
    turns = [_turn(rng, style) for _ in text]
    shifts = [rng.uniform(-style.bounce, style.bounce) if style.bounce else 0.0 for _ in text]

    # An ink box that is turned is as wide as its own width and height lean; only the first part can be narrowed.
    sizes = [((glyph.size[0] + 2 * thicker) * scale, (glyph.size[1] + 2 * thicker) * scale) for glyph in glyphs]
    own_widths = [_pick(rng, style.own_width) for _ in text]
    turns = [(a * own, b, c * own, d) for (a, b, c, d), own in zip(turns, own_widths, strict=True)]
    across = [abs(turn[0]) * size[0] for turn, size in zip(turns, sizes, strict=True)]
    leaning = [abs(turn[1]) * size[1] for turn, size in zip(turns, sizes, strict=True)]
    left = None if style.left is None else _pick_whole(rng, style.left)
    taken = sum(leaning) + space * (len(text) - 1) + (2 * SIDE if left is None else left + 2 * SIDE + space)
    fitting, narrowest = (style.width - taken) / sum(across), TIGHTEST * style.letter_width[0]
    if fitting < narrowest:
        needed = narrowest * sum(across) + taken
        raise StyleError(f"the text {text!r} does not fit: it needs a width of {needed:.0f} pixels, not {style.width}")
    letter_width = min(letter_width, fitting)
    widths = [one * letter_width + other for one, other in zip(across, leaning, strict=True)]

    middles = [
        (glyph.corner[1] + glyph.size[1] / 2) * scale + shift for glyph, shift in zip(glyphs, shifts, strict=True)
    ]
    if style.baseline is not None:
        baseline = _pick_whole(rng, style.baseline)
    else:
        heights = [
            abs(turn[2]) * letter_width * size[0] + abs(turn[3]) * size[1]
            for turn, size in zip(turns, sizes, strict=True)
        ]
        top = min(middle - height / 2 for middle, height in zip(middles, heights, strict=True))
        bottom = max(middle + height / 2 for middle, height in zip(middles, heights, strict=True))
        if (fitting := (style.height - 4) / (bottom - top)) < 1:  # what is rounded stays on the paper
            if fitting < TIGHTEST:
                needed = TIGHTEST * (bottom - top) + 4
                raise StyleError(
                    f"the text {text!r} does not fit: it needs a height of {needed:.0f} pixels, not {style.height}"
                )
            scale, top, bottom = scale * fitting, top * fitting, bottom * fitting
            widths, middles = [width * fitting for width in widths], [middle * fitting for middle in middles]
        baseline = round((style.height - bottom - top) / 2)
    pen = round((style.width - sum(widths) - space * (len(text) - 1)) / 2) if left is None else left

    shades = _shades(thicker, scale, style.outline)
    for paper, glyph, (a, b, c, d), width, middle in zip(papers, glyphs, turns, widths, middles, strict=True):
        # Side bearings are drawn but do not count, as in Kaptcha; a centred word is centred by its ink.
        bearing = glyph.corner[0] * scale * letter_width if left is not None else 0.0
        transform = (a * letter_width * scale, b * scale, c * letter_width * scale, d * scale)
        glyph.draw(paper, (pen + bearing + width / 2, baseline + middle), transform, shades)
        pen += int(width) + space


def _turn(rng: Generator, style: Style) -> Transform:
    """Return the matrix that shears a letter and then turns it."""
    if not style.rotation and not style.shear:
        return (1.0, 0.0, 0.0, 1.0)
    angle = math.radians(rng.uniform(-style.rotation, style.rotation))
    slant = rng.uniform(-style.shear, style.shear)
    cosine, sine = math.cos(angle), math.sin(angle)
    return (cosine, cosine * slant - sine, sine, sine * slant + cosine)


def _shades(thicker: float, scale: float, outline: float) -> Pixels:
    """Return the paper's shade (256,) at each stored distance, for letters so much thicker, or for their outline."""
    inside = (STORED_DISTANCES + thicker) * scale  # drawn pixels
    coverage = (outline / 2 - np.abs(inside) if outline else inside) + 0.5
    coverage[0] = 0  # so far outside that the distance is not known
    if outline:
        coverage[-1] = 0  # so far inside
    return np.asarray(np.rint(255 - 255 * np.minimum(np.maximum(coverage, 0), 1)), np.uint8)


@dataclass(frozen=True)
class Glyph:
    """One character of a font, kept as distances to its outline: it can be drawn at any width and stroke.

    `distances` (h, w) uint8: 128 on the outline, more inside, DISTANCE_STEPS to a pixel; SUPERSAMPLING samples to a
    pixel, MARGIN pixels around the ink. In pixels: the ink's `size` (width, height), and its top left `corner` (x, y)
    from the pen and the baseline.
    """

    distances: Pixels
    corner: tuple[float, float]
    size: tuple[float, float]

    def draw(self, paper: Pixels, centre: tuple[float, float], transform: Transform, shades: Pixels) -> None:
        """Draw the character around the centre of its ink, transformed; what lies outside the paper is cut off.

        `shades` (256,) gives the paper's shade at each stored distance, and so the stroke.
        """
        stored_height, stored_width = self.distances.shape
        a, b, c, d = (factor / SUPERSAMPLING for factor in transform)
        width = round(abs(a) * stored_width + abs(b) * stored_height)
        height = round(abs(c) * stored_width + abs(d) * stored_height)
        if b == c == 0:
            placed = cv2.resize(self.distances, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
        else:
            x, y = (stored_width - 1) / 2, (stored_height - 1) / 2
            matrix = np.array([[a, b, (width - 1) / 2 - a * x - b * y], [c, d, (height - 1) / 2 - c * x - d * y]])
            placed = cv2.warpAffine(self.distances, matrix, (width, height))
        left, top = round(centre[0] - width / 2), round(centre[1] - height / 2)
        rows = slice(max(top, 0), max(top + height, 0))
        columns = slice(max(left, 0), max(left + width, 0))
        part = paper[rows, columns]
        mark = cv2.LUT(placed, shades)[rows.start - top :, columns.start - left :][: part.shape[0], : part.shape[1]]
        np.minimum(part, mark, out=part)


@cache
def load_glyph(font: Path, character: str) -> Glyph:
    """Return a character of a font, at the size where the font's digits are DIGIT_HEIGHT pixels high."""
    ink, (pen, baseline) = _render(font, character, measure(font).size)
    left, top, width, height = cv2.boundingRect(ink)
    ink = np.pad(ink[top : top + height, left : left + width], MARGIN * SUPERSAMPLING)
    inside = cv2.distanceTransform(ink, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform(255 - ink, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    distances = np.where(ink > 0, inside - 0.5, 0.5 - outside) / SUPERSAMPLING
    return Glyph(
        distances=(128 + DISTANCE_STEPS * distances).round().clip(0, 255).astype(np.uint8),
        corner=((left - pen) / SUPERSAMPLING, (top - baseline) / SUPERSAMPLING),
        size=(width / SUPERSAMPLING, height / SUPERSAMPLING),
    )


class Measures(NamedTuple):
    """What a font's `size` must be to have digits DIGIT_HEIGHT * SUPERSAMPLING high; its stems in drawn pixels."""

    size: int
    stem_width: float


@cache
def measure(font: Path) -> Measures:
    """Return the measures of a font, by its digit 8 and the left stem of its n."""
    size = 40 * SUPERSAMPLING
    height = cv2.boundingRect(_render(font, MEASURED[0], size)[0])[3]
    size = round(size * DIGIT_HEIGHT * SUPERSAMPLING / height)
    ink, _ = _render(font, MEASURED[1], size)
    _, top, _, height = cv2.boundingRect(ink)
    edges = np.flatnonzero(np.diff(ink[top + height * 2 // 3] > 0))
    return Measures(size, float(edges[1] - edges[0]) / SUPERSAMPLING)


def _render(font: Path, character: str, size: int) -> tuple[Pixels, tuple[int, int]]:
    """Return a character's ink, 0 or 255, SUPERSAMPLING times as large, and where its pen and baseline are."""
    origin = (30 * SUPERSAMPLING, 60 * SUPERSAMPLING)
    canvas = np.zeros((90 * SUPERSAMPLING, 120 * SUPERSAMPLING), np.uint8)
    with _FACES:
        cv2.putText(canvas, character, origin, (255,), _load_face(font), size)
    if canvas.max() < 128:
        raise FontError(f"the font {font} draws nothing for {character!r}: leave it out")
    return np.where(canvas > 127, np.uint8(255), np.uint8(0)), origin


@cache
def _load_face(font: Path) -> cv2.FontFace:
    # Looked into first: OpenCV takes its own font for a missing file, and dies of one that is no font.
    try:
        with font.open("rb") as file:
            kind = file.read(4)
    except OSError as error:
        raise FontError(f"cannot read the font {font}: {error.strerror}") from error
    if kind not in (b"\0\1\0\0", b"true", b"OTTO"):
        raise FontError(f"{font} is not a TrueType or OpenType font")
    face = cv2.FontFace(str(font))
    face.setInstance(BOLD)  # does nothing to a font of one weight
    return face


def default_fonts() -> tuple[Path, ...]:
    """Return the fonts of the pinned packages that bring some, found without importing them.

    Raises:
        FontError: if such a package is not installed.
    """
    return tuple(_package_folder(package) / file for package, file in FONTS)


def _package_folder(name: str) -> Path:
    package = importlib.util.find_spec(name)
    if package is None or package.origin is None:
        raise FontError(f"no fonts to draw with: {name}, which brings some, is not installed")
    return Path(package.origin).parent


def fonts_for(style: Style, fonts: Sequence[Path]) -> tuple[tuple[Path, ...], dict[Path, str]]:
    """Return the fonts that have every character a style may write, and what the others lack.

    A character that a font lacks would be drawn as an empty box, or in a font of OpenCV's own.

    Raises:
        FontError: a font cannot be read, or all lack something.
    """
    needed = set(style.alphabet) | set(MEASURED)
    lacking = {font: "".join(sorted(needed - _characters(font))) for font in fonts}
    usable = tuple(font for font in fonts if not lacking[font])
    if not usable:
        lacks = "; ".join(f"{font.name} lacks {missing}" for font, missing in lacking.items())
        raise FontError(f"no font to draw with: {lacks or 'give at least one font file'}")
    return usable, {font: missing for font, missing in lacking.items() if missing}


@cache
def _characters(font: Path) -> frozenset[str]:
    """Return the characters that a font can draw."""
    from fontTools.ttLib import TTFont, TTLibError  # of matplotlib; not needed to import this module

    with _FACES:
        _load_face(font)
    try:
        with TTFont(font, lazy=True) as table:
            if "glyf" not in table and "CFF " not in table:  # OpenCV would draw its own font
                raise FontError(f"{font} has no outlines that can be drawn: neither glyf nor CFF")
            return frozenset(map(chr, table.getBestCmap() or ()))
    except TTLibError as error:
        raise FontError(f"cannot read the font {font}: {error}") from error


def warp(rng: Generator, style: Style, papers: list[Pixels]) -> list[Pixels]:
    """Return the papers, all bent alike, after the style's water, ripple and fish eye, in this order."""
    for name, strengths in (("water", style.water), ("ripple", style.ripple)):
        if strength := round(_pick(rng, strengths), 1):
            at = _fixed_point(name, (style.height, style.width), strength)
            papers = [_remap(paper, *at) for paper in papers]
    if strength := _pick(rng, style.fish_eye):
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
    """Return a map in OpenCV's whole and 1/32 pixels: faster, and rounded alike on every machine."""
    x, y = {"water": water_map, "ripple": ripple_map}[warp](shape, strength).astype(np.float32)
    return cv2.convertMaps(x, y, cv2.CV_16SC2)


def draw_noise_curve(paper: Pixels, control_points: Sequence[complex], thickness: float = 1.0) -> None:
    """Draw a cubic Bézier curve's flattened segments between points rounded to pixels, the first ones wider."""
    points = [complex(round(point.real), round(point.imag)) for point in flatten(control_points)]
    widths = [thickness * NOISE_WIDTHS[min(number, len(NOISE_WIDTHS) - 1)] for number in range(len(points) - 1)]
    _draw_lines(paper, [(start, end, width) for (start, end), width in zip(pairwise(points), widths, strict=True)])


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
    moved = (point - start) * chord.conjugate()  # along the chord and across it, as many times too far as it is long
    if 0 < moved.real < square:
        return moved.imag * moved.imag < FLATNESS * FLATNESS * square
    return abs(point - (start if moved.real <= 0 else end)) < FLATNESS


def _draw_lines(paper: Pixels, lines: Sequence[tuple[complex, complex, float]]) -> None:
    """Draw antialiased lines (start, end, width) with square ends, as Java's; OpenCV's own are a pixel too wide."""
    # All at once, each in a box of the same size that is moved onto the paper: numpy's calls cost more than the pixels.
    box_width = min(int(max(abs(end.real - start.real) + 2 * width for start, end, width in lines)) + 4, paper.shape[1])
    box_height = min(
        int(max(abs(end.imag - start.imag) + 2 * width for start, end, width in lines)) + 4, paper.shape[0]
    )
    corners, numbers = [], []
    for start, end, width in lines:
        length, centre = abs(end - start), (start + end) / 2
        direction = 255 * (end - start) / length if length else 255 + 0j  # a pixel's distances come out in shades
        left = min(max(round(centre.real - box_width / 2), 0), paper.shape[1] - box_width)
        top = min(max(round(centre.imag - box_height / 2), 0), paper.shape[0] - box_height)
        corners.append((left, top))
        edge = 255 * width / 2 - 128  # where half a pixel is inked
        numbers.append((left - centre.real, top - centre.imag, direction.real, direction.imag, 255 * length / 2, edge))
    left_x, top_y, right, down, half_length, half_width = np.array(numbers, np.float32).T[:, :, None, None]
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
    for (left, top), mark in zip(corners, shades.astype(np.uint8), strict=True):
        part = paper[top : top + box_height, left : left + box_width]
        np.minimum(part, mark, out=part)


def draw_background(rng: Generator, style: Style) -> NDArray[np.uint16]:
    """Return the ground (3, H, W): one colour, or a gradient from the top left corner to the bottom right one."""
    start = _pick_colour(rng, style.background)
    end = start if style.background_end is None else _pick_colour(rng, style.background_end)
    ground = gradient((style.height, style.width), tuple(start), tuple(end))
    if strength := _pick(rng, style.texture):
        size = (style.height // style.texture_size + 2, style.width // style.texture_size + 2)
        tiles = (strength * rng.standard_normal((3, *size), dtype=np.float32)).astype(np.int16)
        clouds = np.empty(ground.shape, np.int16)
        for tile, cloud in zip(tiles, clouds, strict=True):
            cv2.resize(tile, (style.width, style.height), cloud, interpolation=cv2.INTER_LINEAR)
        clouds += ground.view(np.int16)
        np.maximum(clouds, 0, out=clouds)
        np.minimum(clouds, 255, out=clouds)
        ground = clouds.view(np.uint16)
    return ground


@lru_cache(maxsize=16)
def gradient(shape: tuple[int, int], start: tuple[int, ...], end: tuple[int, ...]) -> NDArray[np.uint16]:
    """Return the shades (3, H, W) that change evenly from the top left corner's colour to the bottom right one's."""
    low, high = (np.array(colour, np.int32)[:, None, None] for colour in (start, end))
    if start == end:
        return np.broadcast_to(low.astype(np.uint16), (3, *shape))
    planes = (high - low) * _way(shape)
    planes += low << 16
    return np.asarray(planes >> 16, np.uint16)


@cache
def _way(shape: tuple[int, int]) -> NDArray[np.int32]:
    """Return how far each pixel's middle lies along the diagonal, (H, W), of 65536."""
    height, width = shape
    y, x = np.mgrid[0.0:height, 0.0:width] + 0.5
    return np.asarray((x * width + y * height) / (width**2 + height**2) * 65536, np.int32)


def _ink_over(ground: NDArray[np.uint16], paper: Pixels, ink: tuple[int, int, int]) -> NDArray[np.uint16]:
    """Return the ground (3, H, W) where the paper (H, W) is bare, the ink where it is inked."""
    # ground * paper + ink * (255 - paper), both rounded up: what falls below 0 on the way wraps back.
    colour = np.array(ink, np.uint16)[:, None, None]
    mixed = ground - colour
    mixed *= paper.astype(np.uint16)
    mixed += 255 * colour + 255
    mixed >>= 8
    return mixed


def _shadow(paper: Pixels, shift: int) -> Pixels:
    """Return the paper moved right and down, its ink at half strength."""
    shadow = np.full_like(paper, 255)
    shadow[shift:, shift:] = 128 + paper[:-shift, :-shift] // 2
    return shadow


def draw_lines(rng: Generator, style: Style, image: Pixels, ink: tuple[int, int, int]) -> None:
    """Draw the style's straight lines, from left to right across the whole image."""
    for _ in range(_pick_whole(rng, style.lines)):
        colour = ink if style.line_colour is None else _pick_colour(rng, style.line_colour)
        left, right = (int(y) for y in rng.integers(0, style.height, 2))
        width = _pick_whole(rng, style.line_width)
        cv2.line(image, (0, left), (style.width, right), colour, width, cv2.LINE_AA)


def draw_dots(rng: Generator, style: Style, image: Pixels, ink: tuple[int, int, int]) -> None:
    """Scatter the style's dots over the image."""
    count = _pick_whole(rng, style.dots)
    if not count:
        return
    centres = rng.uniform(0, (style.width, style.height), (count, 2)) * 16  # in sixteenths: four bits of fraction
    radii = rng.uniform(*style.dot_size, count) / 2 * 16
    for (x, y), radius in zip(centres.astype(int).tolist(), radii.astype(int).tolist(), strict=True):
        cv2.circle(image, (x, y), radius, ink, cv2.FILLED, cv2.LINE_AA, 4)


def spoil(rng: Generator, style: Style, image: Pixels) -> Pixels:
    """Return the image made small and large again, blurred and saved as JPEG, as far as the style says so."""
    height, width = image.shape[:2]
    if (factor := _pick(rng, style.shrink)) < 1:
        small = cv2.resize(image, (round(width * factor), round(height * factor)), interpolation=cv2.INTER_AREA)
        image = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    if blur := _pick(rng, style.blur):
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), max(blur, 0.1)), np.uint8)
    if style.jpeg_quality:
        options = [cv2.IMWRITE_JPEG_QUALITY, _pick_whole(rng, style.jpeg_quality)]
        _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
        image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)
    return image
