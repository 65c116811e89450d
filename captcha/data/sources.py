"""Where samples come from: a labelled folder, Parquet shards, or a style. Parsed once, from what a person writes."""

import itertools
import logging
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from tqdm import tqdm

from captcha.data.folders import LABELS_FILE, is_image, read_images, read_samples
from captcha.data.packed import count_rows, read_shards
from captcha.data.parquet import is_shard, shards_in
from captcha.data.problems import Facts, Problem, format_left_out, format_problems, leaks
from captcha.data.samples import DataError, ImageMemory, Sample, Split, chosen, joined, pixel_digest, split
from captcha.drawing.fonts import default_fonts, fonts_for
from captcha.drawing.rendering import draw_one
from captcha.drawing.styles import Style, StyleError, load_style
from captcha.drawing.word import check_fits
from captcha.reading.images import resize_to_height
from captcha.reading.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

DRAWN_IMAGES = 2500
"""Images that a style draws to be split; the train part sets an epoch's length, training itself draws others."""

FIRST_VALIDATION, FIRST_TEST, FIRST_DRAWN_FOLDER = 1 << 38, 2 << 38, 3 << 38
"""Numbers of the first image drawn for a validation or test part of its own, and for `captcha draw`.

A training's begin at 0. Each has more numbers than anyone draws, so no two of them draw the same one.
"""

REDRAWN = 4 << 38  # so much further lies the image drawn in place of one whose text is held back
REDRAWS = 1000


@dataclass(frozen=True)
class Folder:
    """A folder of images; `written` is how the person named it."""

    written: str

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(self.written)

    folder = path

    @property
    def short_name(self) -> str:
        """The last part of its path."""
        return self.path.resolve().name

    def check(
        self, height: int, vocabulary: Vocabulary | None, leave_out: bool
    ) -> tuple[Sequence[Sample], list[Problem], Facts]:
        """Return what `read_samples` returns, keeping no image."""
        return read_samples(self.path, height, vocabulary, memory=ImageMemory(0), leave_out=leave_out)

    def samples(
        self,
        height: int,
        vocabulary: Vocabulary | None = None,
        memory: ImageMemory | None = None,
        labelled: bool = True,
        left_out: list[Problem] | None = None,
    ) -> list[Sample]:
        """Return its samples, resized to the height; show a bar, and log all problems.

        Files with a fatal problem are left out if there is a list, `left_out`, to collect these problems in.

        Raises:
            DataError: the folder has problems that stand in the way of training, or nothing is left without one.
        """
        with tqdm(desc=f"reading {self.written}", unit="image", disable=None, leave=False) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            if labelled:
                samples, problems, _ = read_samples(self.path, height, vocabulary, progress, memory)
            else:
                samples, problems = read_images(self.path, height, progress, memory)
        _refuse_all(samples, problems, self.written, left_out)
        return samples


