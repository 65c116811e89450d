"""A labelled folder, read and written: images named by their label, or listed in a labels.csv."""

import csv
import io
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from filecmp import cmp
from pathlib import Path, PurePath

import cv2

from captcha.data.files import whole_folder, write_whole
from captcha.data.problems import NO_LABEL, Facts, Problem, copies, facts_of, label_problems
from captcha.data.samples import DataError, ImageFolder, ImageMemory, Sample, pixel_digest
from captcha.reading.images import Image, ImageError, decode_image, image_format, resize_to_height
from captcha.reading.limits import MAX_BYTES
from captcha.reading.vocabulary import Vocabulary

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif"})
LABELS_FILE = "labels.csv"
CORRECTED_FILE = "labels-corrected.csv"
LISTED_TWICE = "file listed twice"
NAME = r"[\w-]{1,60}"  # texts that every file system takes as a name
DECODED_AT_ONCE = 64

Progress = Callable[[int, int], object]
"""Called with (images read, images in all) after each image."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A readable image: its sample without a text, its size (width, height) in the file, its width once resized."""

    sample: Sample
    size: tuple[int, int]
    width: int
    format: str


@dataclass(frozen=True, slots=True)
class _Decoded:
    """An image resized to the height; the digest of its pixels and its size (width, height) before that."""

    image: Image
    digest: str
    size: tuple[int, int]
    format: str


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder's top level in the order of their names, without hidden ones."""
    return [path for path in sorted(folder.iterdir()) if is_image(path)]


def read_samples(
    folder: Path,
    height: int,
    vocabulary: Vocabulary | None = None,
    progress: Progress | None = None,
    memory: ImageMemory | None = None,
    leave_out: bool = False,
) -> tuple[list[Sample], list[Problem], Facts]:
    """Return a folder's samples that have no problem, all its problems, and its facts.

    Images are named by their label (`2b827.png`), or by a `labels.csv` with the columns file,label; where
    there is one, it alone counts. Samples are in the order of their names.

    Args:
        folder: where the images lie; without labels.csv its top level only is read.
        height: pixels that every image is resized to.
        vocabulary: characters a label may hold; None allows all.
        progress: called after each image.
        memory: keeps the pixels of the first images; those of the others are read anew each time. None keeps all.
        leave_out: the facts are of the samples alone, not of all readable images.

    Raises:
        DataError: if there is no such folder, or it holds no images, or its labels.csv cannot be read.
    """
    folder = Path(folder)
    problems: list[Problem] = []
    texts = read_labels(folder, problems)
    found = _find_all(folder, list(texts), height, problems, progress, memory)
    for name, text in texts.items():
        problems += label_problems(name, text, found[name].width if name in found else None, vocabulary)
    unlabelled = {problem.file for problem in problems if problem.kind in NO_LABEL}
    labelled = {name: texts[name] for name in found if name not in unlabelled}
    doubted = {problem.file for problem in problems if problem.kind == LISTED_TWICE}
    problems += copies(labelled, {name: each.sample.digest for name, each in found.items()}, doubted)
    left_out = {problem.file for problem in problems}
    samples = [replace(each.sample, text=texts[name]) for name, each in found.items() if name not in left_out]
    counted = {name: each for name, each in found.items() if not (leave_out and name in left_out)}
    facts = facts_of(
        [texts[name] for name in counted],
        (each.size for each in counted.values()),
        (each.format for each in counted.values()),
    )
    return samples, sorted(problems, key=lambda p: (not p.fatal, p.kind, p.file)), facts


def read_labels(folder: Path, problems: list[Problem]) -> dict[str, str]:
    """Return the label of each image by its file's name, and add to the problems those that show without the images.

    Raises:
        DataError: as `read_samples`.
    """
    _refuse_unreadable(folder)
    return _listed_texts(folder, problems) if (folder / LABELS_FILE).exists() else _named_texts(folder, problems)


def read_images(
    folder: Path, height: int, progress: Progress | None = None, memory: ImageMemory | None = None
) -> tuple[list[Sample], list[Problem]]:
    """Return the images of a folder's top level as samples without a text, and which are unreadable or copies.

    No file name and no labels.csv is read as a label. The arguments are those of `read_samples`.

    Raises:
        DataError: if there is no such folder, or it holds no images.
    """
    _refuse_unreadable(folder)
    problems: list[Problem] = []
    names = list(_named_texts(folder, problems))
    found = _find_all(folder, names, height, problems, progress, memory)
    problems += copies(dict.fromkeys(found, ""), {name: each.sample.digest for name, each in found.items()})
    left_out = {problem.file for problem in problems}
    return [each.sample for name, each in found.items() if name not in left_out], problems


