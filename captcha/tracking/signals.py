"""How a signal ends a process that tracks a run: once, cleanly, and never unheard.

The handler raises SystemExit in the main thread, which Python drops where it comes in the middle of a callback or a
destructor; so it is raised again until somebody heeds it. Later signals change nothing: the process is ending.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

HANG_UP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
ENDED = {128 + HANG_UP: "hung up", 128 + signal.SIGINT: "interrupted", 128 + signal.SIGTERM: "terminated"}
"""Exit codes by which a shell knows what ended a program."""

AGAIN = 1.0
"""Seconds after which a signal that nobody has heeded is raised again."""

HELD = 20.0
"""Seconds that a step of a training may hold a signal back."""

_received: int | None = None
_holding = 0
_heeded = False


def listen() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end this process with SystemExit, 128 + the signal's number."""
    for number in {signal.SIGINT, signal.SIGTERM, HANG_UP}:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _end)


def listen_anew() -> None:
    """Forget a signal that was heeded without ending the process: the next one ends it."""
    global _received, _heeded
    _received, _heeded = None, False


def heed() -> None:
    """Say that the process is ending: no signal interrupts what is left to do."""
    global _heeded
    _heeded = True
    if _received is not None:
        _remind_in(0)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold signals back while a step is half done; then raise one that has come, unless another `held` is around."""
    global _holding
    _holding += 1
    try:
        yield
    finally:
        _holding -= 1
    if _received is not None and not _heeded and not _holding:
        _remind_in(AGAIN)
        raise SystemExit(128 + _received)


def held_back() -> int:
    """Return the number of a signal that is held back, 0 where there is none."""
    return _received or 0


def _end(number: int, frame: FrameType | None) -> None:
    global _received
    if _received is not None or _heeded:
        return
    _received = number
    _remind_in(HELD if _holding else AGAIN)
    if not _holding:
        raise SystemExit(128 + number)


def _again(number: int, frame: FrameType | None) -> None:
    under_way = isinstance(sys.exc_info()[1], SystemExit | KeyboardInterrupt)
    if _received is not None and not _heeded and not under_way:
        raise SystemExit(128 + _received)


def _remind_in(seconds: float) -> None:
    if hasattr(signal, "setitimer"):  # not on Windows, where a lost signal has to be sent again
        signal.signal(signal.SIGALRM, _again)
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN if seconds else 0)
