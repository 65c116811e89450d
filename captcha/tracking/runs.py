"""Runs: where they are tracked, how one begins and ends, and the run that `mlflow run` has made."""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run

from captcha import CaptchaError
from captcha.settings import EXPERIMENT_NAME, project_root
from captcha.tracking.view import write_view


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
    `captcha`, which gets the view and the note that it lacks.
    """
    if not nested:
        connect()
        _leave_unusable_run()
        if "MLFLOW_RUN_ID" not in os.environ:
            _set_experiment()
    try:
        run = mlflow.start_run(run_name=run_name, nested=nested, log_system_metrics=not nested)
        if not nested:
            write_view(run.info.experiment_id)
        yield run
    except (KeyboardInterrupt, SystemExit):
        _end_run("KILLED")
        raise
    except BaseException:
        _end_run("FAILED")
        raise
    _end_run("FINISHED")


def _end_run(status: str) -> None:
    """End the run; MLflow's lines about it go to standard error, as standard output is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        mlflow.end_run(status)


def _set_experiment() -> None:
    """Choose MLFLOW_EXPERIMENT_NAME or our own; a new one in our own database keeps its artifacts in mlruns/."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT_NAME)
    ours = mlflow.get_tracking_uri() == f"sqlite:///{project_root() / 'mlflow.db'}"
    if ours and mlflow.get_experiment_by_name(name) is None:
        mlflow.create_experiment(name, artifact_location=(project_root() / "mlruns" / name).as_uri())
    mlflow.set_experiment(name)


def _leave_unusable_run() -> None:
    """Leave a run of `mlflow run` whose artifacts cannot be written, for one of our own.

    Where `mlflow ui` has made the database, the default experiment keeps its artifacts behind that server
    (mlflow-artifacts:/0), and a process that writes to the database directly cannot reach them.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id is None or mlflow.get_tracking_uri().startswith("http"):
        return
    client = MlflowClient()
    if client.get_run(run_id).info.artifact_uri.startswith("mlflow-artifacts:"):
        note = f"The run itself stands in the experiment `{EXPERIMENT_NAME}`: this one's artifacts cannot be written."
        client.set_tag(run_id, "mlflow.note.content", note)
        client.set_tag(run_id, "mlflow.runName", "started by mlflow run, see its description")
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
            os.environ.pop(name, None)


def tracking_uri() -> str:
    """Return where runs are tracked."""
    return str(mlflow.get_tracking_uri())
