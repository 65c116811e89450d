import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from captcha.data.folders import read_samples, write_corrected
from captcha.data.problems import Problem, format_problems
from captcha.data.samples import DataError, ImageMemory, split
from captcha.reading.vocabulary import Vocabulary

Write = Callable[..., Path]
Draw = Callable[..., NDArray[np.uint8]]


def _problems(folder: Path, vocabulary: Vocabulary | None = None) -> list[Problem]:
    return read_samples(folder, 32, vocabulary)[1]


def _kinds(folder: Path) -> dict[str, tuple[str, bool]]:
    return {problem.file: (problem.kind, problem.fatal) for problem in _problems(folder)}


def test_images_are_read_by_their_names(captcha_folder: Path) -> None:
    samples, problems, facts = read_samples(captcha_folder, 48)
    assert problems == []
    assert [sample.name for sample in samples] == sorted(path.name for path in captcha_folder.iterdir())
    assert [sample.text for sample in samples] == [sample.name[:3] for sample in samples]
    assert {sample.image.shape for sample in samples} == {(48, 144, 3)}
    assert facts.images == facts.texts == 60


def test_a_sample_holds_the_pixels_of_its_file(captcha_folder: Path, draw: Draw) -> None:
    sample = read_samples(captcha_folder, 32)[0][5]
    assert np.array_equal(sample.image, draw(sample.text))


def test_a_sample_knows_where_its_file_lies(captcha_folder: Path) -> None:
    samples, _, _ = read_samples(captcha_folder, 32)
    assert all(sample.folder and (sample.folder / sample.name).is_file() for sample in samples)


def test_extensions_are_known_in_any_case_and_other_files_are_left_alone(tmp_path: Path, write_image: Write) -> None:
    for name in ["a.PNG", "b.Jpg", "c.webp", "d.bmp", "e.GIF"]:
        write_image(tmp_path / name)
    for name in ["README.md", "notes", ".hidden.png", "f.png.part"]:
        (tmp_path / name).write_text("no image")
    (tmp_path / "g.png").mkdir()
    samples, problems, facts = read_samples(tmp_path, 32)
    assert "".join(sample.text for sample in samples) == "abcde"
    assert problems == []
    assert facts.formats == {"PNG": 1, "JPEG": 1, "WebP": 1, "BMP": 1, "GIF": 1}


def test_the_format_is_told_by_content(tmp_path: Path, write_image: Write) -> None:
    write_image(tmp_path / "a.jpg").rename(tmp_path / "a.png")
    assert read_samples(tmp_path, 32)[2].formats == {"JPEG": 1}


def test_labels_are_composed(tmp_path: Path, write_image: Write) -> None:
    write_image(tmp_path / "e\N{COMBINING ACUTE ACCENT}t.png", "et")
    assert read_samples(tmp_path, 32)[0][0].text == "ét"


def test_progress_counts_every_image(captcha_folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    read_samples(captcha_folder, 32, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 60) for done in range(1, 61)]


def test_a_folder_without_images_is_one_clear_line(tmp_path: Path, write_image: Write) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "outer" / "inner" / "a.png")
    for name, message in {
        "missing": "missing: no such folder",
        "file": "file: not a folder",
        "empty": "empty: no images in this folder",
        "outer": "outer: no images in this folder; give one of its sub-folders: inner has 1",
    }.items():
        with pytest.raises(DataError) as raised:
            read_samples(tmp_path / name, 32)
        assert str(raised.value).endswith(message)


