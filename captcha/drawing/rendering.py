"""Captchas drawn in memory, labelled and seeded: a word, distorted, as ink on a ground."""

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from captcha.drawing.distortion import degrade, draw_curves, draw_dots, draw_lines, warp
from captcha.drawing.fonts import Pixels, default_fonts, fonts_for
from captcha.drawing.picking import pick, pick_colour, pick_whole
from captcha.drawing.styles import Style, load_style
from captcha.drawing.word import bare_paper, draw_letters, draw_word


def draw(style: str | Style, count: int, *, seed: int, fonts: Sequence[Path] | None = None) -> list[tuple[str, Pixels]]:
    """Return `count` texts with their images, each (H, W, 3) uint8 RGB of the style's own size.

    `style`: a built-in one's name, a TOML file's, or the style itself. Image i is `draw_one`'s, so a longer list
    begins with the shorter one. Fonts that lack a character of the style are left out.

    Raises:
        StyleError: if there is no such style, or a text does not fit its images.
        FontError: if no font can draw it.
    """
    style = load_style(style) if isinstance(style, str) else style
    faces, _ = fonts_for(style, default_fonts() if fonts is None else fonts)
    return [draw_one(style, seed, index, faces) for index in range(count)]


def draw_one(style: Style, seed: int, index: int, fonts: Sequence[Path]) -> tuple[str, Pixels]:
    """Return the text and the image (H, W, 3) that depend on style, seed, index and fonts alone.

    May be called from several threads or processes at once. `fonts` are those that `fonts_for` gives.

    Raises:
        StyleError: if the text does not fit its image.
    """
    rng = np.random.default_rng([seed, index])
    text = _pick_text(rng, style)
    papers = draw_letters(rng, style, text, fonts) if style.letter_inks else [draw_word(rng, style, text, fonts)]
    papers = warp(rng, style, papers)
    if style.letter_inks:
        papers.append(bare_paper(style))  # for the curves, in the word's own ink
    draw_curves(rng, style, papers[-1])
    ink = pick_colour(rng, style.ink)
    inks = [*(pick_colour(rng, style.ink) for _ in papers[1:]), ink]
    planes = draw_background(rng, style)
    if style.shadow:
        planes = _ink_over(planes, _shadow(np.minimum.reduce(papers), style.shadow), (0, 0, 0))
    for paper, colour in zip(papers, inks, strict=True):
        planes = _ink_over(planes, paper, colour)
    image = np.asarray(cv2.merge(list(planes.astype(np.uint8))), np.uint8)
    draw_lines(rng, style, image, ink)
    draw_dots(rng, style, image, ink)
    if style.border:
        image[: style.border] = image[-style.border :] = image[:, : style.border] = image[:, -style.border :] = 0
    return text, degrade(rng, style, image)


def _pick_text(rng: Generator, style: Style) -> str:
    if style.texts:
        return style.texts[int(rng.integers(len(style.texts)))]
    length = pick_whole(rng, style.lengths)
    return "".join(style.characters[i] for i in rng.integers(len(style.characters), size=length).tolist())


def draw_background(rng: Generator, style: Style) -> NDArray[np.uint16]:
    """Return the ground (3, H, W): one colour or a gradient, under the clouds of the style's texture."""
    start = pick_colour(rng, style.background)
    end = start if style.background_end is None else pick_colour(rng, style.background_end)
    ground = gradient((style.height, style.width), start, end)
    if strength := pick(rng, style.texture):
        ground = _add_clouds(rng, style, ground, strength)
    return ground


def _add_clouds(rng: Generator, style: Style, ground: NDArray[np.uint16], strength: float) -> NDArray[np.uint16]:
    """Return the ground (3, H, W) under coloured clouds whose standard deviation is `strength` shades."""
    size = (style.height // style.texture_size + 2, style.width // style.texture_size + 2)
    tiles = (strength * rng.standard_normal((3, *size), dtype=np.float32)).astype(np.int16)
    clouds = np.empty(ground.shape, np.int16)
    for tile, cloud in zip(tiles, clouds, strict=True):
        cv2.resize(tile, (style.width, style.height), cloud, interpolation=cv2.INTER_LINEAR)
    clouds += ground.view(np.int16)
    np.maximum(clouds, 0, out=clouds)
    np.minimum(clouds, 255, out=clouds)
    return clouds.view(np.uint16)


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
    """Return how far each pixel's middle lies along the diagonal, (H, W), from 0 to 65536."""
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
    """Return the paper (H, W) moved right and down, its ink at half strength."""
    shadow = np.full_like(paper, 255)
    shadow[shift:, shift:] = 128 + paper[:-shift, :-shift] // 2
    return shadow
