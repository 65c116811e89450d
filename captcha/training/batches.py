"""Drawn samples without end: workers draw them while the model learns, and none comes twice."""

import itertools
import os
from collections.abc import Iterator

import cv2
from torch.utils.data import DataLoader, Dataset, Sampler

from captcha.data.samples import Sample
from captcha.data.sources import DrawnSamples
from captcha.drawing.styles import StyleError

WORKERS = 4  # at the most: each draws some hundred images a second


def endless_batches(samples: DrawnSamples, size: int, start: int, workers: int | None = None) -> Iterator[list[Sample]]:
    """Yield batches of samples `start`, `start` + 1, ... for ever, the same whatever the number of workers.

    Raises:
        StyleError: a text does not fit its image.
    """
    workers = min(WORKERS, (os.cpu_count() or 1) // 2) if workers is None else workers
    loader = DataLoader(
        _Guarded(samples),
        batch_sampler=_Numbers(size, start),
        num_workers=workers,
        collate_fn=list,
        # Not a copy of this process, whose threads may hold locks as it is copied.
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_draw_on_one_thread,
    )
    for batch in loader:
        if wrong := [sample for sample in batch if isinstance(sample, StyleError)]:
            raise wrong[0]
        yield batch


def _draw_on_one_thread(worker: int) -> None:
    """Keep OpenCV from sharing the small images among threads, which takes the model's time and saves none."""
    cv2.setNumThreads(1)


class _Guarded(Dataset[Sample | StyleError]):
    """A worker's errors come with its stack; one that a person can mend is handed over as it is."""

    def __init__(self, samples: DrawnSamples) -> None:
        self.samples = samples

    def __getitem__(self, index: int) -> Sample | StyleError:
        try:
            return self.samples[index]
        except StyleError as error:
            return error


class _Numbers(Sampler[list[int]]):
    def __init__(self, size: int, start: int) -> None:
        self.size, self.start = size, start

    def __iter__(self) -> Iterator[list[int]]:
        for first in itertools.count(self.start, self.size):
            yield [*range(first, first + self.size)]