def test_all_problems_come_at_once(captcha_folder: Path, write_image: Write) -> None:
    (captcha_folder / "111.png").write_bytes(b"no image")
    (captcha_folder / "114.png").write_bytes((captcha_folder / "000.png").read_bytes()[:-9])
    (captcha_folder / "113.png").touch()
    write_image(captcha_folder / " .png", "empty")
    write_image(captcha_folder / "a\nb.png", "ab")
    shutil.copy(captcha_folder / "007.png", captcha_folder / "999.png")
    shutil.copytree(captcha_folder, captcha_folder / "000")
    assert _kinds(captcha_folder) == {
        "111.png": ("unreadable image", True),
        "114.png": ("unreadable image", True),
        "113.png": ("unreadable image", True),
        " .png": ("empty label", True),
        "a\nb.png": ("no text", True),
        "007.png": ("contradicting labels", True),
        "999.png": ("contradicting labels", True),
        "000/": ("nested copy", False),
    }
    samples, problems, facts = read_samples(captcha_folder, 32)
    assert len(samples) == 59
    assert facts.images == 63
    assert all(len(str(problem).splitlines()) == 1 for problem in problems)
    assert [problem.fatal for problem in problems] == [True] * 7 + [False]  # errors first


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may read every file")
def test_a_file_that_may_not_be_read_is_a_problem(captcha_folder: Path) -> None:
    (captcha_folder / "007.png").chmod(0)
    assert _kinds(captcha_folder) == {"007.png": ("unreadable image", True)}


def test_a_labels_csv_with_a_column_twice_or_that_is_a_folder_is_told(captcha_folder: Path) -> None:
    table = captcha_folder / "labels.csv"
    table.write_text("file,label,label\n007.png,007,008\n")
    with pytest.raises(DataError, match=f"^{table}: has the column label 2 times; leave one of them$"):
        read_samples(captcha_folder, 32)
    table.unlink()
    table.mkdir()
    with pytest.raises(DataError, match=f"^{table}: cannot be read: Is a directory$"):
        read_samples(captcha_folder, 32)


def test_undecodable_file_names_are_a_problem_that_can_be_printed(captcha_folder: Path, write_image: Write) -> None:
    write_image(captcha_folder / "x.png").rename(captcha_folder / os.fsdecode(b"\xff.png"))
    (problem,) = _problems(captcha_folder)
    assert problem.kind == "no text"
    format_problems([problem]).encode()


def test_characters_outside_a_given_vocabulary_are_named(captcha_folder: Path, write_image: Write) -> None:
    write_image(captcha_folder / "1x2y.png")
    (problem,) = _problems(captcha_folder, Vocabulary("0123456789"))
    assert problem.fatal
    assert str(problem) == "1x2y.png: the label '1x2y' has characters outside the vocabulary: 'xy'"


def test_a_copy_with_the_same_label_is_left_out_with_a_warning(tmp_path: Path, write_image: Write) -> None:
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "a.bmp")  # other bytes, the same pixels
    samples, problems, _ = read_samples(tmp_path, 32)
    assert [sample.name for sample in samples] == ["a.bmp"]
    assert problems == [Problem("a.png", "copy", "the same picture as a.bmp, left out", fatal=False)]


def test_pictures_that_differ_only_in_size_are_no_copies(tmp_path: Path) -> None:
    for name, shape in {"a": (32, 48), "b": (48, 32), "c": (32, 32)}.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((*shape, 3), np.uint8))
    assert _problems(tmp_path) == []


