"""Labelled files → samples, with everything that is wrong with them; the seeded split."""

import csv
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from filecmp import cmp
from itertools import pairwise
from pathlib import Path, PurePath
from statistics import median_low

from captcha import CaptchaError
from captcha.reading.ctc import frames_needed
from captcha.reading.images import (
    MAX_BYTES,
    Image,
    ImageError,
    decode_image,
    image_format,
    padded_width,
    resize_to_height,
)
from captcha.reading.vocabulary import Vocabulary

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif"})
LABELS_FILE = "labels.csv"
TRAIN_SHARE, VALIDATION_SHARE = 0.8, 0.1
LABELS_TO_SPLIT = 20  # different labels; with fewer a tenth of them is nothing to measure on
PROBLEMS_SHOWN = 20


class DataError(CaptchaError):
    """A folder or split that nothing can be trained on; one line that says why and what to do."""


@dataclass(frozen=True)
class Sample:
    """One labelled image, decoded and resized once: (height, W, 3) uint8 RGB."""

    name: str
    text: str
    image: Image = field(repr=False)
    digest: str = ""  # of the pixels before they were resized, so of the file whatever the height; else of `image`

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", pixel_digest(self.image))


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file. Fatal: no training before it is mended."""

    file: str
    kind: str
    message: str
    fatal: bool

    def __str__(self) -> str:
        """Return the one line to print."""
        return f"{self.file if self.file.isprintable() else repr(self.file)}: {self.message}"


@dataclass(frozen=True)
class Facts:
    """What a person wants to know of a folder's readable images. Sizes are (width, height) in pixels."""

    images: int
    texts: int  # different ones
    sizes: Counter[tuple[int, int]]
    formats: Counter[str]
    lengths: Counter[int]
    characters: Counter[str]
    with_repeats: int  # images whose text has the same character twice in a row


@dataclass(frozen=True)
class Split:
    """The three parts of a data set; no text stands in two of them."""

    train: list[Sample]
    validation: list[Sample]
    test: list[Sample]

    @property
    def digest(self) -> str:
        """16 hex digits that tell which sample stands where."""
        sides = {"train": self.train, "validation": self.validation, "test": self.test}
        return _short_hash(f"{side}:{digest(samples)}" for side, samples in sides.items())


@dataclass(frozen=True)
class _Decoded:
    image: Image
    digest: str
    size: tuple[int, int]
    format: str


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder's top level in the order of their names, without hidden ones."""
    return [path for path in sorted(folder.iterdir()) if _is_image(path)]


def read_samples(
    folder: Path,
    height: int,
    vocabulary: Vocabulary | None = None,
    frame_stride: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[list[Sample], list[Problem], Facts]:
    """Return the samples of a folder without those that have a problem, all its problems, and its facts.

    Images are named by their label (`2b827.png`), or by a `labels.csv` with the columns file,label, which
    then decides alone. Samples are in the order of their names.

    Args:
        folder: where the images lie; without labels.csv its top level only is read.
        height: pixels that every image is resized to.
        vocabulary: characters a label may hold; None allows all.
        frame_stride: image columns for one of the model's frames; None leaves lengths unchecked.
        progress: called with (images read, images in all) after each image.

    Raises:
        DataError: if there is no such folder, or it holds no images, or its labels.csv cannot be read.
    """
    folder = Path(folder)
    _refuse_unreadable(folder)
    problems: list[Problem] = []
    texts = _listed_texts(folder, problems) if (folder / LABELS_FILE).is_file() else _named_texts(folder, problems)
    decoded = _decode_all(folder, list(texts), height, problems, progress)

    for name, text in texts.items():
        width = decoded[name].image.shape[1] if name in decoded else None
        problems += _label_problems(name, text, width, vocabulary, frame_stride)
    problems += _copies({name: texts[name] for name in decoded}, decoded)

    left_out = {problem.file for problem in problems}
    samples = [Sample(n, texts[n], d.image, d.digest) for n, d in decoded.items() if n not in left_out]
    return samples, sorted(problems, key=lambda p: (not p.fatal, p.kind, p.file)), _facts(texts, decoded)


def read_images(
    folder: Path, height: int, progress: Callable[[int, int], object] | None = None
) -> tuple[list[Sample], list[Problem]]:
    """Return the images of a folder's top level as samples without a text, and those that cannot be read or are copies.

    No file name and no labels.csv is taken for a label.

    Raises:
        DataError: if there is no such folder, or it holds no images.
    """
    _refuse_unreadable(folder)
    problems: list[Problem] = []
    texts = dict.fromkeys(_named_texts(folder, problems), "")
    decoded = _decode_all(folder, list(texts), height, problems, progress)
    problems += _copies({name: "" for name in decoded}, decoded)
    left_out = {problem.file for problem in problems}
    return [Sample(n, "", d.image, d.digest) for n, d in decoded.items() if n not in left_out], problems


def split(samples: Sequence[Sample], seed: int) -> Split:
    """Return 80 % of the texts for training, 10 % for validation, 10 % for the test.

    A text's side follows from the seed and the text alone (sha256 of "seed:text"), so one text never
    stands on two sides and new files move no old ones.

    Raises:
        DataError: if there are too few different texts, or a side is empty.
    """
    texts = {sample.text for sample in samples}
    if len(texts) < LABELS_TO_SPLIT:
        raise DataError(
            f"too few to split: {len(samples)} images with {len(texts)} different labels, "
            f"at least {LABELS_TO_SPLIT} different labels are needed; add images"
        )
    sides: dict[str, list[Sample]] = {"training": [], "validation": [], "test": []}
    for sample in samples:
        number = share(seed, sample.text)
        in_training, in_validation = number < TRAIN_SHARE, number < TRAIN_SHARE + VALIDATION_SHARE
        sides["training" if in_training else "validation" if in_validation else "test"].append(sample)
    for side, members in sides.items():
        if not members:
            raise DataError(
                f"too few to split: none of {len(texts)} different labels fell to the {side} part; "
                "add images or take another seed"
            )
    return Split(sides["training"], sides["validation"], sides["test"])


def share(seed: int, name: str) -> float:
    """Return a number from 0 to 1, evenly spread, that follows from the seed and the name alone."""
    return int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:16], 16) / 2**64


