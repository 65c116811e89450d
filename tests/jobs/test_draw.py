import csv
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from captcha.cli import app as cli
from captcha.data import sources
from captcha.data.folders import read_samples, write_folder
from captcha.data.samples import ImageMemory
from captcha.data.sources import DRAWN_IMAGES, REDRAWN, REDRAWS, Sources, parse_style
from captcha.drawing import fonts as font_files
from captcha.drawing.fonts import Pixels, default_fonts
from captcha.drawing.rendering import draw, draw_one
from captcha.drawing.sheet import SHEET_IMAGES
from captcha.drawing.styles import STYLES, load_style
from captcha.jobs.draw import some_images_in


def run(*arguments: object) -> int:
    """Return the exit code of `captcha` with these arguments."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture(autouse=True)
def fonts(monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ...]:
    """Two fonts in place of all."""
    monkeypatch.setattr(font_files, "FONTS", font_files.FONTS[-2:])
    return default_fonts()


def in_a_folder(style: str, count: int, seed: int, fonts: Sequence[Path]) -> list[tuple[str, Pixels]]:
    """Return the texts and images that `captcha draw` writes: those from number 3 · 2³⁸ on."""
    return [draw_one(load_style(style), seed, (3 << 38) + number, fonts) for number in range(count)]


def pixels(path: Path) -> Pixels:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return np.asarray(image, np.uint8)


def test_a_drawn_folder_holds_the_images_under_their_texts_and_passes_the_check(
    tmp_path: Path, fonts: tuple[Path, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert run("draw", out, "--count", 12, "--seed", 5) == 0
    expected = in_a_folder("kaptcha", 12, 5, fonts)
    assert {path.name for path in out.iterdir()} == {f"{text}.png" for text, _ in expected}
    for text, image in expected:
        assert np.array_equal(pixels(out / f"{text}.png"), image)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert run("check", out) == 0
    assert "12 with 12 different labels" in capsys.readouterr().out


@pytest.mark.parametrize("texts", [["ab", "AB"], ["ab"], ["1+1=", "3/4"], ["..", "ab"]])
def test_texts_that_cannot_be_names_stand_in_a_table(tmp_path: Path, fonts: tuple[Path, ...], texts: list[str]) -> None:
    style = tmp_path / "mine.toml"
    style.write_text(f"texts = {texts}\n")
    out = tmp_path / "out"
    assert run("draw", out, "--count", 6, "--style", style) == 0
    with (out / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6
    assert {row["label"] for row in rows} <= set(texts)
    for row, (text, image) in zip(rows, in_a_folder(str(style), 6, 0, fonts), strict=True):
        assert row["label"] == text
        assert np.array_equal(pixels(out / row["file"]), image)
    assert run("check", out) == 0


def test_no_image_of_a_folder_is_one_that_a_training_draws(
    tmp_path: Path, fonts: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "DRAWN_IMAGES", 150)
    assert run("draw", tmp_path / "out", "--count", 150) == 0
    drawn = {sample.digest for sample in read_samples(tmp_path / "out", 32)[0]}
    assert len(drawn) == 150
    parts = Sources.parse("draw:kaptcha", "draw:kaptcha", "draw:kaptcha", None).split(32, None, 0, ImageMemory(9))
    learned = parse_style("kaptcha").samples(32, seed=0, without={sample.text for sample in parts.test})
    trained_on = {learned[number].digest for number in range(400)}
    assert len(trained_on) == 400
    for seen in (parts.train, parts.validation, parts.test):
        assert len(seen) == 150
        assert not drawn & {sample.digest for sample in seen}
    assert not drawn & trained_on


def test_the_numbers_of_folders_trainings_and_parts_never_meet() -> None:
    first, folders = [0, sources.FIRST_VALIDATION, sources.FIRST_TEST], sources.FIRST_DRAWN_FOLDER
    spans = [range(start, start + (1 << 38)) for start in (*first, folders)]  # more images than anyone draws
    assert DRAWN_IMAGES < 1 << 38
    assert all(one.stop <= other.start for one, other in pairwise(spans))
    assert spans[-1].stop <= REDRAWN  # what is drawn in place of a text held back stays within its own span
    # NumPy takes seed and number as words of 32 bits, so neither may reach into the other's.
    assert (REDRAWS * REDRAWN).bit_length() <= 64
    assert np.random.default_rng([0, 1 + (5 << 32)]).integers(1 << 40) == np.random.default_rng([1 << 32, 5]).integers(
        1 << 40
    )


def test_a_seed_that_would_reach_into_the_numbers_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("draw", tmp_path / "out", "--count", 1, "--seed", 2**32) == 2
    assert "'--seed': Input should be less than or equal to 4294967295" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_filled_and_a_filled_one_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert run("draw", out, "--count", 2) == 0
    before = sorted(out.iterdir())
    assert run("draw", out, "--count", 2, "--seed", 1) == 2
    assert sorted(out.iterdir()) == before
    error = capsys.readouterr().err
    assert error == f"captcha: {out} is not an empty folder: name a new one\n"


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    assert run("draw", out, "--count", 1) == 2
    assert out.read_text() == "mine"


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = draw("kaptcha", 1, seed=0)[0]

    def broken() -> object:
        yield first
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(out, broken())  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('texts = ["mmmmmmmmmmmmmm"]\nwidth = 60', "the text 'mmmmmmmmmmmmmm' does not fit: it needs a width of"),
        ("strok = 3", "mine.toml: no setting 'strok': did you mean 'stroke'?"),
        ('characters = "中"', "no font to draw with: DejaVuSans-Bold.ttf lacks 中; DejaVuSans.ttf lacks 中"),
    ],
)
def test_a_style_that_cannot_be_drawn_ends_in_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    style = tmp_path / "mine.toml"
    style.write_text(content, "utf-8")
    assert run("draw", tmp_path / "out", "--style", style, "--sheet", tmp_path / "sheet.png") == 2
    error = capsys.readouterr().err
    assert error.startswith("captcha: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [style]


def test_a_sheet_shows_the_drawn_images_and_those_beside_them(tmp_path: Path, fonts: tuple[Path, ...]) -> None:
    real = tmp_path / "real"
    real.mkdir()
    grey = np.full((100, 300, 3), 77, np.uint8)
    for number in range(3):
        cv2.imwrite(str(real / f"{number}.png"), grey)
    sheet = tmp_path / "sheet.png"
    assert run("draw", tmp_path / "out", "--count", 4, "--sheet", sheet, "--beside", real) == 0
    page = pixels(sheet)
    for _, image in in_a_folder("kaptcha", 4, 0, fonts):
        found = cv2.matchTemplate(page, image, cv2.TM_SQDIFF)
        top, left = divmod(int(found.argmin()), found.shape[1])
        assert np.array_equal(page[top : top + 50, left : left + 200], image)
        assert left + 200 <= 3 * 206
    assert (page[:, 3 * 206 :] == 77).all(axis=2).sum() == 3 * 50 * 150  # as high as the drawn ones


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder here that even the superuser may not write")
def test_a_sheet_that_cannot_be_written_is_told_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for sheet, line in (
        (Path("/proc/self/sheet.png"), "/proc/self/sheet.png cannot be written: "),
        (tmp_path / "folder.png", f"{tmp_path / 'folder.png'} is a folder: name a file"),
    ):
        (tmp_path / "folder.png").mkdir(exist_ok=True)
        assert run("draw", tmp_path / "out", "--count", 4, "--sheet", sheet) == 2
        assert re.fullmatch(f"captcha: {line}[^\n]*\n", capsys.readouterr().err)
        assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]
    assert run("draw", "/proc/self/out", "--count", 1) == 2
    assert re.fullmatch("captcha: /proc/self/out cannot be made: [^\n]*\n", capsys.readouterr().err)


def test_a_sheet_shows_images_from_all_over_a_folder(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number:03}.png").touch()
    shown = [int(path.stem) for path in some_images_in(tmp_path)]
    assert 30 <= len(shown) <= SHEET_IMAGES
    assert shown[0] == 0
    assert shown[-1] > 95


def test_faults_in_the_options_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.png").write_text("no image")
    for arguments, message in [
        (("--style", "kaptch"), "no drawing style 'kaptch': did you mean 'kaptcha'?"),
        (("--style", tmp_path / "gone.toml"), "No such file or directory"),
        (("--fonts", empty), f"no fonts below {empty}"),
        (("--beside", empty), "--beside needs --sheet"),
        (("--beside", empty, "--sheet", sheet), f"no images in {empty}"),
        (("--beside", notes, "--sheet", sheet), f"{notes / 'a.png'}: not an image"),
        (("--sheet", tmp_path / "sheet.gif"), "--sheet must be a .png file in an existing folder"),
    ]:
        assert run("draw", out, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "notes"]


def test_fonts_below_a_folder_are_used_and_those_left_out_are_named(
    tmp_path: Path, fonts: tuple[Path, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "fonts" / "below"
    folder.mkdir(parents=True)
    few, whole = (folder / name for name in ("few.ttf", "whole.OTF"))
    for copy, font in zip((few, whole), fonts, strict=True):
        copy.write_bytes(font.read_bytes())
    known = font_files._characters
    monkeypatch.setattr(font_files, "_characters", lambda font: known(font) - ({"w"} if font == few else set()))
    assert run("draw", tmp_path / "out", "--count", 3, "--fonts", tmp_path / "fonts") == 0
    assert capsys.readouterr().err == f"left out: {few.name} (lacks w)\n"
    for text, image in in_a_folder("kaptcha", 3, 0, [whole]):
        assert np.array_equal(pixels(tmp_path / "out" / f"{text}.png"), image)


def test_help_names_every_built_in_style_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from captcha.cli import app as cli\n"
        "try: cli.main(['draw', '--help'])\n"
        "except SystemExit: print(*(name for name in ('cv2', 'numpy', 'tqdm', 'torch') if name in sys.modules))"
    )
    root = Path(cli.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""  # of the heavy modules none
    assert all(name in done.stdout for name in STYLES)


def test_what_a_killed_drawing_left_behind_does_not_stand_in_the_way(tmp_path: Path) -> None:
    left_behind = tmp_path / ".out.unfinished"
    left_behind.mkdir()
    (left_behind / "000000.drawn.png").write_bytes(b"")
    write_folder(tmp_path / "out", draw("outlined", 2, seed=0))
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert not left_behind.exists()
