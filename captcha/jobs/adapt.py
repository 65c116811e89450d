"""Self-training: a trained model learns from its own confident readings of images without labels.

Pseudo-labels (Lee, 2013) in rounds: read all, learn from the confident readings, read again.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from captcha import CaptchaError
from captcha.data.files import write_whole
from captcha.data.problems import Problem
from captcha.data.samples import ImageMemory, Sample, Split, digest, unit_hash
from captcha.data.seen import SeenPixels
from captcha.data.sources import Folder, Sources, parse_folder, parse_style
from captcha.evaluation.metrics import exact_match
from captcha.evaluation.results import Evaluation
from captcha.jobs import train as training
from captcha.reading.constraints import Constraints, automaton_of, constraints_named
from captcha.reading.recognizer import Reading
from captcha.settings import SEEDS, AdaptSettings, TrainSettings
from captcha.tracking.descriptions import run_name
from captcha.tracking.entries import log_metrics, log_tables
from captcha.tracking.models import log_seen, log_weights
from captcha.tracking.records import ImageSet, log_facts, log_left_out, log_predictions, log_settings
from captcha.tracking.runs import NOTE, active_folder, connect, tracked_run
from captcha.tracking.unfinished import Asked, refuse_changes, taken_up
from captcha.training import recipe as recipes
from captcha.training.checkpoint import Checkpoint
from captcha.training.export import torch_recognizer
from captcha.training.recipe import Recipe

logger = logging.getLogger(__name__)

HELD_OUT = 0.1
"""Share of the images that no round learns from."""

CONFIDENT_SHARE, FLOOR = 0.1, 0.5
"""Of each character's readings the most confident tenth is learned from too, if its confidence is at least FLOOR."""


class AdaptationError(CaptchaError):
    """A self-training that cannot begin; one line that says why and what to do."""


@dataclass(frozen=True)
class AdaptOutcome:
    """The result of a self-training. `metrics` are of the images held out, empty where there are no labels."""

    run_id: str
    rounds: int
    confident_before: int
    confident: int
    images: int
    metrics: dict[str, float]
    model_name: str
    model_version: int | None
    """None where no round gained anything, so that nothing was registered."""
    message: str
    example: str
    """Absolute path of an image to try the model on."""
    metrics_of_all: dict[str, float] = field(default_factory=dict)
    """Of all images held out, those among them that a training saw; empty where none saw any."""


@dataclass(frozen=True)
class Round:
    """A round's model and what it reads of all images; round 0 is the model that the job starts from."""

    number: int
    checkpoint: Checkpoint
    readings: list[Reading]
    seen: SeenPixels
    """What this round, those before it, and the trainings before the job saw."""
    learned_from: int = 0

    def confident(self, threshold: float) -> int:
        """Return the number of images that the model reads confidently."""
        return sum(bool(reading.text) and reading.confidence >= threshold for reading in self.readings)


@dataclass(frozen=True)
class _Images:
    """The images of a self-training; `held_out` are the indices of those that no round learns from."""

    samples: list[Sample]
    labelled: list[Sample]
    held_out: list[int]

    @property
    def learnable(self) -> list[int]:
        return sorted(set(range(len(self.samples))) - set(self.held_out))