def digest(samples: Iterable[Sample]) -> str:
    """Return 16 hex digits of the samples' names, texts and pixels, whatever their order."""
    return _short_hash("\0".join((sample.name, sample.text, sample.digest)) for sample in samples)


def leaks(train: Iterable[Sample], held_back: Iterable[Sample]) -> list[Problem]:
    """Return a fatal problem for each sample held back (a fixed validation or test set) whose pixels are trained on."""
    trained_on = {sample.digest: sample.name for sample in train}
    pairs = [(s.name, trained_on[s.digest]) for s in held_back if s.digest in trained_on]
    return [
        Problem(name, "leak", f"the same picture as {twin} of the training data", fatal=True) for name, twin in pairs
    ]


def format_problems(problems: Sequence[Problem], shown: int = PROBLEMS_SHOWN) -> str:
    """Return one line per problem, those of one kind together, errors first; of many the first, and a count."""
    lines: list[str] = []
    for fatal in (True, False):
        of_kind: dict[str, list[Problem]] = {}
        for problem in problems:
            if problem.fatal == fatal:
                of_kind.setdefault(problem.kind, []).append(problem)
        for kind, members in of_kind.items():
            lines += [f"{'error' if fatal else 'warning'}: {problem}" for problem in members[:shown]]
            if len(members) > shown:
                lines.append(f"{'error' if fatal else 'warning'}: … and {len(members) - shown} more: {kind}")
    return "\n".join(lines)


def format_facts(facts: Facts) -> str:
    """Return the facts as a short table for the terminal."""
    if not facts.images:
        return "images      none readable"
    widths, heights = zip(*facts.sizes.elements(), strict=True)
    size = "always" if len(facts.sizes) == 1 else f"{len(facts.sizes)} different ones; median"
    size += f" {median_low(widths)} x {median_low(heights)} pixels"
    if len(facts.sizes) > 1:
        size += f", widths {min(widths)} to {max(widths)}, heights {min(heights)} to {max(heights)}"
    rows = [
        ("images", f"{facts.images} with {facts.texts} different labels"),
        ("formats", ", ".join(f"{name} {count}" for name, count in facts.formats.most_common())),
        ("sizes", size),
        ("lengths", ", ".join(f"{length} characters {count}" for length, count in sorted(facts.lengths.items()))),
        ("repeats", f"{facts.with_repeats / facts.images:.1%} of labels have a character twice in a row"),
        ("characters", f"{len(facts.characters)}, from the most to the least frequent"),
    ]
    counts = facts.characters.most_common()
    cells = [f"{_visible(character):>4} {count:<6}" for character, count in counts]
    rows += [("", "".join(cells[start : start + 8]).rstrip()) for start in range(0, len(cells), 8)]
    return "\n".join(f"{name:<12}{text}" for name, text in rows)


def _visible(character: str) -> str:
    return character if character.isprintable() and not character.isspace() else repr(character)


def _refuse_unreadable(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"{folder}: you may not read this folder")


def _decode_all(
    folder: Path,
    names: Sequence[str],
    height: int,
    problems: list[Problem],
    progress: Callable[[int, int], object] | None,
) -> dict[str, _Decoded]:
    """Return the readable images by name, noting the others."""
    decoded: dict[str, _Decoded] = {}
    with ThreadPoolExecutor() as pool:  # OpenCV lets other threads run while it decodes
        results = pool.map(lambda name: _decode(folder / name, height), names)
        for done, (name, result) in enumerate(zip(names, results, strict=True), start=1):
            if isinstance(result, str):
                problems.append(Problem(name, "unreadable image", result, fatal=True))
            else:
                decoded[name] = result
            if progress:
                progress(done, len(names))
    return decoded


