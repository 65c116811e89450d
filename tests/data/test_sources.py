import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from captcha.data import sources as module
from captcha.data.problems import Problem
from captcha.data.samples import DataError, ImageMemory, Sample, digest, split
from captcha.data.sources import Drawn, DrawnSamples, Folder, Sources, parse_folder, parse_source
from captcha.drawing.fonts import default_fonts
from captcha.drawing.rendering import draw
from captcha.drawing.styles import Style, StyleError, load_style

Spoil = Callable[[Path, Path], Path]

OUTLINED = load_style("outlined")
FEW = Style(texts=("one", "two", "six", "ten"))
FONTS = default_fonts()


def samples(style: Style = OUTLINED, height: int = 32, seed: int = 0, without: tuple[str, ...] = ()) -> DrawnSamples:
    return DrawnSamples(style, FONTS, height, seed, frozenset(without))


def identities(batch: list[Sample]) -> list[tuple[str, str, str]]:
    return [(sample.name, sample.text, sample.digest) for sample in batch]


def test_what_is_written_is_a_folder_or_a_style(captcha_folder: Path, tmp_path: Path) -> None:
    folder = parse_source(str(captcha_folder))
    assert folder == Folder(str(captcha_folder))
    assert (folder.short_name, folder.written) == ("captchas", str(captcha_folder))
    style = parse_source("draw:outlined")
    assert style == Drawn("outlined", OUTLINED)
    assert (style.short_name, style.written) == ("draw:outlined", "draw:outlined")
    for missing, line in ((tmp_path / "draw:me", "no such folder"), (captcha_folder / "000.png", "not a folder")):
        with pytest.raises(DataError, match=f"^{line}: {missing}$"):
            parse_source(str(missing))
    with pytest.raises(StyleError, match="did you mean 'kaptcha'"):
        parse_source("draw:captcha")
    cure = "captcha draw DIR --style kaptcha draws one"
    with pytest.raises(StyleError, match=f"^draw:kaptcha is a style, and a folder is needed: {cure}$"):
        parse_folder("draw:kaptcha")


