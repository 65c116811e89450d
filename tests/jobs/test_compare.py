import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from captcha.data.samples import DataError, Sample
from captcha.evaluation.results import Evaluation, evaluate
from captcha.jobs import compare as module
from captcha.jobs.compare import Differing, compare
from captcha.reading.recognizer import Recognizer
from captcha.tracking.models import own_model_id
from captcha.tracking.runs import RegistryError, tracked_run
from captcha.tracking.versions import show, versions
from tests.tracking.readers import READS_A, READS_B, log_reader

LABELS = ["a", "a", "b", "ab", "a", "a", "b", "a"]


def logged(folder: Path, frame: str, height: int) -> tuple[str, str]:
    """The ids of a run and of the model it has logged, which reads always the same; `folder` is for its files."""
    with tracked_run("a training") as run:
        log_reader(folder, frame, height)
    return run.info.run_id, own_model_id(run.info.run_id)


@pytest.fixture(scope="module")
def two_models(tracking: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The ids of two runs; version 1 of the model `two` is that of the first and reads a, version 2 reads b."""
    client = MlflowClient()
    client.create_registered_model("two")
    ids = []
    for frame, height in ((READS_A, 16), (READS_B, 32)):
        run_id, model_id = logged(tmp_path_factory.mktemp("model"), frame, height)
        client.create_model_version("two", f"models:/{model_id}", run_id, tags={"model_id": model_id})
        ids.append(run_id)
    client.set_registered_model_alias("two", "champion", "2")
    return ids[0], ids[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of eight images of one colour each, with their labels in a table."""
    folder = tmp_path / "some images"
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", "label"])
        for number, label in enumerate(LABELS):
            cv2.imwrite(str(folder / f"{number}.png"), np.full((20, 40, 3), 20 * number, np.uint8))
            rows.writerow([f"{number}.png", label])
    return folder


@pytest.fixture(autouse=True)
def _no_run_is_left() -> Iterator[None]:
    yield
    assert mlflow.active_run() is None


def test_two_versions_are_compared_image_by_image_in_a_run(two_models: tuple[str, str], folder: Path) -> None:
    outcome = compare("two/1", "two@champion", str(folder))
    assert outcome.names == ("v1", "v2")
    assert outcome.models == ("models:/two/1", "models:/two/2")
    assert outcome.exact_match == (5 / 8, 2 / 8)
    assert (outcome.both, outcome.only_first, outcome.only_second, outcome.neither) == (0, 5, 2, 1)
    assert outcome.p == 2 * (1 + 7 + 21) / 128  # of 7 coins 0, 1 or 2 heads, and as many tails
    assert outcome.images == [
        *(Differing(f"{i}.png", "a", "a", "b") for i in (0, 1, 4, 5, 7)),
        *(Differing(f"{i}.png", "b", "a", "b") for i in (2, 6)),
    ]
    run = MlflowClient().get_run(outcome.run_id)
    assert run.info.run_name == "compare v1 with v2 on some images"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"data": str(folder), "first": "models:/two/1", "second": "models:/two/2"}
    assert run.data.tags.items() >= {("job", "compare"), ("data", str(folder))}
    assert "exact McNemar p = 0.453" in run.data.tags["mlflow.note.content"]
    figures = {key: value for key, value in run.data.metrics.items() if key.startswith("compare/")}
    assert figures == {
        "compare/exact_match_first": 5 / 8,
        "compare/exact_match_second": 2 / 8,
        "compare/only_first": 5,
        "compare/only_second": 2,
        "compare/p": outcome.p,
    }
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/compare.json")
    assert table["columns"] == ["file", "label", "v1", "v2"]
    assert table["data"] == [[each.file, each.label, each.first, each.second] for each in outcome.images]
    picture = mlflow.artifacts.load_image(f"{run.info.artifact_uri}/compare.png")
    assert min(picture.size) > 200


def test_runs_can_be_compared_and_models_of_two_names_are_told_apart(two_models: tuple[str, str], folder: Path) -> None:
    outcome = compare(two_models[0], f"runs:/{two_models[1]}", str(folder))
    assert outcome.names == (f"run {two_models[0][:8]}", f"run {two_models[1][:8]}")
    assert outcome.only_first == 5
    client = MlflowClient()
    client.create_registered_model("three")
    source = client.get_model_version("two", "2")
    client.create_model_version("three", str(source.source), source.run_id)
    assert compare("two/1", "three/1", str(folder)).names == ("two v1", "three v1")


def test_a_comparison_that_cannot_be_made_is_one_line_and_leaves_no_run(
    two_models: tuple[str, str], folder: Path, tmp_path: Path
) -> None:
    def runs() -> int:
        return len(mlflow.search_runs(search_all_experiments=True, output_format="list"))

    before = runs()
    with pytest.raises(RegistryError, match=r"^two/2 and two@champion are both models:/two/2: name two "):
        compare("two/2", "two@champion", str(folder))
    with pytest.raises(RegistryError, match=r"^'two/9' names no version: "):
        compare("two/2", "two/9", str(folder))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no image")
    with pytest.raises(DataError, match="1 problem in the data"):
        compare("two/1", "two/2", str(tmp_path / "bad"))
    assert runs() == before


def test_the_size_of_a_version_is_that_of_its_recognizers_files(
    two_models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Path(mlflow.artifacts.download_artifacts("models:/two/1", dst_path=str(tmp_path))) / "artifacts"
    sizes = [file.stat().st_size for file in files.rglob("*") if file.is_file()]
    assert len(sizes) == 2
    assert [each.bytes for each in versions("two") if each.version == 1] == [sum(sizes)]
    assert show("two/1").versions[0].bytes == sum(sizes)


def test_each_model_reads_the_images_as_an_evaluation_of_it_does(
    two_models: tuple[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, set[int]]] = []

    def spy(recognizer: Recognizer, samples: Sequence[Sample]) -> Evaluation:
        seen.append((recognizer.height, {sample.image.shape[0] for sample in samples}))
        return evaluate(recognizer, samples)

    monkeypatch.setattr(module, "read", spy)
    compare("two/1", "two/2", str(folder))
    assert seen == [(16, {16}), (32, {32})]  # resized once, to the model's own height
