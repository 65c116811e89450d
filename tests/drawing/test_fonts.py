import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from captcha.drawing import fonts as font_files
from captcha.drawing.fonts import FontError, Pixels, default_fonts, fonts_for, load_glyph
from captcha.drawing.rendering import draw
from captcha.drawing.styles import Style, load_style

FONTS = default_fonts()[-2:]  # a bold and a regular one
KAPTCHA = load_style("kaptcha")


def blank_paper() -> Pixels:
    return np.full((50, 200), 255, np.uint8)


def ink(paper: Pixels) -> NDArray[np.float64]:
    return 1 - paper / 255


@pytest.mark.parametrize("font", FONTS, ids=lambda font: font.stem)
def test_every_character_is_drawn_and_no_two_alike(font: Path) -> None:
    shades = np.where(np.arange(256) < 128, 255, 0).astype(np.uint8)
    drawn = {}
    for character in KAPTCHA.alphabet:
        paper = blank_paper()
        glyph = load_glyph(font, character)
        glyph.draw(paper, (80, 25), (1.0, 0.0, 0.0, 1.0), shades)
        left, top, width, height = cv2.boundingRect(255 - paper)
        assert (width, height) == pytest.approx(glyph.size, abs=1)
        assert height > 15
        assert (left + width / 2, top + height / 2) == pytest.approx((80, 25), abs=1)
        drawn[character] = paper.tobytes()
    assert len(set(drawn.values())) == 20


def test_of_a_letter_only_what_lies_on_the_paper_is_drawn() -> None:
    glyph, shades = load_glyph(FONTS[0], "8"), np.where(np.arange(256) < 128, 255, 0).astype(np.uint8)
    wide, paper = np.full((150, 400), 255, np.uint8), blank_paper()
    for x, y in ((0, 25), (198, 25), (100, 0), (60, 48), (-90, 25), (290, 25), (100, -40), (100, 90)):
        glyph.draw(wide, (100 + x, 50 + y), (1.0, 0.0, 0.0, 1.0), shades)
        glyph.draw(paper, (x, y), (1.0, 0.0, 0.0, 1.0), shades)
    assert np.array_equal(paper, wide[50:100, 100:300])
    assert not paper.all()


def test_a_turned_letter_is_the_upright_one_turned() -> None:
    """An oracle of its own: the letter is turned back by OpenCV and compared with the upright one."""
    glyph = load_glyph(FONTS[0], "n")
    shades = np.where(np.arange(256) < 128, 255, 0).astype(np.uint8)
    upright, turned = np.full((61, 61), 255, np.uint8), np.full((61, 61), 255, np.uint8)
    glyph.draw(upright, (30.5, 30.5), (1.0, 0.0, 0.0, 1.0), shades)
    cosine, sine = math.cos(math.radians(30)), math.sin(math.radians(30))
    glyph.draw(turned, (30.5, 30.5), (cosine, -sine, sine, cosine), shades)
    back = cv2.warpAffine(turned, cv2.getRotationMatrix2D((30, 30), 30, 1), (61, 61), borderValue=(255,))

    def overlap(one: Pixels, other: Pixels) -> float:
        return float(np.minimum(ink(one), ink(other)).sum() / np.maximum(ink(one), ink(other)).sum())

    assert overlap(np.asarray(back, np.uint8), upright) > 0.8
    assert overlap(turned, upright) < 0.6


def test_fonts_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    text = tmp_path / "notes.ttf"
    text.write_text("no font")
    with pytest.raises(ValueError, match=r"notes\.ttf is not a TrueType or OpenType font$"):
        draw("kaptcha", 1, seed=0, fonts=[text])
    with pytest.raises(ValueError, match=r"^cannot read the font .*gone\.ttf: No such file or directory$"):
        draw("kaptcha", 1, seed=0, fonts=[tmp_path / "gone.ttf"])
    with pytest.raises(ValueError, match="at least one font file"):
        draw("kaptcha", 1, seed=0, fonts=[])


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
    usable, lacking = fonts_for(style, [font_without_m, FONTS[0]])
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
    assert package / "files" / "Hind-Bold.ttf" in default_fonts()
    monkeypatch.setattr(font_files, "FONTS", (("no_such_package", "a.ttf"),))
    with pytest.raises(FontError, match=r"^no fonts to draw with: no_such_package, which brings some, is not"):
        default_fonts()
