"""The label budget: exact match against the number of labels trained on, with drawn images and without."""

import itertools
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from captcha.data.files import write_whole
from captcha.data.problems import Problem
from captcha.data.samples import DataError, ImageMemory, Sample, Split, digest, split, unit_hash
from captcha.data.seen import SeenPixels
from captcha.data.sources import Sources, parse_folder, parse_style
from captcha.evaluation.metrics import wilson_interval
from captcha.evaluation.plots import BudgetPoint, budget_figure
from captcha.evaluation.results import Evaluation, evaluate
from captcha.jobs import train as training
from captcha.reading.recognizer import Recognizer, save_recognizer
from captcha.settings import BudgetSettings, TrainSettings
from captcha.tracking.descriptions import run_name
from captcha.tracking.entries import log_figure, log_json, log_metrics
from captcha.tracking.models import Parent
from captcha.tracking.records import log_facts, log_left_out, log_settings, log_test
from captcha.tracking.runs import active_folder, connect, tracked_run
from captcha.tracking.unfinished import Asked, refuse_changes, taken_up
from captcha.training import recipe as recipes
from captcha.training.checkpoint import Checkpoint
from captcha.training.export import to_onnx
from captcha.training.recipe import Recipe

logger = logging.getLogger(__name__)

DEFAULTS = TrainSettings()
ALONE, WITH_DRAWN = "labels_alone", "with_drawn"

VALIDATION_EVERY = 10
"""In a training with few labels, the first of every VALIDATION_EVERY texts goes to the validation part."""


@dataclass(frozen=True)
class BudgetRow:
    """The test after a training with `labels` labels (0: of the parent itself): `right` of `n` images."""

    arm: str
    labels: int
    seed: int
    right: int
    n: int
    seconds: float
    run_id: str


def budget(settings: BudgetSettings, recipe: Recipe = recipes.DEFAULT) -> list[BudgetRow]:
    """Train on growing parts of a folder's labels, each in a nested run, and log the curve in the run above them.

    Each seed splits off its own test part, a tenth of the texts. The labels of the other texts have an order by the
    seed, and a training takes the first ones; a tenth of these chooses the epoch. The trainings with drawn images
    start from a model trained on drawn images alone, and half of every batch is drawn. The seeds are added up.

    Raises:
        DataError: the folder has problems, all printed first, or fewer labels than the settings name.
        StyleError: there is no such style.
        RegistryError: there is no such model to start from.
        SeenError: its training saw images that are tested on.
        TrainingError: a training cannot go on, or its exported model does not agree with it.
    """
    settings, unfinished = taken_up(settings, "budget")
    folder = parse_folder(settings.data)
    style = parse_style(settings.drawn) if settings.drawn else None
    connect(writing=True)  # a store that does not answer is told before images are read
    parent = training.read_parent(training.initial_model(settings.init, unfinished)) if settings.init else None
    height = parent[1].height if parent else DEFAULTS.height
    if style:
        style.samples(height, 0)  # an error in it is raised now, not after the first trainings
    left_out: list[Problem] | None = [] if settings.problems == "leave-out" else None
    samples = folder.samples(height, memory=ImageMemory(DEFAULTS.image_memory), left_out=left_out)
    splits = [split(samples, seed) for seed in range(settings.seeds)]
    if parent:
        tests = [sample for each in splits for sample in each.test]
        training.with_unseen_test(Split([], [], tests), parent[0], None, "start from a model of drawn images alone")
    fewest = min(len(each.train) + len(each.validation) for each in splits)  # the number shown for `all`
    known = _known(settings, splits, fewest)
    facts = training.facts_of(Sources(folder, drawn=style), digest(samples), parent, recipe)
    refuse_changes(unfinished, facts)
    asked = Asked("budget", settings.shaping(), facts)
    name = run_name(settings, "label budget", folder.short_name, parent=parent[0].uri if parent else None)
    with tracked_run(name, asked=asked, resumed=unfinished):
        log_settings(settings.shaping())
        log_left_out(left_out or ())
        log_facts({"job": "budget", "data": folder.written, "images": len(samples), "data_digest": digest(samples)})
        if settings.drawn and parent is None:
            parent = _trained_on_drawn(settings, recipe)
        rows: list[BudgetRow] = []
        for count, arm, seed in _trainings(settings):
            name = f"{'all' if count is None else count} labels, {arm.replace('_', ' ')}, seed {seed}"
            labels = fewest if count is None else count
            row = partial(_row, settings, name, labels, arm, seed, known[count, seed], parent, recipe)
            rows.append(BudgetRow(**training.part(name, row)))
            _log_curve(rows)
    return rows


def _known(settings: BudgetSettings, splits: Sequence[Split], fewest: int) -> dict[tuple[int | None, int], Split]:
    """Return the split of each number of labels and seed; `fewest` labels lie outside the test part of every seed.

    Raises:
        DataError: there are fewer labels than the settings name, or some are all of one text.
    """
    if (most := max((count or 0 for count in settings.counts), default=0)) > fewest:
        raise DataError(
            f"{settings.data}: {most} labels are asked for, but beside the test part there are {fewest}; "
            "take fewer, or all"
        )
    known = {
        (count, seed): with_labels(splits[seed], count, seed)
        for count, seed in itertools.product(settings.counts, range(settings.seeds))
    }
    for (count, seed), part in known.items():
        if count and not part.train:
            raise DataError(
                f"{settings.data}: {count} labels of seed {seed} are all of one text, so none is left to train "
                "on; take more labels"
            )
    return known


def _trainings(settings: BudgetSettings) -> list[tuple[int | None, str, int]]:
    """Return number of labels, arm and seed of each training, in their order; none for 0 labels alone."""
    arms = (ALONE, WITH_DRAWN) if settings.drawn else (ALONE,)
    return [
        (count, arm, seed)
        for count in settings.counts
        for arm in arms
        if (count, arm) != (0, ALONE)
        for seed in range(settings.seeds)
    ]