def test_samples_are_the_drawn_images_resized_to_the_models_height() -> None:
    drawn = draw(OUTLINED, 4, seed=3, fonts=FONTS)
    same_height = samples(height=OUTLINED.height, seed=3)
    for i, (text, image) in enumerate(drawn):
        assert same_height[i].text == text
        assert (same_height[i].image == image).all()
    assert samples(height=32)[0].image.shape == (32, OUTLINED.width * 32 // OUTLINED.height, 3)


def test_one_seed_gives_the_same_samples_and_another_seed_others() -> None:
    first, same, other = (identities([samples(seed=seed)[i] for i in range(5)]) for seed in (0, 0, 1))
    assert first == same
    assert not set(first) & set(other)


def test_texts_held_back_are_never_drawn_and_the_others_as_before() -> None:
    free, barred = samples(FEW), samples(FEW, without=("one", "ten"))
    texts = [barred[i].text for i in range(40)]
    assert set(texts) == {"two", "six"}
    for i in range(40):
        if free[i].text not in ("one", "ten"):
            assert free[i].digest == barred[i].digest


def test_a_style_whose_texts_are_all_held_back_is_one_line() -> None:
    with pytest.raises(StyleError, match=r"^nearly all texts that the style draws are held back [^\n]*$"):
        samples(FEW, without=FEW.texts)[0]


def test_an_image_that_chooses_the_epoch_cannot_be_tested_on(
    captcha_folder: Path, write_image: Callable[..., Path]
) -> None:
    other = write_image(captcha_folder.parent / "other" / "abc.png").parent
    for validation, test in ((str(other), str(other)), (None, str(captcha_folder)), (str(captcha_folder), None)):
        with pytest.raises(DataError, match="in the data, see above"):
            Sources.parse(str(captcha_folder), validation, test, None).split(32, None, 0, ImageMemory(9))
    # One image of the validation part alone, which is split off the data.
    usual = Sources.parse(str(captcha_folder), None, None, None).split(32, None, 0, ImageMemory(9))
    shutil.copy(captcha_folder / usual.validation[0].name, other)
    with pytest.raises(DataError, match="1 problem in the data, see above"):
        Sources.parse(str(captcha_folder), None, str(other), None).split(32, None, 0, ImageMemory(9))


def test_a_drawn_validation_and_a_drawn_test_part_have_images_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWN_IMAGES", 60)
    split = Sources.parse("draw:outlined", "draw:outlined", "draw:outlined", None).split(32, None, 0, ImageMemory(9))
    parts = [{sample.digest for sample in part} for part in (split.train, split.validation, split.test)]
    assert [len(part) for part in parts] == [60, 60, 60]
    assert len(set.union(*parts)) == 180


# Files that are left out for their problems


def test_files_with_problems_are_refused_and_the_message_says_how_to_leave_them_out(
    captcha_folder: Path, spoil: Spoil, tmp_path: Path
) -> None:
    spoilt = Folder(str(spoil(captcha_folder, tmp_path / "spoilt")))
    line = "4 problems in the data, see above; mend them, or leave these images out with --problems leave-out"
    with pytest.raises(DataError, match=f"^{line}$"):
        spoilt.samples(32)


def test_files_with_problems_are_left_out_named_and_counted(
    captcha_folder: Path, spoil: Spoil, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt = spoil(captcha_folder, tmp_path / "spoilt")
    shutil.copy(spoilt / "007.png", spoilt / "007.webp")  # a copy, which is left out in any case
    left_out: list[Problem] = []
    with caplog.at_level("INFO", "captcha"):
        samples = Folder(f"{spoilt}/").samples(32, left_out=left_out)
    assert digest(samples) == digest(Folder(str(captcha_folder)).samples(32))
    assert sorted((problem.file, problem.kind) for problem in left_out) == [
        (f"{spoilt}/ .png", "empty label"),
        (f"{spoilt}/one.png", "contradicting labels"),
        (f"{spoilt}/torn.png", "unreadable image"),
        (f"{spoilt}/two.png", "contradicting labels"),
    ]
    lines = "\n".join(caplog.messages).splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["left out"] * 4 + ["warning"]
    counted = "left out 4 of 65 images: 2 contradicting labels, 1 empty label, 1 unreadable image"
    assert lines[-1] == counted


def test_a_file_that_is_left_out_moves_no_other(captcha_folder: Path, spoil: Spoil, tmp_path: Path) -> None:
    spoilt = spoil(captcha_folder, tmp_path / "spoilt")
    parts = Sources.parse(str(spoilt), None, None, None).split(32, None, 3, ImageMemory(9), [])
    assert parts.digest == split(Folder(str(captcha_folder)).samples(32), 3).digest


def test_of_a_picture_that_is_trained_on_and_held_back_the_training_image_is_left_out(
    captcha_folder: Path, tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    test = tmp_path / "test"
    for name in ("007", "777", "014"):
        write_image(test / f"{name}.png")
    (test / "014.png").rename(test / "000.png")  # labelled otherwise than the training image
    validation = write_image(tmp_path / "validation" / "999.png").parent
    sources = Sources.parse(str(captcha_folder), str(validation), str(test), None)
    with pytest.raises(DataError, match=r"^2 problems in the data"):
        sources.split(32, None, 0, ImageMemory(9))
    left_out: list[Problem] = []
    parts = sources.split(32, None, 0, ImageMemory(9), left_out)
    assert [sample.name for sample in parts.test] == ["000.png", "007.png", "777.png"]
    kept = sorted({path.name for path in captcha_folder.iterdir()} - {"007.png", "014.png"})
    assert [sample.name for sample in parts.train] == kept
    assert [(problem.file, problem.kind) for problem in left_out] == [
        (f"{captcha_folder}/007.png", "leak"),
        (f"{captcha_folder}/014.png", "leak"),
    ]


def test_a_folder_of_which_nothing_is_left_is_refused(captcha_folder: Path, tmp_path: Path) -> None:
    sources = Sources.parse(str(captcha_folder), str(captcha_folder), str(captcha_folder), None)
    with pytest.raises(DataError, match="captchas: every image is held back for validation or the test, see above"):
        sources.split(32, None, 0, ImageMemory(9), [])
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.png").touch()
    for labelled in (True, False):
        with pytest.raises(DataError, match="torn: no image without a problem is left, see above"):
            Folder(str(tmp_path / "torn")).samples(32, labelled=labelled, left_out=[])


@pytest.mark.parametrize("table", ["name,text\n007.png,007\n", "file,label\nabsent.png,a\n"])
def test_a_table_that_is_of_no_use_is_refused_though_problems_are_left_out(captcha_folder: Path, table: str) -> None:
    (captcha_folder / "labels.csv").write_text(table)
    with pytest.raises(DataError, match=r"labels\.csv: (needs the columns|names no image)"):
        Folder(str(captcha_folder)).samples(32, left_out=[])


def test_images_without_labels_are_left_out_where_they_are_unreadable_alone(
    captcha_folder: Path, spoil: Spoil, tmp_path: Path
) -> None:
    spoilt = Folder(str(spoil(captcha_folder, tmp_path / "spoilt")))
    left_out: list[Problem] = []
    samples = spoilt.samples(32, labelled=False, left_out=left_out)
    assert [problem.kind for problem in left_out] == ["unreadable image"]
    assert len(samples) == 62  # " .png" and one.png, whose copy is two.png, are images like any other
