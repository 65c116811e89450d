"""The output of `captcha score`: a folder of Parquet parts, and which model has read what they say."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from captcha.data.files import write_whole
from captcha.data.samples import DataError
from captcha.reading.recognizer import Reading

MODEL_FILE = "_model.json"
"""Which model has read all parts. Spark and pyarrow take no file for a part whose name begins so."""

SPARKS_UNFINISHED = "_temporary"
"""Where Spark keeps the parts that are not whole."""

SCHEMA = pa.schema(
    {"path": pa.string(), "text": pa.string(), "confidence": pa.float64(), "accepted": pa.bool_(), "error": pa.string()}
)


@dataclass(frozen=True)
class Row:
    """What is known of one image: what it says, or why it cannot be read."""

    path: str
    outcome: Reading | str


@dataclass(frozen=True)
class Scores:
    """A folder of parts that this process alone writes to."""

    folder: Path

    def parts(self) -> set[str]:
        """Return the names of the parts that are there whole."""
        return {each.name for each in self.folder.glob("*.parquet") if not each.name.startswith((".", "_"))}

    def paths(self) -> Iterator[str]:
        """Yield what each image that is done is called."""
        for part in sorted(self.parts()):
            yield from self._column(part, "path").to_pylist()

    def errors(self, part: str) -> tuple[int, int]:
        """Return how many rows a part has, and how many of them are errors."""
        column = self._column(part, "error")
        return len(column), len(column) - column.null_count

    def write(self, part: str, rows: Sequence[Row]) -> None:
        """Write a part, whole or not at all."""
        read = [row.outcome if isinstance(row.outcome, Reading) else None for row in rows]
        columns = {
            "path": [row.path for row in rows],
            "text": [each and each.text for each in read],
            "confidence": [each and each.confidence for each in read],
            "accepted": [each and each.accepted for each in read],
            "error": [row.outcome if isinstance(row.outcome, str) else None for row in rows],
        }
        content = pa.BufferOutputStream()
        pq.write_table(pa.table(columns, SCHEMA), content)
        write_whole(self.folder / part, content.getvalue().to_pybytes())

    def _column(self, part: str, name: str) -> pa.ChunkedArray:
        try:
            return pq.read_table(self.folder / part, columns=[name])[name]
        except (OSError, pa.ArrowException, KeyError) as error:
            raise DataError(
                f"{self.folder / part} is no part that captcha score has written ({' '.join(str(error).split())}): "
                "move it away, and its images are read again"
            ) from None


@contextlib.contextmanager
def opened(folder: Path, model: Mapping[str, str]) -> Iterator[Scores]:
    """Make the output folder of a model, or take up the one that it has begun; no other process may write to it.

    Raises:
        DataError: it holds something else, or what another model has read, or another process writes to it.
        OSError: it cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder.absolute()} is a file: name a folder")
    described = folder / MODEL_FILE
    if folder.exists() and any(folder.iterdir()) and not described.exists():
        raise DataError(f"{folder.absolute()} holds something else than what captcha score writes: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if not described.exists():
            write_whole(described, json.dumps(dict(model), indent=2).encode())
        _refuse_other(described, model)
        shutil.rmtree(folder / SPARKS_UNFINISHED, ignore_errors=True)  # of a run that was killed
        yield Scores(folder)


def _refuse_other(described: Path, model: Mapping[str, str]) -> None:
    """Raise DataError where the parts beside a file are of another model; its name may have changed."""
    try:
        known = json.loads(described.read_text())
        same = all(known[name] == model[name] for name in ("sha256", "precision"))
        was = f"{known['model']} ({known['precision']}, {known['sha256'][:12]})"
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{described} is damaged: {error!r}") from None
    if not same:
        now = f"{model['model']} ({model['precision']}, {model['sha256'][:12]})"
        raise DataError(f"{described.parent.absolute()} holds what {was} has read, not {now}: name a new folder")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to the folder: they would score the same images."""
    import fcntl  # which Windows has not

    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another captcha score writes to {folder.absolute()}: wait for its end") from None
        yield
    finally:
        os.close(held)
