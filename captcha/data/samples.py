"""Samples (an image with its text), their seeded split, and the digests that tell both apart."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from captcha import CaptchaError
from captcha.reading.images import Image, ImageError, load_image, resize_to_height

TRAIN_SHARE, VALIDATION_SHARE = 0.8, 0.1
LABELS_TO_SPLIT = 20  # different labels; a tenth of fewer is too little to measure on


class DataError(CaptchaError):
    """A folder or split that nothing can be trained on; one line that says why and what to do."""


class Images(Protocol):
    """Where images are read anew each time."""

    def read(self, name: str, digest: str) -> Image:
        """Return an image of a model's height. Raises DataError where it is no longer the image of this digest."""


def unchanged(image: Image, digest: str, path: Path, height: int) -> Image:
    """Return an image that was read anew, resized to the height. Raises DataError where its pixels are others now."""
    if pixel_digest(image) != digest:
        raise DataError(f"{path}: the image has changed since it was checked; start again")
    return resize_to_height(image, height)


@dataclass(frozen=True)
class ImageFolder:
    """A folder whose images are decoded anew at each reading, and resized to a height in pixels."""

    path: Path
    height: int

    def read(self, name: str, digest: str) -> Image:
        """Return an image, (height, W, 3) uint8 RGB.

        Raises:
            DataError: the file is no longer the image that it was.
        """
        try:
            image = load_image(self.path / name)
        except ImageError as error:
            raise DataError(str(error)) from None
        return unchanged(image, digest, self.path / name, self.height)


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image of a model's height. `pixels` are the image itself, or where it is read from."""

    name: str
    text: str
    pixels: Image | Images = field(repr=False)
    digest: str = ""  # of the pixels before resizing, the same for every height; without it, of `pixels`
    folder: Path | None = None  # where the file `name` lies; None where there is no file, as of a drawn image

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", pixel_digest(self.image))

    @property
    def kept(self) -> bool:
        """Whether the image is in memory."""
        return isinstance(self.pixels, np.ndarray)

    @property
    def image(self) -> Image:
        """The image, (height, W, 3) uint8 RGB. Raises DataError where it must be read and can no longer be."""
        return self.pixels if isinstance(self.pixels, np.ndarray) else self.pixels.read(self.name, self.digest)


class Names(Protocol):
    """The name of each place of a table."""

    def __getitem__(self, place: int) -> str: ...


@dataclass(frozen=True, eq=False)
class Table(Sequence[Sample]):
    """Samples that are made as they are asked for: each takes 56 bytes here, as an object some 500.

    Those of a part of the table share its columns.
    """

    images: Images
    folder: Path
    names: Names
    texts: NDArray[np.str_]
    digests: NDArray[np.uint8]
    """(rows, 32): the digest of each row's image."""
    places: NDArray[np.int64]
    """The rows that are samples, in their order."""

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> "Table": ...

    def __getitem__(self, index: int | slice) -> "Sample | Table":
        if isinstance(index, slice):
            return self.with_places(self.places[index])
        place = int(self.places[index])
        digest = self.digests[place].tobytes().hex()
        return Sample(self.names[place], str(self.texts[place]), self.images, digest, self.folder)

    def with_places(self, places: NDArray[np.int64]) -> "Table":
        """Return other rows of the same table."""
        return Table(self.images, self.folder, self.names, self.texts, self.digests, places)


def chosen(samples: Sequence[Sample], indices: Sequence[int]) -> Sequence[Sample]:
    """Return the samples with these indices; of a table a part of it, without making one of them."""
    if isinstance(samples, Table):
        return samples.with_places(samples.places[np.asarray(indices, np.int64)])
    return [samples[index] for index in indices]


def joined(first: Sequence[Sample], second: Sequence[Sample]) -> Sequence[Sample]:
    """Return the samples of both; of two parts of one table a part of it."""
    if not second:
        return first
    if isinstance(first, Table) and isinstance(second, Table):
        return first.with_places(np.concatenate([first.places, second.places]))
    return [*first, *second]


class ImageMemory:
    """The memory left for decoded images, given in MB of 1,000,000 bytes; inf sets no bound."""

    def __init__(self, megabytes: float) -> None:
        self.bytes_left = megabytes * 1e6

    def holds(self, image: Image) -> bool:
        """Return whether an image still fits, and if so count it in."""
        fits = image.nbytes <= self.bytes_left
        self.bytes_left -= image.nbytes if fits else 0
        return fits


