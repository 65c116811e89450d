"""Captchas drawn in memory, labelled and seeded: the data source that needs no download."""

import difflib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

WIDTH, HEIGHT = 200, 50
CHARACTERS = "abcde2345678gfynmnpwx"  # Kaptcha's list, its second n included
LENGTH = 5
FONT_SIZE = 40
BASELINE = (HEIGHT - FONT_SIZE) // 5 + FONT_SIZE
START_X = 28  # the pen's first position; today's Kaptcha centres, the releases that drew the known sets did this
CHARACTER_SPACE = 2
DIGIT_HEIGHT = 29.0  # pixels, of Lucida Sans at FONT_SIZE; fonts mean different things by size, all mean this by 8
NOISE_WIDTHS = (3.6, 2.7, 1.8)  # pixels, of a curve's first, second and every further segment
FLATNESS = 2.0  # pixels that a flattened curve may be off

SUPERSAMPLING = 8  # glyphs are measured this much larger than they are drawn
DISTANCE_STEPS = 42  # stored steps in one drawn pixel: a byte reaches three pixels to each side of the outline
MARGIN = 3  # drawn pixels around a glyph's ink, room for a thicker stroke


def draw(style: str, count: int, *, seed: int, fonts: Sequence[Path] | None = None) -> list[tuple[str, Pixels]]:
    """Return `count` texts with their images, each (H, W, 3) uint8 RGB of the style's own size.

    Image i depends on the seed and on i alone, so a longer list begins with the shorter one. With the default
    fonts, which come with a pinned package, every machine draws the same pixels.

    Raises:
        ValueError: if there is no such style, or a font is not TrueType.
    """
    if style not in STYLES:
        nearest = difflib.get_close_matches(style, STYLES, n=1, cutoff=0.0)[0]
        raise ValueError(f"no drawing style {style!r}: did you mean {nearest!r}?")
    faces = default_fonts() if fonts is None else tuple(fonts)
    if not faces:
        raise ValueError("no font to draw with: give at least one TrueType file")
    return [STYLES[style](np.random.default_rng([seed, index]), faces) for index in range(count)]


def default_fonts() -> tuple[Path, ...]:
    """Return two sans-serif fonts that matplotlib brings (mlflow needs it), found without importing it.

    Raises:
        FileNotFoundError: if matplotlib is not installed.
    """
    package = importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None:
        raise FileNotFoundError("no fonts to draw with: matplotlib, which brings them, is not installed")
    folder = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf"
    return (folder / "DejaVuSans-Bold.ttf", folder / "DejaVuSans.ttf")


def draw_kaptcha(rng: Generator, fonts: Sequence[Path]) -> tuple[str, Pixels]:
    """Return a text and its (50, 200, 3) image, drawn in the order of Kaptcha's pipeline.

    Word, water, ripple, two noise curves, gradient. Beyond Kaptcha, the word's width, packing, stroke and place vary,
    so that what learns from one font's letters also reads another's.
    """
    text = "".join(CHARACTERS[i] for i in rng.integers(len(CHARACTERS), size=LENGTH))
    paper = draw_word(rng, text, fonts)
    # In two steps: water tears neighbouring pixels apart, so sampling between its pixels is not sampling it there.
    for warp in (water_map, ripple_map):
        paper = np.asarray(cv2.remap(paper, *_fixed_point(warp), cv2.INTER_LINEAR, borderValue=255), np.uint8)
    for control_x in ((0.1, 0.1, 0.25, 0.25), (0.1, 0.25, 0.5, 0.9)):
        draw_noise_curve(paper, [complex(WIDTH * x, HEIGHT * rng.random()) for x in control_x])
    grey = ((gradient() * paper + 255) >> 8).astype(np.uint8)  # the gradient where bare, 0 where inked
    return text, np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)


STYLES: dict[str, Callable[[Generator, Sequence[Path]], tuple[str, Pixels]]] = {"kaptcha": draw_kaptcha}


def draw_word(rng: Generator, text: str, fonts: Sequence[Path]) -> Pixels:
    """Return the paper (50, 200) with the word on it before any warp: 255 is bare, 0 is ink."""
    font = fonts[int(rng.integers(len(fonts)))]  # one a word: in the known sets Java had but its fallback font
    stroke = rng.uniform(4.8, 6.8)
    width_scale = rng.uniform(0.84, 1.12)
    space = CHARACTER_SPACE + int(rng.integers(-3, 4))
    left = START_X + int(rng.integers(-3, 4))
    baseline = BASELINE + int(rng.integers(-1, 2))
    glyphs = [load_glyph(font, character) for character in text]
    # Added to each side of a line, and the scale that then gives digits their height back, from
    # (stem_width + 2 thicker) scale = stroke and (DIGIT_HEIGHT + 2 thicker) scale = DIGIT_HEIGHT.
    thicker = (stroke - measure(font).stem_width) / 2 * DIGIT_HEIGHT / (DIGIT_HEIGHT - stroke)
    thicker = min(thicker, MARGIN - 0.5)  # distances are not known farther out
    scale = DIGIT_HEIGHT / (DIGIT_HEIGHT + 2 * thicker)
    widths = [(glyph.width + 2 * thicker) * scale for glyph in glyphs]
    width_scale = min(width_scale, (WIDTH - 10 - left - LENGTH * space) / sum(widths))
    coverage = ((np.arange(256) - 128) / DISTANCE_STEPS + thicker + 0.5).clip(0, 1)
    shades = (255 - 255 * coverage).round().astype(np.uint8)
    paper = np.full((HEIGHT, WIDTH), 255, np.uint8)
    for glyph, width in zip(glyphs, widths, strict=True):
        glyph.draw(paper, (left, baseline), (scale * width_scale, scale), shades)
        left += int(width * width_scale) + space
    return paper


