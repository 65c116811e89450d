"""Runs: where they are tracked, how one begins and ends, and the run that `mlflow run` has made."""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run

from captcha import CaptchaError
from captcha.settings import EXPERIMENT_NAME, project_root
from captcha.tracking.view import write_view

NOTE, RUN_NAME = "mlflow.note.content", "mlflow.runName"
"""MLflow's tags for a description and a run's name."""

DEFAULT_EXPERIMENT = "0"


class RegistryError(CaptchaError):
    """A run or model that MLflow does not have, or not whole; one line that says what to do."""


def connect() -> None:
    """Point MLflow at the project's own mlflow.db, unless the person has set a tracking server.

    Bare `mlflow ui` in the project's folder shows the same database.
    """
    # Lines that say nothing to a person: bars for files that are here already, migrations of a new database.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    if not mlflow.is_tracking_uri_set():
        database = project_root() / "mlflow.db"
        if not database.exists():
            _make_database(database)
        mlflow.set_tracking_uri(f"sqlite:///{database}")


def _make_database(database: Path) -> None:
    """Let MLflow make its tables in a file aside, then give that its name: two processes in one file would clash."""
    with tempfile.TemporaryDirectory(dir=database.parent, prefix=".mlflow-", ignore_cleanup_errors=True) as aside:
        made = Path(aside, database.name)
        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        with contextlib.suppress(OSError):  # another was faster, or there are no hard links: then MLflow does it
            os.link(made, database)


@contextlib.contextmanager
def tracked_run(run_name: str, nested: bool = False) -> Iterator[Run]:
    """Start a run, or resume the one that `mlflow run` has made; end it FINISHED, FAILED or KILLED.

    A nested run belongs to the active one, which logs the system metrics of both; others go to the experiment
    `captcha`, or that of MLFLOW_EXPERIMENT_NAME, which gets the view and the note that it lacks. A run that fails says
    why in its description.
    """
    left = None
    if not nested:
        connect()
        left = _leave_run_elsewhere()
        if "MLFLOW_RUN_ID" not in os.environ:
            _set_experiment()
    tags = {key: value for key, value in left.data.tags.items() if key.startswith("mlflow.")} if left else {}
    try:
        run = mlflow.start_run(run_name=run_name, nested=nested, tags=tags, log_system_metrics=not nested)
        if left:
            _refer(left, run)
        if not nested:
            write_view(run.info.experiment_id)
        yield run
    except (KeyboardInterrupt, SystemExit):
        _end_run("KILLED", "Stopped before its end.")
        raise
    except BaseException as error:
        _end_run("FAILED", f"Failed: {error or type(error).__name__}")
        raise
    _end_run("FINISHED")


def _end_run(status: str, description: str | None = None) -> None:
    """End the run; MLflow's lines about it go to standard error, as standard output is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        if description:
            with contextlib.suppress(Exception):  # what has ended the run is what a person must read
                mlflow.set_tag(NOTE, description)
        mlflow.end_run(status)


def _set_experiment() -> None:
    """Choose MLFLOW_EXPERIMENT_NAME or our own; a new one in our own database keeps its artifacts in mlruns/."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT_NAME)
    ours = mlflow.get_tracking_uri() == f"sqlite:///{project_root() / 'mlflow.db'}"
    if ours and mlflow.get_experiment_by_name(name) is None:
        mlflow.create_experiment(name, artifact_location=(project_root() / "mlruns" / name).as_uri())
    mlflow.set_experiment(name)


def _leave_run_elsewhere() -> Run | None:
    """Leave the run of `mlflow run`, and return it, where it is not in an experiment of ours; None where it is.

    Bare `mlflow run .` makes it in the default experiment. And where `mlflow ui` has made the database, an experiment
    may keep its artifacts behind that server (mlflow-artifacts:), where a process that writes to the database directly
    cannot reach them.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id is None:
        return None
    run: Run = MlflowClient().get_run(run_id)
    unreachable = run.info.artifact_uri.startswith("mlflow-artifacts:") and not tracking_uri().startswith("http")
    if run.info.experiment_id != DEFAULT_EXPERIMENT and not unreachable:
        return None
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        os.environ.pop(name, None)
    return run


def _refer(left: Run, run: Run) -> None:
    """Let a run left behind say which one has taken its place; `mlflow run` ends it, so it cannot be deleted."""
    experiment, run_id = run.info.experiment_id, run.info.run_id
    place = f"[experiment `{EXPERIMENT_NAME}`](#/experiments/{experiment}/runs/{run_id})"
    client = MlflowClient()
    client.set_tag(left.info.run_id, NOTE, f"This run stands in the {place}; `mlflow run` made this one to start it.")
    client.set_tag(left.info.run_id, RUN_NAME, run.info.run_name)


def tag_unused_run(tags: Mapping[str, str], status: str | None = None) -> None:
    """Tag the run that `mlflow run` has made for a command that has none, or that failed before its own began.

    With a status, end it too: `mlflow run` does that itself where it still lives.
    """
    client, run_id = MlflowClient(), os.environ["MLFLOW_RUN_ID"]
    for key, value in tags.items():
        client.set_tag(run_id, key, value)
    if status:
        client.set_terminated(run_id, status)


def active_run_id() -> str:
    """Return the id of the run that this process is in."""
    run = mlflow.active_run()
    assert run
    return str(run.info.run_id)


def tracking_uri() -> str:
    """Return where runs are tracked."""
    return str(mlflow.get_tracking_uri())
