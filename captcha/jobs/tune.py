"""Search for the settings and the recipe that validate best: one Optuna study, a run for each trial, any processes."""

import contextlib
import logging
import os
import random
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from mlflow import MlflowClient
from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError

from captcha import CaptchaError
from captcha.data.problems import Problem
from captcha.data.samples import Split
from captcha.data.sources import Sources
from captcha.evaluation.plots import TrialPoint, importances_figure, tuning_figure
from captcha.evaluation.results import evaluate
from captcha.jobs import train as training
from captcha.settings import TrainSettings, TuneSettings, project_root, written
from captcha.tracking import signals
from captcha.tracking.entries import log_metrics
from captcha.tracking.held_out import SPLIT_SEED
from captcha.tracking.outbox import is_outage
from captcha.tracking.records import log_facts
from captcha.tracking.registry import register
from captcha.tracking.runs import NOTE, CutShort, Place, connect, mark_killed, tracked_run, tracking_uri
from captcha.tracking.store import cause, shown
from captcha.tracking.unfinished import Asked
from captcha.training import recipe as recipes
from captcha.training.export import torch_recognizer
from captcha.training.loop import EpochResult, TrainingError
from captcha.training.space import BUILT_IN, Range, Space, load_space, recipe_in, settings_in

logger = logging.getLogger(__name__)

TUNABLE = ("backbone", "batch_size", "dropout", "learning_rate", "patience")
"""The settings that a space may hold: the images are read once, at one height, and epochs compared by their number."""

STARTUP_TRIALS = 5
"""Trials that come to their end before one is pruned."""

WARM_UP = 5
"""The first 1/WARM_UP of the epochs prune nothing: the rate rises, and most nets still read nothing."""

HEARTBEAT, GRACE, POLL = 30, 120, 2.0
"""Seconds between signs of life of a trial, until it is taken for dead without one, between looks at others'."""

TAKE_OVER = 60.0
"""Seconds, and up to twice as many, until a study is taken over whose maker was killed before it said what it is."""

IDENTITY, RUN, WORKER, AGAIN, TESTED = "identity", "run_id", "worker", "again", "tested"
REGISTERED = "registered"
"""Optuna's user attributes: of a study what it is; of a trial its run, its process, the number of the trial whose
parameters it has again, the test images that it read and all of them, and the version that was registered."""

STATE = "trial_state"
"""The tag of a trial's run: complete, pruned, diverged or killed; none where it was stopped or failed."""


class TuneError(CaptchaError):
    """A study that cannot be made, joined or gone on with; one line that says why and what to do."""


@dataclass(frozen=True)
class SeedResult:
    """A training with the best trial's settings and another seed."""

    seed: int
    run_id: str
    validation_loss: float
    right: int
    n: int
    """Of the test images."""


@dataclass(frozen=True)
class TuneOutcome:
    """The result of a tuning."""

    run_id: str
    study: str
    trials: dict[str, int]
    """How many there are of each state."""
    best_trial: int
    validation_loss: float
    values: dict[str, Any]
    """What the best trial has of the space."""
    importances: dict[str, float]
    seeds: list[SeedResult]
    chosen: str
    """The run that is registered, the seed with the lowest loss on the validation images."""
    model_name: str
    model_version: int
    message: str
    example: str


class _Surplus(Exception):  # noqa: N818
    """Two processes have begun the last trial at once: this one is none of the study's number."""


class _Storage(RDBStorage):
    """Optuna's, whose sign of life does not print where the database is away: the trial itself hears of it."""

    def record_heartbeat(self, trial_id: int) -> None:
        with contextlib.suppress(Exception):
            super().record_heartbeat(trial_id)


@dataclass(frozen=True)
class _Job:
    """What all trials have in common."""

    settings: TuneSettings
    base: TrainSettings
    space: Space
    sources: Sources
    split: Split
    run_id: str
    study: str

    def training(self, values: Mapping[str, Any], seed: int) -> TrainSettings:
        """Return the settings of a training at a point of the space."""
        return TrainSettings(**{**self.base.model_dump(), **settings_in(values), "seed": seed})


