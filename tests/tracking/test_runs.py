import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from captcha.tracking import runs as module
from captcha.tracking.runs import CutShort, Place, active_folder, connect, mark_killed, tag_unused_run, tracked_run
from captcha.tracking.unfinished import Asked, Parts, Process, Unfinished, folder_of


def status(run: Run) -> str:
    return str(MlflowClient().get_run(run.info.run_id).info.status)


# Where runs are tracked


def test_without_a_tracking_uri_runs_go_to_the_projects_own_database(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    connect()
    assert mlflow.get_tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_database_that_another_training_has_just_made_is_left_as_it_is(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(b"the other's")
    module._make_database(database)
    assert database.read_bytes() == b"the other's"
    assert list(tmp_path.iterdir()) == [database]


def test_a_tracking_uri_that_a_person_has_set_is_obeyed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/another.db")
    monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    connect()
    assert mlflow.get_tracking_uri() == f"sqlite:///{tmp_path}/another.db"


def test_a_new_experiment_in_the_projects_database_keeps_its_artifacts_in_mlruns(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "project_root", lambda: place)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "in our own")
    with tracked_run("a run"):
        mlflow.log_text("hello", "note.txt")
    assert [path.read_text() for path in (place / "mlruns" / "in our own").rglob("note.txt")] == ["hello"]


# Runs


def test_a_run_that_ends_is_finished_with_its_name_in_the_experiment_captcha() -> None:
    with tracked_run("a name") as run:
        assert status(run) == "RUNNING"
    assert status(run) == "FINISHED"
    assert run.info.run_name == "a name"
    assert MlflowClient().get_experiment(run.info.experiment_id).name == "captcha"
    assert mlflow.active_run() is None


def test_another_experiment_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another one")
    with tracked_run("a run") as run:
        pass
    assert MlflowClient().get_experiment(run.info.experiment_id).name == "another one"


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (ValueError("a fault"), "FAILED"),
        (MemoryError(), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),  # what the CLI makes of SIGTERM
    ],
    ids=["fault", "memory", "Ctrl-C", "SIGTERM"],
)
def test_a_run_that_is_broken_off_is_failed_or_killed(error: BaseException, ending: str) -> None:
    with pytest.raises(type(error)), tracked_run("a run") as run:
        raise error
    assert status(run) == ending
    assert mlflow.active_run() is None


def test_a_nested_run_ends_with_its_own_and_takes_the_one_above_with_it_where_it_is_broken_off() -> None:
    with tracked_run("above") as above:
        with tracked_run("first", nested=True) as first:
            assert status(above) == status(first) == "RUNNING"
        assert (status(above), status(first)) == ("RUNNING", "FINISHED")
        with pytest.raises(ValueError, match="a fault"), tracked_run("second", nested=True) as second:
            raise ValueError("a fault")
        assert (status(above), status(second)) == ("RUNNING", "FAILED")
    assert status(above) == "FINISHED"
    assert second.data.tags["mlflow.parentRunId"] == above.info.run_id
    with pytest.raises(SystemExit), tracked_run("above") as above, tracked_run("nested", nested=True) as nested:
        raise SystemExit(143)
    assert status(above) == status(nested) == "KILLED"


def test_a_run_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="a fault"), tracked_run("a run") as run:
        raise ValueError("a fault")
    assert MlflowClient().get_run(run.info.run_id).data.tags["mlflow.note.content"] == "Failed: a fault"


# The run that `mlflow run` has made


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Run]:
    """A function that makes what `mlflow run` leaves its child: a run in an experiment, named by the environment."""

    def make(experiment: str) -> Run:
        run = MlflowClient().create_run(experiment, tags={"mlflow.project.entryPoint": "main"})
        monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
        return run

    return make


def experiment(name: str) -> str:
    found = mlflow.get_experiment_by_name(name)
    return str(found.experiment_id if found else mlflow.create_experiment(name))


def test_the_run_of_mlflow_run_is_gone_on_with(made: Callable[[str], Run]) -> None:
    theirs = made(experiment("somebody's own"))
    with tracked_run("a name") as run:
        mlflow.log_param("epochs", 3)
    assert run.info.run_id == theirs.info.run_id
    after = MlflowClient().get_run(run.info.run_id)
    assert after.data.params == {"epochs": "3"}
    assert after.info.status == "FINISHED"
    assert after.info.run_name == "a name"


