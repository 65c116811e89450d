"""Parquet shards → samples, in one pass that keeps some bytes of an image; images are read again one by one."""

import functools
import itertools
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from captcha.data.folders import DECODED_AT_ONCE
from captcha.data.parquet import EXTENSION, Row, Shard, ShardError, read_rows, row_name, shards_in
from captcha.data.problems import NO_LABEL, Facts, Problem, copies, facts_of, label_problems
from captcha.data.samples import DataError, Table, pixel_digest, unchanged
from captcha.reading.images import Image, ImageError, decode_image, image_format, resized_width
from captcha.reading.vocabulary import Vocabulary

MAX_GROUP_BYTES = 64 * 2**20
"""A training reads a whole row group for each image."""

SHARDS_OPEN, SHARDS_KNOWN, GROUPS_KEPT = 16, 4096, 2
"""Of a process: an open shard takes some hundred kB, what is known of one a few; two groups, as two engines may read
the same images side by side."""

ROW = re.compile(rf"(?P<shard>.+{re.escape(EXTENSION)}):(?P<number>\d+)", re.DOTALL | re.IGNORECASE)
"""The name of a row, or its path."""


@dataclass(frozen=True)
class ImageShards:
    """Shards whose images are read and decoded anew at each reading, and resized to a height in pixels."""

    folder: Path
    height: int

    def read(self, name: str, digest: str) -> Image:
        """Return an image, (height, W, 3) uint8 RGB.

        Raises:
            DataError: the row is no longer the image that it was.
        """
        try:
            image = decode_image(image_file(self.folder / name))
        except ImageError as error:
            raise DataError(f"{self.folder / name}: {error}") from None
        return unchanged(image, digest, self.folder / name, self.height)


def image_file(path: Path) -> bytes:
    """Return the content of an image file, or of that in a row of a shard, as DIR/train.parquet:000017.

    Raises:
        DataError: there is no such row, or its shard is damaged.
        OSError: there is no such file.
    """
    row = ROW.fullmatch(str(path))
    if row is None:
        return path.read_bytes()
    number = int(row["number"])
    try:
        firsts = _firsts(row["shard"])
        group = int(np.searchsorted(firsts, number, side="right")) - 1
        content = _images_of(row["shard"], group)[number - firsts[group]] if number < firsts[-1] else None
    except (ShardError, OSError) as error:
        raise DataError(f"{path}: {error}") from None
    if content is None:
        raise DataError(f"{path}: no such image; start again if the shard has changed")
    return content


@functools.lru_cache(SHARDS_OPEN)
def _shard(file: str) -> Shard:
    return Shard(Path(file), labelled=False)


@functools.lru_cache(SHARDS_KNOWN)
def _firsts(file: str) -> list[int]:
    """Return the number of each row group's first row, and that of all rows."""
    return [0, *accumulate(_shard(file).groups)]


@functools.lru_cache(GROUPS_KEPT)
def _images_of(file: str, group: int) -> list[bytes | None]:
    return _shard(file).images_of(group)


@dataclass(frozen=True)
class RowNames:
    """The names of rows by their places in all shards."""

    shards: list[str]
    firsts: list[int]
    """The place of each shard's first row."""

    def __getitem__(self, place: int) -> str:
        shard = int(np.searchsorted(self.firsts, place, side="right")) - 1
        return row_name(self.shards[shard], place - self.firsts[shard])


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is kept of an image that was decoded: its digest and size (width, height), and its file's format."""

    digest: bytes
    size: tuple[int, int]
    format: str


FORMATS = ("", "PNG", "JPEG", "WebP", "BMP", "GIF")
_NOTHING = _Seen(bytes(32), (0, 0), "")


def count_rows(path: Path) -> int:
    """Return how many rows the shards have that can be opened, and refuse those with large row groups.

    Raises:
        DataError: a training would read too much for each image.
    """
    rows = 0
    for file in shards_in(path):
        try:
            shard = Shard(file)
        except ShardError:  # a problem, which is told with the others
            continue
        largest = max(map(shard.group_bytes, range(len(shard.groups))), default=0)
        if largest > MAX_GROUP_BYTES:
            raise DataError(
                f"{file}: a row group of {largest / 2**20:.0f} MB would be read for each image, "
                f"{MAX_GROUP_BYTES / 2**20:g} are allowed: write smaller ones with captcha pack {path} OUT"
            )
        rows += sum(shard.groups)
    return rows


