"""Parquet shards, row by row: image files and their labels, read a few at a time without decoding, and written."""

import functools
import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captcha import CaptchaError
from captcha.data.files import whole_folder

EXTENSION = ".parquet"
ROWS_AT_ONCE = 64
ROWS_IN_GROUP = 128
"""Of the shards written here; a group is what a training reads for one image."""

GROUPS_IN_SHARD = 80


class ShardError(CaptchaError):
    """A shard that cannot be read; one line that says why, without the shard's name."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it lies in its shard, the image not decoded; where `error` says why it cannot be had, without one."""

    name: str
    """The shard's file and the row's number in it, from 0 on, as train.parquet:000017; the file's where none is known.
    """
    image: bytes = b""
    label: str | None = None
    error: str = ""


def shards_in(path: Path) -> list[Path]:
    """Return a shard itself, or those of a folder's top level in the order of their rows' names, hidden ones not."""
    if not path.is_dir():
        return [path]
    shards = (each for each in path.iterdir() if is_shard(each) and not each.name.startswith("."))
    return sorted(shards, key=lambda shard: row_name(shard.name, 0))


def is_shard(path: Path) -> bool:
    """Return whether a path names a Parquet file that is there."""
    return path.suffix.lower() == EXTENSION and path.is_file()


def row_name(shard: str, number: int) -> str:
    """Return the name of a row: below a million, rows in the order of their names are in that of their numbers."""
    return f"{shard}:{number:06}"


def read_rows(path: Path, labelled: bool = True) -> Iterator[Row]:
    """Yield the rows of a shard, or of those in a folder, with some of them in memory at a time.

    A shard that is no Parquet file or lacks a column is one row with an error; of a damaged one, each row that cannot
    be read is, and the others are read. Without `labelled` no column of labels is needed, and each label is None.
    """
    for file in shards_in(path):
        try:
            shard = Shard(file, labelled)
        except ShardError as error:
            yield Row(file.name, error=str(error))
            continue
        yield from shard.rows()


class Shard:
    """A shard that is open: its columns are as they must be, of its rows nothing is known yet."""

    def __init__(self, file: Path, labelled: bool = True) -> None:
        """Raise ShardError where it is no Parquet file, or its columns are others than image and label."""
        self.name = file.name
        try:
            if not file.stat().st_size:
                raise ShardError("no Parquet file: it is empty")
            # Without buffering ahead, what is in memory does not grow with the row groups.
            self._file = pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True)
            types = {field.name: field.type for field in self._file.schema_arrow}
        except (pa.ArrowException, OSError) as error:
            raise ShardError(f"no Parquet file that can be read: {_line(error)}") from None
        self._columns = [_image_column(types), *([_label_column(types)] if labelled else [])]

    @functools.cached_property
    def groups(self) -> list[int]:
        """How many rows each row group has."""
        metadata = self._file.metadata
        return [metadata.row_group(each).num_rows for each in range(metadata.num_row_groups)]

    def rows(self, groups: Collection[int] | None = None) -> Iterator[Row]:
        """Yield the rows, of some row groups or of all, in their order; those that cannot be read have an error."""
        first = 0
        for group, count in enumerate(self.groups):
            if groups is None or group in groups:
                yield from self._rows_of(group, first, count)
            first += count

    def group_bytes(self, group: int) -> int:
        """Return how many bytes the image files and labels of a row group take in memory."""
        return int(self._file.metadata.row_group(group).total_byte_size)

    def images_of(self, group: int) -> list[bytes | None]:
        """Return the image files of a row group; None where a row has none.

        Raises:
            ShardError: the group is damaged.
        """
        try:
            table = self._file.read_row_group(group, columns=self._columns[:1], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise ShardError(f"the shard is damaged: {_line(error)}") from None
        return [image for batch in table.to_batches() for image in _images(batch).to_pylist()]

    def _rows_of(self, group: int, first: int, count: int) -> Iterator[Row]:
        done = 0
        try:
            batches = self._file.iter_batches(ROWS_AT_ONCE, [group], self._columns, use_threads=False)
            for batch in batches:
                labels = batch.column("label") if len(self._columns) > 1 else pa.nulls(len(batch))
                for image, label in zip(_images(batch), labels, strict=True):
                    yield _row(row_name(self.name, first + done), image, label)
                    done += 1
        except (pa.ArrowException, OSError) as error:
            said = f"the shard is damaged: {_line(error)}"
            yield from (Row(row_name(self.name, first + number), error=said) for number in range(done, count))


def _row(name: str, image: Any, label: Any) -> Row:
    content = image.as_py()
    try:
        text = label.as_py()
    except UnicodeDecodeError:
        return Row(name, error="the label is no text in UTF-8")
    return Row(name, error="the row holds no bytes of an image") if content is None else Row(name, content, text)


def _images(batch: Any) -> Any:
    column = batch.column("image")
    return column.flatten()[0] if pa.types.is_struct(column.type) else column


def _image_column(types: dict[str, Any]) -> str:
    """Return the path of the column that holds image files, as Parquet names it."""
    found = _column(types, "image")
    if not pa.types.is_struct(found):
        inner, path = found, "image"
    elif (place := found.get_field_index("bytes")) >= 0:
        inner, path = found.field(place).type, "image.bytes"
    else:
        inner, path = None, ""
    if inner is None or not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise ShardError(f"the column image holds {found}, not the bytes of image files, nor a struct with `bytes`")
    return path


def _label_column(types: dict[str, Any]) -> str:
    found = _column(types, "label")
    inner = found.value_type if pa.types.is_dictionary(found) else found
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
        raise ShardError(f"the column label holds {found}, not texts")
    return "label"


def _column(types: dict[str, Any], name: str) -> Any:
    if name not in types:
        has = ", ".join(types) or "none"
        raise ShardError(f"no column {name}; columns image and label are needed, and it has {has}")
    return types[name]


def _line(error: BaseException) -> str:
    """Return the first line of an error of Arrow's, which may go on with the whole of a schema."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


SCHEMA = pa.schema(
    [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.string())],
)
"""Of the shards written here, as Hugging Face's datasets write images."""


def write_shards(folder: Path, rows: Iterable[tuple[str, bytes, str | None]]) -> int:
    """Write (file name, image file, label) as shards into a new or empty folder, and return how many rows they hold.

    The folder appears once all is written. Images are not compressed again.

    Raises:
        FileExistsError: the folder is not empty.
    """
    count, remaining = 0, iter(rows)
    groups = iter(lambda: list(itertools.islice(remaining, ROWS_IN_GROUP)), [])
    with whole_folder(folder) as unfinished:
        for number, first in enumerate(groups):
            shard = unfinished / f"shard-{number:05}{EXTENSION}"
            with pq.ParquetWriter(
                shard,
                SCHEMA,
                compression="none",
                use_dictionary=False,
                write_page_checksum=True,
                write_statistics=False,  # of images: a whole one, twice a row group, in what each opening reads
            ) as writer:
                for group in itertools.chain([first], itertools.islice(groups, GROUPS_IN_SHARD - 1)):
                    names, images, labels = zip(*group, strict=True)
                    files = [{"bytes": image, "path": name} for name, image in zip(names, images, strict=True)]
                    writer.write_table(pa.table({"image": files, "label": labels}, SCHEMA))
                    count += len(group)
    return count