@dataclass(frozen=True)
class Parquet:
    """A Parquet shard, or a folder of them; `written` is how the person named it."""

    written: str

    @property
    def path(self) -> Path:
        """The shard, or the folder."""
        return Path(self.written)

    @property
    def folder(self) -> Path:
        """Where the shards lie."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def short_name(self) -> str:
        """The last part of its path."""
        return self.path.resolve().name

    def check(
        self, height: int, vocabulary: Vocabulary | None, leave_out: bool
    ) -> tuple[Sequence[Sample], list[Problem], Facts]:
        """Return what `read_shards` returns."""
        return read_shards(self.path, height, vocabulary, leave_out=leave_out)

    def samples(
        self,
        height: int,
        vocabulary: Vocabulary | None = None,
        memory: ImageMemory | None = None,
        left_out: list[Problem] | None = None,
    ) -> Sequence[Sample]:
        """Return its samples as `Folder.samples` does, each read when it is needed: none is kept in the memory.

        Raises:
            DataError: there are problems that stand in the way of training, or nothing is left without one; or to
                read one image is to read too many beside it.
        """
        total = count_rows(self.path)
        with tqdm(desc=f"reading {self.written}", total=total, unit="image", disable=None, leave=False) as bar:
            samples, problems, _ = read_shards(self.path, height, vocabulary, lambda done: bar.update(done - bar.n))
        _refuse_all(samples, problems, self.written, left_out)
        return samples


def _refuse_all(
    samples: Sequence[Sample], problems: Sequence[Problem], written: str, left_out: list[Problem] | None
) -> None:
    refuse(problems, len(samples), written, left_out)
    if not samples:
        raise DataError(f"{written}: no image without a problem is left, see above")


@dataclass(frozen=True)
class Drawn:
    """Images drawn in a style; `name` is a built-in style's, or a TOML file's."""

    name: str
    style: Style

    @property
    def written(self) -> str:
        """How a person names it as data."""
        return f"{_PREFIX}{self.name}"

    short_name = written

    def samples(
        self, height: int, seed: int, without: Collection[str] = frozenset(), vocabulary: Vocabulary | None = None
    ) -> "DrawnSamples":
        """Return its samples without end, resized to the height; a text in `without` is never among them.

        Raises:
            StyleError: it draws characters outside the vocabulary, or a text may not fit its image.
            FontError: no font can draw it.
        """
        if vocabulary and (missing := vocabulary.missing(self.style.alphabet)):
            raise StyleError(
                f"the style {self.name} draws {missing!r}, which is outside the vocabulary: take the style that the "
                "model was trained on, or one of your own without these characters"
            )
        fonts, _ = fonts_for(self.style, default_fonts())
        check_fits(self.style, fonts)
        return DrawnSamples(self.style, fonts, height, seed, frozenset(without))


Source = Folder | Parquet | Drawn
_PREFIX = "draw:"


def parse_source(written: str) -> Source:
    """Return the source that a person has written: a folder, Parquet shards, or draw:STYLE.

    Raises:
        DataError: there is no such folder or shard.
        StyleError: there is no such style, or its file describes none.
    """
    return parse_style(written.removeprefix(_PREFIX)) if written.startswith(_PREFIX) else parse_images(written)


def parse_images(written: str) -> Folder | Parquet:
    """Return the labelled images that a person has named: a folder of image files, or Parquet shards.

    A folder is one of shards if it holds any, and neither images nor a labels.csv.

    Raises:
        DataError: there is no such folder or shard.
        StyleError: a style is named in place of them.
    """
    path = Path(written)
    if is_shard(path):
        return Parquet(written)
    if not path.is_dir():
        if written.startswith(_PREFIX):
            style = written.removeprefix(_PREFIX)
            raise StyleError(
                f"{written} is a style, and a folder is needed: captcha draw DIR --style {style} draws one"
            )
        raise DataError(f"{'not a folder' if path.exists() else 'no such folder'}: {path.absolute()}")
    others = (path / LABELS_FILE).exists() or any(map(is_image, path.iterdir()))
    return Folder(written) if others or not shards_in(path) else Parquet(written)


def parse_folder(written: str) -> Folder:
    """Return the folder of image files that a person has named.

    Raises:
        DataError: there is no such folder, or it is one of Parquet shards.
        StyleError: a style is named in place of a folder.
    """
    found = parse_images(written)
    if isinstance(found, Parquet):
        raise DataError(f"{found.path.absolute()} holds Parquet shards, and a folder of image files is needed")
    return found


def parse_style(name: str) -> Drawn:
    """Return the source that draws in the style of this name, built in or a TOML file.

    Raises:
        StyleError: there is no such style, or its file describes none.
    """
    return Drawn(name, load_style(name))


def short_data(data: str) -> str:
    """Return how a version, its description and the card name images: draw:STYLE, or a folder without where it lies.

    The run has the whole path; whoever serves the model need not know it.
    """
    return re.sub(r"^(draw:)?.*/", r"\1", data.rstrip("/"))


@dataclass(frozen=True)
class DrawnSamples:
    """Drawn samples, resized to the height; sample i follows from style, fonts, seed and i alone.

    Where its text is in `without` (held back for validation and test), another is drawn in its place.
    """

    style: Style
    fonts: Sequence[Path]
    height: int
    seed: int
    without: frozenset[str] = frozenset()

    def __getitem__(self, index: int) -> Sample:
        """Raise StyleError where all texts are held back."""
        for number in range(index, index + REDRAWS * REDRAWN, REDRAWN):
            text, image = draw_one(self.style, self.seed, number, self.fonts)
            if text not in self.without:
                return Sample(f"{index:06}.png", text, resize_to_height(image, self.height), pixel_digest(image))
        raise StyleError(
            "nearly all texts that the style draws are held back for validation and test: let it draw more texts, or "
            "hold back fewer"
        )


@dataclass(frozen=True)
class Sources:
    """Where a training's images come from; `drawn` is the style whose images fill half of every batch."""

    data: Source
    validation: Source | None = None
    test: Source | None = None
    drawn: Drawn | None = None

    @classmethod
    def parse(cls, data: str, validation: str | None, test: str | None, drawn: str | None) -> Self:
        """Return the sources that a person has written.

        Raises:
            DataError: there is no such folder, or images are to be drawn beside drawn ones.
            StyleError: there is no such style.
        """
        parsed = parse_source(data)
        if drawn and isinstance(parsed, Drawn):
            raise DataError(f"--drawn {drawn} is drawn beside a folder's images, but {data} is drawn itself")
        fixed = [parse_source(written) if written else None for written in (validation, test)]
        return cls(parsed, fixed[0], fixed[1], parse_style(drawn) if drawn else None)

    def by_side(self) -> dict[str, Source]:
        """Return where each side of the split comes from."""
        return {"train": self.data, "validation": self.validation or self.data, "test": self.test or self.data}

    def split(
        self,
        height: int,
        vocabulary: Vocabulary | None,
        seed: int,
        memory: ImageMemory,
        left_out: list[Problem] | None = None,
    ) -> Split:
        """Return the samples in their three parts, resized to the height.

        A source of its own for validation or test replaces that part of the split, which is then trained on. Of a
        picture that is trained on and held back, the training image is left out; see `Folder.samples`.

        Raises:
            DataError: the data has problems that stand in the way of training; all of them are logged first.
            StyleError, FontError: the style cannot be drawn, or draws what is outside the vocabulary.
        """

        def samples_of(source: Source | None, first: int) -> Sequence[Sample]:
            if isinstance(source, Folder | Parquet):
                return source.samples(height, vocabulary, memory, left_out=left_out)
            if source is None:
                return []
            drawn = source.samples(height, seed, vocabulary=vocabulary)
            numbers = range(first, first + DRAWN_IMAGES)
            return [drawn[i] for i in tqdm(numbers, f"drawing {source.name}", unit="image", disable=None, leave=False)]

        if self.drawn:  # an error in the style is raised before any image is read
            self.drawn.samples(height, seed, vocabulary=vocabulary)
        samples = samples_of(self.data, 0)
        validation, test = samples_of(self.validation, FIRST_VALIDATION), samples_of(self.test, FIRST_TEST)
        if not validation and not test:
            return split(samples, seed)
        parts = Split(samples, [], []) if validation and test else split(samples, seed)
        train = joined(joined(parts.train, parts.validation if validation else []), parts.test if test else [])
        validation, test = validation or parts.validation, test or parts.test
        train = _apart(train, itertools.chain(validation, test), self.data, left_out)
        return Split(train, _apart(validation, test, self.validation or self.data, left_out), test)

    def drawn_samples(self, height: int, seed: int, split: Split, vocabulary: Vocabulary) -> DrawnSamples | None:
        """Return the drawn samples to train on, without the texts held back; None if nothing is drawn.

        Raises:
            StyleError, FontError: the style cannot be drawn, or draws what is outside the vocabulary.
        """
        style = self.data if isinstance(self.data, Drawn) else self.drawn
        if style is None:
            return None
        held_back = {sample.text for sample in itertools.chain(split.validation, split.test)}
        return style.samples(height, seed, held_back, vocabulary)


