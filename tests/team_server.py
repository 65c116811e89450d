"""A team's server for the tests: `mlflow server` on PostgreSQL, through which files go too."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.postgresql import new_postgresql
from tests.processes import MLFLOW, served

WORKERS = 2
"""Processes that answer: the tests run on two cores."""


PATIENT = "--timeout-worker-healthcheck 120"
"""By uvicorn's default a worker is killed that says nothing for 5 seconds: on busy cores each, while it imports."""


@contextmanager
def team_server(folder: Path, *more: str, **variables: str) -> Iterator[str]:
    """Start the server, with its files in a folder, more options and variables, and give its address."""
    with new_postgresql() as store:
        command = ("server", "--backend-store-uri", store.uri, "--workers", str(WORKERS), "--uvicorn-opts", PATIENT)
        files = ("--artifacts-destination", str(folder / "artifacts"))
        with served(folder / "log", "health", MLFLOW, *command, *files, *more, cwd=folder, **variables) as address:
            yield address
