"""Measure a trained model on a folder of labelled images, in a tracked run of its own."""

from dataclasses import dataclass
from pathlib import Path

import mlflow

import captcha
from captcha.data.samples import ImageMemory
from captcha.data.seen import SeenError, SeenPixels
from captcha.data.sources import parse_folder
from captcha.evaluation.results import evaluate as read
from captcha.settings import IMAGE_MEMORY, MODEL_NAME
from captcha.tracking.models import UNKNOWN_TAG, Resolved, load_seen, resolve
from captcha.tracking.records import log_evaluated, log_overlap, log_settings, log_test
from captcha.tracking.runs import tracked_run


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

    def as_json(self) -> dict[str, object]:
        """Return what `--json` prints and the run keeps in `eval.json`."""
        names = ("run_id", "model", "version", "data_digest", "overlap")
        named = {name: getattr(self, name) for name in names}
        return {**self.metrics, **named, "training_pixels_unknown": self.unknown, "all": self.metrics_of_all}


def evaluate(folder: str, model: str) -> EvaluateOutcome:
    """Return what a registered or logged model, or a recogniser's folder, reads of a folder of labelled images.

    Raises:
        DataError: the folder has problems; all of them are logged first.
        RegistryError: there is no such model.
        RecognizerError: the model's files are damaged.
        SeenError: the model's training saw every image of the folder.
    """
    source = parse_folder(folder)
    resolved = resolve(model)  # once: an alias may move meanwhile
    recognizer = captcha.load(resolved.uri)
    seen = load_seen(resolved.run, resolved.uri) if resolved.run else SeenPixels.not_noted(resolved.uri)
    samples = source.samples(recognizer.height, memory=ImageMemory(IMAGE_MEMORY))
    flags = seen.among(samples)
    if all(flags):
        raise SeenError(
            f"the training of {resolved.uri} saw all {len(samples)} images in {folder}, so they can measure nothing; "
            "name images that it was not trained on"
        )
    unseen = [sample for sample, flag in zip(samples, flags, strict=True) if not flag]
    with tracked_run(f"evaluate {_short(resolved)} on {source.short_name}") as run:
        log_settings({"data": source.written, "model": model})
        dataset = log_evaluated(unseen, source, resolved.model_id)
        found = {"test_images": len(unseen), "test_digest": dataset.digest, UNKNOWN_TAG: seen.unknown}
        tags = {"job": "evaluate", "data": source.written, **_model_tags(resolved), **found}
        mlflow.set_tags({name: value for name, value in tags.items() if value is not None})
        evaluation = read(recognizer, samples).put_apart(flags)
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
        )
        mlflow.log_dict(outcome.as_json(), "eval.json")
        mlflow.set_tag("mlflow.note.content", _description(outcome, resolved, source.short_name))
    return outcome


def _model_tags(resolved: Resolved) -> dict[str, object]:
    backbone = resolved.run.data.tags.get("backbone") if resolved.run else None
    return {
        "model": resolved.uri,
        "model_version": resolved.version,
        "model_id": resolved.model_id,
        "backbone": backbone,
    }


def _short(resolved: Resolved) -> str:
    """Return how a run's name tells one model from another."""
    if resolved.version:
        return f"{'' if resolved.name == MODEL_NAME else f'{resolved.name} '}v{resolved.version}"
    if resolved.uri.startswith("runs:/"):
        return f"run {resolved.uri.removeprefix('runs:/')[:8]}"
    return resolved.model_id or f"folder {Path(resolved.uri).resolve().name}"


def _description(outcome: EvaluateOutcome, resolved: Resolved, folder: str) -> str:
    low, match, high = (100 * outcome.metrics[f"exact_match{part}"] for part in ("_low", "", "_high"))
    model = f"{resolved.name} version {resolved.version}" if resolved.version else resolved.uri
    figure = f"**{match:.1f} %** of {outcome.metrics['n']:.0f} images read exactly ({low:.1f} to {high:.1f} %)"
    return f"{figure} · {model} · folder {folder} · {outcome.checked()}"