def tune(settings: TuneSettings) -> TuneOutcome:
    """Take part in a study until it has its trials; train the best one again with other seeds, and register one.

    Each trial is a training in a run of its own, below one that all processes share; it ends with the loss on the
    validation images of the epoch that it keeps, and is pruned after an epoch whose loss is above the median of the
    trials before it. The test part is read by the trainings with the best trial's settings alone.

    Raises:
        SpaceError: the space's file describes none.
        DataError: the data has problems; all of them are printed first.
        StyleError, FontError: a style cannot be drawn.
        TuneError: the storage does not answer, or the study is of other data, another space or other code.
        TrainingError: a training with the best trial's settings cannot go on.
    """
    base = _as_training(settings)
    space = load_space(settings.space or BUILT_IN, base, TUNABLE)
    sources = training.parse_sources(base)
    connect(writing=True)  # stores that do not answer are told before images are read
    uri = settings.storage or f"sqlite:///{project_root() / 'mlruns' / 'optuna.db'}"
    where = _shown(uri)
    storage = _storage(uri, where)
    left_out: list[Problem] | None = [] if settings.problems == "leave-out" else None
    split = training.split_of(base, sources, left_out)
    name = settings.study or sources.data.short_name
    with _answering(where):
        study, run_id = _join(storage, name, settings, space, sources, split)
        job = _Job(settings, base, space, sources, split, run_id, name)
        client = MlflowClient()
        client.update_run(run_id, status="RUNNING")
        try:
            _fill(study, settings.trials, partial(_trial, job))
            best = _best(study)
            again = _study(storage, f"{name} · trial {best.number} again", optuna.pruners.NopPruner())
            _fill(again, settings.seeds, partial(_with_seed, job, best))
            outcome = _finish(job, storage, study, best, again)
        except BaseException as error:
            signals.heed()
            if not isinstance(error, Exception):
                logger.info("the same command goes on with the study %s", name)
            _leave(study, run_id, error)
            raise
    return outcome


def _as_training(settings: TuneSettings) -> TrainSettings:
    named = settings.model_dump(include={"data", "problems", "name", "drawn", "backbone", "epochs"})
    return TrainSettings(**named)


def _shown(uri: str) -> str:
    """Return a storage's URL without name and password.

    Raises:
        TuneError: it is no URL of a database that Optuna knows.
    """
    try:
        url = make_url(uri)
    except ArgumentError:
        url = None
    if url is None or url.get_backend_name() not in ("postgresql", "mysql", "sqlite"):
        raise TuneError("--storage is no URL of a database: write postgresql://USER@HOST/NAME or sqlite:///FILE")
    return url.set(username=None, password=None, query={}).render_as_string()


def _storage(uri: str, where: str) -> RDBStorage:
    """Return the storage of a study.

    Raises:
        TuneError: it is MLflow's own, or does not answer.
    """
    if uri == tracking_uri():
        raise TuneError(f"{where} is MLflow's own database: name another for the study with --storage")
    optuna.logging.disable_default_handler()  # what a person has to know, this module says
    options: dict[str, Any] = {"pool_pre_ping": True}
    if uri.startswith("sqlite"):
        options["connect_args"] = {"timeout": 60}  # several processes write by turns
    try:
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        try:
            return _opened(uri, options)
        except DatabaseError as error:
            if not (isinstance(error, IntegrityError) or "already exists" in str(error)):
                raise
            time.sleep(5)  # another process makes the tables at this moment
            return _opened(uri, options)
    except Exception as error:  # each driver has errors of its own
        raise TuneError(
            f"the storage {where} cannot be used ({cause(error)}): start it, or name another with --storage"
        ) from None


def _opened(uri: str, options: dict[str, Any]) -> RDBStorage:
    with _experimental():
        return _Storage(
            uri,
            engine_kwargs=options,
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=_bury,
        )