@dataclass(frozen=True)
class Glyph:
    """One character of a font, kept as distances to its outline: it can be drawn at any width and stroke.

    `distances` (h, w) uint8: 128 on the outline, more inside, DISTANCE_STEPS to a drawn pixel; SUPERSAMPLING samples
    to a drawn pixel. In drawn pixels: `left` and `top` place the corner of `distances` from the pen and the baseline,
    `width` is the ink's.
    """

    distances: Pixels
    left: float
    top: float
    width: float

    def draw(self, paper: Pixels, pen: tuple[int, int], scale: tuple[float, float], shades: Pixels) -> None:
        """Draw the character from the pen (x, baseline) at a scale (x, y); what lies outside the paper is cut off.

        `shades` (256,) gives the paper's shade at each stored distance, and so the stroke.
        """
        height, width = self.distances.shape
        size = (round(width * scale[0] / SUPERSAMPLING), round(height * scale[1] / SUPERSAMPLING))
        mark = shades[cv2.resize(self.distances, size, interpolation=cv2.INTER_LINEAR_EXACT)]
        left, top = pen[0] + round(self.left * scale[0]), pen[1] + round(self.top * scale[1])
        rows = slice(max(top, 0), min(top + size[1], HEIGHT))
        columns = slice(max(left, 0), min(left + size[0], WIDTH))
        part = paper[rows, columns]
        np.minimum(part, mark[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left], out=part)