def with_labels(whole: Split, count: int | None, seed: int) -> Split:
    """Return a split with `count` of the labels outside its test part, None for all; the test part stays."""
    if count is None:
        return whole
    known = sorted([*whole.train, *whole.validation], key=lambda s: (unit_hash(seed, f"budget:{s.text}"), s.name))
    ranks = {text: rank for rank, text in enumerate(dict.fromkeys(sample.text for sample in known[:count]))}
    train: list[Sample] = []
    validation: list[Sample] = []
    for sample in known[:count]:
        (train if ranks[sample.text] % VALIDATION_EVERY else validation).append(sample)
    return Split(train, validation, whole.test)


def points(rows: Sequence[BudgetRow]) -> list[BudgetPoint]:
    """Return a point for each arm and number of labels, its seeds added up, with the 95 % Wilson interval."""
    together: dict[tuple[str, int], list[BudgetRow]] = {}
    for row in rows:
        together.setdefault((row.arm, row.labels), []).append(row)
    added = []
    for (arm, labels), members in sorted(together.items()):
        right, n = sum(row.right for row in members), sum(row.n for row in members)
        seconds = sum(row.seconds for row in members) / len(members)
        added.append(BudgetPoint(arm, labels, right, n, *wilson_interval(right, n), seconds))
    return added


def _as_training(
    settings: BudgetSettings, seed: int, parent: tuple[Parent, Checkpoint] | None, with_drawn: bool
) -> TrainSettings:
    """Return the settings of one training; with drawn images it starts from the parent, trained on those alone."""
    return TrainSettings(
        data=settings.data,
        problems=settings.problems,
        backbone=parent[1].backbone if parent else settings.backbone,
        height=parent[1].height if parent else DEFAULTS.height,
        init=parent[0].uri if parent and with_drawn else None,
        drawn=settings.drawn if with_drawn else None,
        epochs=settings.epochs,
        seed=seed,
        checkpoint_minutes=settings.checkpoint_minutes,
    )


def _trained_on_drawn(settings: BudgetSettings, recipe: Recipe) -> tuple[Parent, Checkpoint]:
    """Return a model of drawn images alone, trained in a nested run unless that is done."""
    drawn = TrainSettings(data=f"draw:{settings.drawn}", backbone=settings.backbone, epochs=settings.drawn_epochs)
    drawn = drawn.model_copy(update={"checkpoint_minutes": settings.checkpoint_minutes})
    key, folder = f"drawn images alone: {settings.drawn}", active_folder()
    weights, pixels = folder / "drawn.safetensors", folder / "drawn.npy"

    def train(run_id: str) -> str:
        logger.info("\n%s, for the trainings with drawn images to start from", drawn.data)
        sources = training.parse_sources(drawn)
        known = training.split_of(drawn, sources)
        learned = training.learn(drawn, sources, known, None, training.example_of(sources, known.test[0]), recipe)
        write_whole(weights, learned.checkpoint.to_bytes())
        write_whole(pixels, learned.seen.to_bytes())
        return run_id

    run_id = training.part(key, train)
    seen = SeenPixels.from_bytes(pixels.read_bytes(), None)
    parent = Parent(f"runs:/{run_id}", run_id, seen, weights.read_bytes(), {})
    return parent, Checkpoint.from_bytes(parent.weights)


def _row(
    settings: BudgetSettings,
    name: str,
    labels: int,
    arm: str,
    seed: int,
    known: Split,
    parent: tuple[Parent, Checkpoint] | None,
    recipe: Recipe,
    run_id: str,
) -> dict[str, object]:
    """Return the row of a training that this does, as JSON holds it."""
    logger.info("\n%s", name)
    began = time.perf_counter()
    evaluation = _measure(settings, seed, known, parent, arm == WITH_DRAWN, recipe)
    seconds = time.perf_counter() - began
    right, n = len(evaluation.samples) - evaluation.wrong, len(evaluation.samples)
    return asdict(BudgetRow(arm, labels, seed, right, n, seconds, run_id))


def _measure(
    settings: BudgetSettings,
    seed: int,
    known: Split,
    parent: tuple[Parent, Checkpoint] | None,
    with_drawn: bool,
    recipe: Recipe,
) -> Evaluation:
    """Return the evaluation on the test part: after a training, or of the parent where there are no labels."""
    if known.train:
        own = _as_training(settings, seed, parent, with_drawn)
        sources = training.parse_sources(own)
        example = training.example_of(sources, known.test[0])
        return training.learn(own, sources, known, parent if with_drawn else None, example, recipe).evaluation
    assert parent  # without labels only where there is a model of drawn images
    evaluation = evaluate(_exported(parent[1]), known.test)
    log_test(evaluation)
    return evaluation


def _exported(checkpoint: Checkpoint) -> Recognizer:
    """Return a model as it would be served."""
    with tempfile.TemporaryDirectory() as temporary:
        save_recognizer(Path(temporary), to_onnx(checkpoint.model()), checkpoint.vocabulary, checkpoint.height)
        return Recognizer.load(Path(temporary))


def _log_curve(rows: Sequence[BudgetRow]) -> None:
    """Log what is measured so far: a metric by the number of labels, the table of all trainings, the picture."""
    added = points(rows)
    for point in added:
        match = {"": point.right / point.n, "_low": point.low, "_high": point.high}
        metrics = {f"budget/{point.arm}{key}": value for key, value in match.items()}
        log_metrics(metrics, step=point.labels)
    log_json({"rows": [vars(row) for row in rows]}, "budget.json")
    log_figure(budget_figure(added), "budget.png")