@contextlib.contextmanager
def _experimental() -> Iterator[None]:
    """Let Optuna not warn that its signs of life are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextlib.contextmanager
def _answering(where: str) -> Iterator[None]:
    """Raise TuneError where the storage does not answer any more."""
    try:
        yield
    except (CaptchaError, MlflowException):
        raise
    except Exception as error:
        fault: BaseException | None = error  # Optuna fails over it again, and raises what comes of that
        while fault and not isinstance(fault, StorageInternalError):
            fault = fault.__cause__ or fault.__context__
        if fault is None:
            raise
        raise TuneError(
            f"the storage {where} does not answer any more ({cause(fault.__cause__ or fault)}): it has all trials "
            "that have ended; start it, and run this command again"
        ) from None


def _study(storage: RDBStorage, name: str, pruner: optuna.pruners.BasePruner, join: bool = True) -> optuna.Study:
    return optuna.create_study(
        study_name=name,
        storage=storage,
        sampler=optuna.samplers.TPESampler(),
        pruner=pruner,
        direction="minimize",
        load_if_exists=join,
    )


def _join(
    storage: RDBStorage, name: str, settings: TuneSettings, space: Space, sources: Sources, split: Split
) -> tuple[optuna.Study, str]:
    """Return the study, and the run that all its processes share: made by the one that comes first.

    Raises:
        TuneError: the study is of other data, another space, other code or other settings, or its run is gone.
    """
    facts = training.facts_of(sources, split.digest, None, recipes.DEFAULT)
    facts = {
        **facts,
        "space": space.digest,
        "code": training.code_digest(),
    }  # of two versions of the code, trials are not compared
    asked = Asked("tune", settings.model_dump(include={"name", "drawn", "backbone", "epochs"}), facts)
    pruner = optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=1 + max(1, settings.epochs // WARM_UP))
    deadline = time.monotonic()
    try:
        study = _study(storage, name, pruner, join=False)  # by one process alone: the others wait for what it is
    except DuplicatedStudyError:
        study = _study(storage, name, pruner)
        deadline += TAKE_OVER * random.uniform(1, 2)  # nosec: no secret
    while not (known := study.user_attrs.get(IDENTITY)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if known:
        changes = Asked(known["job"], known["settings"], known["facts"]).changes(asked, set(asked.settings))
        if changes:
            raise TuneError(
                f"the study {name} is another: {'; '.join(changes)}; undo that, or name another with --study"
            )
    place = Place.choose()
    if not known:
        known = _make(study, name, settings, space, sources, split, asked, place)
    run_id = str(known[RUN])
    try:
        place.refer(run_id)
        MlflowClient().get_run(run_id)
    except MlflowException:
        raise TuneError(
            f"the run {run_id} of the study {name} is not in {shown(tracking_uri())}: set MLFLOW_TRACKING_URI to where "
            "it is, or name another study with --study"
        ) from None
    return study, run_id


def _make(
    study: optuna.Study,
    name: str,
    settings: TuneSettings,
    space: Space,
    sources: Sources,
    split: Split,
    asked: Asked,
    place: Place,
) -> Mapping[str, Any]:
    """Make the run of a new study, and say in the study what it is."""
    client = MlflowClient()
    data = sources.data.written
    facts = {"job": "tune", "study": name, "data": data, "split_digest": split.digest, "space_digest": space.digest}
    run_id = place.new_run(f"tune · {name}", facts)
    params = settings.shaping() | {"storage": _shown(settings.storage) if settings.storage else None}
    for key, value in params.items():
        client.log_param(run_id, key, str(written(value)))
    client.log_dict(run_id, {each: _said(space, each) for each in space.dimensions}, "space.json")
    known = asdict(asked) | {RUN: run_id}
    study.set_user_attr(IDENTITY, known)
    return known


def _said(space: Space, name: str) -> object:
    dimension = space.dimensions[name]
    return vars(dimension) if isinstance(dimension, Range) else list(dimension)


def _fill(study: optuna.Study, count: int, objective: Callable[[Trial], float]) -> None:
    """Make trials until the study has as many as wanted, and all have ended: this process's and those of others.

    A trial whose process is gone has failed, and its parameters are tried again. No trial is begun beyond the number,
    but where two processes begin the last one at once; then one of them fails at once, without a run.
    """
    told = False
    silent: dict[int, float] = {}
    while True:
        with _experimental():
            optuna.storages.fail_stale_trials(study)
        standing = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.FAIL]
        if len(standing) < count or any(trial.state == TrialState.WAITING for trial in standing):
            _optimize(study, count, objective)
        elif running := [trial for trial in standing if trial.state == TrialState.RUNNING]:
            if not told:
                logger.info("waiting for %d trials of other processes", len(running))
            told = True
            for trial in running:  # killed between the storage's note of it and its first sign of life
                if WORKER not in trial.user_attrs:
                    began = silent.setdefault(trial.number, time.monotonic())
                    if time.monotonic() - began > GRACE:
                        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            time.sleep(POLL)
        else:
            return


def _optimize(study: optuna.Study, count: int, objective: Callable[[Trial], float]) -> None:
    """Make one trial; a signal is heard while it trains, and not while the storage is told of it."""
    taken: list[int] = []
    with contextlib.ExitStack() as held:

        def guarded(trial: Trial) -> float:
            try:
                held.close()
                trial.set_user_attr(WORKER, f"{socket.gethostname()} {os.getpid()}")
                trials = study.get_trials(deepcopy=False)
                if sum(each.number < trial.number and each.state != TrialState.FAIL for each in trials) >= count:
                    raise _Surplus
                value = objective(trial)
                held.enter_context(signals.held())
                _see_that_it_runs(trial)  # Optuna would fail over its value, and say nothing of use
                return value
            except (CutShort, TrainingError) as cut:
                raise optuna.TrialPruned(str(cut)) from None
            except (KeyboardInterrupt, SystemExit) as stop:
                study.enqueue_trial(trial.params, {AGAIN: trial.number})
                if isinstance(stop, SystemExit):  # which Optuna does not look after
                    study.tell(trial, state=TrialState.FAIL)
                raise
            finally:
                if not _runs(trial):
                    taken.append(trial.number)

        held.enter_context(signals.held())
        try:
            study.optimize(guarded, n_trials=1, catch=(_Surplus,))
        except ValueError:  # Optuna's, which cannot end a trial that has ended
            if not taken:
                raise
            logger.warning(
                "trial %d was taken for dead by another process, as this one stood still for %d seconds or more; this "
                "one goes on with the next",
                *(taken[0], GRACE),
            )


def _runs(trial: Trial) -> bool:
    """Return whether a trial runs, and no other process has ended it."""
    states = {each.number: each.state for each in trial.study.get_trials(deepcopy=False)}
    return states[trial.number] == TrialState.RUNNING


def _see_that_it_runs(trial: Trial) -> None:
    """Raise CutShort where another process has ended the trial."""
    if not _runs(trial):
        raise CutShort(f"Its process stood still for {GRACE} seconds or more, so another process took it for dead.")


def _bury(study: optuna.Study, trial: FrozenTrial) -> None:
    """Note that a trial's process is gone, and let its parameters be tried once more."""
    if AGAIN not in trial.user_attrs:  # they may be what kills it
        study.enqueue_trial(trial.params, {AGAIN: trial.number})
    logger.warning("trial %d was cut off: its process gives no sign of life", trial.number)
    if run_id := trial.user_attrs.get(RUN):
        try:
            mark_killed(run_id, f"Trial {trial.number}: its process gave no sign of life any more.")
            MlflowClient().set_tag(run_id, STATE, "killed")
        except Exception as error:
            if not is_outage(error):
                raise


