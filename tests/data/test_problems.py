from collections.abc import Callable
from pathlib import Path

import numpy as np

from captcha.data.folders import read_samples
from captcha.data.problems import Problem, format_facts, format_problems, leaks
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


def test_facts_of_nothing_readable_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert format_facts(read_samples(tmp_path, 32)[2]) == "images      none readable"


def test_pictures_trained_on_leak_into_a_fixed_test_set() -> None:
    train = [sample("a.png", "a", 1), sample("b.png", "b", 2)]
    (problem,) = leaks(train, [sample("c.png", "c", 3), sample("x.png", "b", 2)])
    assert str(problem) == "x.png: the same picture as b.png of the training data"
    (problem,) = leaks(train, [sample("x.png", "b", 2)], "validation")
    assert str(problem) == "x.png: the same picture as b.png of the validation data"


def test_a_label_that_cannot_align_with_the_frames_is_named(tmp_path: Path, write_image: Write) -> None:
    write_image(tmp_path / "1234567.png", width=20, height=32)  # padded to 32 columns: 8 frames of 4
    write_image(tmp_path / "1122345.png", width=20, height=32)
    (problem,) = read_samples(tmp_path, 32)[1]
    assert problem.fatal
    assert str(problem) == "1122345.png: the label '1122345' needs 9 frames, the image's width gives 8"
