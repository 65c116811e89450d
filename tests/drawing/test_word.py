import re
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from captcha.drawing.fonts import Pixels, default_fonts, fonts_for
from captcha.drawing.rendering import draw
from captcha.drawing.styles import STYLES, Style, StyleError, load_style
from captcha.drawing.word import TIGHTEST, check_fits, draw_word

FONTS = default_fonts()[-2:]  # a bold and a regular one
KAPTCHA = load_style("kaptcha")
ImageOf = Callable[..., NDArray[np.int64]]


def ink(paper: Pixels) -> NDArray[np.float64]:
    return 1 - paper / 255


def test_the_same_text_is_drawn_differently_each_time() -> None:
    words = [draw_word(np.random.default_rng(seed), KAPTCHA, "2b827", FONTS) for seed in range(8)]
    assert len({word.tobytes() for word in words}) == 8


@pytest.mark.parametrize("font", FONTS, ids=lambda font: font.stem)
def test_strokes_get_the_width_asked_for_and_digits_keep_their_height(font: Path) -> None:
    for stroke in (4.8, 5.8, 6.8):
        style = Style(digit_height=29, stroke=stroke, baseline=42, left=40)
        eight, n = (ink(draw_word(np.random.default_rng(0), style, text, (font,))) for text in "8n")
        assert eight.max(axis=1).sum() == pytest.approx(29, abs=0.5)
        row = n[35]
        first = np.flatnonzero(row)[0]
        stem = row[first : first + np.flatnonzero(row[first:] == 0)[0]]
        assert stem.sum() == pytest.approx(stroke, abs=0.3)


@pytest.mark.parametrize("text", ["mmmmm", "wwwww", "77777", "f2f2f"])
def test_a_word_stays_on_the_paper_and_starts_near_its_left_end(text: str) -> None:
    for seed in range(30):
        marks = ink(draw_word(np.random.default_rng(seed), KAPTCHA, text, FONTS))
        assert not marks[:, 196:].any()
        columns = np.flatnonzero(marks.any(axis=0))
        assert 20 <= columns[0] <= 36


def test_letters_stand_side_by_side() -> None:
    style = KAPTCHA.model_copy(update={"letter_fonts": False})  # so that a longer word begins with the shorter one
    for seed in range(30):
        words = [draw_word(np.random.default_rng(seed), style, "28n3w"[:length], FONTS) for length in range(1, 6)]
        ends = [np.flatnonzero(ink(word).any(axis=0))[-1] for word in words]
        assert (np.diff(ends) >= 12).all()


@pytest.mark.parametrize("name", ["tilted", "outlined", "textured"])
def test_no_letter_of_a_centred_style_is_cut_off_at_the_edge(name: str) -> None:
    style = load_style(name)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        text = "".join(rng.choice(list(style.characters), style.lengths[1]))
        marks = ink(draw_word(rng, style, text, FONTS))
        assert marks.any()
        for edge in (marks[0], marks[-1], marks[:, 0], marks[:, -1]):
            assert not edge.any(), text


def test_letters_turn_only_where_the_style_says_so(image_of: ImageOf) -> None:
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


def test_letters_turn_slant_and_bounce_to_both_sides(image_of: ImageOf) -> None:
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


def test_each_letter_has_a_width_of_its_own_within_the_range_and_its_height_stays() -> None:
    def letters(**settings: object) -> NDArray[np.int32]:
        """Width and height of each letter of 200, as drawn."""
        plain = Style(texts=("ooooo",), lengths=(5, 5), spacing=(4, 4), stroke=(5, 5), **settings)
        papers = (draw_word(np.random.default_rng(i), plain, "ooooo", FONTS[:1]) for i in range(40))
        boxes = [cv2.connectedComponentsWithStats((paper < 128).astype(np.uint8))[2][1:] for paper in papers]
        return np.asarray(np.concatenate(boxes)[:, 2:4], np.int32)

    same, own = letters(), letters(own_width=(0.8, 1.3))
    assert len(same) == len(own) == 200
    width, height = same.mean(axis=0)
    assert np.ptp(same[:, 0]) <= 1
    assert own[:, 0].min() == pytest.approx(0.8 * width, abs=1)
    assert own[:, 0].max() == pytest.approx(1.3 * width, abs=1)
    assert own[:, 1].mean() == pytest.approx(height, abs=0.3)