def _suggest(trial: Trial, name: str, dimension: Range | tuple[Any, ...]) -> Any:
    if not isinstance(dimension, Range):
        return trial.suggest_categorical(name, dimension)
    if dimension.whole:
        return trial.suggest_int(name, int(dimension.low), int(dimension.high), log=dimension.log)
    return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)


def _trial(job: _Job, trial: Trial) -> float:
    """Train at a point of the space in a run of its own; return the loss on the validation images."""
    values = {name: _suggest(trial, name, dimension) for name, dimension in job.space.dimensions.items()}
    own, recipe = job.training(values, job.base.seed), recipe_in(values)

    def judge(result: EpochResult) -> None:
        _see_that_it_runs(trial)
        if result.epoch:
            trial.report(result.validation.loss, result.epoch)
        if result.epoch and trial.should_prune():
            log_facts({STATE: "pruned"})
            raise CutShort(
                f"Pruned after epoch {result.epoch}: its loss on the validation images, {result.validation.loss:.3f}, "
                "is above the median of the trials before it."
            )

    with tracked_run(f"{job.study} · trial {trial.number}", above=job.run_id) as run:
        trial.set_user_attr(RUN, run.info.run_id)
        log_facts({"job": "train", "study": job.study, "trial": trial.number})
        logger.info("\ntrial %d of %d: %s", trial.number, job.settings.trials, _words(values))
        vocabulary = training.vocabulary_of(own, job.sources, job.split)
        training.log_training(own.shaping(), job.sources, job.split, vocabulary, own.backbone, recipe)
        schedule = training.schedule_of(job.split, own.epochs, own.batch_size, own.learning_rate, own.patience, recipe)
        batches = training.batches_of(job.sources, job.split, own.batch_size, own.seed, own.height, vocabulary)
        model = training.new_model(own, vocabulary, recipe)
        try:
            fitted = training.fit(model, batches, job.split, schedule, training.Control(), judge=judge)
        except TrainingError:
            log_facts({STATE: "diverged"})
            raise
        if fitted.stopped:
            raise fitted.stopped
        loss = fitted.history[fitted.epoch]["val/loss"]
        log_metrics({"tune/val_loss": loss})
        log_facts({STATE: "complete"})
    _show(job, trial.study, (trial.number, loss))
    return loss


