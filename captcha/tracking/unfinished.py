"""What is on disk of a run that has not ended: how it was started, its checkpoint, its outbox.

A folder for each, mlruns/unfinished/RUN_ID; it goes when the run has ended and the tracking server has everything.
"""

import json
import logging
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil  # type: ignore[import-untyped]

from captcha import CaptchaError
from captcha.data.files import write_whole
from captcha.settings import CONTROLS, Settings, project_root

JOB_FILE, PARTS_FILE = "job.json", "parts.json"

S = TypeVar("S", bound=Settings)

logger = logging.getLogger(__name__)


class ResumeError(CaptchaError):
    """A run that cannot be gone on with; one line that says why and what to do."""


@dataclass(frozen=True)
class Process:
    """A process on a host, by its number and the time at which it began, so that no later one is taken for it."""

    host: str
    pid: int
    started: float

    @classmethod
    def this(cls) -> Self:
        """Return this process."""
        own = psutil.Process()
        return cls(socket.gethostname(), own.pid, own.create_time())

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended; of another host nothing is known."""
        if self.host != socket.gethostname():
            return False
        try:
            return abs(float(psutil.Process(self.pid).create_time()) - self.started) > 1
        except psutil.NoSuchProcess:
            return True

    @property
    def lives_here(self) -> bool:
        """Whether it is of this host and has not ended."""
        return self.host == socket.gethostname() and not self.gone


@dataclass(frozen=True)
class Asked:
    """What a job was asked for, as far as it shapes the result, and what the data was then."""

    job: str
    """The command's name."""
    settings: Mapping[str, Any]
    facts: Mapping[str, str]
    """What the settings do not say: digests of the data and of the recipe, and which model an alias stood for."""

    def changes(self, other: "Asked", given: set[str]) -> list[str]:
        """Return in words how `other` differs: in the settings that were given with it, and in the facts."""
        settings = [
            f"{name.replace('_', '-')} is {other.settings[name]!r}, it was {self.settings.get(name)!r}"
            for name in sorted(given & set(other.settings))
            if other.settings[name] != self.settings.get(name)
        ]
        facts = [
            f"the {name.replace('_', ' ')} has changed"
            for name, value in other.facts.items()
            if self.facts.get(name) != value
        ]
        return settings + facts


