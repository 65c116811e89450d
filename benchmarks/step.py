"""Where the time of a training step goes: python benchmarks/step.py [--data DIR|draw:STYLE] [--backbone compact].

Trains for two short epochs in a tracked run of its own, in a temporary store, with stopwatches around the functions
that a step calls. Prints medians over the steps after the warm-up, in ms an image, and their shares; what an epoch
does once is divided by its steps, a picture by those of five epochs. Time is the wall's: on a busy machine compare
shares.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from captcha.jobs import train
from captcha.settings import TrainSettings
from captcha.tracking.runs import connect, tracked_run
from captcha.training import loop, recipe
from captcha.training.batches import Batches
from captcha.training.model import Crnn
from captcha.training.schedule import Schedule

WARM_UP = 8
"""Steps that do not count: first allocations, the first images of the workers."""

PARTS: list[tuple[str, Any, str]] = [
    ("images put together", loop, "stack"),
    ("augmentation", loop, "augment"),
    ("convolutions, forward", Crnn, "features"),
    ("GRU and heads, forward", Crnn, "forward"),
    ("CTC", loop, "ctc_loss"),
    ("backward", Tensor, "backward"),
    ("clipping and optimizer", torch.nn.utils, "clip_grad_norm_"),
    ("clipping and optimizer", torch.optim.AdamW, "step"),
    ("moving average", AveragedModel, "update_parameters"),
    ("else", loop, "train_step"),
]
BESIDE: list[tuple[str, Any, str, float]] = [
    ("validation", loop, "evaluate", 1),
    ("tracking and checkpoint", train, "log_metrics", 1),
    ("tracking and checkpoint", train, "log_predictions", 1 / train.EPOCHS_PER_PICTURE),
    ("tracking and checkpoint", train._Checkpoints, "save", 1),
]
"""Beside the steps, and how often in an epoch."""
WAITING = "waiting for images"


class Stopwatch:
    """Seconds within each part, less those within the parts that it calls."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Count what happens in the block as the part's."""
        self._inner.append(0)
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.spent[part] += seconds - self._inner.pop()
            if self._inner:
                self._inner[-1] += seconds

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a stopwatch around it."""

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.within(part):
                return function(*arguments, **options)

        return timed


def measure(settings: TrainSettings, steps: int) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Return the seconds of each part in each step after the warm-up, and of what is beside them, spread over them."""
    sources = train.parse_sources(settings)
    split = train.split_of(settings, sources)
    vocabulary = train.vocabulary_of(settings, sources, split)
    torch.manual_seed(settings.seed)
    model = Crnn(settings.backbone, vocabulary, settings.height, settings.dropout)
    batches = train.batches_of(sources, split, settings.batch_size, settings.seed, settings.height, vocabulary)
    schedule = Schedule(2, steps, settings.learning_rate, settings.patience, recipe.DEFAULT)
    full = train.schedule_of(split, 2, settings.batch_size, settings.learning_rate, settings.patience, recipe.DEFAULT)
    watch, found = Stopwatch(), []
    calls: dict[str, Stopwatch] = {name: Stopwatch() for _, _, name, _ in BESIDE}
    counts: dict[str, float] = defaultdict(float)

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **options)

        return calls[name].around(name, call)

    def waited_for(row: Generator[Any, None, None]) -> Iterator[Any]:
        with closing(row):  # its workers end with it
            while True:
                with watch.within(WAITING):
                    batch = next(row)
                yield batch
                found.append(watch.spent)  # the loop asks for the next batch once the step is done
                watch.spent = defaultdict(float)

    from_step = Batches.from_step
    with ExitStack() as patches:
        for part, owner, name in PARTS:
            patches.enter_context(patch.object(owner, name, watch.around(part, getattr(owner, name))))
        for _, owner, name, _ in BESIDE:
            patches.enter_context(patch.object(owner, name, counted(name, getattr(owner, name))))
        patches.enter_context(patch.object(Batches, "from_step", lambda self, step: waited_for(from_step(self, step))))
        with tracked_run("step"):
            train.fit(model, batches, split, schedule, train.Control(), keep_last=True)
    beside: dict[str, float] = defaultdict(float)
    for part, _, name, often in BESIDE:
        beside[part] += calls[name].spent[name] / counts[name] * often / full.steps_per_epoch
    return found[WARM_UP:], beside


def table(settings: TrainSettings, steps: int) -> str:
    """Return the table of a measurement as text."""
    found, beside = measure(settings, steps)
    parts = [WAITING, *dict.fromkeys(part for part, _, _ in PARTS)]
    medians = {part: statistics.median(step[part] for step in found) for part in parts}
    whole = statistics.median(sum(step.values()) for step in found)
    lines = [f"{'':28}{'ms an image':>12}{'of a step':>11}"]
    for part, seconds in [*medians.items(), ("step", whole), *beside.items()]:
        lines.append(f"{part:28}{1000 * seconds / settings.batch_size:12.2f}{seconds / whole:11.1%}")
    data = medians[WAITING] + medians["images put together"] + medians["augmentation"]
    tracking = beside["tracking and checkpoint"]
    lines.append(f"{'data and tracking':28}{'':12}{(data + tracking) / whole:11.1%}")
    return "\n".join(lines)


def main() -> None:
    """Print a table for each backbone, source and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["draw:kaptcha"], help="folders of images, or draw:STYLE")
    parser.add_argument("--backbone", nargs="+", default=["compact", "resnet18"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=24, help="in each of the two epochs")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{store}/mlflow.db"
        os.chdir(store)
        connect(writing=True)
        for data in chosen.data:
            for backbone in chosen.backbone:
                for threads in chosen.threads:
                    torch.set_num_threads(threads)
                    settings = TrainSettings(data=data, backbone=backbone)
                    print(f"\n{backbone} on {data}, {threads} thread{'s' * (threads > 1)}, batches of 16", flush=True)
                    print(table(settings, chosen.steps), flush=True)


if __name__ == "__main__":
    main()
