"""A text laid out on paper: how large, turned and thick each letter is, and where it stands."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from captcha.drawing.fonts import (
    DIGIT_HEIGHT,
    MARGIN,
    STORED_DISTANCES,
    Glyph,
    Pixels,
    Transform,
    load_glyph,
    measure,
)
from captcha.drawing.picking import pick, pick_whole
from captcha.drawing.styles import Style, StyleError

SIDE = 5  # pixels that stay free at each side of a word where it can be moved or narrowed
FREE_HEIGHT = 4  # pixels of the height that stay free, so that what is rounded stays on the paper
TIGHTEST = 0.5  # a word that does not fit is made narrower, then smaller, each down to this part of what was asked for


def bare_paper(style: Style) -> Pixels:
    """Return paper (H, W) without ink, 255 everywhere."""
    return np.full((style.height, style.width), 255, np.uint8)


def check_fits(style: Style, fonts: Sequence[Path]) -> None:
    """Return if every text that a style may write fits its image, whatever is picked for it.

    Raises:
        StyleError: if one would have to be narrower or smaller than TIGHTEST allows; it names the widest.
    """
    boxes = {character: _largest_box(style, character, fonts) for character in style.alphabet}

    def width(text: str) -> float:
        return sum(boxes[character].width for character in text)

    texts = style.texts or [max(style.alphabet, key=width) * style.lengths[1]]
    text = max(texts, key=lambda text: TIGHTEST * width(text) + style.spacing[1] * (len(text) - 1))
    left = None if style.left is None else style.left[1]
    needed = TIGHTEST * width(text) + _free_width(text, style.spacing[1], left)
    if needed > style.width:
        raise StyleError(_too_wide(text, needed, style))
    if style.baseline is None:
        top, bottom = min(box.top for box in boxes.values()), max(box.bottom for box in boxes.values())
        needed = TIGHTEST * (bottom - top + 2 * style.bounce) + FREE_HEIGHT
        if needed > style.height:
            raise StyleError(_too_high(text, needed, style))


class _Box(NamedTuple):
    """The most that a character takes in any of the fonts, at its narrowest; its ink below the baseline."""

    width: float
    top: float
    bottom: float


def _largest_box(style: Style, character: str, fonts: Sequence[Path]) -> _Box:
    """Return what a character takes at most: each part of it for itself, so no letter that is drawn takes more."""
    angle = math.radians(style.rotation)
    own_width, narrowest = style.own_width[1], TIGHTEST * style.letter_width[0]
    leaning = math.sin(angle) + style.shear  # of the height, to either side
    rising = math.sin(angle) * own_width * style.letter_width[1]  # of the width, up or down
    standing = 1 + math.sin(angle) * style.shear  # of the height
    boxes = []
    for font in fonts:
        glyph = load_glyph(font, character)
        for digit_height, stroke in itertools.product(style.digit_height, style.stroke):
            thicker, scale = _weights(style, [font], digit_height, stroke)[font]
            width, height = ((side + 2 * thicker) * scale for side in glyph.size)
            middle = (glyph.corner[1] + glyph.size[1] / 2) * scale
            half = (rising * width + standing * height) / 2
            boxes.append(_Box(own_width * narrowest * width + leaning * height, middle - half, middle + half))
    return _Box(max(b.width for b in boxes), min(b.top for b in boxes), max(b.bottom for b in boxes))


def draw_word(rng: Generator, style: Style, text: str, fonts: Sequence[Path]) -> Pixels:
    """Return the paper (H, W) with the word on it before any warp: 255 is bare, 0 is ink.

    Raises:
        StyleError: if the text does not fit.
    """
    paper = bare_paper(style)
    _draw_text(rng, style, text, fonts, [paper] * len(text))
    return paper


def draw_letters(rng: Generator, style: Style, text: str, fonts: Sequence[Path]) -> list[Pixels]:
    """Return a paper (H, W) for each letter of the word that `draw_word` draws.

    Raises:
        StyleError: if the text does not fit.
    """
    papers = [bare_paper(style) for _ in text]
    _draw_text(rng, style, text, fonts, papers)
    return papers


class _Letter(NamedTuple):
    """A letter of a word. Lengths are in pixels of the image, before the word is narrowed or made smaller."""

    glyph: Glyph
    weight: "_Weight"
    turn: Transform
    size: tuple[float, float]  # width and height of its ink before it is turned
    middle: float  # of its ink, below the baseline
    # The box of a turned ink is as wide as the ink's width and height lean; only the first part can be narrowed.
    across: float
    leaning: float


class _Weight(NamedTuple):
    """What gives the glyphs of one font the word's stroke and height."""

    thicker: float  # pixels of the stored glyph, added to each side of its lines
    scale: float  # from pixels of the stored glyph to pixels of the image


