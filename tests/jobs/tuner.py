"""Processes that take part in one study at once, with stand-ins for the trainings.

A program: its arguments are a number of processes and the settings of `tune` as JSON. It imports everything once, forks
the processes, prints their numbers, and in the end how each ended, as JSON.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

EPOCHS = 3


def loss_of(learning_rate: float, epoch: int) -> float:
    """Return the loss of a stand-in after an epoch: lowest at a rate of 0.001."""
    return 0.1 + abs(math.log10(learning_rate) + 3) + 1 / (epoch + 1)


def stand_in(replace: Callable[[object, str, object], None], seconds: float = 0) -> None:
    """Put stand-ins in the place of trainings, which take so long an epoch, and of the registry."""
    from captcha.evaluation.results import Evaluation
    from captcha.jobs import train, tune
    from captcha.reading.recognizer import Reading

    def fit(model: Any, batches: Any, split: Any, schedule: Any, control: Any, judge: Callable[[Any], None]) -> Any:
        losses = [loss_of(schedule.learning_rate, epoch) for epoch in range(EPOCHS + 1)]
        for epoch, loss in enumerate(losses):
            time.sleep(seconds)
            judge(SimpleNamespace(epoch=epoch, validation=SimpleNamespace(loss=loss)))
        return train.Fitted(model, EPOCHS, [{"val/loss": loss} for loss in losses])

    def learn(settings: Any, sources: Any, split: Any, *others: Any) -> Any:
        time.sleep(seconds)
        readings = [Reading(sample.text, 1.0, []) for sample in split.test]
        checkpoint = SimpleNamespace(model=lambda: settings.seed)
        return SimpleNamespace(evaluation=Evaluation(split.test, readings, 0.0), checkpoint=checkpoint)

    def register(run_id: str, name: str) -> tuple[str, int, str]:
        with Path("registered.txt").open("a") as file:
            print(run_id, file=file)
        return name, 1, f"{name} version 1 registered"

    replace(train, "fit", fit)
    replace(train, "learn", learn)
    replace(train, "new_model", lambda *_: None)
    replace(tune, "torch_recognizer", lambda seed: seed)
    replace(tune, "evaluate", lambda seed, samples: SimpleNamespace(loss=0.5 + abs(seed - 2)))  # seed 2 is best
    replace(tune, "register", register)


def main(count: str, asked: str) -> None:
    """Fork the processes and wait for them."""
    from mlflow import MlflowClient

    from captcha.jobs import tune
    from captcha.settings import TuneSettings
    from captcha.tracking import runs, signals, store, unfinished

    stand_in(setattr, seconds=0.3)
    tune.HEARTBEAT, tune.GRACE, tune.POLL = 2, 30, 0.2
    store.PATIENCE = 60
    unfinished.project_root = Path.cwd  # type: ignore[attr-defined]
    runs.connect(writing=True)
    MlflowClient().search_experiments()  # makes MLflow's tables, and imports what each process needs
    started = []
    for _ in range(int(count)):
        if (child := os.fork()) == 0:
            signals.listen()
            outcome = tune.tune(TuneSettings(**json.loads(asked)))
            print(json.dumps({"best": outcome.best_trial, "seeds": [each.seed for each in outcome.seeds]}), flush=True)
            os._exit(0)
        started.append(child)
    print(json.dumps(started), flush=True)
    statuses = {child: os.waitpid(child, 0)[1] for child in started}
    print(json.dumps([statuses[child] for child in started]), flush=True)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
    main(*sys.argv[1:])
