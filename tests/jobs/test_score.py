import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.models import Model
from mlflow.types import Schema

from captcha.data.samples import DataError
from captcha.data.scores import MODEL_FILE, Row, Scores
from captcha.jobs import score as module
from captcha.jobs.predict import predict
from captcha.jobs.score import ScoreOutcome, score
from captcha.jobs.score_on_spark import SparkError, answered, require_spark
from captcha.reading.engine import RecognizerError
from captcha.reading.images import ImageError
from captcha.reading.recognizer import save_recognizer
from captcha.reading.vocabulary import Vocabulary
from captcha.tracking.models import download, log_model
from captcha.tracking.runs import tracked_run
from tests.server.stripes import HEIGHT, picture, png, save_stripes

TEXTS = {"ab.png": "ab", "deep/cab.png": "cab", "deep/er/c.PNG": "c", "x y.png": "bcb", "ü.png": "a"}
BAD = {
    "torn.png": png("abc")[:60],
    "deep/text.jpg": b"no image",
    "empty.gif": b"",
    "long.png": cv2.imencode(".png", np.full((8, 900, 3), 255, np.uint8))[1].tobytes(),
}


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A recogniser's folder, which reads stripes."""
    return str(save_stripes(tmp_path / "stripes"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images, four of them bad, one not there any more, and of files that are not meant."""
    folder = tmp_path / "some images"
    contents = {name: png(text) for name, text in TEXTS.items()} | BAD
    for name, content in (contents | {"labels.csv": b"", ".hidden.png": png("a"), ".deep/a.png": png("a")}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "gone.png").symlink_to("nowhere.png")
    return folder


@pytest.fixture(autouse=True)
def _no_run_is_left(tracking: Path) -> Iterator[None]:
    yield
    assert mlflow.active_run() is None


def rows_in(folder: Path) -> list[dict[str, object]]:
    """The rows of all parts, in the order of their paths, as any reader of Parquet finds them."""
    return sorted(pq.read_table(folder).to_pylist(), key=lambda row: row["path"])


def here(images: Path, output: Path, model: str) -> ScoreOutcome:
    return score(str(images), output, model, "local", None)


def test_every_image_is_a_row_as_predict_reads_it_and_a_bad_one_a_row_with_its_error(
    images: Path, tmp_path: Path, model: str
) -> None:
    outcome = here(images, tmp_path / "out", model)
    rows = rows_in(tmp_path / "out")
    assert {row["path"]: row["text"] for row in rows if not row["error"]} == TEXTS
    assert {row["path"] for row in rows if row["error"]} == {*BAD, "gone.png"}
    assert (outcome.images, outcome.errors, outcome.before) == (10, 5, 0)
    read = predict([images / str(row["path"]) for row in rows], model, "greedy", 10)
    for row, reading in zip(rows, read, strict=True):
        assert list(row) == ["path", "text", "confidence", "accepted", "error"]
        if isinstance(reading, ImageError):
            assert str(reading) == f"{images / str(row['path'])}: {row['error']}"
            assert row["text"] is row["confidence"] is row["accepted"] is None
        else:
            assert row["text"] == reading.text
            assert row["confidence"] == pytest.approx(reading.confidence, abs=1e-6)
            assert row["accepted"] == reading.accepted


def test_a_scoring_is_a_run_that_says_what_was_read_and_by_which_model(
    images: Path, tmp_path: Path, model: str
) -> None:
    outcome = here(images, tmp_path / "out", model)
    run = MlflowClient().get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "score some images with folder stripes"
    assert run.data.params == {
        "data": str(images),
        "output": str(tmp_path / "out"),
        "model": model,
        "engine": "local",
        "master": "none",
    }
    assert {key: value for key, value in run.data.metrics.items() if key.startswith("score/")} == {
        "score/images": 10,
        "score/errors": 5,
        "score/images_per_second": outcome.images_per_second,
    }
    said = json.loads((tmp_path / "out" / MODEL_FILE).read_text())
    assert said["model"] == model
    assert run.data.tags.items() >= {("job", "score"), *said.items()}


def test_a_second_run_goes_on_where_the_first_was_stopped_and_reads_nothing_twice(
    images: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "out", Scores.write

    def stop_at_the_third(scores: Scores, part: str, rows: list[Row]) -> None:
        if len(scores.parts()) == 2:
            raise KeyboardInterrupt
        write(scores, part, rows)

    monkeypatch.setattr(module, "PART_IMAGES", 3)
    with monkeypatch.context() as patch:
        patch.setattr(Scores, "write", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            here(images, out, model)
    begun = {part: part.read_bytes() for part in out.glob("*.parquet")}
    assert len(begun) == 2
    (images / "new.png").write_bytes(png("cc"))
    outcome = here(images, out, model)
    assert (outcome.images, outcome.before) == (5, 6)
    assert {part: part.read_bytes() for part in begun} == begun
    assert [row["path"] for row in rows_in(out)] == sorted([*TEXTS, *BAD, "gone.png", "new.png"])
    parts = set(out.glob("*.parquet"))
    assert here(images, out, model).images == 0
    assert set(out.glob("*.parquet")) == parts


def test_what_is_no_output_of_this_model_is_refused_and_left_as_it_is(images: Path, tmp_path: Path, model: str) -> None:
    out = tmp_path / "out"
    here(images, out, model)
    files = sorted(out.iterdir())
    other = save_stripes(tmp_path / "other")
    shutil.copytree(other, tmp_path / "same")
    here(images, out, str(tmp_path / "same"))  # the same recogniser by another name
    save_recognizer(other, (other / "model.onnx").read_bytes(), Vocabulary("xyz"), HEIGHT)
    with pytest.raises(DataError, match=r"out holds what .*stripes \(fp32, \w{12}\) has read, not .*other \(fp32, "):
        here(images, out, str(other))
    assert sorted(out.iterdir()) == files
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match=r"full holds something else than what captcha score writes: name a new folder"):
        here(images, tmp_path / "full", model)
    with pytest.raises(DataError, match=r"lies in .*some images, whose images are scored"):
        here(images, images / "out", model)
    with pytest.raises(DataError, match=r"^no such folder: .*nowhere$"):
        here(tmp_path / "nowhere", out, model)
    assert not (images / "out").exists()


def test_rows_of_parquet_are_read_as_their_images_are(tmp_path: Path, model: str) -> None:
    shard, contents = tmp_path / "shard.parquet", [*map(png, TEXTS.values()), *BAD.values(), None]
    pq.write_table(pa.table({"image": [{"bytes": each, "path": "x"} for each in contents]}), shard)
    assert here(shard, tmp_path / "out", model).errors == 5
    rows = rows_in(tmp_path / "out")
    assert [row["path"] for row in rows] == [f"shard.parquet:{number:06}" for number in range(10)]
    assert [row["text"] for row in rows] == [*TEXTS.values(), *[None] * 5]
    assert here(shard, tmp_path / "out", model).images == 0


def test_a_part_that_was_damaged_is_named(images: Path, tmp_path: Path, model: str) -> None:
    here(images, tmp_path / "out", model)
    (part,) = (tmp_path / "out").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{part.name} is no part that captcha score has written .*move it away"):
        here(images, tmp_path / "out", model)


def test_without_java_or_with_a_model_that_mlflow_has_not_logged_spark_is_refused_in_a_line(
    images: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captcha.jobs.score_on_spark.find_spec", lambda name: "there")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SparkError, match="needs Java 17 or later, and there is none on PATH: install it"):
        score(str(images), tmp_path / "out", model, "spark", "local[1]")
    monkeypatch.setattr("captcha.jobs.score_on_spark.find_spec", lambda name: None)
    with pytest.raises(SparkError, match=r"needs Spark: pip install 'captcha-crnn\[spark\]'; or use --engine local"):
        require_spark()
    monkeypatch.setattr("captcha.jobs.score_on_spark.require_spark", lambda: None)
    with pytest.raises(RecognizerError, match="is a recogniser's folder, and Spark runs what MLflow has logged"):
        score(str(images), tmp_path / "out", model, "spark", "local[1]")
    assert not (tmp_path / "out").exists()


def test_spark_takes_of_a_model_what_its_signature_says_that_it_answers(tmp_path: Path) -> None:
    with tracked_run("a training") as run:
        log_model(save_stripes(tmp_path / "recognizer"), png("a"), step=0)
    (files := tmp_path / "files").mkdir()
    files = download(f"runs:/{run.info.run_id}", files)
    assert answered(files) == ["text", "confidence", "accepted"]
    older = Model.load(files)
    assert older.signature
    older.signature.outputs = Schema([each for each in older.signature.outputs.inputs if each.name != "accepted"])
    older.save(files / "MLmodel")
    assert answered(files) == ["text", "confidence"]


def test_what_a_worker_of_spark_imports_to_read_images_needs_no_mlflow() -> None:
    heavy = {"mlflow", "torch", "pyspark", "scipy", "matplotlib"}
    script = f"import sys, captcha.jobs.score_on_spark; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_images_that_one_batch_holds_do_not_change_what_is_read(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(30):
        cv2.imwrite(str(folder / f"{number:02}.png"), picture("abc"[number % 3] * (1 + number % 5)))
    monkeypatch.setattr(module, "COLUMNS_WAITING", 50)
    here(folder, tmp_path / "out", model)
    expected = [letters[0] * length for letters, length in (("abc"[n % 3], 1 + n % 5) for n in range(30))]
    assert [row["text"] for row in rows_in(tmp_path / "out")] == expected
