"""Scoring on Spark as real processes; the texts are compared with those that are read here."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from captcha.tracking.models import log_model, own_model_id
from captcha.tracking.runs import tracked_run
from tests.server.stripes import png, save_stripes

pytestmark = pytest.mark.slow
pytest.importorskip("pyspark", reason="Spark is an extra: make slow installs it")

BAD = {"torn.png": png("abc")[:60], "deep/text.jpg": b"no image", "empty.gif": b""}
MODEL = "models:/stripes/1"


@pytest.fixture(scope="module")
def registered(tracking: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registered model, which reads stripes."""
    with tracked_run("a training") as run:
        log_model(save_stripes(tmp_path_factory.mktemp("model") / "recognizer"), png("a"), step=0)
    client = MlflowClient()
    client.create_registered_model("stripes")
    client.create_model_version("stripes", f"models:/{own_model_id(run.info.run_id)}", run.info.run_id)
    return MODEL


def text_of(number: int) -> str:
    return "".join("abc"[number // 3**place % 3] for place in range(1 + number % 6))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of 240 images in two sub-folders, and of four bad ones."""
    folder = tmp_path / "some images"
    contents = {f"{number % 2}/{number:03}.png": png(text_of(number)) for number in range(240)} | BAD
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "gone.png").symlink_to("nowhere.png")
    return folder


SMALL_PARTS = "from captcha.jobs import score; score.PART_IMAGES = 20; from captcha.cli.app import main; main()"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", SMALL_PARTS, "score", *map(str, arguments), "--model", MODEL, "--json"]


def scored(*arguments: object) -> dict[str, Any]:
    """What a scoring in a process of its own says."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def rows_in(folder: Path) -> list[dict[str, object]]:
    return sorted(pq.read_table(folder).to_pylist(), key=lambda row: row["path"])


def test_spark_reads_what_is_read_here_and_bad_images_are_rows_with_the_same_errors(
    images: Path, registered: str, tmp_path: Path
) -> None:
    here = scored(images, tmp_path / "here")
    spark = scored(images, tmp_path / "by spark", "--engine=spark", "--master=local[2]")
    counts = ("images", "errors", "before", "model")
    assert [spark[name] for name in counts] == [here[name] for name in counts] == [244, 4, 0, MODEL]
    rows, expected = rows_in(tmp_path / "by spark"), rows_in(tmp_path / "here")
    assert {row["path"]: row["text"] for row in rows if not row["error"]} == {
        f"{number % 2}/{number:03}.png": text_of(number) for number in range(240)
    }
    for row, other in zip(rows, expected, strict=True):
        assert row == other | {"confidence": other["confidence"] and pytest.approx(other["confidence"], abs=1e-6)}
    assert (tmp_path / "by spark" / "_model.json").read_bytes() == (tmp_path / "here" / "_model.json").read_bytes()
    run = MlflowClient().get_run(spark["run_id"])
    assert (run.info.status, run.data.metrics["score/images"]) == ("FINISHED", 244)


def test_a_killed_scoring_on_spark_is_gone_on_with_and_nothing_is_read_twice(
    images: Path, registered: str, tmp_path: Path
) -> None:
    out = tmp_path / "out of it"
    arguments = images, out, "--engine=spark", "--master=local[2]"
    killed = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 900
    while not list(out.glob("*.parquet")):
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    begun = {part: part.read_bytes() for part in out.glob("*.parquet")}
    assert 0 < len(begun) < 13
    outcome = scored(*arguments)
    assert outcome["before"] >= 20
    assert outcome["images"] + outcome["before"] == 244
    assert {part: part.read_bytes() for part in begun} == begun
    paths = [row["path"] for row in rows_in(out)]
    assert len(paths) == len(set(paths)) == 244
    assert (
        mlflow.search_runs(output_format="list", search_all_experiments=True, filter_string="status = 'RUNNING'") == []
    )


def test_a_spark_that_does_not_start_is_one_line(images: Path, registered: str, tmp_path: Path) -> None:
    asked = command(images, tmp_path / "out", "--engine=spark", "--master=nonsense")
    done = subprocess.run(asked, capture_output=True, text=True, timeout=900)
    assert done.returncode == 2
    assert "captcha: the Spark job failed: " in done.stderr
    assert "Traceback" not in done.stderr
