"""Cross-validation: every image of a folder read by a model that was trained on the others, in nested runs."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

from captcha.data.problems import Problem
from captcha.data.samples import ImageMemory, Split, digest, folds
from captcha.data.sources import Sources, parse_folder, parse_style
from captcha.evaluation.calibration import ConfidenceFigures
from captcha.evaluation.out_of_fold import OutOfFold, OutOfFoldFigures, calibrated, figures, out_of_fold, pictured
from captcha.jobs import train as training
from captcha.reading.constraints import Constraints, automaton_of, constraints_named
from captcha.reading.vocabulary import Vocabulary
from captcha.settings import CrossvalSettings, TrainSettings
from captcha.tracking.descriptions import exact_match_sentence, run_name
from captcha.tracking.models import Parent
from captcha.tracking.records import (
    log_evaluated,
    log_facts,
    log_left_out,
    log_out_of_fold,
    log_settings,
)
from captcha.tracking.runs import NOTE, connect, tracked_run
from captcha.tracking.unfinished import Asked, refuse_changes, taken_up
from captcha.training import recipe as recipes
from captcha.training.checkpoint import Checkpoint
from captcha.training.loop import TrainingError
from captcha.training.recipe import Recipe

logger = logging.getLogger(__name__)

DEFAULTS = TrainSettings()


@dataclass(frozen=True)
class CrossvalOutcome:
    """The result of a cross-validation."""

    run_id: str
    data_digest: str
    readings: list[OutOfFold]
    """Of every image, one for each seed."""
    figures: list[OutOfFoldFigures]
    """Of each seed, and after those of several their mean."""
    confidence: ConfidenceFigures
    """Of all readings."""

    def as_json(self) -> dict[str, object]:
        """Return what `--json` prints: all but the readings, which the run has."""
        rows = [asdict(each) | {"exact_match": each.exact_match, "cer": each.cer} for each in self.figures]
        known = {"run_id": self.run_id, "data_digest": self.data_digest}
        return {**known, "figures": rows, "confidence": self.confidence.as_dict()}


def crossval(settings: CrossvalSettings, recipe: Recipe = recipes.DEFAULT) -> CrossvalOutcome:
    """Train a model for each fold and seed, each in a nested run, and log what it reads of the fold.

    A seed and the labels decide the folds and their validation parts (see `folds`); validation chooses the epoch, so
    that nothing of a fold, and no other image with one of its labels, has a part in the model that reads it.

    Raises:
        DataError: the folder has problems, all printed first, or too few labels for the folds.
        StyleError, FontError: a style is named as the folder, or the one drawn beside it cannot be drawn.
        ConstraintError: what is known of the texts contradicts itself or the labels' characters, or is too large.
        RegistryError: there is no such model to start from.
        CheckpointError: its weights are damaged.
        SeenError: its training saw some of the images.
        TrainingError: a training cannot go on, or its exported model does not agree with it.
    """
    settings, unfinished = taken_up(settings, "crossval")
    folder = parse_folder(settings.data)
    sources = Sources(folder, drawn=parse_style(settings.drawn) if settings.drawn else None)
    connect(writing=True)  # a store that does not answer is told before images are read
    parent = training.read_parent(training.initial_model(settings.init, unfinished)) if settings.init else None
    height = parent[1].height if parent else DEFAULTS.height
    constraints = constraints_named(settings.length, settings.characters, settings.texts, settings.pattern)
    if sources.drawn:
        sources.drawn.samples(height, 0)  # an error in it is raised before any image is read
    left_out: list[Problem] | None = [] if settings.problems == "leave-out" else None
    samples = folder.samples(height, memory=ImageMemory(DEFAULTS.image_memory), left_out=left_out)
    splits = {
        (seed, fold): split
        for seed in range(settings.seeds)
        for fold, split in enumerate(folds(samples, seed, settings.folds))
    }
    if parent:
        training.with_unseen_test(Split([], [], samples), parent[0], None, "start from a model of other images")
    if constraints:
        automaton_of(constraints, Vocabulary.from_texts(sample.text for sample in samples))  # an error in it is raised
    facts = training.facts_of(sources, digest(samples), parent, recipe, constraints)
    refuse_changes(unfinished, facts)
    asked = Asked("crossval", settings.shaping(), facts)
    name = run_name(settings, "crossval", folder.short_name, parent=parent[0].uri if parent else None)
    with tracked_run(name, asked=asked, resumed=unfinished) as run:
        log_settings(settings.shaping())  # at once: a run that fails says how it was started
        log_left_out(left_out or ())
        images = log_evaluated(samples, folder, None)
        log_facts({"job": "crossval", "data": folder.written, "images": len(samples), "data_digest": images.digest})
        readings: list[OutOfFold] = []
        for (seed, fold), split in splits.items():
            key = f"fold {fold + 1} of {settings.folds}, seed {seed}"
            rows = partial(_read_fold, settings, key, fold, seed, sources, split, parent, recipe, constraints)
            readings += [OutOfFold.of(row) for row in training.part(key, rows)]
        readings = calibrated(readings, DEFAULTS.precision)
        pooled = figures(readings)
        by_name = {sample.name: sample for sample in samples}
        confidence = log_out_of_fold(readings, pooled, pictured(readings, by_name), images)
        log_facts({NOTE: _description(pooled, settings, folder.written, constraints)})
    return CrossvalOutcome(run.info.run_id, images.digest, readings, pooled, confidence)


def _read_fold(
    settings: CrossvalSettings,
    name: str,
    fold: int,
    seed: int,
    sources: Sources,
    split: Split,
    parent: tuple[Parent, Checkpoint] | None,
    recipe: Recipe,
    constraints: Constraints | None,
    run_id: str,
) -> list[dict[str, object]]:
    """Return the readings of a fold by the model that this trains, as JSON holds them."""
    logger.info("\n%s", name)
    own = TrainSettings(
        data=settings.data,
        problems=settings.problems,
        backbone=parent[1].backbone if parent else settings.backbone,
        height=parent[1].height if parent else DEFAULTS.height,
        init=parent[0].uri if parent else None,
        drawn=settings.drawn,
        epochs=settings.epochs,
        seed=seed,
        checkpoint_minutes=settings.checkpoint_minutes,
    )
    example = training.example_of(sources, split.test[0])
    if constraints:
        log_facts({"constraints": constraints.told()})
    try:
        learned = training.learn(own, sources, split, parent, example, recipe, constraints=constraints)
    except TrainingError as error:
        raise TrainingError(f"{name}: {error}") from None
    return [asdict(each) for each in out_of_fold(learned.evaluation, fold, seed)]


def _description(
    pooled: Sequence[OutOfFoldFigures], settings: CrossvalSettings, data: str, constraints: Constraints | None
) -> str:
    last = pooled[-1]
    interval = last.exact_match_low, last.exact_match_high
    match = exact_match_sentence(last.right, last.n, *interval, f"images of `{data}`")
    over = "" if settings.seeds == 1 else f"; the mean of {settings.seeds} seeds, the interval of one seed's images"
    told = f", told {constraints.told()}" if constraints else ""
    return (
        f"{match}, character error rate {last.cer:.2%}, each by a model trained on the other of {settings.folds} folds"
        f"{told}{over}. `out_of_fold.json` has every reading."
    )
