import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pytest

from captcha.data.samples import Sample
from captcha.evaluation.plots import mistake_grid, prediction_grid
from captcha.evaluation.results import Evaluation
from captcha.reading.recognizer import Reading
from captcha.tracking import records
from captcha.tracking.records import log_test
from captcha.tracking.runs import tracked_run

# What a table takes for a number, a date or nothing, where it is not told otherwise.
LOOKS_LIKE_MORE = ["00042", "244e2", "1e5", "nan", "None", "inf", "true", "12345678901234567890", "1_0", ""]


def made(readings: Sequence[tuple[str, str, float]], folder: Path | None = None) -> Evaluation:
    """An evaluation of (label, prediction, confidence); image i is a plane of the grey 20 + i, 24 × 16 pixels."""
    images = [np.full((16, 24, 3), 20 + i, np.uint8) for i in range(len(readings))]
    samples = [
        Sample(f"{i}.png", label, image, folder=folder)
        for i, ((label, _, _), image) in enumerate(zip(readings, images, strict=True))
    ]
    return Evaluation(samples, [Reading(read, sure, [sure] * len(read)) for _, read, sure in readings], 1.0)


MIXED = made([("ab", "ab", 0.9), ("cd", "cx", 0.3), ("ef", "ef", 0.4), ("gh", "xh", 0.8)])


class Logged:
    """What a test has left in a run."""

    def __init__(self, evaluation: Evaluation, prefix: str = "test") -> None:
        with tracked_run("a test") as run:
            log_test(evaluation, prefix)
        self.run_id: str = run.info.run_id
        self.path = Path(mlflow.artifacts.download_artifacts(run_id=self.run_id))

    def columns(self, table: str) -> list[str]:
        columns: list[str] = json.loads((self.path / table).read_text())["columns"]
        return columns

    def column(self, table: str, name: str) -> list[object]:
        content = json.loads((self.path / table).read_text())
        return [row[content["columns"].index(name)] for row in content["data"]]

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def mixed(tracking: Path) -> Logged:
    return Logged(MIXED)


def test_mistakes_come_first_the_confident_ones_at_the_top_then_what_is_nearly_wrong(mixed: Logged) -> None:
    assert mixed.column("test_predictions.json", "label") == ['"gh"', '"cd"', '"ef"', '"ab"']
    assert mixed.column("test_predictions.json", "prediction") == ['"xh"', '"cx"', '"ef"', '"ab"']
    assert mixed.column("test_predictions.json", "right") == [False, False, True, True]
    assert mixed.column("test_predictions.json", "confidence") == [0.8, 0.3, 0.4, 0.9]


def test_each_row_shows_its_own_image(mixed: Logged) -> None:
    shades = []
    for cell in mixed.column("test_predictions.json", "image"):
        assert isinstance(cell, dict)
        assert cell["type"] == "image"
        assert cell["filepath"] == cell["compressed_filepath"]
        image = cv2.imread(str(mixed.path / cell["filepath"]))
        assert image is not None
        assert image.shape == (16, 24, 3)
        shades.append(round(float(image.mean()) - 20))
    assert shades == [3, 1, 2, 0]


def test_an_image_too_wide_for_a_file_is_shown_smaller() -> None:
    sample = Sample("a.png", "a", np.zeros((16, 20_000, 3), np.uint8))
    [cell] = Logged(Evaluation([sample], [Reading("a", 0.5, [0.5])], 1.0)).column("test_predictions.json", "image")
    assert isinstance(cell, dict)
    assert cell["filepath"] == "table_images/test_predictions/000.webp"


def test_a_cell_with_an_image_is_what_mlflow_makes_of_an_image(mixed: Logged) -> None:
    with tracked_run("a table") as run:
        mlflow.log_table({"image": [mlflow.Image(np.zeros((2, 3, 3), np.uint8))]}, "table.json")
    [theirs] = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/table.json")["data"][0]
    [ours, *_] = mixed.column("test_predictions.json", "image")
    assert isinstance(ours, dict)
    assert theirs["type"] == ours["type"]
    assert theirs.keys() == ours.keys()
    assert theirs["filepath"].startswith("table_images/table/")
    assert ours["filepath"].startswith("table_images/test_predictions/")


