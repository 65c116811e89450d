"""API keys from a file, read again when it changes."""

import hashlib
import hmac
from pathlib import Path

from starlette.datastructures import Headers

from captcha import CaptchaError
from captcha.server.monitoring import write_line

SHORTEST = 16
"""Characters that a key needs at least."""


class KeysError(CaptchaError):
    """A file of keys that cannot be used; one line."""


class Keys:
    """The keys that may ask, one a line of a file: `KEY` or `NAME KEY`; # begins a comment.

    Raises:
        KeysError: the file cannot be read, holds no key, or a bad one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()
        self._names = self._read()
        if not self._names:
            raise KeysError(f"{path} holds no key: write one of {SHORTEST} characters or more on a line")

    def name_of(self, headers: Headers) -> str | None:
        """Return the name of the key in `Authorization: Bearer KEY` or `X-API-Key: KEY`; None where it is no key.

        Every key is compared, each in the same time whatever it holds.
        """
        self._read_again_if_changed()
        kind, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", ""))
        found = [name for digest, name in self._names.items() if hmac.compare_digest(digest, given)]
        return found[0] if found else None

    def _read_again_if_changed(self) -> None:
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen, self._names = stamp, self._read()
                write_line(message=f"{self._path} has changed: it holds {len(self._names)} keys now")
        except KeysError as error:
            if self._seen is not None:
                write_line(message=f"{error}; the keys stay as they were")
            self._seen = None

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError as error:
            raise KeysError(f"{self._path} cannot be read: {error.strerror}") from None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> dict[bytes, str]:
        """Return the name of each key, by the key's digest."""
        try:
            lines = self._path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise KeysError(f"{self._path} cannot be read: {reason}") from None
        names = {}
        for number, line in enumerate(lines, start=1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) > 2 or len(words[-1]) < SHORTEST:
                raise KeysError(
                    f"{self._path}, line {number}: write KEY or NAME KEY, the key of {SHORTEST} characters or more"
                )
            names[_digest(words[-1])] = words[0] if len(words) == 2 else f"line {number}"
        return names


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