def adapt(settings: AdaptSettings, recipe: Recipe = recipes.DEFAULT) -> AdaptOutcome:
    """Adapt a trained model to a folder of images, each round a nested run, and register the result.

    A round learns from the readings that `confident_readings` selects. The first round after which the model is
    confident of no more images than before it is the last, and is not kept. A tenth of the images is held out.

    Raises:
        DataError: the folder has problems; all of them are printed first.
        StyleError, FontError: there is no such style, or it draws what the model cannot read.
        RegistryError: there is no such model to start from.
        CheckpointError: its weights are damaged.
        SeenError: its training saw some of the labelled images held out, which the settings do not allow.
        AdaptationError: the model reads no image confidently, or there are too few.
        ConstraintError: what is known of the texts contradicts itself or the model's vocabulary, or is too large.
        TrainingError: the training cannot go on, or the exported model does not agree with the trained one.
    """
    settings, unfinished = taken_up(settings, "adapt")
    folder = parse_folder(settings.data)
    sources = Sources(folder, drawn=parse_style(settings.drawn) if settings.drawn else None)
    connect(writing=True)  # a store that does not answer is told before images are read
    parent, checkpoint = training.read_parent(training.initial_model(settings.model, unfinished))
    constraints = constraints_named(settings.length, settings.characters, settings.texts, settings.pattern)
    if constraints:
        automaton_of(constraints, checkpoint.vocabulary)  # an error in it is raised before any image is read
    if sources.drawn:  # an error in the style is raised before any image is read
        sources.drawn.samples(checkpoint.height, settings.seed, vocabulary=checkpoint.vocabulary)
    left_out: list[Problem] | None = [] if settings.problems == "leave-out" else None
    images = _images(settings, folder, checkpoint.height, left_out)
    split = Split(
        [images.samples[i] for i in images.learnable],
        [images.samples[i] for i in images.held_out],
        [images.labelled[i] for i in images.held_out] if settings.labelled else [],
    )
    remedy = "take another --seed, or images that it was not trained on"
    split = training.with_unseen_test(split, parent, settings.allow_overlap, remedy)
    facts = training.facts_of(sources, digest(images.labelled), (parent, checkpoint), recipe, constraints)
    refuse_changes(unfinished, facts)
    asked = Asked("adapt", settings.shaping(), facts)
    name = run_name(settings, "adapt", folder.short_name, parent=parent.uri)
    with tracked_run(name, asked=asked, resumed=unfinished) as run:
        log_settings(settings.shaping())  # at once: a run that fails says how it was started
        log_facts({"job": "adapt"})
        log_left_out(left_out or ())
        inputs = _log_run(settings.shaping(), sources, split, checkpoint, recipe)
        training.log_parent(parent, checkpoint, checkpoint.vocabulary)
        logger.info(f"adapting {parent.uri} to {len(images.samples)} images, {len(images.held_out)} of them held out")
        if known := sum(parent.seen.among(images.samples)):
            logger.info(f"{parent.uri} was trained on {known} of these images already")
        initial = Round(0, checkpoint, _read(checkpoint, images.samples, constraints), parent.seen)
        kept = _rounds(settings, sources, images, initial, recipe, constraints)
        log_metrics({"best_round": kept.number})
        example = folder.path / images.samples[images.held_out[0]].name
        evaluation = None
        version: int | None = None
        if kept.number == 0:
            name = settings.name
            message = f"no round made {parent.uri} confident of more images: nothing is registered"
            log_facts({NOTE: f"{message[0].upper()}{message[1:]}."})
        else:
            log_weights(kept.checkpoint.to_bytes())
            log_seen(kept.seen)
            model = kept.checkpoint.model()
            read_before = [replace(images.samples[i], text=initial.readings[i].text) for i in images.held_out]
            said = f"held out, right where read as {parent.uri} reads it without augmentation"
            held_out = training.HeldOutReadings.augmented(read_before, said, settings, recipe)
            evaluation = training.log_recognizer(model, split, example, kept.seen, kept.number, inputs, held_out)
            name, version, message = training.register_sent(settings.name)
    return AdaptOutcome(
        run_id=run.info.run_id,
        rounds=kept.number,
        confident_before=initial.confident(settings.threshold),
        confident=kept.confident(settings.threshold),
        images=len(images.samples),
        metrics=evaluation.metrics() if evaluation else {},
        model_name=name,
        model_version=version,
        message=message,
        example=str(example.absolute()),
        metrics_of_all=evaluation.metrics_of_all() if evaluation and evaluation.seen else {},
    )


