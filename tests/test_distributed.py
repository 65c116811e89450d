"""Trainings by two processes under torchrun: one run, one model, whatever becomes of a process."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.test_reliability import JOB, PATIENCE, TINY, Project, follow, heed_signals, points

pytestmark = pytest.mark.slow

STOPPED_WITHIN = 60  # seconds, once a process has ended


class Torchrun(Project):
    """A project whose jobs are started by torchrun, twice each."""

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "job.py", *arguments],
            cwd=self.folder,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=heed_signals,
        )

    def start_one(self, *arguments: str) -> "subprocess.Popen[str]":
        return super().start(*arguments)


@pytest.fixture
def project(tmp_path: Path, new_mlflow_database: Path, draw_digits: Callable[[Path, int], Path]) -> Torchrun:
    return Torchrun(tmp_path / "captcha", new_mlflow_database, draw_digits)


def stop_after_an_epoch(process: "subprocess.Popen[str]") -> str:
    """Send SIGTERM after the first epoch that a process trains, and return what it says."""
    said = follow(process, "  exact match ")
    process.send_signal(signal.SIGTERM)
    return said + process.communicate(timeout=PATIENCE)[0]


def test_two_processes_make_one_run_and_one_version(project: Torchrun) -> None:
    said = project.run("train", *TINY, "--epochs=2", "--data=digits", "--drawn=kaptcha")
    (run,) = project.runs()
    assert (run.info.status, run.data.tags["processes"]) == ("FINISHED", "2")
    assert said.count("training compact") == said.count("registered") == 1
    assert "2 processes share each step's 8 images: 4 for each" in said
    assert [step for step, _ in points(project.client, run)["val/exact_match"]] == [0, 1, 2]
    # What both have learned from: the folder's images without the test's, and half as many again for each drawn.
    of_folder = int(run.data.tags["train_images"]) + int(run.data.tags["validation_images"])
    steps = 2 * -(-int(run.data.tags["train_images"]) // 8)
    assert int(run.data.tags["training_pixels"]) == of_folder + 4 * steps
    assert not project.unfinished


def test_a_process_that_is_killed_fails_the_run_within_a_minute_and_one_goes_on_with_it(project: Torchrun) -> None:
    with project.start("train", *TINY, "--epochs=1000", "--data=digits") as process:
        said = follow(process, "epoch   1/1000")
        ranks = {each.environ().get("RANK"): each for each in psutil.Process(process.pid).children()}
        killed = ranks["1"].pid
        ranks["1"].kill()
        began = time.monotonic()
        said += process.communicate(timeout=PATIENCE)[0]
        assert time.monotonic() - began < STOPPED_WITHIN
    (run,) = project.runs()
    assert run.info.status == "FAILED", said
    cause = f"rank 1 (process {killed} on "
    assert cause in run.data.tags["mlflow.note.content"]
    assert f"captcha: {cause}" in said
    assert not any(each.is_running() for each in ranks.values())

    with project.start_one("train", "--resume", run.info.run_id, "--register-best") as process:
        assert process.communicate(timeout=PATIENCE)
    (run,) = project.runs()
    assert (run.info.status, run.data.tags["processes"]) == ("FINISHED", "1")


def test_a_training_goes_from_two_processes_to_one_and_back(project: Torchrun) -> None:
    with project.start("train", *TINY, "--epochs=1000", "--data=digits") as process:
        said = stop_after_an_epoch(process)
    (run,) = project.runs()
    assert run.info.status == "KILLED", said
    assert f"go on with: captcha train --resume {run.info.run_id}" in said
    with project.start_one("train", "--resume", run.info.run_id) as process:
        said = stop_after_an_epoch(process)
    assert process.returncode == 128 + signal.SIGTERM, said
    with project.start("train", "--resume", run.info.run_id) as process:
        said = stop_after_an_epoch(process)
    (run,) = project.runs()
    assert (run.info.status, run.data.tags["processes"]) == ("KILLED", "2"), said
    epochs = [step for step, _ in points(project.client, run)["val/exact_match"]]
    assert epochs == list(range(len(epochs)))
    assert len(epochs) > 3


def test_a_process_with_other_images_is_refused_and_no_run_begins(project: Torchrun) -> None:
    elsewhere = project.folder / "elsewhere"
    shutil.copytree(project.folder / "digits", elsewhere / "digits")
    (elsewhere / "digits" / "07.png").unlink()
    moved = "if os.environ['RANK'] == '1':\n    os.chdir('elsewhere')\n"
    (project.folder / "job.py").write_text(JOB.replace("if __name__", f"{moved}if __name__"))
    said = project.run("train", *TINY, "--epochs=1", "--data=digits", code=1)  # torchrun's code
    assert said.count("captcha: rank 1 on ") == 1
    assert "has other images than rank 0: give all the same" in said
    assert not project.runs()


def test_a_job_that_takes_one_process_is_refused_under_torchrun(project: Torchrun) -> None:
    said = project.run("crossval", "digits", code=1)
    assert "torchrun starts several processes, and crossval takes one: leave it out" in said
    assert not project.runs()
