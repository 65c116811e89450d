"""Train a recogniser: settings → one tracked run → a registered model. Other jobs that train call its parts."""

import contextlib
import hashlib
import itertools
import logging
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from tqdm import tqdm

from captcha.data.folders import encode_png
from captcha.data.problems import Problem
from captcha.data.samples import ImageMemory, Sample, Split, digest
from captcha.data.seen import SeenPixels, without_seen
from captcha.data.sources import DRAWN_IMAGES, Drawn, Folder, Sources
from captcha.evaluation import out_of_fold
from captcha.evaluation.calibration import Flags, Floats, outcomes
from captcha.evaluation.engines import EnginesCompared, disagreement, milliseconds
from captcha.evaluation.plots import learning_curves
from captcha.evaluation.results import Evaluation, evaluate
from captcha.reading.constraints import CONSTRAINTS, Constraints
from captcha.reading.engine import Precision, auto_on_this_cpu
from captcha.reading.recognizer import ARTIFACT, Recognizer, save_recognizer
from captcha.reading.vocabulary import Vocabulary
from captcha.settings import NONE, AdaptSettings, TrainSettings, project_root
from captcha.tracking import signals
from captcha.tracking.descriptions import COLOUR, colour, run_name
from captcha.tracking.entries import log_figure, log_json, log_metrics, log_tags
from captcha.tracking.models import OWN, Parent, load_parent, log_model, log_seen, log_weights
from captcha.tracking.outbox import is_outage
from captcha.tracking.records import (
    ImageSet,
    find_crossval,
    load_out_of_fold,
    log_calibration,
    log_engines,
    log_facts,
    log_inputs,
    log_left_out,
    log_overlap,
    log_predictions,
    log_settings,
    log_test,
)
from captcha.tracking.registry import register
from captcha.tracking.runs import active_folder, active_outbox, active_run_id, connect, tracked_run, unsent
from captcha.tracking.unfinished import Asked, Parts, Unfinished, refuse_changes, taken_up
from captcha.training import ranks
from captcha.training import recipe as recipes
from captcha.training.augmentation import augmented
from captcha.training.batches import Batches
from captcha.training.checkpoint import Checkpoint, CheckpointError, warm_start
from captcha.training.export import QuantisationError, int8_instructions, to_int8, to_onnx, torch_recognizer
from captcha.training.loop import (
    EpochResult,
    TrainingError,
    TrainingState,
    choose_device,
    diagnosis,
    divergence,
    train_epochs,
)
from captcha.training.model import Crnn
from captcha.training.ranks import RankError
from captcha.training.recipe import Recipe
from captcha.training.schedule import Schedule
from captcha.training.snapshot import Snapshot, load_snapshot, save_snapshot

logger = logging.getLogger(__name__)

EPOCHS_PER_PICTURE = 5

RANGE_IMAGES = 200
"""Training images, without augmentation, whose activations set the ranges of the int8 engine."""

DEFAULT_HEIGHT = TrainSettings().height

HELD_OUT_READINGS, HELD_OUT_PASSES = 1000, 8
"""At most so many readings of augmented images that were not learned from calibrate, of each image at most 8."""