def test_a_nested_copy_of_the_folder_is_named_and_not_read(captcha_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(captcha_folder, tmp_path / "copy")
    (tmp_path / "copy").rename(captcha_folder / "captchas")
    samples, problems, _ = read_samples(captcha_folder, 32)
    assert len(samples) == 60
    assert [str(problem) for problem in problems] == ["captchas/: a copy of this folder, not read; the same images: 60"]
    assert not problems[0].fatal


def test_another_sub_folder_with_images_is_named_and_not_read(captcha_folder: Path, write_image: Write) -> None:
    write_image(captcha_folder / "number.bmp", "001")
    write_image(captcha_folder / "test" / "number.bmp", "008")  # the same name and size, other bytes
    for path in captcha_folder.rglob("number.bmp"):
        os.utime(path, (0, 0))
    write_image(captcha_folder / ".cache" / "a.png")
    assert _kinds(captcha_folder) == {"test/": ("sub-folder", False)}


def test_labels_csv_decides_alone(tmp_path: Path, write_image: Write) -> None:
    for name in ["one.png", "two.png", "deep/three.png", "NA.png"]:
        write_image(tmp_path / name)
    rows = 'file,label\none.png,"a,b"\n./deep/three.png,NA\ntwo.png, 007\n'
    (tmp_path / "labels.csv").write_text(rows, encoding="utf-8-sig")
    samples, problems, _ = read_samples(tmp_path, 32)
    texts = {sample.name: sample.text for sample in samples}
    assert texts == {"deep/three.png": "NA", "one.png": "a,b", "two.png": "007"}
    (problem,) = problems
    assert str(problem) == "labels.csv: images without a row, not read: 1, the first NA.png"
    assert not problem.fatal


def test_problems_of_labels_csv_name_their_lines(tmp_path: Path, write_image: Write) -> None:
    outside = write_image(tmp_path / "outside.png")
    folder = tmp_path / "folder"
    for name in ["a.png", "b.png", "c.png"]:
        write_image(folder / name)
    rows = ["file,label", "a.png,one", "nowhere.png,x", "../outside.png,x", f"{outside},x", "sub/../a.png,two"]
    (folder / "labels.csv").write_text("\n".join([*rows, ",x", "b.png", "c.png,"]))
    assert _kinds(folder) == {
        "labels.csv, line 3": ("missing file", True),
        "labels.csv, line 4": ("path outside", True),
        "labels.csv, line 5": ("path outside", True),
        "a.png": ("file listed twice", True),
        "labels.csv, line 7": ("row without a file", True),
        "b.png": ("empty label", True),
        "c.png": ("empty label", True),
    }


def test_rows_without_a_usable_image_leave_the_others_as_they_are(tmp_path: Path, write_image: Write) -> None:
    for name in ["a.png", "b.png", "c.png", "d.png", "e.png"]:
        write_image(tmp_path / name)
    rows = ["a.png,one", "nowhere.png,x", "b.png,two", "./a.png,1", ",x", "c.png,three", "c.png,three", "d.png,4"]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    samples, problems, facts = read_samples(tmp_path, 32, leave_out=True)
    assert [(sample.name, sample.text) for sample in samples] == [("b.png", "two"), ("c.png", "three"), ("d.png", "4")]
    assert {
        problem.file: str(problem) for problem in problems if problem.kind in ("file listed twice", "row repeated")
    } == {
        "a.png": "a.png: line 5 of labels.csv labels it '1', an earlier line 'one'",
        "labels.csv, line 8": "labels.csv, line 8: 'c.png' has a row with this label already",
    }
    assert [problem.file for problem in problems if not problem.fatal] == ["labels.csv", "labels.csv, line 8"]
    assert (facts.images, facts.characters["n"]) == (3, 0)


@pytest.mark.parametrize("listed", [("a.png", "b.png"), ("b.png", "a.png")])
def test_a_copy_of_an_image_that_is_listed_with_two_labels_is_not_trusted_either(
    tmp_path: Path, write_image: Write, listed: tuple[str, str]
) -> None:
    twice, once = listed
    for name in [*listed, "c.png"]:
        write_image(tmp_path / name, "c" if name == "c.png" else "a")
    (tmp_path / "labels.csv").write_text(f"file,label\n{twice},one\n{once},one\n{twice},two\nc.png,c\n")
    samples, problems, _ = read_samples(tmp_path, 32)
    assert [sample.name for sample in samples] == ["c.png"]
    assert {problem.file: problem.kind for problem in problems} == {
        twice: "file listed twice",
        once: "contradicting labels",
    }


def test_a_label_that_says_nothing_contradicts_none(captcha_folder: Path) -> None:
    shutil.copy(captcha_folder / "007.png", captcha_folder / " .png")
    samples, problems, _ = read_samples(captcha_folder, 32)
    assert [str(problem) for problem in problems] == [" .png: the label is empty"]
    assert len(samples) == 60


def test_the_facts_can_be_those_of_what_is_left(captcha_folder: Path, write_image: Write) -> None:
    shutil.copy(captcha_folder / "007.png", captcha_folder / "9999.png")
    write_image(captcha_folder / " .gif", "x", width=200)
    shutil.copy(captcha_folder / "014.png", captcha_folder / "copy.png")  # contradicts, too
    assert read_samples(captcha_folder, 32)[2].images == 63
    facts = read_samples(captcha_folder, 32, leave_out=True)[2]
    assert (facts.images, facts.formats, facts.lengths) == (58, {"PNG": 58}, {3: 58})
    assert list(facts.sizes) == [(96, 32)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "needs the columns file,label"),
        (b"file;label\na.png;x\n", "needs the columns file,label"),
        (b"file,label\n", "names no image"),
        (b"file,label\na.png,\xff\n", "cannot be read"),
        (b'file,label\na.png,"x\n', "cannot be read"),
    ],
)
def test_a_labels_csv_of_another_form_is_one_clear_line(
    tmp_path: Path, write_image: Write, content: bytes, message: str
) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"labels\.csv: {message}"):
        read_samples(tmp_path, 32)