def _draw_text(rng: Generator, style: Style, text: str, fonts: Sequence[Path], papers: Sequence[Pixels]) -> None:
    """Draw each letter of a word on its paper (H, W); several letters may share one.

    A word that is too wide is narrowed, one that is still too wide or too high is made smaller.

    Raises:
        StyleError: if it would have to be narrower or smaller than TIGHTEST allows.
    """
    faces = _pick_fonts(rng, style, fonts, len(text))
    digit_height, stroke = pick(rng, style.digit_height), pick(rng, style.stroke)
    letter_width, space = pick(rng, style.letter_width), pick_whole(rng, style.spacing)
    letters = _pick_letters(rng, style, text, faces, _weights(style, faces, digit_height, stroke))
    left = None if style.left is None else pick_whole(rng, style.left)
    letter_width, smaller = _fit_width(style, text, letters, letter_width, space, left)
    if style.baseline is None:
        smaller, baseline = _fit_height(style, text, letters, letter_width, smaller)
    else:
        baseline = pick_whole(rng, style.baseline)
    widths = [(letter.across * letter_width + letter.leaning) * smaller for letter in letters]
    pen = round((style.width - sum(widths) - space * (len(text) - 1)) / 2) if left is None else left

    for paper, letter, width in zip(papers, letters, widths, strict=True):
        scale = letter.weight.scale * smaller
        # Side bearings are drawn but do not count, as in Kaptcha; a centred word is centred by its ink.
        bearing = letter.glyph.corner[0] * scale * letter_width if left is not None else 0.0
        a, b, c, d = letter.turn
        transform = (a * letter_width * scale, b * scale, c * letter_width * scale, d * scale)
        centre = (pen + bearing + width / 2, baseline + letter.middle * smaller)
        letter.glyph.draw(paper, centre, transform, _shades(letter.weight.thicker, scale, style.outline))
        pen += int(width) + space


def _pick_fonts(rng: Generator, style: Style, fonts: Sequence[Path], count: int) -> list[Path]:
    """Return the font of each of `count` letters: one for all of them, or one each where the style says so."""
    if style.letter_fonts:
        return [fonts[i] for i in rng.integers(len(fonts), size=count).tolist()]
    return [fonts[int(rng.integers(len(fonts)))]] * count


def _weights(style: Style, faces: Sequence[Path], digit_height: float, stroke: float) -> dict[Path, _Weight]:
    """Return the weight of each font in which its digits are `digit_height` high and its stems `stroke` wide."""
    thicker = {face: _thicker(style, measure(face).stem_width, digit_height, stroke) for face in faces}
    return {face: _Weight(added, digit_height / (DIGIT_HEIGHT + 2 * added)) for face, added in thicker.items()}


def _thicker(style: Style, stem_width: float, digit_height: float, stroke: float) -> float:
    """Return how many pixels of the stored glyph are added to each side of its lines; below 0 they get thinner.

    With the scale that gives digits their height back, it follows from (stem_width + 2 thicker) scale = stroke and
    (DIGIT_HEIGHT + 2 thicker) scale = digit_height.
    """
    thicker = (stroke * DIGIT_HEIGHT - stem_width * digit_height) / (2 * max(digit_height - stroke, 1))
    # Below the lower limit thin lines would vanish; beyond the upper one no distances are stored.
    return min(max(thicker, -0.3 * stem_width), MARGIN - 0.5 - style.outline / 2)