def test_each_letter_takes_a_font_of_its_own_where_the_style_says_so_with_the_words_height_and_stroke() -> None:
    fonts = [font for font in default_fonts() if font.stem in ("DejaVuSans", "DejaVuSansMono-Bold")]
    assert len(fonts) == 2

    def letters(text: str, fonts: Sequence[Path], **settings: object) -> NDArray[np.float64]:
        """The ink of each letter of 40 words, (40, 5, 3): its width, its height, and its left stem's width."""
        style = Style(stroke=5, spacing=6, left=8, baseline=42, texts=(text,), **settings)
        measures = []
        for seed in range(40):
            marks = ink(draw_word(np.random.default_rng(seed), style, text, fonts))
            edges = np.flatnonzero(np.diff(marks.any(axis=0), prepend=False, append=False)).reshape(-1, 2)
            for part in (marks[:, first:end] for first, end in edges):
                stem = part[35, : np.flatnonzero(part[35] == 0)[0]] if text[0] in "mn" else part
                measures.append((part.max(axis=0).sum(), part.max(axis=1).sum(), stem.sum()))
        return np.array(measures).reshape(40, 5, 3)

    wide, narrow = (letters("mmmmm", [font])[:, :, 0].mean() for font in reversed(fonts))
    assert wide > narrow + 8
    one, own = (letters("mmmmm", fonts, letter_fonts=own)[:, :, 0] > (wide + narrow) / 2 for own in (False, True))
    assert set(one.mean(axis=1)) == {0, 1}
    assert len(set(own.mean(axis=1))) > 3
    assert 0.3 < own.mean() < 0.7
    assert letters("88888", fonts, letter_fonts=True)[:, :, 1] == pytest.approx(29, abs=0.7)
    assert letters("nnnnn", fonts, letter_fonts=True)[:, :, 2] == pytest.approx(5, abs=0.4)


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
        whole, small = (255 - draw_word(np.random.default_rng(seed), s, "gfjb", FONTS) for s in (high, low))
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


# Styles whose random texts nearly fit


NARROW = Style(characters="il1mw", lengths=(6, 6), width=100, stroke=5, spacing=(1, 3))
"""Texts of i and l have room to spare, and 'mwmmww' needs more than the image's width at half of its letters' width."""


def test_a_random_text_that_is_too_wide_at_half_of_its_width_is_drawn_smaller() -> None:
    smaller = Style(texts=("mwmwmw",), **NARROW.model_dump(exclude={"texts"}))
    for seed in range(10):
        marks = ink(draw_word(np.random.default_rng(seed), smaller, "mwmwmw", FONTS[:1]))
        columns, rows = (np.flatnonzero(marks.any(axis=axis)) for axis in (0, 1))
        assert 0 < columns[0] < columns[-1] < 99
        usual = ink(draw_word(np.random.default_rng(seed), smaller, "mwm", FONTS[:1]))
        assert TIGHTEST * 0.9 < len(rows) / np.count_nonzero(usual.any(axis=1)) < 0.98


@pytest.mark.parametrize("name", ["narrow", *STYLES])
@pytest.mark.parametrize(("side", "least"), [("width", 16), ("height", 16)])
def test_of_a_style_that_is_let_in_every_text_can_be_drawn(name: str, side: str, least: int) -> None:
    style = NARROW if name == "narrow" else load_style(name)
    fonts, _ = fonts_for(style, default_fonts())

    def is_let_in(size: int) -> bool:
        try:
            check_fits(style.model_copy(update={side: size}), fonts)
        except StyleError:
            return False
        return True

    tightest = next(size for size in range(least, 600) if is_let_in(size))
    assert tightest < getattr(style, side)  # the style itself is let in with room to spare
    draw(style.model_copy(update={side: tightest}), 150, seed=0, fonts=fonts)


def test_a_style_some_of_whose_texts_can_not_be_drawn_is_told_before_any_is() -> None:
    hopeless = NARROW.model_copy(update={"width": 70})
    assert draw(hopeless.model_copy(update={"characters": "il1"}), 1, seed=0, fonts=FONTS)  # most texts would fit
    with pytest.raises(StyleError, match=r"^the text '[mw]{6}' does not fit: it needs a width of \d+ pixels, not 70$"):
        check_fits(hopeless, FONTS)
    with pytest.raises(StyleError, match=r"^the text 'mwmwmw' does not fit: it needs a width of \d+ pixels, not 70$"):
        check_fits(hopeless.model_copy(update={"texts": ("ill", "mwmwmw", "l")}), FONTS)
    with pytest.raises(StyleError, match=r"does not fit: it needs a height of \d+ pixels, not 16$"):
        check_fits(Style(characters="gfj", height=16), FONTS)
