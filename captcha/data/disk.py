"""Which disk is full, where an error says that one is."""

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

LITTLE = 1_000_000
"""Free bytes below which a disk counts as full: what was written last may have been removed again."""

_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WORDS = ("database or disk is full", *map(os.strerror, _CODES))


def full_disk(error: BaseException, places: Iterable[Path]) -> str | None:
    """Return in one line which disk is full and what to do, None where the error says nothing of it.

    `places` are where something may have been written; where none of them is full any more, all are named.
    """
    told = next((words for words in _WORDS if words.lower() in str(error).lower()), None)
    if not told and not (isinstance(error, OSError) and error.errno in _CODES):
        return None
    disks: dict[int, Path] = {}
    for place in places:
        there = next(each for each in (place.absolute(), *place.absolute().parents) if each.exists())
        disks.setdefault(there.stat().st_dev, there)
    full = [each for each in disks.values() if shutil.disk_usage(each).free < LITTLE] or list(disks.values())
    return f"{told or 'no space is left'}: free some space on the disk of {' or '.join(map(str, full))}"
