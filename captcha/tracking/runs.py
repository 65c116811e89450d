"""Runs: where they are tracked, how one begins and ends, and the run that `mlflow run` has made."""

import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from captcha import CaptchaError
from captcha.data.disk import full_disk
from captcha.settings import EXPERIMENT_NAME, project_root
from captcha.tracking import signals
from captcha.tracking.outbox import PATIENCE, Outbox, Unsent, is_outage
from captcha.tracking.store import StoreError, cause, check_store
from captcha.tracking.unfinished import Asked, Process, ResumeError, Unfinished, folder_of, unfinished_runs
from captcha.tracking.view import write_view

NOTE, RUN_NAME = "mlflow.note.content", "mlflow.runName"
"""MLflow's tags for a description and a run's name."""

DEFAULT_EXPERIMENT = "0"

HOST, PID, STARTED = "captcha.host", "captcha.pid", "captcha.started"
"""Tags of a run: the process that is in it."""

SHORT_PATIENCE = 5
"""Seconds that a job which was stopped, or has failed, waits for a server that is away."""

logger = logging.getLogger(__name__)


class RegistryError(CaptchaError):
    """A run or model that MLflow does not have, or not whole; one line that says what to do."""


class CutShort(CaptchaError):  # noqa: N818  what has happened, not a fault
    """What ends a run before its end, as its job wants it: it is KILLED, and its description says this line."""


def connect(writing: bool = False) -> None:
    """Point MLflow at the project's own mlflow.db, unless the person has set a tracking server; see that it answers.

    Bare `mlflow ui` in the project's folder shows the same database. `writing` is for commands that make a run.

    Raises:
        StoreError: the store of runs, or that of models, cannot be used.
    """
    # Lines that say nothing to a person: bars for files that are here already, migrations of a new database.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    if not mlflow.is_tracking_uri_set():
        database = project_root() / "mlflow.db"
        if not database.exists():
            check_store(f"sqlite:///{database}")  # whether its folder may be written
            _make_database(database)
        mlflow.set_tracking_uri(f"sqlite:///{database}")
    for uri in dict.fromkeys((mlflow.get_tracking_uri(), mlflow.get_registry_uri())):
        check_store(uri, writing)


def _make_database(database: Path) -> None:
    """Let MLflow make its tables in a file aside, then give that its name: two processes in one file would clash."""
    with tempfile.TemporaryDirectory(dir=database.parent, prefix=".mlflow-", ignore_cleanup_errors=True) as aside:
        made = Path(aside, database.name)
        try:
            MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        except Exception as error:  # MLflow's, SQLAlchemy's or the system's: all name the file aside
            full = full_disk(error, [database.parent, Path(tempfile.gettempdir())])
            raise StoreError(full or f"the database {database} cannot be made: {cause(error)}") from None
        with contextlib.suppress(OSError):  # another was faster, or there are no hard links: then MLflow does it
            os.link(made, database)


@dataclass(frozen=True)
class _Open:
    """A run that this process is in."""

    unfinished: Unfinished
    outbox: Outbox
    monitor: "_Monitor | None"
    waiting: list[Outbox]
    """Of nested runs that have ended while the tracking server was away."""

    def flush(self, patience: float) -> bool:
        """Wait until everything is sent, `patience` seconds at most; return whether it is."""
        deadline = time.monotonic() + patience
        return all([each.flush(max(0, deadline - time.monotonic())) for each in [*self.waiting, self.outbox]])


_open: list[_Open] = []
"""The runs that this process is in, each nested in the one before."""


