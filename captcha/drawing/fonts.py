"""Font files → glyphs: which fonts there are, what they measure, which characters they have, and each character."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from captcha import CaptchaError
from captcha.drawing.styles import Style


class FontError(CaptchaError):
    """A font that nothing can be drawn with; one line that names it."""


Pixels = NDArray[np.uint8]
Transform = tuple[float, float, float, float]
"""A matrix (2, 2), row by row: the new x are a x + b y, the new y are c x + d y."""

DIGIT_HEIGHT = 29.0  # pixels of a stored 8; fonts differ in what their size means
SUPERSAMPLING = 8  # stored samples to a pixel
MEASURED = "8n"  # what a font is measured by: the height of the first, the left stem of the second
DISTANCE_STEPS = 42  # stored steps in one pixel: a byte reaches three pixels to each side of the outline
STORED_DISTANCES = (np.arange(256) - 128) / DISTANCE_STEPS  # pixels, by the byte that stands for them
MARGIN = 3  # pixels around a glyph's ink, room for a thicker stroke

# Humanist bolds near the Lucida Sans that drew the known sets, and what matplotlib brings (mlflow needs it). The m and
# the w of a monospaced font are as narrow as its other letters: of the two fonts of the known sets, one is like that.
FONTS = (
    ("fontpkg_noto_sans", "files/NotoSans[wdth,wght].ttf"),
    ("fontpkg_hind", "files/Hind-Bold.ttf"),
    ("fontpkg_oxygen", "files/Oxygen-Bold.ttf"),
    ("fontpkg_pt_sans", "files/PT_Sans-Web-Bold.ttf"),
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSansMono-Bold.ttf"),
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSansMono.ttf"),
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans-Bold.ttf"),
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf"),
)
BOLD = (int.from_bytes(b"wght"), 700 << 16)  # of a variable font: the axis, and 700 as OpenCV writes it
_FACES = Lock()  # OpenCV's documentation does not say that two threads may use one font at once


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


def fonts_below(folder: Path) -> list[Path]:
    """Return the font files in a folder and its sub-folders, by name.

    Raises:
        FontError: if there are none.
    """
    fonts = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".ttf", ".otf") and file.is_file())
    if not fonts:
        raise FontError(f"no fonts below {folder.absolute()}: it needs .ttf or .otf files")
    return fonts


def fonts_for(style: Style, fonts: Sequence[Path]) -> tuple[tuple[Path, ...], dict[Path, str]]:
    """Return the fonts that have every character a style may write, and what each of the others lacks.

    A character that a font lacks would be drawn as an empty box, or in a font of OpenCV's own.

    Raises:
        FontError: if a font cannot be read, or each of them lacks something.
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
    """The font `size` whose digits are DIGIT_HEIGHT * SUPERSAMPLING high; its stems' width in drawn pixels."""

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
    # Checked first: OpenCV draws its own font in place of a missing file, and crashes on a file that is no font.
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
