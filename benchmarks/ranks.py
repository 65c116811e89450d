"""Images a second of one process and of two that train together: python benchmarks/ranks.py [--rounds 5] [--steps 10].

Each process has one thread and 16 images of a step. One and two take turns, and each round gives a ratio of wall time
and one of CPU time for an image: on a busy machine the second still says what sharing costs.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from captcha.data.samples import Sample
from captcha.reading.vocabulary import Vocabulary
from captcha.training import ranks, recipe
from captcha.training.batches import Batches
from captcha.training.loop import TrainingState, train_step
from captcha.training.model import Crnn
from captcha.training.schedule import Schedule, Standing

IMAGES = 16  # of a step, for each process
HEIGHT, WIDTH = 64, 160
WARM_UP = 3


def train(backbone: str, steps: int) -> None:
    """Train so many steps each time a line comes in; print the seconds of wall and of CPU, of all ranks, for them."""
    torch.set_num_threads(1)
    with ranks.joined():
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 256, (64, HEIGHT, WIDTH, 3), dtype=np.uint8)
        samples = [Sample(f"{i}.png", f"{i:05}", image) for i, image in enumerate(noise)]
        model = Crnn(backbone, Vocabulary("0123456789"), HEIGHT).to(memory_format=torch.channels_last)
        state = TrainingState(model, recipe.DEFAULT)
        state.standing = Standing(0, 1000, 0.0, 0.0)
        schedule = Schedule(1000, 100, 0.001, 10, recipe.DEFAULT)
        batches = Batches(samples, None, IMAGES * ranks.count(), 0, rank=ranks.rank(), ranks=ranks.count())
        row = batches.from_step(0)

        def some(count: int) -> None:
            for _ in range(count):
                train_step(state, next(row), 0, schedule, weight=batches.weight)

        some(WARM_UP)
        print("ready", flush=True)
        for _ in sys.stdin:
            ranks.mean(0.0)  # all begin
            wall, own = time.perf_counter(), time.process_time()
            some(steps)
            cpu = sum(ranks.gathered(time.process_time() - own))
            print(json.dumps([time.perf_counter() - wall, cpu]), flush=True)


def started(count: int, arguments: argparse.Namespace) -> list["subprocess.Popen[str]"]:
    """Return so many processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, __file__, "--worker", "--backbone", arguments.backbone, "--steps", str(arguments.steps)]
    return [
        subprocess.Popen(
            program,
            env=os.environ | together | {"RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def timed(processes: list["subprocess.Popen[str]"], images: int) -> tuple[float, float]:
    """Return images a second of wall time, and CPU milliseconds for an image, of one round."""
    for process in processes:
        assert process.stdin
        print(file=process.stdin, flush=True)
    wall, cpu = next(json.loads(process.stdout.readline()) for process in processes if process.stdout)
    return images / wall, 1000 * cpu / images


def main() -> None:
    """Measure, or be one of the processes measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backbone", default="compact")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        train(arguments.backbone, arguments.steps)
        return
    both = {count: started(count, arguments) for count in (1, 2)}
    try:
        for processes in both.values():
            for process in processes:
                assert process.stdout
                assert process.stdout.readline() == "ready\n"
        faster, dearer = [], []
        for _ in range(arguments.rounds):
            (one, one_cpu), (two, two_cpu) = (
                timed(processes, count * IMAGES * arguments.steps) for count, processes in both.items()
            )
            faster.append(two / one)
            dearer.append(two_cpu / one_cpu)
            print(
                f"one: {one:6.1f} images/s, {one_cpu:5.1f} CPU ms an image   "
                f"two: {two:6.1f} images/s, {two_cpu:5.1f} CPU ms   {two / one:.2f} times",
                flush=True,
            )
    finally:
        for process in (each for processes in both.values() for each in processes):
            process.kill()
    for name, values in (("images a second", faster), ("CPU time for an image", dearer)):
        print(f"two over one, {name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
