"""Images to be scored, cut into pieces: each is read by one worker and makes one part of the output."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from captcha.data.folders import EXTENSIONS
from captcha.data.parquet import Shard, ShardError, row_name, shards_in
from captcha.data.problems import printable
from captcha.data.samples import DataError
from captcha.reading.images import Image, ImageError, checked_width, decode_image, resize_to_height
from captcha.reading.limits import MAX_BYTES

Found = tuple[str, bytes | ImageError]
"""What the output calls an image, and the content of its file, or why there is none."""


@dataclass(frozen=True)
class Piece:
    """Some of the images, as JSON can carry them to a worker."""

    names: list[str]
    """Of files in the folder, or of one shard."""
    images: int
    groups: list[int] = field(default_factory=list)
    """Row groups of the shard."""


@dataclass(frozen=True)
class Files:
    """The images of a folder and of all its sub-folders, without hidden ones; they are called by their paths in it."""

    path: str

    def left(self, done: Iterable[str], most: int, workers: int = 1) -> list[Piece]:
        """Return the images that are not done, in pieces of `most` at the most, and one a worker at the least."""
        scored = set(done)
        names = [name for name in self._names() if printable(name) not in scored]
        size = _size(len(names), most, workers)
        pieces = [names[start : start + size] for start in range(0, len(names), size)]
        return [Piece(piece, len(piece)) for piece in pieces]

    def _names(self, below: str = "") -> Iterator[str]:
        """Yield the path of each image in the folder; in the order of names, folder by folder."""
        try:
            with os.scandir(Path(self.path, below)) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{Path(self.path, below)} cannot be read: {error.strerror}") from None
        for entry in found:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._names(f"{below}{entry.name}/")
            elif entry.name[entry.name.rfind(".") :].lower() in EXTENSIONS and not entry.is_dir():
                yield below + entry.name

    def found(self, piece: Piece) -> Iterator[Found]:
        """Yield the files of a piece; one that has gone, or that cannot be read, is an error."""
        for name in piece.names:
            try:
                with Path(self.path, name).open("rb") as file:
                    yield printable(name), file.read(MAX_BYTES + 1)
            except OSError as error:
                yield printable(name), ImageError(f"cannot be read: {error.strerror}")


@dataclass(frozen=True)
class Shards:
    """The rows of a Parquet shard, or of those in a folder; a piece has whole row groups of one shard."""

    path: str

    def left(self, done: Iterable[str], most: int, workers: int = 1) -> list[Piece]:
        """Return the rows that are not done, in pieces of about `most` at the most, and one a worker where that can be.

        Since a part has whole row groups, one is done if its first row is.
        """
        groups = {each.name: each for file in shards_in(Path(self.path)) for each in _groups(file)}
        scored = {name for name in done if name in groups}
        left = [each for name, each in groups.items() if name not in scored]
        size = _size(sum(each.images for each in left), most, workers)
        pieces: list[Piece] = []
        for each in left:
            last = pieces[-1] if pieces else None
            if last and last.groups and last.names == [each.file] and last.images + each.images <= size:
                pieces[-1] = Piece(last.names, last.images + each.images, last.groups + each.numbers)
            else:
                pieces.append(Piece([each.file], each.images, each.numbers))
        return pieces

    def found(self, piece: Piece) -> Iterator[Found]:
        """Yield the rows of a piece; one that is damaged is an error, and so is a shard that cannot be read."""
        file = Path(piece.names[0])
        try:
            shard = Shard(file, labelled=False)
        except ShardError as error:
            yield file.name, ImageError(str(error))
            return
        for row in shard.rows(piece.groups):
            yield row.name, ImageError(row.error) if row.error else row.image


@dataclass(frozen=True)
class _Group:
    """A row group, or a shard that cannot be read, which is one row and has no number."""

    name: str
    """Of its first row."""
    file: str
    images: int
    numbers: list[int]


def _groups(file: Path) -> Iterator[_Group]:
    try:
        counts = Shard(file, labelled=False).groups
    except ShardError:
        yield _Group(file.name, str(file), 1, [])
        return
    first = 0
    for number, images in enumerate(counts):
        if images:
            yield _Group(row_name(file.name, first), str(file), images, [number])
        first += images


def _size(images: int, most: int, workers: int) -> int:
    return max(1, min(most, -(-images // workers)))


Images = Files | Shards


def sized(found: Iterable[Found], height: int) -> Iterator[tuple[str, Image | ImageError]]:
    """Yield each image (height, W, 3), scaled to a model's height, or why it is none.

    What a request to the served model may not have, an image too long once resized, is an error here too.
    """
    for name, content in found:
        if isinstance(content, ImageError):
            yield name, content
            continue
        try:
            image = decode_image(content)
            checked_width(image, height)
            yield name, resize_to_height(image, height)
        except ImageError as error:
            yield name, error
