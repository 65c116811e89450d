"""Send what a run has logged while its tracking server was away."""

import os
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from captcha.tracking.calls import send
from captcha.tracking.outbox import Outbox, Unsent
from captcha.tracking.runs import connect, tracking_uri
from captcha.tracking.unfinished import JOB_FILE, ResumeError, Unfinished

PATIENCE = 15
"""Seconds to wait for a server that is away."""


@dataclass(frozen=True)
class SyncOutcome:
    """What was sent, and what is left to do."""

    run_id: str
    entries: int
    status: str
    """The run's status now."""
    command: str | None
    """What goes on with the run, where it has not finished."""


def sync(folder: Path) -> SyncOutcome:
    """Send what waits in a run's folder and in those of its nested runs; remove the folder of a run that has finished.

    Raises:
        ResumeError: it is no such folder, or the run's process is still there and sends by itself.
        Unsent: the tracking server is away.
    """
    whole = Unfinished.load(folder)
    if not whole.process.gone and whole.process.pid != os.getpid():
        raise ResumeError(f"run {whole.run_id} is still under way, process {whole.process.pid}: it sends by itself")
    os.environ.setdefault("MLFLOW_TRACKING_URI", whole.tracking_uri)
    connect(writing=True)
    nested = [Unfinished.load(file.parent) for file in sorted((folder / "runs").glob(f"*/{JOB_FILE}"))]
    entries = 0
    for each in [*nested, whole]:
        outbox = Outbox(each.folder / "outbox", each.run_id, send)
        entries += len(outbox.waiting())
        try:
            if not outbox.flush(PATIENCE):
                raise Unsent(f"the tracking server {tracking_uri()} is away: what waits stays in {folder}; try later")
        finally:
            outbox.close()
    status = MlflowClient().get_run(whole.run_id).info.status
    command = f"captcha {whole.asked.job} --resume {whole.run_id}" if whole.asked and whole.resumable else None
    if status == "FINISHED" or command is None:
        whole.remove()
        command = None
    return SyncOutcome(whole.run_id, entries, status, command)
