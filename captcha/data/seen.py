"""Which pixels a model's training saw, kept with the model, so that no test is made on them unnoticed."""

import io
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from captcha import CaptchaError
from captcha.data.samples import Sample, Split


class SeenError(CaptchaError):
    """Training pixels that cannot be read, or tests that a training saw; one line that says what to do."""


def pixel_key(digest: str) -> int:
    """Return the first 8 bytes of a sample's digest: enough to tell a thousand million images apart."""
    return int(digest[:16], 16)


@dataclass(frozen=True, eq=False)
class SeenPixels:
    """The images of a model's trainings: their train parts, all that they drew, and those that chose the epoch.

    Those of the models that it was started from are among them, unless `unknown` names one whose images nobody noted.
    """

    keys: NDArray[np.uint64]
    """The `pixel_key` of each, ascending, each once."""
    unknown: str | None = None

    @classmethod
    def of(
        cls, learned_from: Iterable[int], chosen_by: Iterable[Sample] = (), parent: "SeenPixels | None" = None
    ) -> Self:
        """Return the images with these keys, the samples, and what the model that a training started from had seen."""
        keys = array("Q", learned_from)
        keys.extend(pixel_key(sample.digest) for sample in chosen_by)
        own = np.array(keys, np.uint64)
        return cls(np.unique(own)) if parent is None else cls(np.union1d(own, parent.keys), parent.unknown)

    @classmethod
    def not_noted(cls, model: str) -> Self:
        """Return what is known of a model whose training pixels nobody noted: nothing."""
        return cls(np.array([], np.uint64), model)

    @property
    def count(self) -> int:
        """How many different images are known to have been seen."""
        return len(self.keys)

    def among(self, samples: Sequence[Sample]) -> list[bool]:
        """Return of each sample whether it was seen."""
        keys = np.fromiter((pixel_key(sample.digest) for sample in samples), np.uint64, len(samples))
        return [bool(seen) for seen in np.isin(keys, self.keys)]

    def to_bytes(self) -> bytes:
        """Return the content of an .npy file, 8 bytes for each image; it does not say what is unknown."""
        content = io.BytesIO()
        np.save(content, self.keys.astype("<u8"), allow_pickle=False)
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, unknown: str | None = None) -> Self:
        """Return what `to_bytes` gave.

        Raises:
            SeenError: it is no such file, or a part of one.
        """
        try:
            keys = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise SeenError(f"no list of training pixels: {error}") from None
        if not isinstance(keys, np.ndarray) or keys.ndim != 1 or keys.dtype != np.dtype("<u8"):
            raise SeenError("no list of training pixels: it does not hold 8 bytes for each image")
        return cls(keys.astype(np.uint64), unknown)


def without_seen(split: Split, seen: SeenPixels, model: str, allow: bool | None, remedy: str) -> Split:
    """Return the split, its test part without the images that a model's training saw: these are then its `seen`.

    Args:
        split: what is to be trained on and tested.
        seen: the training pixels of the model to start from.
        model: how to name it.
        allow: leave such images out; else they are refused, and None where a person cannot choose.
        remedy: what a person can do in place of that.

    Raises:
        SeenError: there are such images, and they are not allowed or no others are left.
    """
    flags = seen.among(split.test)
    if not any(flags):
        return split
    count, whole = sum(flags), len(split.test)
    if count == whole or not allow:
        instead = ", or leave them out of the test with --allow-overlap" if allow is False and count < whole else ""
        raise SeenError(
            f"the training of {model} saw {count} of the {whole} test images, so a test on them would say too much: "
            f"{remedy}{instead}"
        )
    apart: dict[bool, list[Sample]] = {True: [], False: []}
    for sample, flag in zip(split.test, flags, strict=True):
        apart[flag].append(sample)
    return Split(split.train, split.validation, apart[False], seen=apart[True])