@contextlib.contextmanager
def tracked_run(
    run_name: str,
    nested: bool = False,
    asked: Asked | None = None,
    resumed: Unfinished | None = None,
    above: str | None = None,
) -> Iterator[Run]:
    """Start a run, or go on with one; end it FINISHED, FAILED or KILLED.

    A nested run belongs to the active one, which logs the system metrics of both; others go to the experiment
    `captcha`, or that of MLFLOW_EXPERIMENT_NAME, which gets the view and the note that it lacks. A run that `mlflow
    run` has made is taken up. A run that fails says why in its description.

    Args:
        run_name: its name.
        nested: belongs to the active run.
        asked: what the job was asked for, where it can be gone on with; None where it begins anew if it is cut off.
        resumed: the run to go on with.
        above: the id of a run of `Place.new_run` to show this one below; no process is in that.

    Raises:
        Unsent: the job has ended, but the tracking server is away.
    """
    left = None
    if not nested:
        connect(writing=True)
        end_stale_runs()
        left = _leave_run_elsewhere(always=resumed is not None)
        if "MLFLOW_RUN_ID" not in os.environ and not resumed:
            _set_experiment()
    begun_by = left.data.tags if left and not resumed else {}
    tags = {key: value for key, value in begun_by.items() if key.startswith("mlflow.")}
    tags |= {MLFLOW_PARENT_RUN_ID: above} if above else {}
    begun: _Open | None = None
    try:
        run = _started(run_name, nested, tags, resumed)
        if left:
            _refer(left, run)
        if not nested:
            write_view(run.info.experiment_id)
        begun = _begin(run, nested, asked, resumed)
        yield run
    except (KeyboardInterrupt, SystemExit):
        signals.heed()
        _end(begun, "KILLED", "Stopped before its end.", SHORT_PATIENCE)
        raise
    except CutShort as cut:
        _end(begun, "KILLED", str(cut))
        raise
    except Unsent as error:  # it was waited for
        _end(begun, "FINISHED" if error.done else "KILLED", patience=0)
        raise
    except BaseException as error:
        note = f"Failed: {error or type(error).__name__}"
        _end(begun, "FAILED", note, SHORT_PATIENCE, getattr(error, "resumable", True))
        raise
    _end(begun, "FINISHED")


@dataclass(frozen=True)
class Place:
    """Where a job tracks whose process is in no run but those that are shown below a shared one."""

    experiment_id: str
    left: Run | None
    """The run that `mlflow run` has made for this process."""

    @classmethod
    def choose(cls) -> Self:
        """Leave the run of `mlflow run`, if there is one, and choose the experiment."""
        left = _leave_run_elsewhere(always=True)
        return cls(_set_experiment(), left)

    def new_run(self, run_name: str, tags: Mapping[str, str]) -> str:
        """Return the id of a new run for those of several processes to be shown below."""
        run = MlflowClient().create_run(self.experiment_id, tags=resolve_tags(dict(tags)), run_name=run_name)
        write_view(self.experiment_id)
        return str(run.info.run_id)

    def refer(self, run_id: str) -> None:
        """Let the run of `mlflow run` say which one this process takes part in."""
        if self.left:
            _refer(self.left, MlflowClient().get_run(run_id))


def mark_killed(run_id: str, note: str) -> None:
    """Mark a run KILLED whose process gives no sign of life, say so in its description, and remove what it has left.

    What a process on this machine has that only stands still, it needs to end.
    """
    client = MlflowClient()
    client.set_tag(run_id, NOTE, note)
    client.set_terminated(run_id, "KILLED")
    with contextlib.suppress(ResumeError):  # it was of another machine
        left = Unfinished.load(folder_of(run_id))
        if not left.process.lives_here:
            left.remove()


def _started(run_name: str, nested: bool, tags: dict[str, str], resumed: Unfinished | None) -> Run:
    """Start the run; a nested one waits for a server that is away, as its job has begun."""
    deadline = time.monotonic() + PATIENCE
    tags |= _process_tags()
    while True:
        try:
            if resumed:
                return mlflow.start_run(run_id=resumed.run_id, nested=nested, tags=tags, log_system_metrics=False)
            return mlflow.start_run(run_name=run_name, nested=nested, tags=tags, log_system_metrics=False)
        except Exception as error:
            if not (nested and is_outage(error)):
                raise
            if time.monotonic() > deadline:
                raise Unsent(
                    f"the tracking server {tracking_uri()} is away, and the next part of this job needs a run of its "
                    f"own: {_open[-1].outbox.remedy()}, then go on with --resume {_open[-1].outbox.run_id}"
                ) from None
            time.sleep(1)


def _process_tags() -> dict[str, str]:
    """Return the tags by which a run is known to be stale once its process is gone."""
    own = Process.this()
    return {HOST: own.host, PID: str(own.pid), STARTED: f"{own.started:.2f}"}


