"""The outbox of a run: what it logs goes through a folder to the tracking server, in order, once, bounded in wait.

An entry is one of the calls of `calls.py`, written whole before it is sent and removed once the server has it. While
the server answers, `put` sends at once. When it does not, entries wait, a thread tries again, and whoever logs goes on.
Each call can be repeated without doubling anything, so an entry whose answer was lost is sent again.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import requests
from mlflow.exceptions import MlflowException

from captcha import CaptchaError
from captcha.data.files import write_whole
from captcha.tracking.store import StoreError

logger = logging.getLogger(__name__)

LIMIT_VARIABLE, LIMIT = "CAPTCHA_OUTBOX_MB", 1000
"""Bound of what waits in one outbox, in MB; beyond it pictures are left out, and anything else ends the job."""

SAID_AFTER = 30
"""Seconds of an outage after which a person is told, once."""

PATIENCE = 60
"""Seconds that the end of a job waits for a server that is away."""

PAUSES = (1, 2, 5, 10)
"""Seconds between attempts while the server is away; the last one repeats."""

STATE = "sent.json"

Send = Callable[[str, str, Path | None, Mapping[str, Any]], None]
"""What sends an entry: its call, its run, its files and its arguments."""

_AWAY = re.compile(
    r"failed with exception|error code (5\d\d|429)|too many 50\d|connection|timed? ?out|max retries"
    r"|database is locked|OperationalError|could not connect|no space left|disk is full",
    re.IGNORECASE,
)


def is_outage(error: BaseException) -> bool:
    """Return whether an error says that the store cannot be reached, or cannot take anything now, and may later.

    An error of ours is one where it came of one.
    """
    if isinstance(error, CaptchaError):
        return isinstance(error, StoreError) or (error.__context__ is not None and is_outage(error.__context__))
    if isinstance(error, FileNotFoundError):  # it will not be there later either
        return False
    if isinstance(error, requests.RequestException | OSError):
        return True
    passing = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
    return isinstance(error, MlflowException) and error.error_code in passing and bool(_AWAY.search(str(error)))


class OutboxError(CaptchaError):
    """What a run has logged cannot wait any longer; one line that says why and what to do."""


class Unsent(CaptchaError):  # noqa: N818  what has happened, not a fault
    """The tracking server has not come back; one line with the command that sends what waits for it."""

    exit_code = 3

    def __init__(self, line: str, done: bool = False) -> None:
        super().__init__(line)
        self.done = done
        """Whether nothing but the sending is left of the job."""


class Outbox:
    """The entries of one run, in a folder of its own.

    Entries that follow from the job alone are numbered in the order of `put`. A resumed job says again what it said
    since its checkpoint, and `start_from` the checkpoint's number: what stands already is neither written nor sent.
    """

    def __init__(self, folder: Path, run_id: str, send: Send) -> None:
        self.folder, self.run_id, self._send = folder, run_id, send
        self.said = 0
        """Number of the next numbered entry."""
        self._limit = int(os.environ.get(LIMIT_VARIABLE, LIMIT)) * 10**6
        self._writing, self._sending = threading.Lock(), threading.Lock()
        self._away = threading.Event()
        self._closed = threading.Event()
        self._retrying: threading.Thread | None = None
        self._fault: Exception | None = None
        self._told_full = False
        folder.mkdir(parents=True, exist_ok=True)
        state = json.loads((folder / STATE).read_text()) if (folder / STATE).exists() else {"place": 0, "said": 0}
        waiting = [json.loads(file.read_text()) for file in self.waiting()]
        self._place = max([state["place"], *(entry["place"] + 1 for entry in waiting)])
        self._sent = state["said"]
        self._written = max([self._sent, *(entry["said"] + 1 for entry in waiting if entry["said"] is not None)])

    def start_from(self, said: int) -> None:
        """Go back to the number at a checkpoint."""
        self.said = said

    def waiting(self) -> list[Path]:
        """Return the entries that wait, in their order."""
        return sorted(self.folder.glob("*.entry"))

    def put(
        self,
        call: str,
        arguments: Mapping[str, Any],
        files: Path | None = None,
        picture: bool = False,
        numbered: bool = True,
    ) -> None:
        """Write an entry, and send it unless the server is away.

        Args:
            call: one of `CALLS`.
            arguments: what JSON can hold.
            files: a folder whose content belongs to the entry; it is moved.
            picture: may be left out where the outbox is full.
            numbered: follows from the job alone; not so what the machine does, or how a job was stopped.

        Raises:
            OutboxError: the outbox is full.
            Exception: what the server says against an entry, where it is no outage.
        """
        self._raise_fault()
        with self._writing:
            number = None
            if numbered:
                number, self.said = self.said, self.said + 1
                if number < self._written:
                    return  # said before the job was broken off
            self._write(call, arguments, files, picture, number)
        self._send_unless_away()

    def _write(
        self, call: str, arguments: Mapping[str, Any], files: Path | None, picture: bool, number: int | None
    ) -> None:
        if files and not self._has_room(files, picture):
            call, arguments, files = "nothing", {}, None
        place, self._place = self._place, self._place + 1
        name = f"{place:08}"
        if files:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            shutil.move(files, self.folder / name)
        entry = {"place": place, "said": number, "run": self.run_id, "call": call}
        write_whole(self.folder / f"{name}.entry", json.dumps(entry | {"arguments": dict(arguments)}).encode())
        if number is not None:
            self._written = number + 1

    def is_full(self) -> bool:
        """Return whether what waits has reached the bound."""
        return bool(self.waiting()) and _bytes(self.folder) >= self._limit

    def _has_room(self, files: Path, picture: bool) -> bool:
        held = _bytes(self.folder) if self.waiting() else 0
        if held + _bytes(files) <= self._limit:
            return True
        where = f"{self.folder} holds {self._limit // 10**6} MB that wait for the tracking server"
        if not picture:
            raise OutboxError(f"{where}, and no more ({LIMIT_VARIABLE}): the run is broken off, {self.remedy()}")
        if not self._told_full:
            logger.warning("%s, and no more (%s): pictures are left out", where, LIMIT_VARIABLE)
            self._told_full = True
        return False

    def remedy(self) -> str:
        """Return what sends what waits."""
        return f"send what waits with: captcha sync {self.folder.parent}"

    def _send_unless_away(self) -> None:
        if self._away.is_set() or self._fault:
            return
        try:
            self._send_waiting()
        except Exception as error:
            if not is_outage(error):
                raise
            with self._writing:
                if not self._away.is_set():
                    self._away.set()
                    self._retrying = threading.Thread(target=self._retry, daemon=True)
                    self._retrying.start()

    def _send_waiting(self) -> int:
        """Send all that waits, in order, and return how many entries that were."""
        sent = 0
        with self._sending:
            while waiting := self.waiting():
                for file in waiting:
                    entry = json.loads(file.read_text())
                    files = self.folder / file.stem
                    try:
                        self._send(entry["call"], entry["run"], files if files.exists() else None, entry["arguments"])
                    except Exception as error:
                        if not is_outage(error):
                            self._remove(file, files, entry)  # never sent again: its fault would come again
                        raise
                    self._remove(file, files, entry)
                    sent += 1
        return sent

    def _remove(self, file: Path, files: Path, entry: Mapping[str, Any]) -> None:
        if entry["said"] is not None:
            self._sent = entry["said"] + 1
        state = {"place": entry["place"] + 1, "said": self._sent}
        write_whole(self.folder / STATE, json.dumps(state).encode(), sync=False)
        file.unlink()
        shutil.rmtree(files, ignore_errors=True)

    def _retry(self) -> None:
        began, attempts, told = time.monotonic(), 0, False
        while not self._closed.wait(PAUSES[min(attempts, len(PAUSES) - 1)]):
            attempts += 1
            try:
                sent = self._send_waiting()
            except Exception as again:
                if not is_outage(again):
                    self._fault = again
                    break
                if not told and time.monotonic() - began >= SAID_AFTER:
                    told = True
                    logger.warning(
                        "the tracking server %s has not answered for %d s (%s): what this run logs waits in %s, and "
                        "the run goes on",
                        *(mlflow.get_tracking_uri(), SAID_AFTER, _line(again), self.folder),
                    )
            else:
                if told:
                    logger.info("the tracking server is back: %d waiting entries are sent", sent)
                break
        self._away.clear()

    def _raise_fault(self) -> None:
        if self._fault:
            fault, self._fault = self._fault, None
            raise fault

    def flush(self, patience: float = PATIENCE) -> bool:
        """Wait until everything is sent, `patience` seconds at most; return whether it is.

        Raises:
            Exception: what the server says against an entry, where it is no outage.
        """
        deadline = time.monotonic() + patience
        while True:
            self._raise_fault()
            self._send_unless_away()
            if not self.waiting():
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            retrying = self._retrying
            if retrying:
                retrying.join(min(left, 0.5))

    def close(self) -> None:
        """Stop trying; what waits stays on disk."""
        self._closed.set()


def _bytes(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # sent and removed meanwhile
            total += file.stat().st_size
    return total


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