def _images(settings: AdaptSettings, folder: Folder, height: int, left_out: list[Problem] | None) -> _Images:
    """Return the folder's images, seed and pixels choose the tenth that is held out; for `left_out` see `Folder`."""
    memory = ImageMemory(settings.image_memory)
    labelled = folder.samples(height, memory=memory, labelled=settings.labelled, left_out=left_out)
    samples = [replace(sample, text="") for sample in labelled]  # no round sees a label
    held_out = [i for i, sample in enumerate(samples) if unit_hash(settings.seed, sample.digest) < HELD_OUT]
    if not held_out:
        raise AdaptationError(f"{settings.data}: {len(samples)} images are too few, none of them is held out; add some")
    return _Images(samples, labelled, held_out)


def _rounds(
    settings: AdaptSettings,
    sources: Sources,
    images: _Images,
    before: Round,
    recipe: Recipe,
    constraints: Constraints | None,
) -> Round:
    """Train round after round; return the last one that made the model confident of more images.

    Raises:
        AdaptationError: no image is read confidently.
    """
    kept = latest = before
    _log_round(settings, latest, None, images)
    for number in range(1, settings.rounds + 1):
        selected = confident_readings(latest.readings, settings.threshold, images.learnable)
        if not selected:
            raise AdaptationError(
                f"{settings.model} reads none of these images with a probability of {FLOOR} or more: train it "
                "first on images more like them, drawn in their style or labelled by hand"
            )
        checkpoint, seen = _trained_round(settings, sources, images, latest, selected, recipe)
        readings = _read(checkpoint, images.samples, constraints)
        previous, latest = latest, Round(number, checkpoint, readings, seen, len(selected))
        _log_round(settings, latest, previous, images)
        if latest.confident(settings.threshold) <= kept.confident(settings.threshold):
            break
        kept = latest
    return kept


def confident_readings(readings: Sequence[Reading], threshold: float, among: Sequence[int]) -> list[int]:
    """Return the indices, out of `among`, of the readings to learn from.

    Those whose confidence is at least the threshold; and for each character the most confident tenth of its readings,
    if their confidence is at least FLOOR: hard characters are learned too (Zou et al., 2018, arXiv:1810.07911).
    """
    selected = {i for i in among if readings[i].text and readings[i].confidence >= threshold}
    with_character: dict[str, list[int]] = {}
    for i in among:
        for character in set(readings[i].text):
            with_character.setdefault(character, []).append(i)
    for members in with_character.values():
        members.sort(key=lambda i: -readings[i].confidence)
        most_confident = members[: math.ceil(CONFIDENT_SHARE * len(members))]
        selected |= {i for i in most_confident if readings[i].confidence >= FLOOR}
    return sorted(selected)


def _read(checkpoint: Checkpoint, samples: Sequence[Sample], constraints: Constraints | None) -> list[Reading]:
    """Return what the model reads of the samples, with PyTorch: an export would take longer than it saves."""
    recognizer = torch_recognizer(checkpoint.model())
    readings: dict[int, Reading] = {}
    shown = tqdm(samples, desc="reading all images", unit="image", disable=None, leave=False)
    for members, log_probs in recognizer.log_probs(sample.image for sample in shown):
        readings |= zip(members, recognizer.decode(log_probs, constraints=constraints), strict=True)
    return [readings[i] for i in range(len(samples))]


def _trained_round(
    settings: AdaptSettings,
    sources: Sources,
    images: _Images,
    latest: Round,
    selected: Sequence[int],
    recipe: Recipe,
) -> tuple[Checkpoint, SeenPixels]:
    """Return what a nested run has trained; where the job is gone on with, the run may be done or begun already."""
    number = latest.number + 1
    key, folder = f"round {number}", active_folder()
    weights, pixels = (Path(folder, f"round-{number}.{kind}") for kind in ("safetensors", "npy"))

    def train(run_id: str) -> bool:
        checkpoint, seen = _train_round(settings, sources, images, latest, selected, recipe)
        write_whole(weights, checkpoint.to_bytes())
        write_whole(pixels, seen.to_bytes())
        return True

    training.part(key, train)
    seen = SeenPixels.from_bytes(pixels.read_bytes(), latest.seen.unknown)
    return Checkpoint.from_bytes(weights.read_bytes()), seen


