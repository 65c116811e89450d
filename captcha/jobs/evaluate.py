"""Measure a trained model on a folder of labelled images, in a tracked run of its own."""

from dataclasses import dataclass

import captcha
from captcha.data.problems import Problem
from captcha.data.samples import ImageMemory
from captcha.data.seen import SeenError, SeenPixels
from captcha.data.sources import Folder, Parquet, parse_images
from captcha.evaluation.calibration import ConfidenceFigures
from captcha.evaluation.results import evaluate as read
from captcha.reading.confidence import UNCALIBRATED
from captcha.reading.constraints import Constraints, automaton_of
from captcha.reading.engine import Engine
from captcha.settings import IMAGE_MEMORY, OnProblems
from captcha.tracking.card import write_card
from captcha.tracking.descriptions import COLOUR, colour, exact_match_sentence, short_uri
from captcha.tracking.models import UNKNOWN_TAG, Resolved, load_seen, resolve
from captcha.tracking.records import log_evaluated, log_facts, log_left_out, log_overlap, log_settings, log_test
from captcha.tracking.runs import NOTE, active_run_id, connect, tracked_run


@dataclass(frozen=True)
class EvaluateOutcome:
    """The result of an evaluation. `metrics` are of the images that the model's training did not see."""

    run_id: str
    model: str
    """models:/NAME/VERSION, also where an alias was asked for; or runs:/RUN_ID, or a folder."""
    version: int | None
    data_digest: str
    """Of the images that `metrics` are of: the same for two models that were measured on the same ones."""
    metrics: dict[str, float]
    metrics_of_all: dict[str, float]
    """Of all images of the folder."""
    seen: int
    """How many images training saw, as far as that is known; 0 where nothing is."""
    unknown: str | None
    """A model whose training pixels nobody noted: the evaluated one, or one that it was started from."""
    confidence: ConfidenceFigures
    """How well the confidences say what is right, of the images that `metrics` are of."""

    @property
    def overlap(self) -> int | None:
        """How many images of the folder training saw; None where that is not known of any."""
        return int(self.metrics_of_all["n"] - self.metrics["n"]) if self.seen else None

    def checked(self) -> str:
        """Return in one line what is known of the images that training saw, and the exact match of all."""
        said = []
        if self.overlap:
            of_all = self.metrics_of_all
            said.append(
                f"training saw {self.overlap} of the folder's {of_all['n']:.0f} images, which are left out here; "
                f"of all {of_all['n']:.0f}, {of_all['exact_match']:.2%} are read exactly"
            )
        elif self.seen:
            said.append(f"none of them is among the {self.seen} images that training saw")
        if self.unknown:
            said.append(f"which images {self.unknown} was trained on is not known")
        return "; ".join(said)

    def confident(self) -> str:
        """Return in one line what the confidences are worth, and what the model's threshold accepts."""
        of = self.confidence
        said = f"expected calibration error {of.ece:.2%}, Brier score {of.brier:.4f}; "
        if of.coverage is None:
            return said + f"{self.model} {UNCALIBRATED}"
        return said + (
            f"{of.accepted} of {of.readings} texts are accepted ({of.coverage:.2%}), {of.accepted_wrong} wrong among "
            f"them, which proves that at most {of.error_bound:.2%} of such texts are (at 95 % confidence)"
        )

    def as_json(self) -> dict[str, object]:
        """Return what `--json` prints."""
        names = ("run_id", "model", "version", "data_digest", "overlap")
        named = {name: getattr(self, name) for name in names}
        apart = {"training_pixels_unknown": self.unknown, "all": self.metrics_of_all}
        return {**self.metrics, **named, **apart, "confidence": self.confidence.as_dict()}


def evaluate(
    folder: str,
    model: str,
    problems: OnProblems = "stop",
    engine: Engine = "auto",
    constraints: Constraints | None = None,
) -> EvaluateOutcome:
    """Return what a registered or logged model, or a recogniser's folder, reads of a folder of labelled images.

    Raises:
        DataError: the folder has problems; all of them are printed first.
        RegistryError: there is no such model.
        RecognizerError: the model's files are damaged, or it has no such engine.
        SeenError: the model's training saw every image of the folder.
        ConstraintError: no text that the model can spell keeps to the constraints, or they are too large.
    """
    source = parse_images(folder)
    connect(writing=True)  # a store that does not answer is told before images are read
    resolved = resolve(model)  # once: an alias may move meanwhile
    recognizer = captcha.load(resolved.uri, engine)
    if constraints:
        automaton_of(constraints, recognizer.vocabulary)  # an error in them is raised before images are read
    seen = load_seen(resolved.run, resolved.uri) if resolved.run else SeenPixels.not_noted(resolved.uri)
    left_out: list[Problem] | None = [] if problems == "leave-out" else None
    samples = source.samples(recognizer.height, memory=ImageMemory(IMAGE_MEMORY), left_out=left_out)
    flags = seen.among(samples)
    if all(flags):
        raise SeenError(
            f"the training of {resolved.uri} saw all {len(samples)} images in {folder}, so they can measure nothing; "
            "name images that it was not trained on"
        )
    unseen = [sample for sample, flag in zip(samples, flags, strict=True) if not flag]
    with tracked_run(f"evaluate {short_uri(resolved.uri)} on {source.short_name}") as run:
        known = constraints.written() if constraints else {}
        log_settings({"data": source.written, "model": model, "problems": problems, "engine": engine} | known)
        log_left_out(left_out or ())
        dataset = log_evaluated(unseen, source, resolved.model_id)
        tags = {
            "job": "evaluate",
            "engine": recognizer.precision,
            "data": source.written,
            "eval_digest": dataset.digest,
            UNKNOWN_TAG: seen.unknown,
            "calibration": None if recognizer.calibration else f"none: {resolved.uri} {UNCALIBRATED}",
            "constraints": constraints.told() if constraints else None,
        }
        log_facts({name: value for name, value in (tags | _model_tags(resolved)).items() if value is not None})
        evaluation = read(recognizer, samples, constraints).put_apart(flags)
        log_test(evaluation, "eval", resolved.model_id, dataset)
        if seen.count:
            log_overlap(evaluation)
        outcome = EvaluateOutcome(
            run_id=run.info.run_id,
            model=resolved.uri,
            version=resolved.version,
            data_digest=dataset.digest,
            metrics=evaluation.metrics(),
            metrics_of_all=evaluation.metrics_of_all(),
            seen=seen.count,
            unknown=seen.unknown,
            confidence=ConfidenceFigures.of(evaluation),
        )
        log_facts({NOTE: _description(outcome, resolved, source, constraints)})
    if resolved.name:
        write_card(resolved.name)
    return outcome


def _model_tags(resolved: Resolved) -> dict[str, object]:
    tags: dict[str, object] = {"model": resolved.uri, "model_version": resolved.version, "model_id": resolved.model_id}
    backbone = resolved.run.data.tags.get("backbone") if resolved.run else None
    return tags | ({"backbone": backbone, COLOUR: colour(backbone, active_run_id())} if backbone else {})


def _description(
    outcome: EvaluateOutcome, resolved: Resolved, source: Folder | Parquet, constraints: Constraints | None
) -> str:
    metrics = outcome.metrics
    n = round(metrics["n"])
    interval = metrics["exact_match_low"], metrics["exact_match_high"]
    match = exact_match_sentence(n - round(metrics["wrong"]), n, *interval, f"images of `{source.written}`")
    model = f"{resolved.name} version {resolved.version}" if resolved.version else resolved.uri
    told = f", told {constraints.told()}" if constraints else ""
    return f"{match} by {model}{told}: {outcome.checked()}."
