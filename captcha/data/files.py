"""A file or folder written whole or not at all, whenever the process or the machine ends."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def write_whole(path: Path, content: bytes, sync: bool = True) -> None:
    """Write a file under another name beside it, then give it its own; what stood there before stays until then.

    With `sync` the content is on the disk before the name is: it outlives a loss of power, too.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if sync and os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def refuse_existing(folder: Path) -> None:
    """Raise FileExistsError unless the folder is missing or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder.absolute()} is not an empty folder: name a new one")


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a hidden folder beside a new or empty one to write into: it takes its place, or an error removes it.

    Raises:
        FileExistsError: the folder is not empty.
    """
    refuse_existing(folder)
    folder = folder.absolute()
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left behind by a process that was killed
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise OSError(f"{folder} cannot be made: {error.strerror}") from None
    try:
        yield unfinished
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