def _with_seed(job: _Job, best: FrozenTrial, trial: Trial) -> float:
    """Train with the best trial's settings and a seed of its own, on the same split; test, and return the loss."""
    own = job.training(best.params, job.base.seed + 1 + trial.number)
    with tracked_run(f"{job.study} · trial {best.number}, seed {own.seed}", above=job.run_id) as run:
        trial.set_user_attr(RUN, run.info.run_id)
        log_facts({"job": "train", "study": job.study, "trial": best.number, SPLIT_SEED: job.base.seed})
        logger.info("\ntrial %d again, seed %d", best.number, own.seed)
        example = training.example_of(job.sources, job.split.test[0])
        learned = training.learn(own, job.sources, job.split, None, example, recipe_in(best.params))
        tested = learned.evaluation
        _see_that_it_runs(trial)
        trial.set_user_attr(TESTED, [len(tested.samples) - tested.wrong, len(tested.samples)])
        return evaluate(torch_recognizer(learned.checkpoint.model()), job.split.validation).loss


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if type(value) is float else f"{name} {value}" for name, value in values.items()
    )


def _best(study: optuna.Study) -> FrozenTrial:
    ended = [trial for trial in study.get_trials() if trial.state == TrialState.COMPLETE]
    if not ended:
        raise TuneError(
            f"no trial of the study {study.study_name} has come to its end, all have diverged: narrow the space, most "
            "of all learning_rate, and name another study with --study"
        )
    return min(ended, key=lambda trial: (trial.value, trial.number))


def importances(study: optuna.Study) -> dict[str, float]:
    """Return how much each dimension has to do with the best trials, summing to 1; none where trials are too few.

    By PED-ANOVA (Watanabe et al., 2023, arXiv:2304.10255); trials that came to their end count.
    """
    if sum(trial.state == TrialState.COMPLETE for trial in study.get_trials(deepcopy=False)) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # that its two groups of trials are one, and all equally important
        try:
            return optuna.importance.get_param_importances(study)
        except UserWarning:
            return {}