def _apart(
    samples: Sequence[Sample], held_back: Iterable[Sample], source: Source, left_out: list[Problem] | None
) -> Sequence[Sample]:
    """Return the samples whose pixels are not held back, where `refuse` lets the others be left out."""
    leaked = leaks(samples, held_back)
    names = {problem.file for problem in leaked}
    left = chosen(samples, [i for i, sample in enumerate(samples) if sample.name not in names]) if names else samples
    refuse(leaked, len(left), source.written, left_out)
    if not left:
        raise DataError(f"{source.written}: every image is held back for validation or the test, see above")
    return left


def refuse(problems: Sequence[Problem], left: int, source: str, left_out: list[Problem] | None) -> None:
    """Log all problems; refuse the fatal ones, or add them to the list of those whose files are left out.

    Args:
        problems: of one source.
        left: how many of its images have no problem.
        source: how the person named it; in the list, each file comes after it.
        left_out: None refuses fatal problems.

    Raises:
        DataError: one of them is fatal, and none is left out.
    """
    if problems:
        logger.info(format_problems(problems, leave_out=left_out is not None))
    fatal = [problem for problem in problems if problem.fatal]
    if not fatal:
        return
    if left_out is None:
        raise DataError(
            f"{len(fatal)} {'problem' if len(fatal) == 1 else 'problems'} in the data, see above; mend "
            f"{'it' if len(fatal) == 1 else 'them'}, or leave these images out with --problems leave-out"
        )
    left_out += [replace(problem, file=(Path(source) / problem.file).as_posix()) for problem in fatal]
    logger.info(format_left_out(problems, left))
