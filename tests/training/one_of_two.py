"""One of two processes that train together, started by test_ranks.py, which looks at what they leave in a folder."""

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from captcha.data.samples import Sample
from captcha.reading.vocabulary import Vocabulary
from captcha.training import ranks
from captcha.training.batches import Batches
from captcha.training.checkpoint import Checkpoint
from captcha.training.loop import TrainingState, train_epochs
from captcha.training.model import Crnn
from captcha.training.recipe import Augmentation, Recipe
from captcha.training.schedule import Schedule
from captcha.training.snapshot import load_snapshot, save_snapshot

STEPS = 2  # in an epoch
PLAIN = Recipe(
    epoch_images=1,
    average_decay=0.5,
    gru_weight=1.0,
    augmentation=Augmentation.model_validate(dict.fromkeys(Augmentation.model_fields, 0)),
)
"""Nothing in it is random."""


def ten_samples() -> list[Sample]:
    """Return ten images, (32, 48, 3), of two digits on noise."""
    samples = []
    for number in range(10):
        image = np.random.default_rng(number).integers(200, 256, (32, 48, 3), dtype=np.uint8)
        text = f"{number * 37 % 100:02}"
        cv2.putText(image, text, (4, 24), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (20, 30, 40), 2)
        samples.append(Sample(f"{text}.png", text, image))
    return samples


def fresh(seed: int, recipe: Recipe, dropout: float, frozen: bool) -> TrainingState:
    torch.manual_seed(seed)
    model = Crnn("compact", Vocabulary("0123456789"), 32, dropout, gru_weight=recipe.gru_weight)
    if frozen:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign, misc]
    return TrainingState(model.to(memory_format=torch.channels_last), recipe)


def trained(
    samples: list[Sample], size: int, epochs: int, folder: Path | None = None, frozen: bool = True, resume: bool = False
) -> tuple[TrainingState, list[float | None]]:
    """Return what so many epochs of two steps make, and their losses; snapshots go to the folder, and come from it."""
    recipe = PLAIN if frozen else Recipe(epoch_images=1)
    # Other weights at first on each rank: all are to take on those of rank 0.
    state = fresh(ranks.rank(), recipe, 0.0 if frozen else 0.1, frozen)
    schedule = Schedule(2, STEPS, 0.001, 10, recipe)
    batches = Batches(samples, None, size, 0, rank=ranks.rank(), ranks=ranks.count())
    if resume:
        saved = load_snapshot(folder) if folder and not ranks.rank() else None
        if saved:
            saved.restore(state)
            batches.learned_from[:] = saved.learned_from
        sent = ranks.from_first(state.state_dict())
        if not saved:
            state.load_state_dict(sent)
    losses = []
    for result in train_epochs(state, batches, samples, schedule):
        losses.append(result.train_loss)
        ranks.hand_over(batches.learned_from)
        if folder and not ranks.rank():
            save_snapshot(folder, state, batches.learned_from, {"read": result.validation.predictions})
        if result.epoch == epochs:
            break
    return state, losses


def keep(made: tuple[TrainingState, list[float | None]], folder: Path, name: str) -> None:
    (state, losses), file = made, folder / f"{name}-{ranks.rank()}"
    for kind, model in (("model", state.model), ("average", state.average)):
        file.with_suffix(f".{kind}").write_bytes(Checkpoint.of(model).to_bytes())
    file.with_suffix(".json").write_text(json.dumps(losses))


def main(folder: Path) -> None:
    samples = ten_samples()
    with ranks.joined():
        assert ranks.count() == ranks.on_this_machine() == 2
        keep(trained(samples, 5, 1, folder / "random", frozen=False), folder, "random")
        keep(trained(samples, 8, 2, folder / "two"), folder, "even")
        keep(trained(samples, 5, 2), folder, "uneven")
        keep(trained(samples, 8, 2, folder / "one", resume=True), folder, "resumed")
        try:
            ranks.refuse_others({"code": "same", "images": f"those of {ranks.rank()}"})
        except (ranks.RankError, SystemExit) as refused:
            (folder / f"refused-{ranks.rank()}").write_text(f"{type(refused).__name__}: {refused}")
        highest = ranks.highest(3 * ranks.rank(), 7 - ranks.rank())
        (folder / f"highest-{ranks.rank()}").write_text(json.dumps(highest))

        def dies(steps: Iterable[int]) -> Iterator[int]:
            for step in steps:
                if step == 1 and ranks.rank():
                    os.kill(os.getpid(), signal.SIGKILL)
                yield step

        batches = Batches(samples, None, 8, 0, rank=ranks.rank(), ranks=2)
        state = fresh(0, PLAIN, 0.0, frozen=True)
        try:
            with ranks.minded():
                list(train_epochs(state, batches, samples, Schedule(2, STEPS, 0.001, 10, PLAIN), dies))
        except ranks.RankError as error:
            (folder / "lost").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
