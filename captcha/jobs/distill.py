"""Train a student, a small net without a GRU, on the readings of a teacher: settings → tracked run → a version."""

import logging

from captcha.data.problems import Problem
from captcha.evaluation.results import Comparison, Evaluation, evaluate
from captcha.jobs import train as training
from captcha.jobs.train import TrainOutcome
from captcha.settings import DistillSettings, TrainSettings
from captcha.tracking.descriptions import run_name, short_uri
from captcha.tracking.entries import log_metrics
from captcha.tracking.records import log_facts, log_left_out, log_settings
from captcha.tracking.runs import connect, tracked_run
from captcha.tracking.unfinished import Asked, refuse_changes, taken_up
from captcha.training import recipe as recipes
from captcha.training.checkpoint import Checkpoint
from captcha.training.export import torch_recognizer
from captcha.training.model import STUDENT
from captcha.training.recipe import Recipe

logger = logging.getLogger(__name__)


def distill(settings: DistillSettings, recipe: Recipe = recipes.DEFAULT) -> TrainOutcome:
    """Train a student in one tracked run, register it as a version like any other, and return the outcome.

    The student has the teacher's vocabulary and height. In each step it learns the labels, and the teacher's
    log_probs of every frame of the same augmented images.

    Raises:
        DataError: the data has problems, or labels with characters that the teacher does not know; all are printed.
        StyleError, FontError: a style cannot be drawn, or draws what the teacher does not know.
        RegistryError: there is no such teacher.
        CheckpointError: the teacher's weights are damaged.
        SeenError: the teacher's training saw test images, which the settings do not allow.
        TrainingError: the training cannot go on, or the exported model does not agree with the trained one.
    """
    settings, unfinished = taken_up(settings, "distill")
    connect(writing=True)  # a store that does not answer is told before images are read
    teacher = training.read_parent(training.initial_model(settings.teacher, unfinished))
    own = _as_training(settings, teacher[1])
    sources = training.parse_sources(own)
    left_out: list[Problem] | None = [] if settings.problems == "leave-out" else None
    split = training.split_of(own, sources, left_out)
    split = training.with_unseen_test(
        split, teacher[0], settings.allow_overlap, "test on other images with --test-data"
    )
    facts = training.facts_of(sources, split.digest, teacher, recipe)
    refuse_changes(unfinished, facts)
    asked = Asked("distill", settings.shaping(), facts)
    name = run_name(settings, "distill", sources.data.short_name) + f" · by {short_uri(teacher[0].uri)}"
    with tracked_run(name, asked=asked, resumed=unfinished) as run:
        log_settings(settings.shaping())  # at once: a run that fails says how it was started
        log_facts({"job": "distill", "teacher_used": teacher[0].uri, "teacher_run": teacher[0].run_id})
        log_left_out(left_out or ())
        example = training.example_of(sources, split.test[0])
        learned = training.learn(own, sources, split, None, example, recipe, teacher)
        _log_teacher(teacher[1], learned.evaluation)
        model_name, version, message = training.register_sent(settings.name)
    evaluation = learned.evaluation
    of_all = evaluation.metrics_of_all() if evaluation.seen else {}
    path = str(example.absolute())
    return TrainOutcome(run.info.run_id, evaluation.metrics(), model_name, version, message, path, of_all)


def _as_training(settings: DistillSettings, teacher: Checkpoint) -> TrainSettings:
    """Return the settings of the student's training; it is small enough to need no dropout."""
    shared = {name: value for name, value in settings if name in TrainSettings.model_fields}
    vocabulary = teacher.vocabulary.characters
    return TrainSettings(**shared, backbone=STUDENT, vocabulary=vocabulary, height=teacher.height, dropout=0.0)


def _log_teacher(teacher: Checkpoint, student: Evaluation) -> None:
    """Log and print how much of what the teacher reads of the test images the student reads."""
    taught = evaluate(torch_recognizer(teacher.model()), student.samples)
    both = Comparison(taught, student).both
    right = len(taught.samples) - taught.wrong
    metrics = {"distill/teacher_exact_match": taught.exact_match}
    if right:
        metrics["distill/kept"] = both / right
    log_metrics(metrics)
    log_facts({"teacher_right": right, "teacher_right_kept": both})
    logger.info("of the %d test images that the teacher reads exactly, the student reads %d", right, both)