@dataclass(frozen=True)
class Unfinished:
    """A run that has not ended, and its folder."""

    folder: Path
    run_id: str
    tracking_uri: str
    process: Process
    asked: Asked | None
    """None where the job cannot be gone on with, as a measurement."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return what `save` wrote.

        Raises:
            ResumeError: the folder holds no run, or its file is damaged.
        """
        try:
            saved = json.loads((folder / JOB_FILE).read_text())
            asked = Asked(**saved["asked"]) if saved["asked"] else None
            return cls(folder, saved["run_id"], saved["tracking_uri"], Process(**saved["process"]), asked)
        except OSError as error:
            raise ResumeError(f"{folder} is no folder of an unfinished run: {error.strerror}") from None
        except (ValueError, TypeError, KeyError) as error:
            raise ResumeError(f"{folder / JOB_FILE} is damaged: {error!r}") from None

    def save(self) -> None:
        """Write the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        named = {"run_id": self.run_id, "tracking_uri": self.tracking_uri, "process": asdict(self.process)}
        saved = named | {"asked": asdict(self.asked) if self.asked else None}
        write_whole(self.folder / JOB_FILE, json.dumps(saved, indent=2).encode())

    def taken_up(self) -> Self:
        """Return this run as one of this process."""
        return replace(self, process=Process.this())

    @property
    def resumable(self) -> bool:
        """Whether there is anything to go on from: a checkpoint, or runs within this one."""
        kept = ("*.safetensors", "*.json") if self.asked else ()
        return any(file.name != JOB_FILE for pattern in kept for file in self.folder.glob(pattern))

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def folder_of(run_id: str) -> Path:
    """Return where a run keeps what it needs until it has ended."""
    return project_root() / "mlruns" / "unfinished" / run_id


def unfinished_runs() -> list[Unfinished]:
    """Return all that there are, the latest started first."""
    found = [Unfinished.load(file.parent) for file in folder_of("*").parent.glob(f"*/{JOB_FILE}")]
    return sorted(found, key=lambda each: -each.process.started)


def find_unfinished(resume: str, job: str, settings: Mapping[str, Any], given: set[str]) -> Unfinished | None:
    """Return the run to go on with: the one of an id; for `auto` the latest of this job and these settings, or None.

    Args:
        resume: a run's id, or auto.
        job: the command's name.
        settings: what was asked for.
        given: the names of the settings that a person gave; the others are as they were.

    Raises:
        ResumeError: there is no such unfinished run, it is another job's, or its process is still there.
    """
    if resume == "auto":
        for each in unfinished_runs():
            if each.asked is None or each.asked.job != job or not each.process.gone:
                continue
            if not each.asked.changes(Asked(job, settings, {}), given):
                return each
        return None
    folder = folder_of(resume)
    if not folder.exists():
        raise ResumeError(
            f"run {resume} has left nothing to go on with in {folder.parent}: it has ended, or began elsewhere; "
            "captcha runs lists those that can be resumed"
        )
    found = Unfinished.load(folder)
    if not found.asked or found.asked.job != job:
        own = f": captcha {found.asked.job} --resume {resume} goes on with it" if found.asked else ""
        raise ResumeError(f"run {resume} is not one of captcha {job}{own}")
    if not found.process.gone:
        process = found.process
        raise ResumeError(f"run {resume} is still under way on {process.host}, process {process.pid}: end that first")
    return found


def taken_up(settings: S, job: str) -> tuple[S, Unfinished | None]:
    """Return the settings to go on with, those of the run to resume, and that run; None where a new one begins.

    Raises:
        ResumeError: there is no such run, or it was asked for otherwise.
    """
    if settings.resume is None:  # type: ignore[attr-defined]
        return settings, None
    resume: str = settings.resume  # type: ignore[attr-defined]
    found = find_unfinished(resume, job, settings.shaping(), settings.given())
    if found is None:
        logger.info("no run of these settings was cut off: a new one begins")
        return settings, None
    assert found.asked
    _refuse(found, found.asked.changes(Asked(job, settings.shaping(), {}), settings.given()))
    logger.info("going on with run %s", found.run_id)
    os.environ.setdefault("MLFLOW_TRACKING_URI", found.tracking_uri)
    controls = settings.model_dump(include=CONTROLS)
    return type(settings)(**found.asked.settings, **controls), found


def refuse_changes(found: Unfinished | None, facts: Mapping[str, str]) -> None:
    """Raise ResumeError where what a run found then is otherwise now."""
    if found and found.asked:
        _refuse(found, found.asked.changes(replace(found.asked, facts=facts), set()))


def _refuse(found: Unfinished, changes: list[str]) -> None:
    if changes:
        raise ResumeError(
            f"run {found.run_id} cannot be gone on with: {'; '.join(changes)}; undo that, or start a new run"
        )


class Parts:
    """The nested runs of a job, each under a key: which have begun, and what came out of those that are done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / PARTS_FILE
        self._known: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}

    def begun(self, key: str) -> Unfinished | None:
        """Return the run that was begun for a key and has not ended, None where there is none."""
        folder = self.folder / "runs" / self._known.get(key, {}).get("run_id", "none")
        return Unfinished.load(folder) if (folder / JOB_FILE).exists() else None

    def result(self, key: str) -> Any:
        """Return what `done` was given, None where the key's run is not done."""
        return self._known.get(key, {}).get("result")

    def begin(self, key: str, run_id: str) -> None:
        """Note the run of a key."""
        self._note(key, {"run_id": run_id})

    def done(self, key: str, result: Any) -> None:
        """Note what came out of a key's run, as JSON."""
        self._note(key, self._known.get(key, {}) | {"result": result})

    def _note(self, key: str, what: dict[str, Any]) -> None:
        self._known[key] = what
        write_whole(self.folder / PARTS_FILE, json.dumps(self._known).encode())
