"""Parquet shards: memory with many images against few, and the speed of reading alone against that of a training.

    python -m benchmarks.parquet --images 1000000 --few 10000

The images are few drawn ones; each time another number is written into the first pixels, and another label given, so
that no two are alike. Each line is a process of its own, and its memory that of it and all its children together
(resident, sampled): `check` reads all images once, `train` splits them, makes the digests, reads batches
from all over them with a worker, and looks for test images among what was seen. Then batches are read alone and
learned from alone (`compact`, one thread), in turn; the median of the rounds' ratios counts.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import psutil  # type: ignore[import-untyped]

from captcha.data.folders import encode_png
from captcha.data.parquet import write_shards
from captcha.data.samples import ImageMemory
from captcha.data.seen import SeenPixels, without_seen
from captcha.data.sources import Sources, parse_images, parse_style
from captcha.reading.vocabulary import Vocabulary

DRAWN, HEIGHT, BATCH = 64, 32, 16
LETTERS = "0123456789abcdefghijkmnpqrstuvwxyz"
BATCHES_READ, ROUNDS, STEPS = 100, 5, 10
SAMPLED_SECONDS = 0.2


def rows(count: int) -> Iterator[tuple[str, bytes, str]]:
    """Yield so many images, no two alike, with labels of four characters."""
    drawn = parse_style("outlined").samples(HEIGHT, 0)
    images = [drawn[i].image.copy() for i in range(DRAWN)]
    for number in range(count):
        image = images[number % DRAWN]
        image[0, :2] = np.frombuffer(number.to_bytes(6, "big"), np.uint8).reshape(2, 3)
        label = "".join(LETTERS[number // len(LETTERS) ** place % len(LETTERS)] for place in range(4))
        yield f"{number}.png", encode_png(image), label


def check(shards: str) -> dict[str, float]:
    """Read all images once, as `captcha check` does."""
    started = time.perf_counter()
    samples, problems, _ = parse_images(shards).check(HEIGHT, None, False)
    assert not problems
    return {"images a second": len(samples) / (time.perf_counter() - started)}


def train(shards: str) -> dict[str, float]:
    """Do what a training does beside its steps, then read and learn in turn."""
    import torch

    from captcha.training.batches import Batches
    from captcha.training.loop import TrainingState, train_step
    from captcha.training.model import Crnn
    from captcha.training.recipe import DEFAULT
    from captcha.training.schedule import Schedule, Standing

    torch.set_num_threads(1)
    split = Sources.parse(shards, None, None, None).split(HEIGHT, None, 0, ImageMemory(500))
    assert len(split.digest) == 16
    batches = Batches(split.train, None, BATCH, 0)
    with_worker = batches.from_step(0, workers=1)
    for _ in islice(with_worker, BATCHES_READ):
        pass
    with_worker.close()
    without_seen(split, SeenPixels.of(batches.learned_from, split.validation), "this model", None, "")

    state = TrainingState(Crnn("compact", Vocabulary(LETTERS), HEIGHT, 0.1), DEFAULT)
    state.standing = Standing(0, 1, 0.0, math.inf)
    schedule = Schedule(1, 10**6, 0.001, 1, DEFAULT)
    alone = batches.from_step(0, workers=0)
    reading, learning = [], []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        read = [[replace(sample, pixels=sample.image) for sample in next(alone)] for _ in range(STEPS)]
        reading.append(STEPS * BATCH / (time.perf_counter() - started))
        started = time.perf_counter()
        for samples in read:
            train_step(state, samples, 0, schedule)
        learning.append(STEPS * BATCH / (time.perf_counter() - started))
    ratios = [one / other for one, other in zip(reading[1:], learning[1:], strict=True)]  # the first warms up
    return {
        "read a second": median(reading[1:]),
        "learned from a second": median(learning[1:]),
        "ratio": median(ratios),
        "least ratio": min(ratios),
        "largest ratio": max(ratios),
    }


def measured(part: str, shards: Path) -> dict[str, float]:
    """Run a part in a process of its own; return what it prints, and the most memory that it and its children had."""
    command = [sys.executable, "-m", "benchmarks.parquet", "--part", part, "--shards", str(shards)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    most = 0
    while process.poll() is None:
        most = max(most, _memory(process.pid))
        time.sleep(SAMPLED_SECONDS)
    assert process.stdout
    assert process.returncode == 0, f"{part} has failed, see above"
    found: dict[str, float] = json.loads(process.stdout.read())
    return {"MB": most / 1e6, **found}


def _memory(pid: int) -> int:
    total = 0
    try:
        root = psutil.Process(pid)
        for each in [root, *root.children(recursive=True)]:
            total += each.memory_info().rss
    except psutil.Error:  # one has ended meanwhile
        return 0
    return total


def main(arguments: Sequence[str] | None = None) -> None:
    """Write shards of few and of many images, and measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--part", choices=["check", "train"], help=argparse.SUPPRESS)
    parser.add_argument("--shards", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part:
        print(json.dumps({"check": check, "train": train}[given.part](given.shards)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        counts = given.few, given.images
        for count in counts:
            started = time.perf_counter()
            write_shards(Path(temporary) / str(count), rows(count))
            size = sum(file.stat().st_size for file in (Path(temporary) / str(count)).iterdir())
            print(f"{count} images written: {time.perf_counter() - started:.0f} s, {size / 1e6:.0f} MB", flush=True)
        for part in ("check", "train"):
            for count in counts:
                found = measured(part, Path(temporary) / str(count))
                said = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
                print(f"{part} {count}: {said}", flush=True)


if __name__ == "__main__":
    main()