def _begin(run: Run, nested: bool, asked: Asked | None, resumed: Unfinished | None) -> _Open:
    from captcha.tracking.calls import send  # which logs with what this module gives

    run_id, above = run.info.run_id, _open[-1].unfinished if nested else None
    folder = above.folder / "runs" / run_id if above else folder_of(run_id)
    asked = above.asked if above else asked  # a stopped part keeps what it needs as long as its job does
    unfinished = resumed.taken_up() if resumed else Unfinished(folder, run_id, tracking_uri(), Process.this(), asked)
    unfinished.save()
    outbox = Outbox(unfinished.folder / "outbox", run_id, send)
    monitor = None if nested else _Monitor(run_id, outbox, resumed is not None)
    if monitor:
        monitor.start()  # type: ignore[no-untyped-call]
    _open.append(_Open(unfinished, outbox, monitor, []))
    return _open[-1]


class _Monitor(SystemMetricsMonitor):
    """MLflow's measurements of the machine, sent by the outbox; MLflow's own would stop at the first outage."""

    def __init__(self, run_id: str, outbox: Outbox, resumed: bool) -> None:
        super().__init__(run_id, resume_logging=resumed)  # type: ignore[no-untyped-call]
        self._outbox = outbox

    def monitor(self) -> None:
        """Measure until the run ends."""
        while not self._shutdown_event.is_set():
            for _ in range(self.samples_before_logging):
                self.collect_metrics()  # type: ignore[no-untyped-call]
                if self._shutdown_event.wait(self.sampling_interval):
                    return
            with contextlib.suppress(Exception):  # the machine's load is no reason to end a training
                self.publish_metrics(self.aggregate_metrics())  # type: ignore[no-untyped-call]

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Put what was measured into the outbox."""
        values = {f"{self._metrics_prefix}{key}": float(value) for key, value in metrics.items()}
        at = {"time": round(time.time() * 1000), "step": self._logging_step}
        if not self._outbox.is_full():  # an outage of weeks would fill the disk with the machine's load
            self._outbox.put("metrics", {"values": values} | at, numbered=False)
        self._logging_step += 1
        for each in self.monitors:
            each.clear_metrics()


def _end(
    begun: _Open | None, status: str, note: str | None = None, patience: float = PATIENCE, resumable: bool = True
) -> None:
    """End the run; MLflow's lines about it go to standard error, as standard output is for results.

    What the tracking server has not taken yet waits a while for it, and then stays on disk. A nested run does not
    wait: the run above does.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if begun is None:
            mlflow.end_run(status)
            return
        _open.remove(begun)
        if begun.monitor:
            begun.monitor.finish()  # type: ignore[no-untyped-call]
        outbox, unfinished = begun.outbox, begun.unfinished
        finished, above = status == "FINISHED", _open[-1] if _open else None
        asked = unfinished.asked if unfinished.resumable and resumable and not finished else None
        sent, fault = False, None
        try:
            if note:
                more = f" `captcha {asked.job} --resume {outbox.run_id}` goes on." if asked and not above else ""
                outbox.put("tags", {"values": {NOTE: note + more}}, numbered=False)
            sent = begun.flush(0 if above else patience)
        except Exception as error:  # what the server says against what was logged
            fault, status = error, "FAILED" if finished else status
        try:
            mlflow.end_run(status)
        except Exception as error:
            sent = sent and not is_outage(error)
        if not sent:
            outbox.put("end", {"status": status, "time": round(time.time() * 1000)}, numbered=False)
        if above and not sent:
            above.waiting.append(outbox)
            return
        outbox.close()
        if sent and not asked:
            unfinished.remove()
    if fault and finished:
        raise fault
    if above:
        return
    if asked:
        logger.info("go on with: captcha %s --resume %s", asked.job, outbox.run_id)
    if sent or patience == 0:
        return
    if finished:
        raise unsent(outbox)
    logger.warning("the tracking server %s is away: %s", tracking_uri(), outbox.remedy())


def unsent(outbox: Outbox) -> Unsent:
    """Return what ends a job whose tracking server has not come back."""
    return Unsent(
        f"the tracking server {tracking_uri()} has not come back: all that the run logged is in "
        f"{outbox.folder.parent}; {outbox.remedy()}",
        done=True,
    )


def active_outbox() -> Outbox:
    """Return the outbox of the run that this process is in."""
    return _open[-1].outbox


def active_folder() -> Path:
    """Return the folder that the run which this process is in keeps until it has ended."""
    return _open[-1].unfinished.folder