@dataclass(frozen=True)
class Split:
    """The three parts of a data set; no text stands in two of them."""

    train: Sequence[Sample]
    validation: Sequence[Sample]
    test: Sequence[Sample]
    seen: Sequence[Sample] = field(default_factory=list)
    """What was left out of the test because the training of the model to start from saw it."""

    @property
    def digest(self) -> str:
        """16 hex digits that tell which sample stands where."""
        sides = {"train": self.train, "validation": self.validation, "test": self.test}
        return _short_hash(sorted(f"{side}:{digest(samples)}" for side, samples in sides.items()))


def split(samples: Sequence[Sample], seed: int) -> Split:
    """Return 80 % of the texts for training, 10 % for validation, 10 % for the test.

    A text's side follows from the seed and the text alone (sha256 of "seed:text"), so one text never
    stands on two sides and new files move no old ones.

    Raises:
        DataError: if there are too few different texts, or a side is empty.
    """
    sides = {side: array("q") for side in ("training", "validation", "test")}
    few: set[str] = set()  # enough of the different texts to know whether there are too few
    for index, sample in enumerate(samples):
        number = unit_hash(seed, sample.text)
        in_training, in_validation = number < TRAIN_SHARE, number < TRAIN_SHARE + VALIDATION_SHARE
        sides["training" if in_training else "validation" if in_validation else "test"].append(index)
        if len(few) < LABELS_TO_SPLIT:
            few.add(sample.text)
    if len(few) < LABELS_TO_SPLIT:
        raise DataError(
            f"too few to split: {len(samples)} images with {len(few)} different labels, "
            f"at least {LABELS_TO_SPLIT} different labels are needed; add images"
        )
    for side, members in sides.items():
        if not members:
            count = len({sample.text for sample in samples})
            raise DataError(
                f"too few to split: none of {count} different labels fell to the {side} part; "
                "add images or take another seed"
            )
    return Split(*(chosen(samples, members) for members in sides.values()))


def folds(samples: Sequence[Sample], seed: int, count: int) -> list[Split]:
    """Return `count` splits, each with another part of the texts as its test; every sample is in one of these tests.

    Fold k of 0, 1, … tests the texts whose `unit_hash` lies in the k-th of `count` equal ranges. The tenth just below
    that range (below 0 comes 1) is its validation part, and the rest is trained on: the last of ten folds is `split`.

    Raises:
        DataError: there are fewer different texts than folds, or a part of a fold is empty.
    """
    hashes = {text: unit_hash(seed, text) for text in {sample.text for sample in samples}}
    if len(hashes) < count:
        raise DataError(
            f"too few to make {count} folds of: {len(samples)} images with {len(hashes)} different labels; "
            "take fewer folds, or add images"
        )
    fold_of = {text: min(int(number * count), count - 1) for text, number in hashes.items()}
    splits = []
    for fold in range(count):
        parts: dict[str, list[Sample]] = {"training": [], "validation": [], "test": []}
        for sample in samples:
            below = (fold / count - hashes[sample.text]) % 1
            in_test, in_validation = fold_of[sample.text] == fold, below <= VALIDATION_SHARE
            parts["test" if in_test else "validation" if in_validation else "training"].append(sample)
        if empty := next((part for part, members in parts.items() if not members), None):
            raise DataError(
                f"too few to make {count} folds of: with seed {seed}, none of {len(hashes)} different labels fell to "
                f"the {empty} part of fold {fold + 1}; add images, or take another number of folds"
            )
        splits.append(Split(parts["training"], parts["validation"], parts["test"]))
    return splits


def unit_hash(seed: int, name: str) -> float:
    """Return a number from 0 to 1, evenly spread, that follows from the seed and the name alone."""
    return int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:16], 16) / 2**64


def digest(samples: Sequence[Sample]) -> str:
    """Return 16 hex digits of the samples' names, texts and pixels, whatever their order."""
    parts = ("\0".join((sample.name, sample.text, sample.digest)) for sample in samples)
    in_order = all(one.name < other.name for one, other in pairwise(samples))  # a million are not held to be sorted
    return _short_hash(parts if in_order else sorted(parts))


def pixel_digest(image: Image) -> str:
    """Return the sha256 of an image's size and pixels, by which copies are known."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def _short_hash(parts: Iterable[str]) -> str:
    hashed = hashlib.sha256()
    for number, part in enumerate(parts):
        hashed.update(f"{chr(10) if number else ''}{part}".encode(errors="surrogateescape"))
    return hashed.hexdigest()[:16]
