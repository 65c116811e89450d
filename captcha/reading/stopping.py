"""When reading stops before its end: at a deadline, or once nobody waits for the answer.

Whoever asks for a reading sets one of the two context variables; whoever works calls `stop_if_unwanted` often. Without
them, reading goes on to its end.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from captcha import CaptchaError

caller_gone: ContextVar[threading.Event | None] = ContextVar("caller_gone", default=None)
"""An event that a server sets when its caller has gone, or has been answered already."""

_deadline: ContextVar[float | None] = ContextVar("_deadline", default=None)


class StoppedError(CaptchaError):
    """Reading was stopped: its time was over, or nobody waits for it."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let what is read inside stop when these seconds are over."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def stop_if_unwanted() -> None:
    """Raise StoppedError if the deadline is over or the caller has gone."""
    gone, end = caller_gone.get(), _deadline.get()
    if gone is not None and gone.is_set():
        raise StoppedError("stopped: nobody waits for the answer")
    if end is not None and time.monotonic() > end:
        raise StoppedError("stopped: the time is over")
