"""A student's training, of seconds: what it learns from, and what becomes of it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from captcha.data.samples import DataError
from captcha.data.seen import SeenError
from captcha.jobs import train as training
from captcha.jobs.distill import distill
from captcha.jobs.train import TrainOutcome, train
from captcha.settings import DistillSettings, TrainSettings
from captcha.tracking.models import load_parent, load_recognizer
from captcha.training import batches as batching
from captcha.training.checkpoint import Checkpoint
from captcha.training.model import Crnn
from captcha.training.recipe import Recipe

Listen = Callable[[], AbstractContextManager[list[str]]]
NoRun = Callable[[], AbstractContextManager[None]]
HEIGHT = 32


@pytest.fixture(scope="module", autouse=True)
def small(tracking: Path, one_thread: None) -> Iterator[None]:
    """Trainings of seconds, tracked into a folder of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
        patch.setattr(batching, "WORKERS", 0)  # a process takes seconds
        yield


@pytest.fixture(scope="module")
def folder(tracking: Path, draw_digits: Callable[[Path, int], Path]) -> Path:
    """60 images of two digits, named by their label."""
    return draw_digits(tracking / "two digits", 60)


@dataclass(frozen=True)
class Taught:
    """A teacher, and its student."""

    teacher: TrainOutcome
    outcome: TrainOutcome
    lines: list[str]


@pytest.fixture(scope="module")
def taught(folder: Path, quick: Recipe, listen: Listen) -> Taught:
    asked = TrainSettings(data=str(folder), backbone="compact", height=HEIGHT, batch_size=8, epochs=1, name="small")
    teacher = train(asked, quick)
    with listen() as lines:
        outcome = distill(student_of(teacher, folder), quick)
    return Taught(teacher, outcome, lines)


def student_of(teacher: TrainOutcome, folder: Path, **settings: object) -> DistillSettings:
    uri = f"models:/{teacher.model_name}/{teacher.model_version}"
    small = {"data": str(folder), "teacher": uri, "name": "small", "batch_size": 8, "epochs": 2}
    return DistillSettings.model_validate(small | settings)


def test_the_student_is_a_version_like_any_other_and_knows_what_its_teacher_knows(taught: Taught) -> None:
    run = mlflow.get_run(taught.outcome.run_id)
    uri = f"models:/small/{taught.outcome.model_version}"
    assert taught.outcome.model_version == taught.teacher.model_version + 1
    student, teacher = load_recognizer(uri), load_recognizer(f"models:/small/{taught.teacher.model_version}")
    assert (student.vocabulary, student.height) == (teacher.vocabulary, teacher.height)
    parent = load_parent(uri)
    checkpoint = Checkpoint.from_bytes(parent.weights, parent.meaning)
    assert checkpoint.backbone == run.data.tags["backbone"] == "student"
    assert not any(name.startswith("gru") for name in checkpoint.weights)
    assert run.data.tags["teacher_used"] == f"models:/small/{taught.teacher.model_version}"
    assert MlflowClient().get_model_version("small", str(taught.outcome.model_version)).tags["backbone"] == "student"


def test_the_run_says_how_much_of_what_the_teacher_reads_the_student_reads(taught: Taught) -> None:
    run = mlflow.get_run(taught.outcome.run_id)
    right, kept = int(run.data.tags["teacher_right"]), int(run.data.tags["teacher_right_kept"])
    assert 0 <= kept <= right
    assert run.data.metrics["distill/teacher_exact_match"] * int(run.data.tags["test_images"]) == pytest.approx(right)
    line = f"of the {right} test images that the teacher reads exactly, the student reads {kept}"
    assert line in taught.lines


def test_what_the_teacher_saw_the_student_has_seen(taught: Taught) -> None:
    teacher, student = (load_parent(f"runs:/{run}").seen for run in (taught.teacher.run_id, taught.outcome.run_id))
    assert student.count >= teacher.count > 0


def test_the_student_learns_what_the_teacher_says_of_each_image(
    taught: Taught, folder: Path, quick: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the loop, which notes the teacher that it is given."""
    given: list[Crnn] = []

    def stop(*arguments: object, started: bool, teacher: Crnn) -> None:
        given.append(teacher)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        distill(student_of(taught.teacher, folder), quick)
    parent = load_parent(f"runs:/{taught.teacher.run_id}")
    (teacher,) = given
    assert Checkpoint.of(teacher).to_bytes() == Checkpoint.from_bytes(parent.weights).to_bytes()


def test_labels_that_the_teacher_does_not_know_are_named_before_any_run(
    taught: Taught, folder: Path, tmp_path: Path, no_run: NoRun, caplog: pytest.LogCaptureFixture
) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    for path in sorted(folder.glob("*.png"))[:20]:
        (strange / f"x{path.stem}.png").write_bytes(path.read_bytes())
    with no_run(), pytest.raises(DataError):
        distill(student_of(taught.teacher, strange))


def test_another_split_tests_the_student_on_nothing_that_the_teacher_saw(
    taught: Taught, folder: Path, no_run: NoRun
) -> None:
    with no_run(), pytest.raises(SeenError, match=r"--test-data"):
        distill(student_of(taught.teacher, folder, seed=1))