@dataclass(frozen=True)
class HeldOutReadings:
    """What calibrates a model: texts read of images that were not learned from."""

    said: str
    """What they are, and what tells which are right."""
    precision: float
    """The wanted share of right texts among those accepted."""
    outcomes: Callable[[Recognizer], tuple[Floats, Flags]]
    """Returns the exact probability of each text and whether it is right, given the engine that is served."""

    @classmethod
    def augmented(
        cls, samples: Sequence[Sample], said: str, settings: TrainSettings | AdaptSettings, recipe: Recipe
    ) -> Self:
        """Take images changed as in training at full strength: a small part as it is holds few mistakes."""
        some = samples[:: -(-len(samples) // HELD_OUT_READINGS)]
        passes = min(HELD_OUT_PASSES, HELD_OUT_READINGS // len(some))
        changed = list(augmented(some, passes, settings.seed, recipe.augmentation))
        said = f"{said}, augmented: {passes} x {len(some)} readings"
        return cls(said, settings.precision, lambda engine: outcomes(evaluate(engine, changed)))

    @classmethod
    def out_of_fold(cls, settings: TrainSettings, sources: Sources, split: Split, experiment_id: str) -> Self | None:
        """Take what the newest cross-validation of the same images, with the same settings, read; None without one.

        Its readings of the test part are left out, so that this still says what to expect of other images.
        """
        if not isinstance(sources.data, Folder) or (not settings.init and settings.height != DEFAULT_HEIGHT):
            return None  # a cross-validation is of a folder, at the default height or that of its initial model
        wanted = {name: getattr(settings, name) for name in ("backbone", "drawn", "init")}
        wanted |= dict.fromkeys(CONSTRAINTS)  # a text that was found among few is right at lower probabilities
        images = digest([*split.train, *split.validation, *split.test, *split.seen])
        run_id = find_crossval(experiment_id, images, wanted)
        if run_id is None:
            return None
        tested = {sample.name for sample in [*split.test, *split.seen]}
        readings = [each for each in load_out_of_fold(run_id)[0] if each.file not in tested]
        said = f"cross-validation {run_id}, without the test part: {len(readings)} readings"
        return cls(said, settings.precision, lambda _: out_of_fold.outcomes(readings))


@dataclass(frozen=True)
class TrainOutcome:
    """The result of a training."""

    run_id: str
    metrics: dict[str, float]
    model_name: str
    model_version: int
    message: str
    example: str
    """Absolute path of an image to try the model on."""
    metrics_of_all: dict[str, float] = field(default_factory=dict)
    """Of all test images, those among them that training saw; empty where it saw none."""


def train(settings: TrainSettings, recipe: Recipe = recipes.DEFAULT) -> TrainOutcome:
    """Train in one tracked run, register the model, and return the outcome.

    Raises:
        DataError: the data has problems; all of them are printed first.
        StyleError, FontError: a style cannot be drawn.
        RegistryError: there is no such model to start from.
        CheckpointError: the model to start from is of another kind, or damaged.
        SeenError: the training of the model to start from saw test images, which the settings do not allow.
        TrainingError: the training cannot go on, or the exported model does not agree with the trained one.
        RankError: one of several processes has other code, settings or data, or has ended.
        SystemExit: on all ranks but 0, once trained; rank 0 alone has an outcome.
    """
    with ranks.joined():
        if ranks.count() > 1:
            said = {"settings": settings.model_dump_json(), "recipe": recipe.model_dump_json()}
            ranks.refuse_others({"code": code_digest(), **said})
        if ranks.rank():
            _follow(recipe)
        return _lead(settings, recipe)


def _lead(settings: TrainSettings, recipe: Recipe) -> TrainOutcome:
    """Train as the only process, or as rank 0 of several."""
    settings, unfinished = taken_up(settings, "train")
    ranks.from_first(settings.model_dump())
    sources = parse_sources(settings)
    connect(writing=True)  # a store that does not answer is told before images are read
    parent = parent_of(settings, unfinished)
    left_out: list[Problem] | None = [] if settings.problems == "leave-out" else None
    split = split_of(settings, sources, left_out)
    refuse_other_data(settings, split)
    if parent:
        split = with_unseen_test(split, parent[0], settings.allow_overlap, "test on other images with --test-data")
    facts = facts_of(sources, split.digest, parent, recipe)
    refuse_changes(unfinished, facts)
    asked = Asked("train", settings.shaping(), facts)
    # Only now: a mistake leaves no run.
    with tracked_run(name_of(settings, sources, parent), asked=asked, resumed=unfinished) as run:
        log_settings(settings.shaping())  # at once: a run that fails says how it was started
        log_facts({"job": "train"})
        log_left_out(left_out or ())
        example = example_of(sources, split.test[0])
        held_out = HeldOutReadings.out_of_fold(settings, sources, split, run.info.experiment_id)
        with _together():
            learned = learn(settings, sources, split, parent, example, recipe, held_out=held_out)
        evaluation = learned.evaluation
        name, version, message = register_sent(settings.name)
    of_all = evaluation.metrics_of_all() if evaluation.seen else {}
    path = str(example.absolute())
    return TrainOutcome(run.info.run_id, evaluation.metrics(), name, version, message, path, of_all)


def _follow(recipe: Recipe) -> NoReturn:
    """Train as another rank than 0: track and write nothing, and end this process with the training."""
    settings = TrainSettings(**ranks.from_first(None))
    sources = parse_sources(settings)
    split = split_of(settings, sources, [] if settings.problems == "leave-out" else None)
    refuse_other_data(settings, split)
    vocabulary = vocabulary_of(settings, sources, split)
    model = new_model(settings.model_copy(update={"pretrained": False}), vocabulary, recipe)  # rank 0 gives its weights
    schedule = schedule_of(
        split, settings.epochs, settings.batch_size, settings.learning_rate, settings.patience, recipe
    )
    batches = batches_of(sources, split, settings.batch_size, settings.seed, settings.height, vocabulary)
    state = new_state(model, recipe)
    Snapshot(ranks.from_first(None), batches.learned_from, {}).restore(state)

    def steps(steps: Iterable[int]) -> Iterator[int]:
        for step in steps:
            yield step
            stopped, saved = ranks.highest(signals.held_back(), 0)
            if stopped or saved:
                ranks.hand_over(batches.learned_from)
            if stopped:
                raise SystemExit(128 + stopped)

    with _together():
        for _ in train_epochs(state, batches, split.validation, schedule, steps):
            ranks.hand_over(batches.learned_from)
    raise SystemExit(0)


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Hold signals back, where there are several ranks: they stop after the same step, and none hears one alone.

    Where one has ended, torchrun ends the others, but the run has failed and is not killed.
    """
    if ranks.count() == 1:
        yield
        return
    with signals.held():
        try:
            with ranks.minded():
                yield
        except RankError:
            signals.heed()
            raise


def refuse_other_data(settings: TrainSettings, split: Split) -> None:
    """Refuse to train where the ranks have other images, or too few for each to have one of every step.

    Raises:
        RankError, SystemExit: as `ranks.refuse_others`.
    """
    ranks.refuse_others({"images": split.digest})
    if settings.batch_size < ranks.count():
        raise RankError(
            f"--batch-size {settings.batch_size} is the images of a step over all {ranks.count()} processes: give one "
            "to each at least"
        )


def code_digest() -> str:
    """Return the sha256 of this package's files, and of the version of PyTorch."""
    package = Path(__file__).parent.parent
    files = sorted(file for file in package.rglob("*") if file.suffix in (".py", ".toml"))
    whole = hashlib.sha256(torch.__version__.encode())
    for file in files:
        whole.update(f"\n{file.relative_to(package).as_posix()}\n".encode() + file.read_bytes())
    return whole.hexdigest()


def facts_of(
    sources: Sources,
    data_digest: str,
    parent: tuple[Parent, Checkpoint] | None,
    recipe: Recipe,
    constraints: Constraints | None = None,
) -> dict[str, str]:
    """Return what else shapes a job's result beside its settings, for a comparison when it is gone on with."""
    each_source = (*sources.by_side().values(), sources.data, sources.drawn)
    styles = sorted({each.style.model_dump_json() for each in each_source if isinstance(each, Drawn)})
    said = {"data": data_digest, "recipe": recipe.model_dump_json(), "drawn style": "".join(styles)}
    return {
        **{name: hashlib.sha256(value.encode()).hexdigest() for name, value in said.items()},
        INITIAL: parent[0].uri if parent else NONE,
        # of a list of texts the setting is the path alone
        **({"known texts": str(constraints.written())} if constraints else {}),
    }


INITIAL = "initial model"
"""The fact that says which model a job has started from, where its settings may name an alias."""


def register_sent(name: str) -> tuple[str, int, str]:
    """Register the active run's model once the tracking server has it; return what `register` returns.

    Raises:
        Unsent: the server is away; the registration waits with the rest.
    """
    outbox = active_outbox()
    if outbox.flush():
        try:
            return register(outbox.run_id, name)
        except Exception as error:
            if not is_outage(error):
                raise
    outbox.put("register", {"name": name}, numbered=False)
    raise unsent(outbox)


def part(key: str, work: Callable[[str], object]) -> Any:
    """Return what a nested run of the active one has come to: `work`'s result, given its id, unless that is noted.

    The result is what JSON can hold. A run that was begun is gone on with; one that was done, but cut off before it
    ended, is ended.
    """
    parts = Parts(active_folder())
    if not parts.result(key) or parts.begun(key):
        with tracked_run(key, nested=True, resumed=parts.begun(key)) as run:
            if not parts.result(key):
                parts.begin(key, run.info.run_id)
                parts.done(key, work(run.info.run_id))
    return parts.result(key)


def name_of(settings: TrainSettings, sources: Sources, parent: tuple[Parent, Checkpoint] | None) -> str:
    """Return the name of a training's run, which tells it from others."""
    first = (settings.backbone, sources.data.short_name, f"{settings.height} px")
    return run_name(settings, *first, parent=parent[0].uri if parent else None)


def parse_sources(settings: TrainSettings) -> Sources:
    """Return the sources that the settings name. Raises what `Sources.parse` raises."""
    return Sources.parse(settings.data, settings.val_data, settings.test_data, settings.drawn)


def parent_of(settings: TrainSettings, unfinished: Unfinished | None = None) -> tuple[Parent, Checkpoint] | None:
    """Return the model that the training starts from, None where it starts from new weights.

    An alias may have moved since an unfinished run began: that goes on from the model that the alias stood for.

    Raises:
        RegistryError: there is no such model.
        CheckpointError: its backbone or height is another, or its weights are damaged.
    """
    if settings.init is None:
        return None
    parent, checkpoint = read_parent(initial_model(settings.init, unfinished))
    if (checkpoint.backbone, checkpoint.height) != (settings.backbone, settings.height):
        raise CheckpointError(
            f"{parent.uri} is {checkpoint.backbone} for height {checkpoint.height}, not {settings.backbone} for "
            f"{settings.height}: pass --backbone {checkpoint.backbone} --height {checkpoint.height} to start from it"
        )
    return parent, checkpoint


def initial_model(named: str, unfinished: Unfinished | None) -> str:
    """Return the URI of the model to start from: the one named, or that of the run to go on with."""
    return unfinished.asked.facts[INITIAL] if unfinished and unfinished.asked else named


def read_parent(uri: str) -> tuple[Parent, Checkpoint]:
    """Return a trained model by its URI: what MLflow knows of it, and its weights.

    Raises:
        RegistryError: there is no such model.
        CheckpointError: its weights are damaged.
    """
    parent = load_parent(uri)
    try:
        return parent, Checkpoint.from_bytes(parent.weights, parent.meaning)
    except CheckpointError as error:
        raise CheckpointError(f"{parent.uri}, run {parent.run_id}: {error}") from None


def split_of(settings: TrainSettings, sources: Sources, left_out: list[Problem] | None = None) -> Split:
    """Return the samples of the sources in their three parts. Does and raises what `Sources.split` does and raises."""
    vocabulary = Vocabulary(settings.vocabulary) if settings.vocabulary else None
    return sources.split(settings.height, vocabulary, settings.seed, ImageMemory(settings.image_memory), left_out)


@dataclass(frozen=True)
class Learned:
    """What a training has made: the evaluation on the test part, the model, and which pixels it saw."""

    evaluation: Evaluation
    checkpoint: Checkpoint
    seen: SeenPixels


def learn(
    settings: TrainSettings,
    sources: Sources,
    split: Split,
    parent: tuple[Parent, Checkpoint] | None,
    example: Path,
    recipe: Recipe = recipes.DEFAULT,
    teacher: tuple[Parent, Checkpoint] | None = None,
    held_out: HeldOutReadings | None = None,
    constraints: Constraints | None = None,
) -> Learned:
    """Train on a split in the active run, by the labels and a teacher's log_probs, log the results, and return them.

    `held_out` calibrates the model; without it the validation images do. The test images are read by the constraints.

    Raises:
        TrainingError: the training cannot go on, or the exported model does not agree with the trained one.
    """
    vocabulary = vocabulary_of(settings, sources, split)
    images = log_training(settings.shaping(), sources, split, vocabulary, settings.backbone, recipe)
    logger.info(
        "training %s on %s: %d images, %d for validation, %d for the test, %d characters",
        *(settings.backbone, choose_device(), len(split.train), len(split.validation), len(split.test)),
        len(vocabulary.characters),
    )
    log_tags({"processes": ranks.count()}, numbered=False)  # a training may be gone on with by more or fewer
    if ranks.count() > 1:
        logger.info(
            "%d processes share each step's %d images: %.4g for each",
            *(ranks.count(), settings.batch_size, settings.batch_size / ranks.count()),
        )
    model = new_model(settings, vocabulary, recipe)
    if parent:
        log_parent(*parent, vocabulary)
        warm_start(model, parent[1])
    schedule = schedule_of(
        split, settings.epochs, settings.batch_size, settings.learning_rate, settings.patience, recipe
    )
    batches = batches_of(sources, split, settings.batch_size, settings.seed, settings.height, vocabulary)
    control = Control(settings.checkpoint_minutes, settings.register_best)
    taught_by = teacher[1].model() if teacher else None
    fitted = fit(model, batches, split, schedule, control, started=parent is not None, teacher=taught_by)
    checkpoint = Checkpoint.of(fitted.model)
    before = parent or teacher
    chosen_by = itertools.chain(batches.folder, split.validation)
    seen = SeenPixels.of(batches.learned_from, chosen_by, before[0].seen if before else None)
    if not fitted.stopped or fitted.epoch:
        log_weights(checkpoint.to_bytes(), numbered=not fitted.stopped)
        log_seen(seen, numbered=not fitted.stopped)
    if fitted.stopped:
        raise fitted.stopped
    held_out = held_out or HeldOutReadings.augmented(split.validation, "validation", settings, recipe)
    evaluation = log_recognizer(fitted.model, split, example, seen, fitted.epoch, images, held_out, constraints)
    assert evaluation  # a split has a test part
    log_figure(learning_curves(fitted.history), "learning_curves.png")
    return Learned(evaluation, checkpoint, seen)


def vocabulary_of(settings: TrainSettings, sources: Sources, split: Split) -> Vocabulary:
    """Return the vocabulary of the settings, or that of the training labels and the style drawn beside them."""
    if settings.vocabulary:
        return Vocabulary(settings.vocabulary)
    drawn = [each.style.alphabet for each in (sources.data, sources.drawn) if isinstance(each, Drawn)]
    vocabulary = Vocabulary.from_texts(itertools.chain((sample.text for sample in split.train), drawn))
    unseen = Counter(c for s in itertools.chain(split.validation, split.test) for c in vocabulary.missing(s.text))
    if unseen:
        listed = " ".join(sorted(unseen))
        logger.warning("no training label holds %s: no validation or test label with them can be read right", listed)
    return vocabulary


def new_model(settings: TrainSettings, vocabulary: Vocabulary, recipe: Recipe) -> Crnn:
    """Return the model that a training begins with; its new weights follow from the seed.

    Raises:
        PretrainedError: the pretrained weights cannot be had.
    """
    torch.manual_seed(settings.seed)
    return Crnn(
        settings.backbone,
        vocabulary,
        settings.height,
        settings.dropout,
        gru_weight=recipe.gru_weight,
        blank_prior=recipe.blank_prior,
        pretrained=settings.pretrained,
    )


def log_training(
    settings: Mapping[str, object],
    sources: Sources,
    split: Split,
    vocabulary: Vocabulary,
    backbone: str,
    recipe: Recipe = recipes.DEFAULT,
) -> dict[str, ImageSet]:
    """Log the settings, what a training finds before it begins, and each part of the split, which are returned."""
    log_settings({**settings, **{f"recipe.{name}": value for name, value in recipe.changes().items()}})
    log_json(recipe.model_dump(), "recipe.json")
    log_facts(
        {
            "backbone": backbone,
            "data": sources.data.written,
            "vocabulary": vocabulary.characters,
            "device": choose_device(),
            COLOUR: colour(backbone, active_run_id()),
        }
    )
    return log_inputs(split, sources.by_side())


def log_parent(parent: Parent, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    """Log the model that a training starts from, and report the characters new to it."""
    log_facts({"init_used": parent.uri, "init_run": parent.run_id})
    new = checkpoint.vocabulary.missing(vocabulary.characters)
    logger.info("starting from %s%s", parent.uri, f", new characters: {new}" if new else "")
    if new == vocabulary.characters:
        logger.warning(
            "none of the characters %s is known to %s: its convolutions are reused, its output layer is learned "
            "from scratch",
            *(new, parent.uri),
        )


def with_unseen_test(split: Split, parent: Parent, allow_overlap: bool | None, remedy: str) -> Split:
    """Return the split, its test part without the images that the parent's training saw; warn if that is not known.

    Raises:
        SeenError: there are such images, and they are not allowed or no others are left.
    """
    if parent.seen.unknown and split.test:
        logger.warning(
            "which images %s was trained on is not known, as an earlier version of captcha trained it: nobody can tell "
            "whether test images are among them",
            parent.seen.unknown,
        )
    return without_seen(split, parent.seen, parent.uri, allow_overlap, remedy)


def schedule_of(
    split: Split, epochs: int, batch_size: int, learning_rate: float, patience: int, recipe: Recipe
) -> Schedule:
    """Return the schedule of a training on a split's train part."""
    steps_per_epoch = -(-max(recipe.epoch_images, len(split.train)) // batch_size)
    return Schedule(epochs, steps_per_epoch, learning_rate, patience, recipe)


def batches_of(sources: Sources, split: Split, size: int, seed: int, height: int, vocabulary: Vocabulary) -> Batches:
    """Return what a training learns from: a folder's images, drawn ones, or half of each.

    Raises:
        StyleError, FontError: the style cannot be drawn, or draws what is outside the vocabulary.
    """
    drawn = sources.drawn_samples(height, seed, split, vocabulary)
    if isinstance(sources.data, Drawn):
        return Batches([], drawn, size, seed, DRAWN_IMAGES, ranks.rank(), ranks.count())
    return Batches(split.train, drawn, size, seed, rank=ranks.rank(), ranks=ranks.count())


def new_state(model: Crnn, recipe: Recipe) -> TrainingState:
    """Return the state of a training that has not begun, on the device of the training."""
    return TrainingState(model.to(choose_device()).to(memory_format=torch.channels_last), recipe)


@dataclass(frozen=True)
class Fitted:
    """The model of the epoch kept, that epoch, and the metrics of all epochs from 0 on."""

    model: Crnn
    epoch: int
    history: list[dict[str, float]]
    stopped: BaseException | None = None
    """What ended the training before its end, to be raised again; its checkpoint is written."""


@dataclass(frozen=True)
class Control:
    """What a person controls of a training without changing its result."""

    checkpoint_minutes: float = 10
    register_best: bool = False


def fit(
    model: Crnn,
    batches: Batches,
    split: Split,
    schedule: Schedule,
    control: Control,
    keep_last: bool = False,
    started: bool = False,
    title: str = "",
    teacher: Crnn | None = None,
    judge: Callable[[EpochResult], None] = lambda result: None,
) -> Fitted:
    """Train the model, or go on from its run's checkpoint; log each epoch, and return the model of the epoch kept.

    Args:
        model: new, or with the weights to start from; it is changed.
        batches: what to learn from.
        split: its validation side chooses the epoch.
        schedule: how long, and at which rates.
        control: when checkpoints are written, and whether a stopped training ends with its best epoch.
        keep_last: keep the last epoch's model, as where validation cannot tell which is best; print no epoch.
        started: the weights come from another training, so what they read before this one is printed.
        title: what the bar on a terminal begins with.
        teacher: a model whose log_probs are learned, too; it is moved to the device of the training.
        judge: called after each epoch; what it raises ends the training.

    Raises:
        TrainingError: the training cannot go on.
    """
    log_facts({"parameters": sum(p.numel() for p in model.parameters())})
    if teacher:
        teacher = teacher.to(choose_device()).to(memory_format=torch.channels_last).eval()
    state = new_state(model, schedule.recipe)
    checkpoints = _Checkpoints(state, batches, control.checkpoint_minutes)
    history, resumed = checkpoints.history, bool(checkpoints.history)
    if resumed:
        logger.info("going on after step %d, epoch %d", state.step, len(history) - 1)
        if control.register_best and state.kept_epoch:
            checkpoints.end_here()
    ranks.from_first(state.state_dict())
    last: EpochResult | None = None
    stopped: BaseException | None = None
    try:
        with _Bar(title, schedule, state.step) as bar:
            steps = lambda steps: checkpoints.steps(bar.steps(steps))  # noqa: E731
            for last in train_epochs(state, batches, split.validation, schedule, steps, teacher):
                assert state.standing
                with checkpoints.after_epoch():
                    bar.show(last, state.standing.last_epoch)
                    history.append(last.metrics())
                    _log_epoch(last, schedule.epochs)
                    if not keep_last:
                        _print_epoch(last, schedule.epochs, started)
                judge(last)
    except (KeyboardInterrupt, SystemExit) as stop:
        signals.heed()
        stopped = stop
        if whole := checkpoints.is_whole():
            checkpoints.save()
        if whole and control.register_best and state.kept_epoch:
            checkpoints.end_here()
            signals.listen_anew()
            stopped = None
            logger.info("stopped: the best epoch so far, epoch %d, is tested and registered", state.kept_epoch)
    if stopped is None:
        if keep_last:
            state.keep(len(history) - 1)
        elif last:
            _warn(diagnosis(last))
        texts = [sample.text for sample in split.validation]
        ignorant_loss = len("".join(texts)) / len(texts) * math.log(model.vocabulary.classes)
        if diverged := divergence(history, state.kept_epoch, ignorant_loss, schedule.learning_rate):
            raise TrainingError(f"{diverged}; nothing is registered")
        log_metrics({"best_epoch": state.kept_epoch})
    trained = state.average.cpu().to(memory_format=torch.contiguous_format)
    if state.kept:
        trained.load_state_dict(state.kept)
    return Fitted(trained, state.kept_epoch, history, stopped)


class _Checkpoints:
    """The checkpoints of a training in its run's folder: one for each epoch, each few minutes, and where it stops."""

    def __init__(self, state: TrainingState, batches: Batches, minutes: float) -> None:
        self.state, self.batches, self.seconds = state, batches, 60 * minutes
        self.folder, self.outbox = active_folder(), active_outbox()
        self.history: list[dict[str, float]] = []
        self._between, self._agreed = True, ranks.count() == 1
        if saved := load_snapshot(self.folder):
            saved.restore(state)
            batches.learned_from[:] = saved.learned_from
            self.history = list(saved.notes["history"])
            self.outbox.start_from(saved.notes["said"])
        self._saved_at = time.monotonic()

    def is_whole(self) -> bool:
        """Whether the state is between two steps of all ranks, and every epoch in it is in the history and logged."""
        epoch = self.state.standing.epoch if self.state.standing else -1
        return self._between and self._agreed and epoch == len(self.history) - 1

    def save(self) -> None:
        """Write the state, which must be whole; before the first evaluation there is nothing to keep."""
        if self.state.standing:
            notes = {"history": self.history, "said": self.outbox.said}
            save_snapshot(self.folder, self.state, self.batches.learned_from, notes)
        self._saved_at = time.monotonic()

    def end_here(self) -> None:
        """Make the last epoch trained the last of the training, also where it is gone on with."""
        assert self.state.standing
        self.state.standing = replace(self.state.standing, last_epoch=self.state.standing.epoch)
        self.save()

    @contextlib.contextmanager
    def after_epoch(self) -> Iterator[None]:
        """Write the state after what logs an epoch; a signal is heard when that is done, so that nothing is missing."""
        self._between = False
        with signals.held():
            yield
            ranks.hand_over(self.batches.learned_from)
            self.save()
            self._between = True

    def steps(self, steps: Iterable[int]) -> Iterator[int]:
        """Give the steps of an epoch; a signal is heard between two of them."""
        for step in steps:
            self._between = False
            with signals.held():
                yield step
                self._between = True
            stopped, due = ranks.highest(signals.held_back(), time.monotonic() - self._saved_at > self.seconds)
            if stopped or due:
                ranks.hand_over(self.batches.learned_from)
            if stopped:
                self._agreed = True
                raise SystemExit(128 + stopped)
            if due:
                self.save()


def _log_epoch(result: EpochResult, epochs: int) -> None:
    log_metrics(result.metrics(), step=result.epoch)
    if result.epoch % EPOCHS_PER_PICTURE == 0 or result.epoch == epochs:
        log_predictions(result.validation, "val/predictions", result.epoch)


def _print_epoch(result: EpochResult, epochs: int, started: bool) -> None:
    validation = result.validation
    if result.train_loss is not None:
        logger.info(
            f"epoch {result.epoch:3}/{epochs}  loss {result.train_loss:7.3f}  val loss {validation.loss:7.3f}  "
            f"exact match {validation.exact_match:7.2%}  {result.images_per_second:5.0f} images/s"
            f"{'  *' if result.kept else ''}"
        )
    elif started:
        logger.info(f"before training the model reads {validation.exact_match:.2%} of the validation images")
    if result.epoch == epochs // 3:
        _warn(diagnosis(result))


class _Bar(tqdm):  # type: ignore[type-arg]
    """One bar for a whole training, where standard error is a terminal."""

    def __init__(self, title: str, schedule: Schedule, done: int) -> None:
        self.title, self.per_epoch = title and f"{title}  ", schedule.steps_per_epoch
        self.epochs, self.figures = schedule.epochs, ""
        super().__init__(
            desc=f"{self.title}reading the validation images",
            total=self.epochs * self.per_epoch,
            initial=done,
            bar_format="{desc}  {bar}  {remaining} left",
            smoothing=0,  # the time left by the whole training so far: an epoch ends with a pause for validation
            dynamic_ncols=True,
            disable=None,
            leave=False,
        )

    def steps(self, steps: range) -> Iterator[int]:
        """Give the steps of an epoch, and count each once it is done."""
        epoch = steps.stop // self.per_epoch
        for step in steps:
            yield step
            if not self.n:  # not where a training is gone on with
                self.reset()  # the time until the first images came does not count
            self.set_description_str(f"{self.title}epoch {epoch}/{self.epochs}{self.figures}", refresh=False)
            self.update()

    def show(self, result: EpochResult, last_epoch: int) -> None:
        """Show an epoch's loss and validation; a training that stops early has `last_epoch` epochs."""
        if result.train_loss is None:
            self.set_description_str(f"{self.title}preparing the first images")
            return
        self.epochs, self.total = last_epoch, last_epoch * self.per_epoch
        self.figures = f"  loss {result.train_loss:.2f}  val {result.validation.exact_match:.1%}"
        self.set_description_str(f"{self.title}epoch {result.epoch}/{self.epochs}{self.figures}")


def _warn(warning: str | None) -> None:
    if warning:
        logger.warning(warning)


def log_recognizer(
    model: Crnn,
    split: Split,
    example: Path,
    seen: SeenPixels,
    step: int,
    images: Mapping[str, ImageSet],
    held_out: HeldOutReadings,
    constraints: Constraints | None = None,
) -> Evaluation | None:
    """Export the model, check it on the validation images, calibrate it, log it, and test it where there are images.

    `step` is that of the metrics which the model has earned, `images` the sides of the split as MLflow knows
    them, `held_out` what calibrates it. Test images that training has seen are put apart; they are read by the
    constraints.

    The engine that the model is served with on this machine is tested; the run has what the other one reads, too.

    Raises:
        TrainingError: the exported model does not agree with the trained one.
    """
    logger.info("exporting and testing the model")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / ARTIFACT
        engines, facts, digests = save_engines(model, split, folder, held_out)
        log_facts({f"sha256.{name}": digest for name, digest in digests.items()})
        validation = images["validation"]
        log_model(folder, example.read_bytes(), step, (validation.name, validation.digest))
    served = facts["tested"]
    tested = [*split.test, *split.seen]
    flags = seen.among(tested)
    tests = {name: evaluate(engine, tested, constraints).put_apart(flags) for name, engine in engines.items() if tested}
    if "int8" in tests:
        facts["test"] = vars(EnginesCompared.of(tests["fp32"], tests["int8"]))
    log_engines(facts)
    if tests:
        log_test(tests[served], "test", OWN, images["test"])
        log_overlap(tests[served])
    describe_run()
    return tests.get(served)


def save_engines(
    model: Crnn, split: Split, folder: Path, held_out: HeldOutReadings
) -> tuple[dict[Precision, Recognizer], dict[str, Any], dict[str, str]]:
    """Write a model's recogniser, in fp32 and in int8; validation decides which is served, held-out images calibrate.

    Returns:
        The engines, what was measured of them, and the sha256 of each file.

    Raises:
        TrainingError: the exported model does not agree with the trained one.
    """
    graph = to_onnx(model)
    of_ranges = split.train[:: max(1, len(split.train) // RANGE_IMAGES)][:RANGE_IMAGES]
    int8, reason = None, ""
    try:
        int8 = to_int8(graph, model.height, [sample.image for sample in of_ranges])
    except QuantisationError as error:
        reason = str(error)
    save_recognizer(folder, graph, model.vocabulary, model.height, int8)
    engines: dict[Precision, Recognizer] = {"fp32": Recognizer.load(folder, "fp32")}
    if difference := disagreement(torch_recognizer(model), engines["fp32"], split.validation):
        raise TrainingError(f"the exported model is not the trained one: {difference}; nothing is registered")
    served: Precision = "fp32"
    int8_on = int8_instructions(model)
    facts: dict[str, Any] = {}
    if int8 is None:
        logger.warning("the model is served in fp32 alone: %s", reason)
    else:
        engines["int8"] = Recognizer.load(folder, "int8")
        compared = EnginesCompared.of(*(evaluate(engine, split.validation) for engine in engines.values()))
        served = "int8" if compared.alike else "fp32"
        reason = f"{compared.differing} of {compared.images} validation texts differ between int8 and fp32"
        times = dict(zip(engines, milliseconds(list(engines.values()), split.validation), strict=True))
        facts = {"validation": vars(compared), "milliseconds": times, "int8_on": int8_on}
    tested = auto_on_this_cpu(served, int8_on)
    calibration = log_calibration(*held_out.outcomes(engines[tested]), held_out.said, held_out.precision)
    digests = save_recognizer(folder, graph, model.vocabulary, model.height, int8, served, int8_on, calibration)
    engines = {name: Recognizer.load(folder, name) for name in engines}
    return engines, {"served": served, "tested": tested, "reason": reason, **facts}, digests


def describe_run() -> None:
    """Let the active run say what came out of it."""
    active_outbox().put("describe", {})


def example_of(sources: Sources, sample: Sample) -> Path:
    """Return the path of an image of the test part to try the model on; a drawn one is written beside the runs."""
    source = sources.by_side()["test"]
    if isinstance(source, Folder):
        return source.path / sample.name
    path = project_root() / "mlruns" / f"example-{sample.text.replace('/', '_')}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode_png(sample.image))
    return path
