"""Compare two models on one folder of labelled images, image by image, in a tracked run of its own."""

from dataclasses import dataclass

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

import captcha
from captcha.data.samples import ImageMemory, digest
from captcha.data.sources import parse_images
from captcha.evaluation.results import Comparison
from captcha.evaluation.results import evaluate as read
from captcha.settings import IMAGE_MEMORY
from captcha.tracking.entries import log_metrics, log_picture, log_tables
from captcha.tracking.models import find, version_uri
from captcha.tracking.records import log_facts, log_settings
from captcha.tracking.runs import NOTE, RegistryError, connect, tracked_run


@dataclass(frozen=True)
class Differing:
    """An image that one of the two models alone reads right."""

    file: str
    label: str
    first: str
    """What the first model reads."""
    second: str


@dataclass(frozen=True)
class CompareOutcome:
    """The result of a comparison; of its counts, each image is in one."""

    run_id: str
    names: tuple[str, str]
    """By which the two models are told apart, as in v2."""
    models: tuple[str, str]
    """Their URIs, without aliases."""
    exact_match: tuple[float, float]
    both: int
    only_first: int
    only_second: int
    neither: int
    p: float
    """Of the exact McNemar test."""
    images: list[Differing]
    """First those that the first model alone reads right."""


def compare(first: str, second: str, folder: str) -> CompareOutcome:
    """Return how two versions or runs, named as for `find`, read the images of a labelled folder.

    Raises:
        DataError: the folder has problems; all of them are printed first.
        RegistryError: there is no such version or run, it holds no model, or both are the same.
        RecognizerError: a model's files are damaged.
    """
    source = parse_images(folder)
    connect(writing=True)  # a store that does not answer is told before images are read
    (first, second), names = _resolved(first, second)
    recognizers = [captcha.load(first), captcha.load(second)]
    memory = ImageMemory(IMAGE_MEMORY)
    heights = dict.fromkeys(recognizer.height for recognizer in recognizers)
    samples = {height: source.samples(height, memory=memory) for height in heights}
    with tracked_run(f"compare {names[0]} with {names[1]} on {source.short_name}") as run:
        log_settings({"data": source.written, "first": first, "second": second})
        images_read = samples[recognizers[0].height]
        log_facts({"job": "compare", "data": source.written, "test_digest": digest(images_read)})
        comparison = Comparison(*(read(recognizer, samples[recognizer.height]) for recognizer in recognizers))
        images = [
            Differing(
                images_read[i].name,
                images_read[i].text,
                comparison.first.predictions[i],
                comparison.second.predictions[i],
            )
            for i in comparison.only_first + comparison.only_second
        ]
        outcome = CompareOutcome(
            run.info.run_id,
            names,
            (first, second),
            (comparison.first.exact_match, comparison.second.exact_match),
            comparison.both,
            len(comparison.only_first),
            len(comparison.only_second),
            comparison.neither,
            comparison.p,
            images,
        )
        _log(comparison, outcome)
    return outcome


def _resolved(first: str, second: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return the URIs of two versions or runs, without aliases, and a short name for each."""
    client = MlflowClient()
    one, other = find(client, first), find(client, second)
    uris = _uri(one), _uri(other)
    if uris[0] == uris[1]:
        raise RegistryError(f"{first} and {second} are both {uris[0]}: name two different ones")
    return uris, (_short_name(one, other), _short_name(other, one))


def _uri(found: ModelVersion | Run) -> str:
    return version_uri(found) if isinstance(found, ModelVersion) else f"runs:/{found.info.run_id}"


def _short_name(found: ModelVersion | Run, other: ModelVersion | Run) -> str:
    if not isinstance(found, ModelVersion):
        return f"run {found.info.run_id[:8]}"
    same_model = not isinstance(other, ModelVersion) or other.name == found.name
    return f"v{found.version}" if same_model else f"{found.name} v{found.version}"


def _log(comparison: Comparison, outcome: CompareOutcome) -> None:
    """Log the figures of a comparison, and the table and the picture of the images that differ."""
    from captcha.evaluation.plots import comparison_grid  # brings matplotlib: not before it is needed

    first, second = outcome.names
    log_metrics(
        {
            "compare/exact_match_first": outcome.exact_match[0],
            "compare/exact_match_second": outcome.exact_match[1],
            "compare/only_first": outcome.only_first,
            "compare/only_second": outcome.only_second,
            "compare/p": outcome.p,
        }
    )
    columns = ["file", "label", first, second]
    rows = [[image.file, image.label, image.first, image.second] for image in outcome.images]
    log_tables({"compare.json": pd.DataFrame(rows, columns=columns)})
    log_picture(comparison_grid(comparison, first, second), "compare.png")
    described = (
        f"Of {len(comparison.first.samples)} images, {outcome.only_first} are read right by {first} "
        f"({outcome.models[0]}) alone and {outcome.only_second} by {second} ({outcome.models[1]}) alone, "
        f"{outcome.both} by both and {outcome.neither} by neither; exact McNemar p = {outcome.p:.3g}. "
        "`compare.json` and `compare.png` show the images on which the two differ."
    )
    log_facts({NOTE: described})