@cache
def load_glyph(font: Path, character: str) -> Glyph:
    """Return a character of a TrueType font, at the size where the font's digits are DIGIT_HEIGHT pixels high."""
    ink, (pen, baseline) = _render(font, character, measure(font).size)
    left, top, width, height = cv2.boundingRect(ink)
    margin = MARGIN * SUPERSAMPLING
    ink = np.pad(ink[top : top + height, left : left + width], margin)
    inside = cv2.distanceTransform(ink, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform(255 - ink, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    distances = np.where(ink > 0, inside - 0.5, 0.5 - outside) / SUPERSAMPLING
    return Glyph(
        distances=(128 + DISTANCE_STEPS * distances).round().clip(0, 255).astype(np.uint8),
        left=(left - margin - pen) / SUPERSAMPLING,
        top=(top - margin - baseline) / SUPERSAMPLING,
        width=width / SUPERSAMPLING,
    )


class Measures(NamedTuple):
    """What a font's `size` must be to have digits DIGIT_HEIGHT * SUPERSAMPLING high; its stems in drawn pixels."""

    size: int
    stem_width: float


@cache
def measure(font: Path) -> Measures:
    """Return the measures of a font, by its digit 8 and the left stem of its n."""
    size = FONT_SIZE * SUPERSAMPLING
    height = cv2.boundingRect(_render(font, "8", size)[0])[3]
    size = round(size * DIGIT_HEIGHT * SUPERSAMPLING / height)
    ink, _ = _render(font, "n", size)
    _, top, _, height = cv2.boundingRect(ink)
    edges = np.flatnonzero(np.diff(ink[top + height * 2 // 3] > 0))
    return Measures(size, float(edges[1] - edges[0]) / SUPERSAMPLING)


def _render(font: Path, character: str, size: int) -> tuple[Pixels, tuple[int, int]]:
    """Return a character's ink, 0 or 255, SUPERSAMPLING times as large, and where its pen and baseline are."""
    origin = (30 * SUPERSAMPLING, 60 * SUPERSAMPLING)
    canvas = np.zeros((90 * SUPERSAMPLING, 120 * SUPERSAMPLING), np.uint8)
    cv2.putText(canvas, character, origin, (255,), _load_face(font), size)
    if canvas.max() < 128:
        raise ValueError(f"the font {font} draws nothing for {character!r}: leave it out")
    return np.where(canvas > 127, np.uint8(255), np.uint8(0)), origin


@cache
def _load_face(font: Path) -> cv2.FontFace:
    # Looked into first: OpenCV takes its own font for a missing file, and dies of one that is no font.
    try:
        with font.open("rb") as file:
            kind = file.read(4)
    except OSError as error:
        raise ValueError(f"cannot read the font {font}: {error.strerror}") from error
    if kind not in (b"\0\1\0\0", b"true"):
        raise ValueError(f"{font} is not a TrueType font")
    return cv2.FontFace(str(font))


def water_map() -> NDArray[np.float64]:
    """Return where each pixel of the water's image comes from, (2, 50, 200): x and y.

    A radial ripple around the centre, amplitude 1.5, phase 10, wavelength 2, fading out at radius 50. At distance d
    the move is (dx, dy) times 1.5 sin(2 pi d / 2 - 10) (50 - d) / 50 * 2 / d.
    """
    y, x = np.mgrid[0.0:HEIGHT, 0.0:WIDTH]
    dx, dy = x - WIDTH / 2, y - HEIGHT / 2
    distance = np.hypot(dx, dy)
    divisor = np.maximum(distance, 1e-9)  # in the centre itself dx and dy are 0
    amount = np.where(distance < 50, 1.5 * np.sin(np.pi * distance - 10) * (50 - distance) / 50 * 2 / divisor, 0)
    return np.stack([x + dx * amount, y + dy * amount])


def ripple_map() -> NDArray[np.float64]:
    """Return where each pixel of the ripple's image comes from, (2, 50, 200): x + 2.6 sin(y/15), y + 1.7 sin(x/5)."""
    y, x = np.mgrid[0.0:HEIGHT, 0.0:WIDTH]
    return np.stack([x + 2.6 * np.sin(y / 15), y + 1.7 * np.sin(x / 5)])


@cache
def _fixed_point(warp: Callable[[], NDArray[np.float64]]) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """Return a map in OpenCV's whole and 1/32 pixels: faster, and rounded alike on every machine."""
    x, y = warp().astype(np.float32)
    return cv2.convertMaps(x, y, cv2.CV_16SC2)


def draw_noise_curve(paper: Pixels, control_points: Sequence[complex]) -> None:
    """Draw a cubic Bézier curve's flattened segments between points rounded to pixels, the first ones wider."""
    points = [complex(round(point.real), round(point.imag)) for point in flatten(control_points)]
    for number, (start, end) in enumerate(pairwise(points)):
        _draw_line(paper, start, end, NOISE_WIDTHS[min(number, len(NOISE_WIDTHS) - 1)])


def flatten(control_points: Sequence[complex], halvings: int = 10) -> list[complex]:
    """Return points x + iy on a cubic Bézier curve whose chords are flat, first and last included.

    As Java's FlatteningPathIterator: halved until both inner control points lie within FLATNESS of the chord.
    """
    first, second, third, last = control_points
    if not halvings or max(_distance(second, first, last), _distance(third, first, last)) < FLATNESS:
        return [first, last]
    a, b, c = (first + second) / 2, (second + third) / 2, (third + last) / 2
    ab, bc = (a + b) / 2, (b + c) / 2
    middle = (ab + bc) / 2
    return flatten((first, a, ab, middle), halvings - 1)[:-1] + flatten((middle, bc, c, last), halvings - 1)


def _distance(point: complex, start: complex, end: complex) -> float:
    """Return how far a point is from a segment."""
    chord = end - start
    along = ((point - start) * chord.conjugate()).real / abs(chord) ** 2 if chord else 0.0
    return abs(point - start - min(max(along, 0.0), 1.0) * chord)


def _draw_line(paper: Pixels, start: complex, end: complex, width: float) -> None:
    """Draw an antialiased line with square ends, as Java's; OpenCV's own are a pixel too wide."""
    length, centre = abs(end - start), (start + end) / 2
    direction = 255 * (end - start) / length if length else 255  # a pixel's distances come out in shades
    reach_x, reach_y = abs(end.real - start.real) / 2 + 3, abs(end.imag - start.imag) / 2 + 3
    left, right = max(int(centre.real - reach_x), 0), min(int(centre.real + reach_x) + 2, WIDTH)
    top, bottom = max(int(centre.imag - reach_y), 0), min(int(centre.imag + reach_y) + 2, HEIGHT)
    x = np.arange(left, right, dtype=np.float32) - centre.real
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - centre.imag
    across = np.abs(x * direction.imag - y * direction.real)
    along = np.abs(x * direction.real + y * direction.imag)
    along -= 255 * length / 2
    shades = np.maximum(across, along)
    shades -= 255 * width / 2 - 128  # half ink on the edge itself
    part = paper[top:bottom, left:right]
    np.minimum(part, shades.clip(0, 255).astype(np.uint8), out=part)


@cache
def gradient() -> NDArray[np.uint16]:
    """Return the background's greys (50, 200): 192 in the top left corner, rising to white in the bottom right one."""
    y, x = np.mgrid[0.0:HEIGHT, 0.0:WIDTH] + 0.5
    greys: NDArray[np.uint16] = (192 + 63 * (x * WIDTH + y * HEIGHT) / (WIDTH**2 + HEIGHT**2)).astype(np.uint16)
    return greys
