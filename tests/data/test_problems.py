from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from captcha.data.folders import read_samples
from captcha.data.problems import Problem, copies, format_facts, format_left_out, format_problems, leaks
from captcha.data.samples import Sample

Write = Callable[..., Path]


def sample(name: str, text: str, shade: int) -> Sample:
    return Sample(name, text, np.full((2, 3, 3), shade, np.uint8))


def test_of_many_problems_the_first_twenty_are_shown_errors_first() -> None:
    problems = [Problem(f"{n}.png", "copy", "left out", fatal=False) for n in range(25)]
    problems += [Problem("x.png", "unreadable image", "the file is empty", fatal=True)]
    lines = format_problems(problems).splitlines()
    assert lines[0] == "error: x.png: the file is empty"
    assert lines[1] == "warning: 0.png: left out"
    assert len(lines) == 22
    assert lines[-1] == "warning: … and 5 more: copy"


def test_files_that_are_left_out_are_named_so_and_counted_once_each() -> None:
    problems = [
        Problem("a.png", "contradicting labels", "x", fatal=True),
        Problem("a.png", "outside the vocabulary", "x", fatal=True),
        Problem("b.png", "unreadable image", "the file is empty", fatal=True),
        Problem("c.png", "unreadable image", "the file is empty", fatal=True),
        Problem("labels.csv, line 3", "missing file", "x", fatal=True),
        Problem("d.png", "copy", "left out", fatal=False),
        Problem("deep/", "sub-folder", "not read", fatal=False),
    ]
    lines = format_problems(problems, leave_out=True).splitlines()
    assert lines[2] == "left out: b.png: the file is empty"
    assert [line.split(":")[0] for line in lines] == ["left out"] * 5 + ["warning"] * 2
    # Four files and rows, the copy, and ten images without a problem.
    counted = "left out 4 of 15 images: 2 unreadable image, 1 contradicting labels, 1 missing file"
    assert format_left_out(problems, 10) == counted
    assert format_left_out(problems[5:], 10) == ""


@pytest.mark.parametrize(
    ("texts", "contradicting", "copied"),
    [
        ("aa", "", "1"),
        ("ab", "01", ""),
        ("aaab", "0123", ""),
        ("abac", "0123", ""),
        ("baaa", "0123", ""),
    ],
)
def test_no_copy_of_a_picture_with_two_labels_is_trusted(texts: str, contradicting: str, copied: str) -> None:
    labelled = dict(zip("0123", texts, strict=False))
    problems = copies(labelled | {"x": "a"}, dict.fromkeys(labelled, "this picture") | {"x": "another"})
    fatal = {problem.file: problem.message for problem in problems if problem.fatal}
    assert "".join(fatal) == contradicting
    assert "".join(problem.file for problem in problems if not problem.fatal) == copied
    for name, message in fatal.items():
        twin = message.removeprefix("the same picture as ")[0]
        assert labelled[twin] != labelled[name]
        assert message.endswith(f"but labelled {labelled[name]!r} here and {labelled[twin]!r} there")


def test_facts_count_what_a_person_wants(tmp_path: Path, write_image: Write) -> None:
    write_image(tmp_path / "aab.png", width=100, height=40)
    write_image(tmp_path / "b .png", width=60, height=30)
    write_image(tmp_path / "abab.jpg", width=80, height=50)
    facts = read_samples(tmp_path, 32)[2]
    assert (facts.images, facts.texts, facts.with_repeats) == (3, 3, 1)
    assert facts.sizes == {(100, 40): 1, (60, 30): 1, (80, 50): 1}
    assert facts.lengths == {3: 1, 2: 1, 4: 1}
    assert facts.characters == {"a": 4, "b": 4, " ": 1}
    assert format_facts(facts).splitlines() == [
        "images      3 with 3 different labels",
        "formats     PNG 2, JPEG 1",
        "sizes       3 different ones; median 80 x 40 pixels, widths 60 to 100, heights 30 to 50",
        "lengths     2 characters 1, 3 characters 1, 4 characters 1",
        "repeats     33.3% of labels have a character twice in a row",
        "characters  3, from the most to the least frequent",
        "               a 4        b 4      ' ' 1",
    ]


def test_a_folder_with_nothing_readable_has_no_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert format_facts(read_samples(tmp_path, 32)[2]) == "images      none"


def test_training_images_whose_picture_is_held_back_are_leaks() -> None:
    train = [sample("a.png", "a", 1), sample("b.png", "b", 2)]
    (problem,) = leaks(train, [sample("c.png", "c", 3), sample("x.png", "b", 2)])
    assert str(problem) == "b.png: the same picture as x.png, which is held back"


def test_a_label_that_cannot_align_with_the_frames_is_named(tmp_path: Path, write_image: Write) -> None:
    write_image(tmp_path / "1234567.png", width=20, height=32)  # padded to 32 columns: 8 frames of 4
    write_image(tmp_path / "1122345.png", width=20, height=32)
    (problem,) = read_samples(tmp_path, 32)[1]
    assert problem.fatal
    assert str(problem) == "1122345.png: the label '1122345' needs 9 frames, the image's width gives 8"