def _pick_letters(
    rng: Generator, style: Style, text: str, faces: Sequence[Path], weights: Mapping[Path, _Weight]
) -> list[_Letter]:
    """Return the letters, each in its font, with its own turn, shift up or down, and width."""
    turns = [_pick_turn(rng, style) for _ in text]
    shifts = [rng.uniform(-style.bounce, style.bounce) if style.bounce else 0.0 for _ in text]
    own_widths = [pick(rng, style.own_width) for _ in text]
    letters = []
    for character, face, (a, b, c, d), shift, own_width in zip(text, faces, turns, shifts, own_widths, strict=True):
        glyph, weight = load_glyph(face, character), weights[face]
        thicker, scale = weight
        width, height = (glyph.size[0] + 2 * thicker) * scale, (glyph.size[1] + 2 * thicker) * scale
        turn = (a * own_width, b, c * own_width, d)
        middle = (glyph.corner[1] + glyph.size[1] / 2) * scale + shift
        letters.append(_Letter(glyph, weight, turn, (width, height), middle, abs(turn[0]) * width, abs(b) * height))
    return letters


def _pick_turn(rng: Generator, style: Style) -> Transform:
    """Return the matrix that shears a letter and then turns it."""
    if not style.rotation and not style.shear:
        return (1.0, 0.0, 0.0, 1.0)
    angle = math.radians(rng.uniform(-style.rotation, style.rotation))
    slant = rng.uniform(-style.shear, style.shear)
    cosine, sine = math.cos(angle), math.sin(angle)
    return (cosine, cosine * slant - sine, sine, sine * slant + cosine)


def _fit_width(
    style: Style, text: str, letters: Sequence[_Letter], letter_width: float, space: int, left: int | None
) -> tuple[float, float]:
    """Return a `letter_width`, and by which factor the word must then be made smaller (1: not at all), to fit in.

    Raises:
        StyleError: if the factor is below TIGHTEST.
    """
    across, leaning = (sum(sides) for sides in zip(*((each.across, each.leaning) for each in letters), strict=True))
    free_width = _free_width(text, space, left)
    greatest, narrowest = (style.width - leaning - free_width) / across, TIGHTEST * style.letter_width[0]
    if greatest >= narrowest:
        return min(letter_width, greatest), 1.0
    whole = narrowest * across + leaning
    smaller = (style.width - free_width) / whole
    if smaller < TIGHTEST:
        raise StyleError(_too_wide(text, TIGHTEST * whole + free_width, style))
    return narrowest, smaller


def _free_width(text: str, space: int, left: int | None) -> float:
    """Return how much of an image's width the letters of a word leave free."""
    sides = 2 * SIDE if left is None else left + 2 * SIDE + space
    return space * (len(text) - 1) + sides


def _too_wide(text: str, needed: float, style: Style) -> str:
    return f"the text {text!r} does not fit: it needs a width of {needed:.0f} pixels, not {style.width}"


def _too_high(text: str, needed: float, style: Style) -> str:
    return f"the text {text!r} does not fit: it needs a height of {needed:.0f} pixels, not {style.height}"


def _fit_height(
    style: Style, text: str, letters: Sequence[_Letter], letter_width: float, smaller: float
) -> tuple[float, int]:
    """Return by which factor the word must be made smaller to fit its image, `smaller` at most, and the baseline's y.

    Raises:
        StyleError: if the factor is below TIGHTEST.
    """
    heights = [
        abs(letter.turn[2]) * letter_width * letter.size[0] + abs(letter.turn[3]) * letter.size[1] for letter in letters
    ]
    top = min(letter.middle - height / 2 for letter, height in zip(letters, heights, strict=True))
    bottom = max(letter.middle + height / 2 for letter, height in zip(letters, heights, strict=True))
    smaller = min((style.height - FREE_HEIGHT) / (bottom - top), smaller)
    if smaller < TIGHTEST:
        raise StyleError(_too_high(text, TIGHTEST * (bottom - top) + FREE_HEIGHT, style))
    return smaller, round((style.height - bottom * smaller - top * smaller) / 2)


def _shades(thicker: float, scale: float, outline: float) -> Pixels:
    """Return the paper's shade (256,) at each stored distance, for letters made `thicker`, or for their outline."""
    inside = (STORED_DISTANCES + thicker) * scale  # drawn pixels
    coverage = (outline / 2 - np.abs(inside) if outline else inside) + 0.5
    coverage[0] = 0  # so far outside that the distance is not known
    if outline:
        coverage[-1] = 0  # likewise so far inside
    return np.asarray(np.rint(255 - 255 * np.minimum(np.maximum(coverage, 0), 1)), np.uint8)