def end_stale_runs() -> list[Run]:
    """Mark the runs KILLED whose process, on this host, is gone; say so, and return them."""
    ended = stale_runs()
    for run in ended:
        run_id = run.info.run_id
        client = MlflowClient()
        client.set_tag(run_id, NOTE, "Its process has ended without a word.")
        client.set_terminated(run_id, "KILLED")
        unfinished = folder_of(run_id)
        resume = ""
        if unfinished.exists():
            left = Unfinished.load(unfinished)
            if left.asked and left.resumable:
                resume = f"; captcha {left.asked.job} --resume {run_id} goes on with it"
        logger.warning("run %s (%s) was cut off: its process is gone%s", run.info.run_name, run_id, resume)
    return ended


@dataclass(frozen=True)
class Listed:
    """A run that has not ended well, as `captcha runs` lists it."""

    run_id: str
    name: str
    status: str
    """As MLflow has it; STALE where that is RUNNING but the process is gone."""
    job: str | None
    waiting: int
    """Entries that the tracking server does not have yet."""
    resume: str | None
    """The command that goes on with it."""
    folder: str | None


def listed_runs(stale_only: bool = False) -> list[Listed]:
    """Return the runs that are under way, and those that were cut off and can be gone on with; change nothing."""
    connect()
    client = MlflowClient()
    stale = {run.info.run_id for run in stale_runs()}
    experiments = [each.experiment_id for each in client.search_experiments()]
    running = client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000)
    known = {run.info.run_id: run for run in running}
    left = {each.run_id: each for each in unfinished_runs()}
    for run_id in left.keys() - known.keys():
        with contextlib.suppress(MlflowException):  # of another tracking server
            known[run_id] = client.get_run(run_id)
    rows = []
    for run_id, run in known.items():
        if stale_only and run_id not in stale:
            continue
        unfinished = left.get(run_id)
        asked = unfinished.asked if unfinished and unfinished.resumable and unfinished.process.gone else None
        rows.append(
            Listed(
                run_id,
                run.info.run_name,
                "STALE" if run_id in stale else run.info.status,
                run.data.tags.get("job"),
                len(list((unfinished.folder / "outbox").glob("*.entry"))) if unfinished else 0,
                f"captcha {asked.job} --resume {run_id}" if asked else None,
                str(unfinished.folder) if unfinished else None,
            )
        )
    return rows


def stale_runs() -> list[Run]:
    """Return the runs that MLflow takes for running, but whose process on this host is gone."""
    client, own = MlflowClient(), Process.this()
    running = f"attributes.status = 'RUNNING' AND tags.`{HOST}` = '{own.host}'"
    experiments = [each.experiment_id for each in client.search_experiments()]
    found = client.search_runs(experiments, running, ViewType.ACTIVE_ONLY, max_results=1000)
    return [run for run in found if _process(run).gone]


def _process(run: Run) -> Process:
    tags = run.data.tags
    return Process(tags[HOST], int(tags[PID]), float(tags[STARTED]))


def _set_experiment() -> str:
    """Choose MLFLOW_EXPERIMENT_NAME or our own, and return its id.

    A new one in our own database keeps its artifacts in mlruns/.
    """
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT_NAME)
    ours = mlflow.get_tracking_uri() == f"sqlite:///{project_root() / 'mlflow.db'}"
    if ours and mlflow.get_experiment_by_name(name) is None:
        mlflow.create_experiment(name, artifact_location=(project_root() / "mlruns" / name).as_uri())
    return str(mlflow.set_experiment(name).experiment_id)


def _leave_run_elsewhere(always: bool = False) -> Run | None:
    """Leave the run of `mlflow run`, and return it, where it is not in an experiment of ours, or `always`; else None.

    Bare `mlflow run .` makes it in the default experiment. And where `mlflow ui` has made the database, an experiment
    may keep its artifacts behind that server (mlflow-artifacts:), where a process that writes to the database directly
    cannot reach them.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id is None:
        return None
    run: Run = MlflowClient().get_run(run_id)
    unreachable = run.info.artifact_uri.startswith("mlflow-artifacts:") and not tracking_uri().startswith("http")
    if run.info.experiment_id != DEFAULT_EXPERIMENT and not unreachable and not always:
        return None
    for key, value in _process_tags().items():
        MlflowClient().set_tag(run_id, key, value)
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