def _train_round(
    settings: AdaptSettings,
    sources: Sources,
    images: _Images,
    latest: Round,
    selected: Sequence[int],
    recipe: Recipe,
) -> tuple[Checkpoint, SeenPixels]:
    """Return the model trained on the selected readings, and what it has seen by then.

    Validation uses the readings of the images held out, and chooses nothing: the last epoch is kept.
    """
    start, readings, seed = latest.checkpoint, latest.readings, (settings.seed + latest.number + 1) % SEEDS
    learned, compared = (
        [replace(images.samples[i], text=readings[i].text) for i in part] for part in (selected, images.held_out)
    )
    split = Split(learned, compared, [])
    _log_run({**settings.shaping(), "seed": seed}, sources, split, start, recipe)
    schedule = training.schedule_of(
        split, settings.epochs, settings.batch_size, settings.learning_rate, settings.epochs, recipe
    )
    batches = training.batches_of(sources, split, settings.batch_size, seed, start.height, start.vocabulary)
    model = start.model(TrainSettings.model_fields["dropout"].default)
    title = f"round {latest.number + 1}/{settings.rounds}"
    control = training.Control(settings.checkpoint_minutes)
    fitted = training.fit(model, batches, split, schedule, control, keep_last=True, title=title)
    if fitted.stopped:
        raise fitted.stopped
    checkpoint = Checkpoint.of(fitted.model)
    log_weights(checkpoint.to_bytes())
    seen = SeenPixels.of(batches.learned_from, parent=latest.seen)
    log_seen(seen)
    read = Counter("".join(reading.text for reading in readings))
    learned_from = Counter("".join(sample.text for sample in learned))
    rows = [(character, count, learned_from[character]) for character, count in read.most_common()]
    log_tables({"characters.json": pd.DataFrame(rows, columns=["character", "read", "learned_from"])})
    return checkpoint, seen


def _log_run(
    settings: dict[str, object], sources: Sources, split: Split, checkpoint: Checkpoint, recipe: Recipe
) -> dict[str, ImageSet]:
    """Log the settings of a self-training, and what another training needs to start from its model."""
    log_facts({"height": checkpoint.height})
    return training.log_training(settings, sources, split, checkpoint.vocabulary, checkpoint.backbone, recipe)


def _log_round(settings: AdaptSettings, latest: Round, previous: Round | None, images: _Images) -> None:
    """Log a round's confidence and changes and, where the images are labelled, its exact match."""
    texts = [reading.text for reading in latest.readings]
    confident = latest.confident(settings.threshold)
    metrics = {
        "adapt/confident": float(confident),
        "adapt/mean_confidence": sum(reading.confidence for reading in latest.readings) / len(texts),
    }
    line = f"round {latest.number}/{settings.rounds}  confident of {confident} of {len(texts)}"
    if previous:
        changed = sum(a != b.text for a, b in zip(texts, previous.readings, strict=True))
        metrics |= {"adapt/learned_from": latest.learned_from, "adapt/changed": changed}
        line += f"  learned from {latest.learned_from}  changed {changed}"
    if settings.labelled:
        match = exact_match(texts, [sample.text for sample in images.labelled])
        metrics["adapt/exact_match"] = match
        line += f"  exact match {match:.2%}"
    log_metrics(metrics, step=latest.number)
    held_out = images.held_out
    shown = Evaluation([images.labelled[i] for i in held_out], [latest.readings[i] for i in held_out], math.nan)
    log_predictions(shown, "adapt/predictions", latest.number)
    logger.info(line)
