"""The label budget: how well is read after training on so many labels, with and without drawn images."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import mlflow

from captcha.data import samples as data
from captcha.data.samples import DataError, Sample, Split
from captcha.data.sources import Echo, load_split, read_folder, short_name
from captcha.drawing.styles import load_style
from captcha.evaluation import results as evaluation
from captcha.evaluation.metrics import wilson_interval
from captcha.evaluation.plots import BudgetPoint, budget_figure
from captcha.evaluation.results import Evaluation
from captcha.jobs import train as experiment
from captcha.settings import Backbone, BudgetConfig, TrainConfig
from captcha.tracking.models import TrainedModel, load_recognizer, load_trained
from captcha.tracking.records import log_missing_params, log_test
from captcha.tracking.runs import tracked_run

DEFAULTS = TrainConfig()
ALONE, WITH_DRAWN = "labels_alone", "with_drawn"

VALIDATION_EVERY = 10
"""Every so many texts, the first among them, go to the validation part of a training with few labels."""


@dataclass(frozen=True)
class BudgetRow:
    """One training's test: `right` of `n` images, with so many labels. Of 0 labels, no training of its own."""

    arm: str
    labels: int
    seed: int
    right: int
    n: int
    seconds: float
    run_id: str


def budget(config: BudgetConfig, echo: Echo) -> list[BudgetRow]:
    """Train on growing parts of a folder's labels, each in a nested run, and log the curve in the run above them.

    Each seed splits off its own test part, a tenth of the texts, and reads it once for each training. The labels
    are those of the other texts, in an order by the seed: fewer are always among more. A tenth of them chooses the
    epoch. The trainings with drawn images go on from a model that has seen those alone; half of their batches are
    drawn too. Figures of all seeds are added up.

    Raises:
        DataError: the folder has problems, all echoed first, or fewer labels than were asked for.
        StyleError: there is no such style.
        RegistryError: there is no such model to go on from.
        TrainingError: a training cannot go on, or its exported model does not agree with it.
    """
    with tracked_run(f"label budget of {short_name(config.data)}"):
        if config.drawn:
            load_style(config.drawn)  # what is wrong with it is said now, not after the first trainings
        before = load_trained(config.init) if config.init else None
        kind = (before.backbone, before.height) if before else (config.backbone, DEFAULTS.height)
        samples = read_folder(config.data, kind[1], None, echo)
        splits = [data.split(samples, seed) for seed in range(config.seeds)]
        fewest = min(len(split.train) + len(split.validation) for split in splits)  # what stands for all
        if (most := max((count or 0 for count in config.counts), default=0)) > fewest:
            raise DataError(
                f"{config.data}: {most} labels are asked for, but beside the test part there are {fewest}; "
                "take fewer, or all"
            )
        facts = {"images": len(samples), "data_digest": data.digest(samples)}
        log_missing_params(config.model_dump() | facts)
        rows: list[BudgetRow] = []
        if config.drawn and before is None:
            before = _drawn_first(config, echo)
        for count in config.counts:
            for arm in (ALONE, WITH_DRAWN) if config.drawn else (ALONE,):
                if count == 0 and arm == ALONE:
                    continue  # nothing to learn from
                labels = fewest if count is None else count
                for seed, split in enumerate(splits):
                    asked = _as_training(config, kind, seed, before if arm == WITH_DRAWN else None)
                    name = f"{'all' if count is None else count} labels, {arm.replace('_', ' ')}, seed {seed}"
                    echo(f"\n{name}")
                    with tracked_run(name, nested=True) as run:
                        began = time.perf_counter()
                        tested = _measure(asked, with_labels(split, count, seed), before, echo)
                        seconds = time.perf_counter() - began
                    right = len(tested.samples) - tested.wrong
                    rows.append(BudgetRow(arm, labels, seed, right, len(tested.samples), seconds, run.info.run_id))
                    _log_curve(rows)
        echo(table(rows))
    return rows