def test_only_the_first_rows_of_a_long_table_bring_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "THUMBNAILS", 3)
    logged = Logged(made([("a", "a", 1 - i / 50) for i in range(40)] + [("a", "b", 0.5)]))
    assert len(logged.column("test_predictions.json", "image")) == 41
    assert logged.files() == [
        *(f"table_images/test_predictions/{name}.webp" for name in ("000", "001", "002", "none")),
        "test.json",
        "test_confidence.png",
        "test_confusion.json",
        "test_confusion.png",
        "test_mistakes.png",
        "test_predictions.json",
        "test_predictions.png",
    ]
    for cell in logged.column("test_predictions.json", "image"):
        assert isinstance(cell, dict)
        assert (logged.path / cell["filepath"]).is_file()


@pytest.mark.parametrize("labels", [LOOKS_LIKE_MORE, ["00042", "42"], ["244e2", "1e5"], ["nan", "inf"], ["1", "2"]])
def test_texts_come_back_as_they_are_whatever_they_look_like(labels: list[str]) -> None:
    logged = Logged(made([(label, label, i / 100) for i, label in enumerate(labels)]))
    for name in ("label", "prediction"):
        table = mlflow.load_table("test_predictions.json", [logged.run_id])
        assert [json.loads(text) for text in table[name]] == labels
    # The comparison of tables shows what JavaScript's JSON makes of a cell, the run's own table the cell itself.
    for cell in logged.column("test_predictions.json", "label"):
        assert isinstance(cell, str)
        assert json.dumps(json.loads(cell)) == cell


def test_letters_of_any_script_and_quotes_stay_readable() -> None:
    labels = ["中文", "é", 'a"b', "\\", "ไทย"]
    logged = Logged(made([(label, label, i / 100) for i, label in enumerate(labels)]))
    assert logged.column("test_predictions.json", "label") == ['"中文"', '"é"', '"a\\"b"', '"\\\\"', '"ไทย"']


def test_images_of_a_folder_are_named_by_a_path_that_opens_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    logged = Logged(made([("a", "a", 0.1), ("b", "b", 0.2)], Path("../images")))
    assert logged.column("test_predictions.json", "file") == [str(tmp_path / "images" / f"{i}.png") for i in (0, 1)]


def test_drawn_images_name_no_file_that_exists_nowhere(mixed: Logged) -> None:
    assert mixed.columns("test_predictions.json") == [
        *("image", "label", "prediction", "right", "confidence", "probability", "accepted", "drawn")
    ]
    assert mixed.column("test_predictions.json", "drawn") == ["3.png", "1.png", "2.png", "0.png"]


def test_confusions_come_before_what_was_read_rightly_the_most_frequent_first() -> None:
    logged = Logged(made([("aab", "aac", 0.5), ("ab", "ac", 0.5), ("ax", "a", 0.5), ("7", "7", 0.5)]))
    columns = [logged.column("test_confusion.json", name) for name in ("label", "prediction", "count")]
    assert list(zip(*columns, strict=True)) == [
        ('"b"', '"c"', 2),
        ('"x"', '""', 1),
        ('"a"', '"a"', 4),
        ('"7"', '"7"', 1),
    ]


def test_the_pictures_are_of_the_mistakes_and_of_the_first_images(mixed: Logged) -> None:
    for name, picture in (("test_mistakes.png", mistake_grid(MIXED)), ("test_predictions.png", prediction_grid(MIXED))):
        image = cv2.imread(str(mixed.path / name))
        assert image is not None
        assert np.array_equal(image[:, :, ::-1], picture)


def test_all_names_begin_with_the_prefix() -> None:
    files = {name for name in Logged(MIXED, "eval").files() if "/" not in name}
    tables = {"eval.json", "eval_predictions.json", "eval_confusion.json"}
    pictures = {f"eval_{name}.png" for name in ("confidence", "confusion", "mistakes", "predictions")}
    assert files == tables | pictures