def test_a_run_in_the_default_experiment_is_left_for_one_of_ours_and_says_which(made: Callable[[str], Run]) -> None:
    theirs = made("0")
    with tracked_run("a name") as run:
        pass
    after = MlflowClient().get_run(run.info.run_id)
    assert MlflowClient().get_experiment(after.info.experiment_id).name == "captcha"
    assert (after.info.run_name, after.data.tags["mlflow.project.entryPoint"]) == ("a name", "main")
    left = MlflowClient().get_run(theirs.info.run_id)
    assert left.info.run_name == "a name"
    assert f"#/experiments/{after.info.experiment_id}/runs/{run.info.run_id})" in left.data.tags["mlflow.note.content"]


def test_a_run_whose_artifacts_nobody_can_write_is_left_for_one_of_our_own(
    place: Path, made: Callable[[str], Run]
) -> None:
    # As where `mlflow ui` has made the experiment. MLflow's client makes no such run, so its row is changed.
    theirs = made(experiment("made by a server"))
    with sqlite3.connect(place / "mlflow.db") as database:
        database.execute(
            "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?",
            (f"mlflow-artifacts:/0/{theirs.info.run_id}/artifacts", theirs.info.run_id),
        )
    database.close()

    with tracked_run("a name") as run:
        mlflow.log_text("hello", "note.txt")

    assert run.info.run_id != theirs.info.run_id
    assert MlflowClient().get_experiment(run.info.experiment_id).name == "captcha"
    assert status(run) == "FINISHED"
    assert run.info.run_id in MlflowClient().get_run(theirs.info.run_id).data.tags["mlflow.note.content"]


def test_a_run_that_no_job_has_taken_up_is_named_and_ended(made: Callable[[str], Run]) -> None:
    theirs = made(experiment("somebody's own"))
    tag_unused_run({"mlflow.runName": "predict"})
    left = MlflowClient().get_run(theirs.info.run_id)
    assert (left.info.run_name, left.info.status) == ("predict", "RUNNING")
    tag_unused_run({}, "KILLED")
    assert status(left) == "KILLED"


def test_a_stopped_part_of_a_job_keeps_its_checkpoint_as_long_as_the_job_does() -> None:
    begun: list[str] = []

    def stop_in_a_part() -> None:
        with tracked_run("a job", asked=Asked("budget", {}, {})) as job:
            Parts(active_folder()).begin("a part", "0123")
            with tracked_run("a part", nested=True) as part:
                begun.extend([job.info.run_id, part.info.run_id])
                (active_folder() / "step-1.safetensors").touch()
                raise SystemExit(143)

    with pytest.raises(SystemExit):
        stop_in_a_part()
    job_id, part_id = begun
    assert (folder_of(job_id) / "runs" / part_id / "step-1.safetensors").exists()
    Unfinished.load(folder_of(job_id)).remove()


# Runs of several processes below one


def test_runs_below_a_shared_one_say_so_and_none_of_them_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient()
    left = client.create_run("0").info.run_id  # what bare `mlflow run` makes
    monkeypatch.setenv("MLFLOW_RUN_ID", left)
    place = Place.choose()
    shared = place.new_run("shared", {"job": "tune"})
    place.refer(shared)
    assert f"runs/{shared})" in client.get_run(left).data.tags["mlflow.note.content"]
    with tracked_run("below", above=shared) as run:
        pass
    with pytest.raises(CutShort), tracked_run("cut", above=shared) as cut:
        raise CutShort("hopeless")
    assert client.get_run(run.info.run_id).data.tags["mlflow.parentRunId"] == shared
    assert (status(run), status(cut), client.get_run(shared).info.status) == ("FINISHED", "KILLED", "RUNNING")
    assert client.get_run(cut.info.run_id).data.tags["mlflow.note.content"] == "hopeless"


def test_what_a_killed_run_has_left_on_disk_goes_as_it_is_marked() -> None:
    run = MlflowClient().create_run(MlflowClient().create_experiment("killed"))
    Unfinished(folder_of(run.info.run_id), run.info.run_id, "here", Process("elsewhere", 1, 0.0), None).save()
    for _ in range(2):  # two processes may find it
        mark_killed(run.info.run_id, "gone")
    marked = MlflowClient().get_run(run.info.run_id)
    assert (marked.info.status, marked.data.tags["mlflow.note.content"]) == ("KILLED", "gone")
    assert not folder_of(run.info.run_id).exists()
    Unfinished(folder_of(run.info.run_id), run.info.run_id, "here", Process.this(), None).save()
    mark_killed(run.info.run_id, "it sleeps")
    assert folder_of(run.info.run_id).exists()  # it wakes, and ends the run itself
    shutil.rmtree(folder_of(run.info.run_id))
