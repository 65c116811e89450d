"""Which samples step k learns from: shuffled, drawn, or half of each. It follows from the seed and k alone.

Where several ranks share a step's samples, rank r of n has every n-th of them, from the r-th on.
"""

import functools
import itertools
import logging
import os
import signal
import threading
import time
from array import array
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from captcha import CaptchaError
from captcha.data.samples import Sample, Table
from captcha.data.seen import pixel_key
from captcha.data.sources import DrawnSamples
from captcha.training.ranks import on_this_machine

logger = logging.getLogger(__name__)

WORKERS = 4  # at most; each draws some hundred images a second

LOST_AT_MOST = 3
"""Times that a training's workers are started anew after one was killed, as by a system short of memory."""


class WorkersLostError(CaptchaError):
    """Workers that are killed again and again; one line that says what to do."""


@dataclass(frozen=True)
class Batches:
    """The batches of a training, without end: of a folder's samples, of drawn ones, or with half of each.

    The folder's samples come in an order by the seed, each once before any comes again; drawn ones never come again.
    """

    folder: Sequence[Sample]
    drawn: DrawnSamples | None
    size: int
    """Of a step's samples, over all ranks."""
    seed: int
    first_drawn: int = 0
    """Number of the first drawn sample to learn from."""
    rank: int = 0
    ranks: int = 1
    learned_from: "array[int]" = field(default_factory=lambda: array("Q"), compare=False, repr=False)
    """The `pixel_key` of every sample yielded so far; of a folder's, when it came for the first time."""

    @property
    def _of_folder(self) -> int:
        """How many samples of a batch, its first ones, are the folder's."""
        return self.size - (0 if self.drawn is None else self.size // 2 if self.folder else self.size)

    @property
    def weight(self) -> float:
        """This rank's share of a step's samples, times the number of ranks: 1 where all have as many."""
        return len(range(self.rank, self.size, self.ranks)) * self.ranks / self.size

    def numbers(self, step: int) -> list[int]:
        """Return the numbers of this rank's samples of a step; those of drawn ones follow the folder's last."""
        real = self._of_folder
        drawn = self.size - real
        places = range(step * real, (step + 1) * real)
        first = len(self.folder) + self.first_drawn + step * drawn
        of_all = [*(shuffled(len(self.folder), self.seed, place) for place in places), *range(first, first + drawn)]
        return of_all[self.rank :: self.ranks]

    def _seen_first(self, step: int, samples: Sequence[Sample]) -> Iterator[str]:
        """Yield the digests of this rank's samples of a step, but of a folder's that has come before."""
        new = len(self.folder) - step * self._of_folder
        for place, sample in zip(range(self.rank, self.size, self.ranks), samples, strict=True):
            if place < new or place >= self._of_folder:
                yield sample.digest

    def from_step(self, step: int, workers: int | None = None) -> Generator[list[Sample], None, None]:
        """Yield the batches of this step and of all that follow, the same whatever the number of workers.

        Workers are processes that draw, and that read what is not kept in memory; None takes as many as help.

        Raises:
            CaptchaError: a text does not fit its drawn image, or a file is no longer the image that it was.
            WorkersLostError: workers were killed again and again.
        """
        if workers is None:
            idle = self.drawn is None and all(sample.kept for sample in self.folder)
            most = WORKERS if self.drawn else 1  # to read needs no more, and each takes its memory
            workers = 0 if idle else min(most, (os.cpu_count() or 1) // (2 * on_this_machine()))
        lost = 0
        while True:
            try:
                for batch in _loaded(self, step, workers):
                    if wrong := [item for item in batch if isinstance(item, CaptchaError)]:
                        raise wrong[0]
                    samples = [self.folder[item] if isinstance(item, int) else item for item in batch]
                    self.learned_from.extend(map(pixel_key, self._seen_first(step, samples)))
                    step += 1
                    yield samples
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker"):
                    raise
                lost += 1
                if lost > LOST_AT_MOST:
                    raise WorkersLostError(
                        f"processes that prepare images were killed {lost} times, as happens where memory is short: "
                        "free some, or lower --image-memory; the training can be gone on with"
                    ) from None
                logger.warning("a process that prepares images was killed; others take its place")


def _loaded(batches: Batches, step: int, workers: int) -> Iterator[list[Any]]:
    """Return what workers make of the steps from one on: for each sample what `_Unkept` gives."""
    loader = DataLoader(
        _Unkept(batches.folder, batches.drawn),
        batch_sampler=_Steps(batches, step),
        num_workers=workers,
        collate_fn=list,
        # Not a copy of this process, whose threads may hold locks as it is copied.
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=functools.partial(_begin_work, os.getpid()),
    )
    found = iter(loader)
    if workers and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        # PyTorch's handler would raise in the middle of a step; the queue finds out between two.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return found


def shuffled(count: int, seed: int, place: int) -> int:
    """Return which of `count` samples stands at a place of an endless order; each comes once before any comes again."""
    turn, within = divmod(place, count)
    return int(_permutation(count, seed, turn)[within])


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, turn: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, turn]).permutation(count)


class _Unkept(Dataset[Sample | int | CaptchaError]):
    """What workers return: samples drawn or read; of a sample in memory, which stays there, the number."""

    def __init__(self, folder: Sequence[Sample], drawn: DrawnSamples | None) -> None:
        self.to_read: Sequence[Sample | None]
        self.to_read = folder if isinstance(folder, Table) else [None if sample.kept else sample for sample in folder]
        self.drawn = drawn

    def __getitem__(self, index: int) -> Sample | int | CaptchaError:
        """Return a CaptchaError in place of a sample: raised, it would come with the worker's stack."""
        try:
            if index >= len(self.to_read):
                assert self.drawn is not None
                return self.drawn[index - len(self.to_read)]
            sample = self.to_read[index]
            return index if sample is None else replace(sample, pixels=sample.image)
        except CaptchaError as error:
            return error


class _Steps(Sampler[list[int]]):
    def __init__(self, batches: Batches, start: int) -> None:
        self.batches, self.start = batches, start

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.batches.numbers, itertools.count(self.start))


def _begin_work(parent: int, worker: int) -> None:
    """Begin a worker's life: on one thread, and no longer than its parent's."""
    # OpenCV would share the small images among threads, which takes the model's time and saves none.
    cv2.setNumThreads(1)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """End this process once its parent is gone, however that ended: it may wait for a queue that nobody reads."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