def _find_all(
    folder: Path,
    names: Sequence[str],
    height: int,
    problems: list[Problem],
    progress: Progress | None,
    memory: ImageMemory | None,
) -> dict[str, _Found]:
    """Return the readable images by name, and add the others to the problems."""
    again = ImageFolder(folder, height)
    memory = memory or ImageMemory(math.inf)
    found: dict[str, _Found] = {}
    for done, (name, result) in enumerate(_decode_all(folder, names, height), start=1):
        if isinstance(result, str):
            problems.append(Problem(name, "unreadable image", result, fatal=True))
        else:
            pixels = result.image if memory.holds(result.image) else again
            width = result.image.shape[1]
            sample = Sample(name, "", pixels, result.digest, folder)
            found[name] = _Found(sample, result.size, width, result.format)
        if progress:
            progress(done, len(names))
    return found


def _decode_all(folder: Path, names: Sequence[str], height: int) -> Iterator[tuple[str, _Decoded | str]]:
    """Yield each name with its decoded image, or what is wrong with it."""
    with ThreadPoolExecutor() as pool:  # decoding lets other threads run
        for start in range(0, len(names), DECODED_AT_ONCE):  # bounds the decoded images that wait
            part = names[start : start + DECODED_AT_ONCE]
            yield from zip(part, pool.map(lambda name: _decode(folder / name, height), part), strict=True)


def _decode(path: Path, height: int) -> _Decoded | str:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        image = decode_image(data)
        size = (image.shape[1], image.shape[0])
        return _Decoded(resize_to_height(image, height), pixel_digest(image), size, image_format(data))
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _refuse_unreadable(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"{folder}: you may not read this folder")


def _named_texts(folder: Path, problems: list[Problem]) -> dict[str, str]:
    """Return the label of each image by its file name, and add sub-folders left out to the problems."""
    files = {path.name: path for path in images_in(folder)}
    nested: dict[Path, list[Path]] = {}
    for path in _images_below(folder):
        if path.parent != folder:
            nested.setdefault(path.parent, []).append(path)
    if not files:
        hints = [f"{sub.relative_to(folder).as_posix()} has {len(images)}" for sub, images in nested.items()]
        hint = f"; give one of its sub-folders: {', '.join(hints[:5])}" if hints else ""
        raise DataError(f"{folder}: no images in this folder{hint}")
    for sub, images in nested.items():
        same = sum(path.name in files and cmp(path, files[path.name], shallow=False) for path in images)
        kind, message = "sub-folder", f"not read, images in it: {len(images)}; a {LABELS_FILE} could name them"
        if 2 * same > len(images):
            kind, message = "nested copy", f"a copy of this folder, not read; the same images: {same}"
        problems.append(Problem(f"{sub.relative_to(folder).as_posix()}/", kind, message, fatal=False))
    return {name: unicodedata.normalize("NFC", path.stem) for name, path in files.items()}


def _listed_texts(folder: Path, problems: list[Problem]) -> dict[str, str]:
    """Return the label of each image in labels.csv, and add bad rows and images without one to the problems."""
    table = folder / LABELS_FILE
    texts: dict[str, str] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, skipinitialspace=True, strict=True)
            columns = Counter(rows.fieldnames or ())
            if not {"file", "label"} <= columns.keys():
                raise DataError(f"{table}: needs the columns file,label; its first line is {rows.fieldnames}")
            if twice := [name for name in ("file", "label") if columns[name] > 1]:
                raise DataError(f"{table}: has the column {twice[0]} {columns[twice[0]]} times; leave one of them")
            for row in rows:
                _add_row(folder, rows.line_num, row, texts, problems)
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read: {error}") from error
    if not texts:
        raise DataError(f"{table}: names no image in this folder")
    unlisted = [name for path in _images_below(folder) if (name := path.relative_to(folder).as_posix()) not in texts]
    if unlisted:
        message = f"images without a row, not read: {len(unlisted)}, the first {unlisted[0]}"
        problems.append(Problem(LABELS_FILE, "images without a row", message, fatal=False))
    return dict(sorted(texts.items()))