def with_labels(split: Split, count: int | None, seed: int) -> Split:
    """Return a split that knows so many labels of its train and validation part, None for all; the test part stays."""
    if count is None:
        return split
    known = sorted([*split.train, *split.validation], key=lambda s: (data.share(seed, f"budget:{s.text}"), s.name))
    ranks = {text: rank for rank, text in enumerate(dict.fromkeys(sample.text for sample in known[:count]))}
    train: list[Sample] = []
    validation: list[Sample] = []
    for sample in known[:count]:
        (train if ranks[sample.text] % VALIDATION_EVERY else validation).append(sample)
    return Split(train, validation, split.test)


def points(rows: Sequence[BudgetRow]) -> list[BudgetPoint]:
    """Return the seeds of each arm and number of labels added up, with the 95 % Wilson interval."""
    together: dict[tuple[str, int], list[BudgetRow]] = {}
    for row in rows:
        together.setdefault((row.arm, row.labels), []).append(row)
    added = []
    for (arm, labels), members in sorted(together.items()):
        right, n = sum(row.right for row in members), sum(row.n for row in members)
        seconds = sum(row.seconds for row in members) / len(members)
        added.append(BudgetPoint(arm, labels, right, n, *wilson_interval(right, n), seconds))
    return added


def table(rows: Sequence[BudgetRow]) -> str:
    """Return the curve as lines for a terminal."""
    lines = ["labels  trained on           exact match  95 % interval        right of      seconds"]
    for point in points(rows):
        interval = f"{point.low:.2%} to {point.high:.2%}"
        lines.append(
            f"{point.labels:6}  {point.arm.replace('_', ' '):19}  {point.right / point.n:11.2%}  {interval:19}  "
            f"{point.right:5} of {point.n:<5}  {point.seconds:6.0f}"
        )
    return "\n".join(lines)


def _as_training(
    config: BudgetConfig, kind: tuple[Backbone, int], seed: int, before: TrainedModel | None
) -> TrainConfig:
    """Return the settings of one training, which goes on from a model of drawn images where there is one."""
    return TrainConfig(
        data=config.data,
        backbone=kind[0],
        height=kind[1],
        init=before.uri if before else None,
        drawn=config.drawn if before else None,
        epochs=config.epochs,
        seed=seed,
    )


def _drawn_first(config: BudgetConfig, echo: Echo) -> TrainedModel:
    """Train on drawn images alone, in a nested run, and return what came of it."""
    asked = TrainConfig(data=f"draw:{config.drawn}", backbone=config.backbone, epochs=config.drawn_epochs)
    echo(f"\n{asked.data}, for the trainings with drawn images to go on from")
    with tracked_run(f"drawn images alone: {config.drawn}", nested=True) as run:
        split = load_split(asked, echo)
        experiment.learn(asked, split, None, experiment.example_of(asked, split.test[0]), echo)
    return load_trained(f"runs:/{run.info.run_id}")


def _measure(asked: TrainConfig, split: Split, before: TrainedModel | None, echo: Echo) -> Evaluation:
    """Return what is read of the test part after a training on the other two, or of none by the model before it."""
    if split.train:
        example = experiment.example_of(asked, split.test[0])
        return experiment.learn(asked, split, before if asked.init else None, example, echo)
    assert before  # without labels only where there is a model of drawn images
    recognizer = load_recognizer(before.uri)
    tested = evaluation.evaluate(recognizer, split.test)
    log_test(tested)
    return tested


def _log_curve(rows: Sequence[BudgetRow]) -> None:
    """Log what is measured so far: a metric by the number of labels, the table of all trainings, the picture."""
    added = points(rows)
    for point in added:
        match = {"": point.right / point.n, "_low": point.low, "_high": point.high}
        metrics = {f"budget/{point.arm}{key}": value for key, value in match.items()}
        mlflow.log_metrics(metrics, step=point.labels)
    mlflow.log_dict({"rows": [vars(row) for row in rows]}, "budget.json")
    mlflow.log_figure(budget_figure(added), "budget.png")
