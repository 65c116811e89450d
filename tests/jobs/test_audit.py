import csv
import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from captcha.cli.terminal import audit_summary
from captcha.data.folders import read_samples
from captcha.data.samples import DataError, Split
from captcha.evaluation.results import Evaluation
from captcha.jobs import audit as job
from captcha.jobs import train as training
from captcha.jobs.audit import audit
from captcha.jobs.crossval import crossval
from captcha.reading.recognizer import Reading
from captcha.settings import AuditSettings, CrossvalSettings
from captcha.tracking.runs import RegistryError

NoRun = Callable[[], AbstractContextManager[None]]

WRONG = {"07.png": "97", "31.png": "91"}
"""Labels that are wrong, by file; the others are the files' names."""


@pytest.fixture(scope="module", autouse=True)
def small(tracking: Path) -> Iterator[None]:
    """Runs that end at once, tracked into a folder of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
        patch.setattr(training, "learn", learn)
        yield


def learn(settings: Any, sources: Any, split: Split, *others: Any, **more: Any) -> Any:
    """Stand in for a training: read what the files are called, but 44.png as 4, in doubt."""
    read = [Path(sample.name).stem for sample in split.test]
    readings = [Reading("4", 0.5, []) if text == "44" else Reading(text, 0.95, []) for text in read]
    labels = [-9.0 if sample.name in WRONG else -1.0 for sample in split.test]
    return SimpleNamespace(evaluation=Evaluation(split.test, readings, 0.0, label_log_probabilities=labels))


@pytest.fixture(scope="module")
def original(tracking: Path, draw_digits: Callable[[Path, int], Path]) -> Path:
    """60 images of two digits, named by what they say, with a labels.csv; two labels are wrong."""
    folder = draw_digits(tracking / "doubtful labels", 60)
    with (folder / "labels.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", "label"])
        rows.writerows((file.name, WRONG.get(file.name, file.stem)) for file in sorted(folder.glob("*.png")))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to write into."""
    return Path(shutil.copytree(original, tmp_path / "doubtful labels"))


@pytest.fixture(scope="module")
def crossval_id(original: Path) -> str:
    """The run of a cross-validation of these labels."""
    return crossval(CrossvalSettings(data=str(original), folds=3)).run_id


def test_wrong_labels_come_first_with_what_is_read(folder: Path, crossval_id: str) -> None:
    outcome = audit(AuditSettings(data=str(folder), crossval=crossval_id))
    assert (outcome.crossval, outcome.images, outcome.corrected) == (crossval_id, 60, None)
    assert [(each.file, each.label, each.proposed, each.sure) for each in outcome.suspects] == [
        ("07.png", "97", "07", True),
        ("31.png", "91", "31", True),
        ("44.png", "44", "4", False),
    ]
    assert sorted(path.suffix for path in folder.iterdir()) == [".csv", *[".png"] * 60]
    run = MlflowClient().get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    wanted = {"data": str(folder), "problems": "stop", "apply": "False", "crossval": crossval_id}
    assert run.data.params == wanted
    assert run.data.tags.items() >= {("job", "audit"), ("suspects", "3"), ("suspects_sure", "2")}
    table = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/suspects.csv")
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [(row["file"], row["label"], row["proposed"]) for row in rows] == [
        (each.file, each.label, each.proposed) for each in outcome.suspects
    ]
    assert [float(row["score"]) for row in rows] == pytest.approx([each.score for each in outcome.suspects], abs=1e-4)
    assert mlflow.artifacts.load_image(f"{run.info.artifact_uri}/suspects.png").size[0] > 200
    lines = audit_summary(outcome).splitlines()
    assert lines[2].split()[:3] == ["07.png", "97", "07"]
    assert "3 of 60 labels are doubtful, the models are sure of 2 of these" in lines


def test_sure_corrections_are_written_beside_the_old_labels(folder: Path, crossval_id: str, no_run: NoRun) -> None:
    before = (folder / "labels.csv").read_bytes()
    asked = AuditSettings(data=str(folder), crossval=crossval_id, apply=True)
    outcome = audit(asked)
    assert outcome.corrected == str(folder / "labels-corrected.csv")
    assert (folder / "labels.csv").read_bytes() == before
    with no_run(), pytest.raises(FileExistsError, match=r"labels-corrected\.csv is there already: move it away first"):
        audit(asked)
    (folder / "labels-corrected.csv").replace(folder / "labels.csv")
    samples, problems, _ = read_samples(folder, 64)
    assert {sample.name: sample.text for sample in samples} == {
        f"{number:02}.png": f"{number:02}" for number in range(60)
    }
    assert problems == []


def test_without_a_cross_validation_one_is_made(folder: Path) -> None:
    outcome = audit(AuditSettings(data=str(folder), folds=2, seeds=2, backbone="compact"))
    params = MlflowClient().get_run(outcome.crossval).data.params
    assert (params["folds"], params["seeds"], params["backbone"]) == ("2", "2", "compact")
    assert [each.file for each in outcome.suspects] == ["07.png", "31.png", "44.png"]


def test_readings_of_other_labels_are_refused(folder: Path, crossval_id: str, no_run: NoRun) -> None:
    table = folder / "labels.csv"
    table.write_text(table.read_text().replace("97", "07"))
    with no_run():
        with pytest.raises(DataError, match=f"run {crossval_id} has read other images, or other labels; name the fold"):
            audit(AuditSettings(data=str(folder), crossval=crossval_id))
        with pytest.raises(RegistryError):
            audit(AuditSettings(data=str(folder), crossval="0" * 32))


def test_where_nothing_is_read_otherwise_nothing_is_doubtful(
    folder: Path, crossval_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "suspects", lambda readings: [])
    outcome = audit(AuditSettings(data=str(folder), crossval=crossval_id, apply=True))
    assert outcome.corrected is None
    assert not (folder / "labels-corrected.csv").exists()
    artifacts = {each.path for each in MlflowClient().list_artifacts(outcome.run_id)}
    assert "suspects.csv" in artifacts
    assert "suspects.png" not in artifacts
    assert audit_summary(outcome) == "\nall 60 labels are read as they are: there is nothing to doubt"