def _show(job: _Job, study: optuna.Study, ended: tuple[int, float] | None = None) -> None:
    """Let the shared run show how the study stands; an outage of MLflow's does not end a trial: the next shows more."""
    client, run_id = MlflowClient(), job.run_id
    trials = study.get_trials(deepcopy=False)
    rows = [
        {
            "trial": each.number,
            "state": each.state.name.lower(),
            "val_loss": each.value,
            **each.params,
            **each.user_attrs,
        }
        for each in trials
    ]
    points = [TrialPoint(each.number, each.value, each.state.name.lower()) for each in trials if each.value is not None]
    if ended and ended[0] not in [point.number for point in points]:
        points.append(TrialPoint(*ended, "complete"))
    try:
        if ended:
            client.log_metric(run_id, "tune/val_loss", ended[1], step=ended[0])
        client.log_dict(run_id, {"trials": rows}, "trials.json")
        if points:
            client.log_figure(run_id, tuning_figure(points), "tuning_history.png")
        if found := importances(study):
            count = sum(point.state == "complete" for point in points)
            client.log_figure(run_id, importances_figure(found, count), "parameter_importances.png")
            client.log_dict(run_id, found, "parameter_importances.json")
    except Exception as error:
        if not is_outage(error):
            raise
        logger.warning("the tracking server is away: the pictures of the study wait for its next trial")


def _register(job: _Job, chosen: SeedResult, trial: Trial) -> float:
    """Register a training, and note what came of it."""
    name, version, message = register(chosen.run_id, job.settings.name)
    trial.set_user_attr(REGISTERED, [name, version, message])
    return float(version)


def _finish(job: _Job, storage: RDBStorage, study: optuna.Study, best: FrozenTrial, again: optuna.Study) -> TuneOutcome:
    """Register the training whose validation is best, and let the shared run say what came out.

    Each process comes here. One registers: that is a study of one trial, so that another does if the first is killed.
    """
    _show(job, study)
    ended = [trial for trial in again.get_trials() if trial.state == TrialState.COMPLETE]
    if not ended:
        raise TuneError(
            f"none of the trainings with the settings of trial {best.number} has come to its end: see their runs, and "
            "name another study with --study"
        )
    seeds = [
        SeedResult(
            job.base.seed + 1 + each.number, each.user_attrs[RUN], float(each.value or 0), *each.user_attrs[TESTED]
        )
        for each in ended
    ]
    chosen = min(seeds, key=lambda each: (each.validation_loss, each.seed))
    registering = _study(storage, f"{job.study} · run {chosen.run_id}", optuna.pruners.NopPruner())
    _fill(registering, 1, partial(_register, job, chosen))
    done = next(trial for trial in registering.get_trials() if trial.state == TrialState.COMPLETE)
    name, version, message = done.user_attrs[REGISTERED]
    counted = [each.state.name.lower() for each in study.get_trials(deepcopy=False)]
    trials = {state: counted.count(state) for state in sorted(set(counted))}
    client = MlflowClient()
    said = (
        f"**Trial {best.number}** of {job.settings.trials} validates best, with a loss of {best.value:.4f}: "
        f"{_words(best.params)}. Trained again, seed {chosen.seed} validates best of {len(seeds)} and reads "
        f"{chosen.right} of {chosen.n} test images: {message}."
    )
    client.set_tag(job.run_id, NOTE, said)
    client.set_tag(job.run_id, "best_trial", str(best.number))
    client.set_tag(job.run_id, "registered_run", chosen.run_id)
    client.set_terminated(job.run_id, RunStatus.to_string(RunStatus.FINISHED))
    example = str(training.example_of(job.sources, job.split.test[0]).absolute())
    return TuneOutcome(
        job.run_id,
        job.study,
        trials,
        best.number,
        float(best.value or 0),
        dict(best.params),
        importances(study),
        seeds,
        chosen.run_id,
        name,
        version,
        message,
        example,
    )


def _leave(study: optuna.Study, run_id: str, error: BaseException) -> None:
    """End the shared run where no other process is in a trial; the same command goes on with it."""
    with contextlib.suppress(Exception):  # what ended this process is told, not what came of it
        if any(trial.state == TrialState.RUNNING for trial in study.get_trials(deepcopy=False)):
            return
        stopped = not isinstance(error, Exception)
        why = "Stopped before its end." if stopped else f"Failed: {error or type(error).__name__}"
        MlflowClient().set_tag(run_id, NOTE, f"{why} The same command goes on.")
        MlflowClient().set_terminated(run_id, "KILLED" if stopped else "FAILED")