def _add_row(folder: Path, line: int, row: dict[str, str], texts: dict[str, str], problems: list[Problem]) -> None:
    where = f"{LABELS_FILE}, line {line}"
    file, text = row["file"] or "", unicodedata.normalize("NFC", row["label"] or "")
    name = _normal(file)
    path = PurePath(name)
    if not file:
        problems.append(Problem(where, "row without a file", "names no file", fatal=True))
    elif path.is_absolute() or path.parts[:1] == ("..",):
        problems.append(Problem(where, "path outside", f"{file!r} lies outside the folder", fatal=True))
    elif name in texts and texts[name] == text:
        problems.append(Problem(where, "row repeated", f"{file!r} has a row with this label already", fatal=False))
    elif name in texts:  # a problem of the image: with either label it may be wrong
        message = f"line {line} of {LABELS_FILE} labels it {text!r}, an earlier line {texts[name]!r}"
        problems.append(Problem(name, LISTED_TWICE, message, fatal=True))
    elif not (folder / path).is_file():
        problems.append(Problem(where, "missing file", f"{file!r} is not there", fatal=True))
    else:
        texts[name] = text


def _normal(file: str) -> str:
    """Return how a file of labels.csv is named, however it was written there."""
    return PurePath(os.path.normpath(file)).as_posix()


def is_image(path: Path) -> bool:
    """Return whether a path names an image file that is there and not hidden."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()


def _images_below(folder: Path) -> list[Path]:
    """Return the images of a folder and of all its sub-folders, without hidden ones."""
    paths = sorted(folder.rglob("*"))
    return [p for p in paths if is_image(p) and not any(part.startswith(".") for part in p.relative_to(folder).parts)]


def refuse_corrected(folder: Path) -> None:
    """Raise FileExistsError where a folder has corrected labels already."""
    if (folder / CORRECTED_FILE).exists():
        raise FileExistsError(f"{(folder / CORRECTED_FILE).absolute()} is there already: move it away first")


def write_corrected(folder: Path, labels: Mapping[str, str]) -> Path:
    """Write a table beside the images, labels.csv with these labels by file in place of its own, and return its path.

    Without a labels.csv, each image has a row. Nothing else of labels.csv changes, nor does that file itself: under
    its name the new table counts.

    Raises:
        FileExistsError: there is such a table already.
    """
    refuse_corrected(folder)
    listed = folder / LABELS_FILE
    if listed.exists():
        with listed.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream, skipinitialspace=True, strict=True))
    else:
        rows = [["file", "label"], *([name, text] for name, text in _named_texts(folder, []).items())]
    file, label = rows[0].index("file"), rows[0].index("label")
    for row in rows[1:]:
        if len(row) > max(file, label):
            row[label] = labels.get(_normal(row[file]), row[label])
    written = io.StringIO(newline="")
    csv.writer(written).writerows(rows)
    path = folder / CORRECTED_FILE
    write_whole(path, written.getvalue().encode(errors="surrogateescape"))
    return path


def write_folder(folder: Path, labelled: Iterable[tuple[str, Image]]) -> None:
    """Write (text, image) pairs as PNGs named by their text, or numbered with a labels.csv if a text cannot be one.

    The folder appears once all is written.

    Raises:
        FileExistsError: if the folder is not empty.
    """
    with whole_folder(folder) as unfinished:
        _write_files(unfinished, labelled)


def _write_files(folder: Path, labelled: Iterable[tuple[str, Image]]) -> None:
    texts = []
    for number, (text, image) in enumerate(labelled):
        (folder / _numbered(number)).write_bytes(encode_png(image))
        texts.append(text)
    if _can_be_names(texts):
        for number, text in enumerate(texts):
            (folder / _numbered(number)).rename(folder / f"{text}.png")
    else:
        _write_labels(folder / LABELS_FILE, texts)


def _can_be_names(texts: Sequence[str]) -> bool:
    """Return whether each text can name a file, and no two the same one."""
    distinct = {text.casefold() for text in texts}  # some file systems do not tell A from a
    return len(distinct) == len(texts) and all(re.fullmatch(NAME, text) for text in texts)


def _write_labels(file: Path, texts: Sequence[str]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("file", "label"))
        rows.writerows((_numbered(number), text) for number, text in enumerate(texts))


def _numbered(number: int) -> str:
    return f"{number:06}.drawn.png"


def encode_png(image: Image) -> bytes:
    """Return an image (H, W, 3) RGB as the bytes of a PNG file."""
    data: bytes = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
    return data