def test_corrected_labels_stand_beside_the_old_ones_and_are_read_in_their_place(
    tmp_path: Path, write_image: Write
) -> None:
    for name in ["a.png", "b.png", "c.png"]:
        write_image(tmp_path / name)
    old = "label,file,by\none,./a.png,me\ntwo,b.png,me\ntwo,nowhere.png\nthree,c.png,me\n"
    (tmp_path / "labels.csv").write_text(old, encoding="utf-8-sig")
    corrected = write_corrected(tmp_path, {"a.png": "1", "c.png": 'th"r,ee'})
    assert corrected == tmp_path / "labels-corrected.csv"
    assert (tmp_path / "labels.csv").read_text(encoding="utf-8-sig") == old
    written = 'label,file,by\r\n1,./a.png,me\r\ntwo,b.png,me\r\ntwo,nowhere.png\r\n"th""r,ee",c.png,me\r\n'
    assert corrected.read_bytes().decode() == written
    with pytest.raises(FileExistsError, match=r"labels-corrected\.csv is there already: move it away first"):
        write_corrected(tmp_path, {})
    corrected.replace(tmp_path / "labels.csv")
    samples, problems, _ = read_samples(tmp_path, 32)
    assert {sample.name: sample.text for sample in samples} == {"a.png": "1", "b.png": "two", "c.png": 'th"r,ee'}
    assert [problem.kind for problem in problems] == ["missing file"]  # as before


def test_images_named_by_their_label_get_a_table_of_corrected_ones(captcha_folder: Path) -> None:
    before = {sample.name: sample.text for sample in read_samples(captcha_folder, 32)[0]}
    write_corrected(captcha_folder, {"007.png": "1", "014.png": "4 1"}).replace(captcha_folder / "labels.csv")
    samples, problems, _ = read_samples(captcha_folder, 32)
    assert {sample.name: sample.text for sample in samples} == before | {"007.png": "1", "014.png": "4 1"}
    assert problems == []


@pytest.mark.skipif("CAPTCHA_DATA" not in os.environ, reason="CAPTCHA_DATA names no folder of real data sets")
@pytest.mark.parametrize(
    ("name", "images", "characters", "lengths"),
    [("captcha-v2", 843, 19, {5}), ("captcha-lepture", 800, 36, {4, 5, 6}), ("captcha-svg", 500, 55, {4})],
)
def test_real_folders_are_read_without_a_problem(name: str, images: int, characters: int, lengths: set[int]) -> None:
    samples, problems, facts = read_samples(Path(os.environ["CAPTCHA_DATA"]) / name, 64)
    assert problems == []
    assert (len(samples), len(facts.characters), set(facts.lengths)) == (images, characters, lengths)
    parts = split(samples, 0)
    assert min(map(len, (parts.train, parts.validation, parts.test))) > images / 20


def test_images_beyond_the_memory_are_read_anew_and_are_the_same(captcha_folder: Path) -> None:
    whole, _, _ = read_samples(captcha_folder, 32)
    megabytes = 25.5 * whole[0].image.nbytes / 1e6
    bounded, problems, facts = read_samples(captcha_folder, 32, memory=ImageMemory(megabytes))
    assert [sample.kept for sample in bounded] == [True] * 25 + [False] * 35
    assert all(sample.kept for sample in whole)
    for ours, theirs in zip(bounded, whole, strict=True):
        assert (ours.name, ours.text, ours.digest) == (theirs.name, theirs.text, theirs.digest)
        assert np.array_equal(ours.image, theirs.image)
    assert (problems, facts.images) == ([], 60)