def read_shards(
    path: Path,
    height: int,
    vocabulary: Vocabulary | None = None,
    progress: Callable[[int], object] | None = None,
    leave_out: bool = False,
) -> tuple[Table, list[Problem], Facts]:
    """Return the samples of a shard, or of those in a folder, that have no problem, all problems, and the facts.

    They are what `read_samples` returns of the same images in a folder, each named by its shard and row; no image is
    kept. `progress` is called with how many were read, and the other arguments are those of `read_samples`.

    Raises:
        DataError: there are no rows.
    """
    rows = _Rows(path, height, vocabulary)
    for done in rows.read():
        if progress:
            progress(done)
    if not rows.names.shards:
        raise DataError(f"{path}: no images in its shards")
    return rows.judged(leave_out)


class _Rows:
    """What is kept of all rows, those with a problem among them, in the order in which they are read."""

    def __init__(self, path: Path, height: int, vocabulary: Vocabulary | None) -> None:
        self.path, self.height, self.vocabulary = path, height, vocabulary
        self.names = RowNames([], [])
        self.texts: list[NDArray[np.str_]] = []
        self.digests = bytearray()
        self.widths, self.heights = array("I"), array("I")
        """In pixels; 0 where the image cannot be read."""
        self.formats = array("B")
        """Places in `FORMATS`."""
        self.problems: list[Problem] = []
        self.bad: set[int] = set()
        """Places of rows with a problem."""
        self.unlabelled: set[int] = set()

    def read(self) -> Iterator[int]:
        """Read all rows, and yield how many were read so far."""
        remaining = read_rows(self.path)
        with ThreadPoolExecutor() as pool:  # decoding lets other threads run
            for part in iter(lambda: list(itertools.islice(remaining, DECODED_AT_ONCE)), []):
                texts = [unicodedata.normalize("NFC", row.label or "") for row in part]
                for row, text, seen in zip(part, texts, pool.map(_look, part), strict=True):
                    self._add(row, text, seen)
                self.texts.append(np.array(texts, np.dtypes.StringDType()))
                yield len(self.formats)

    def _add(self, row: Row, text: str, seen: "_Seen | str") -> None:
        place = len(self.formats)
        shard = row.name.rpartition(":")[0] or row.name
        if self.names.shards[-1:] != [shard]:
            self.names.shards.append(shard)
            self.names.firsts.append(place)
        problems = []
        if isinstance(seen, str):
            kind = "unreadable row" if row.error else "unreadable image"
            problems.append(Problem(row.name, kind, seen, fatal=True))
            seen, width = _NOTHING, None
        else:
            width = resized_width(*seen.size, self.height)
        if not row.error:
            problems += label_problems(row.name, text, width, self.vocabulary)
        self.digests += seen.digest
        self.widths.append(seen.size[0])
        self.heights.append(seen.size[1])
        self.formats.append(FORMATS.index(seen.format))
        self.problems += problems
        if problems:
            self.bad.add(place)
        if any(problem.kind in NO_LABEL for problem in problems):
            self.unlabelled.add(place)

    def judged(self, leave_out: bool) -> tuple[Table, list[Problem], Facts]:
        """Return what `read_shards` returns, once all rows are read."""
        texts = np.concatenate(self.texts)
        self.texts.clear()
        digests = np.frombuffer(self.digests, np.uint8).reshape(-1, 32)
        readable = np.frombuffer(self.widths, np.uint32) > 0
        labelled = readable.copy()
        labelled[list(self.unlabelled)] = False
        again = {self.names[place]: place for place in _not_alone(digests, np.flatnonzero(labelled)).tolist()}
        alike = copies(
            {name: str(texts[place]) for name, place in again.items()},
            {name: digests[place].tobytes().hex() for name, place in again.items()},
        )
        good = readable.copy()
        good[[*self.bad, *(again[problem.file] for problem in alike)]] = False
        counted = np.flatnonzero(good if leave_out else readable)
        facts = facts_of(
            texts if len(counted) == len(texts) else texts[counted],  # no copy of all
            ((self.widths[place], self.heights[place]) for place in counted),
            (FORMATS[self.formats[place]] for place in counted),
        )
        problems = sorted([*self.problems, *alike], key=lambda p: (not p.fatal, p.kind, p.file))
        folder = self.path if self.path.is_dir() else self.path.parent
        images = ImageShards(folder, self.height)
        return Table(images, folder, self.names, texts, digests, np.flatnonzero(good)), problems, facts


def _not_alone(digests: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return those of the places whose image has the first 8 bytes of its digest in common with another's."""
    keys = digests.view(np.uint64)[:, 0][places]
    ordered = np.sort(keys)  # np.unique's counts would take several times as much memory
    return places[np.isin(keys, ordered[1:][ordered[1:] == ordered[:-1]])]


def _look(row: Row) -> "_Seen | str":
    """Decode an image; return what is kept of it, or what is wrong with it."""
    if row.error:
        return row.error
    try:
        image = decode_image(row.image)
    except ImageError as error:
        return str(error)
    size = (image.shape[1], image.shape[0])
    return _Seen(bytes.fromhex(pixel_digest(image)), size, image_format(row.image))
