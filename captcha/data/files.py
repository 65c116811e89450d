"""A file written whole or not at all, whenever the process or the machine ends."""

import os
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