def _named_texts(folder: Path, problems: list[Problem]) -> dict[str, str]:
    """Return the label of each image by its file name, noting sub-folders that are left out."""
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
        copies = sum(path.name in files and cmp(path, files[path.name], shallow=False) for path in images)
        kind, message = "sub-folder", f"not read, images in it: {len(images)}; a {LABELS_FILE} could name them"
        if 2 * copies > len(images):
            kind, message = "nested copy", f"a copy of this folder, not read; the same images: {copies}"
        problems.append(Problem(f"{sub.relative_to(folder).as_posix()}/", kind, message, fatal=False))
    return {name: unicodedata.normalize("NFC", path.stem) for name, path in files.items()}


def _listed_texts(folder: Path, problems: list[Problem]) -> dict[str, str]:
    """Return the label of each image in labels.csv, noting rows that lead nowhere and images without a row."""
    table = folder / LABELS_FILE
    texts: dict[str, str] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream, skipinitialspace=True, strict=True)
            if not {"file", "label"} <= set(rows.fieldnames or ()):
                raise DataError(f"{table}: needs the columns file,label; its first line is {rows.fieldnames}")
            for row in rows:
                _add_row(folder, f"{LABELS_FILE}, line {rows.line_num}", row, texts, problems)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read: {error}") from error
    if not texts:
        raise DataError(f"{table}: names no image in this folder")
    unlisted = [name for path in _images_below(folder) if (name := path.relative_to(folder).as_posix()) not in texts]
    if unlisted:
        message = f"images without a row, not read: {len(unlisted)}, the first {unlisted[0]}"
        problems.append(Problem(LABELS_FILE, "images without a row", message, fatal=False))
    return dict(sorted(texts.items()))


def _add_row(folder: Path, where: str, row: dict[str, str], texts: dict[str, str], problems: list[Problem]) -> None:
    file, text = row["file"] or "", unicodedata.normalize("NFC", row["label"] or "")
    path = PurePath(os.path.normpath(file))
    name = path.as_posix()
    if not file:
        problems.append(Problem(where, "row without a file", "names no file", fatal=True))
    elif path.is_absolute() or path.parts[:1] == ("..",):
        problems.append(Problem(where, "path outside", f"{file!r} lies outside the folder", fatal=True))
    elif name in texts:
        message = f"{file!r} has a row already, with the label {texts[name]!r}; here it has {text!r}"
        problems.append(Problem(where, "file listed twice", message, fatal=True))
    elif not (folder / path).is_file():
        problems.append(Problem(where, "missing file", f"{file!r} is not there", fatal=True))
    else:
        texts[name] = text


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()


def _images_below(folder: Path) -> list[Path]:
    """Return the images of a folder and of all its sub-folders, without hidden ones."""
    paths = sorted(folder.rglob("*"))
    return [p for p in paths if _is_image(p) and not any(part.startswith(".") for part in p.relative_to(folder).parts)]


def _decode(path: Path, height: int) -> _Decoded | str:
    """Return the decoded image, or what is wrong with it."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        image = decode_image(data)
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    rows, columns = image.shape[:2]
    resized = resize_to_height(image, height)
    return _Decoded(resized, pixel_digest(image), (columns, rows), image_format(data))


def _label_problems(
    name: str, text: str, width: int | None, vocabulary: Vocabulary | None, frame_stride: int | None
) -> list[Problem]:
    if not text.strip():
        return [Problem(name, "empty label", "the label is empty", fatal=True)]
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        return [
            Problem(name, "no text", f"the label {text!r} holds control characters or undecodable bytes", fatal=True)
        ]
    problems = []
    if vocabulary and (missing := vocabulary.missing(text)):
        message = f"the label {text!r} has characters outside the vocabulary: {missing!r}"
        problems.append(Problem(name, "outside the vocabulary", message, fatal=True))
    if frame_stride and width:
        frames = padded_width(width) // frame_stride
        if (needed := frames_needed([ord(character) for character in text])) > frames:
            message = f"the label {text!r} needs {needed} frames, the image's width gives {frames}"
            problems.append(Problem(name, "label too long", message, fatal=True))
    return problems


def _copies(texts: dict[str, str], decoded: dict[str, _Decoded]) -> list[Problem]:
    problems = []
    first: dict[str, str] = {}
    for name, text in texts.items():
        original = first.setdefault(decoded[name].digest, name)
        if original == name:
            continue
        if texts[original] == text:
            message = f"the same picture as {original}, left out"
            problems.append(Problem(name, "copy", message, fatal=False))
        else:
            message = f"the same picture as {original}, but labelled {text!r} here and {texts[original]!r} there"
            problems.append(Problem(name, "contradicting labels", message, fatal=True))
    return problems


def _facts(texts: dict[str, str], decoded: dict[str, _Decoded]) -> Facts:
    read = [texts[name] for name in decoded]
    return Facts(
        images=len(read),
        texts=len(set(read)),
        sizes=Counter(d.size for d in decoded.values()),
        formats=Counter(d.format for d in decoded.values()),
        lengths=Counter(map(len, read)),
        characters=Counter("".join(read)),
        with_repeats=sum(any(a == b for a, b in pairwise(text)) for text in read),
    )


def pixel_digest(image: Image) -> str:
    """Return the sha256 of an image's size and pixels, by which copies are known."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def _short_hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(parts)).encode(errors="surrogateescape")).hexdigest()[:16]
