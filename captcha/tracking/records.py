"""What a run holds: settings, facts, inputs, pictures of predictions, the test's figures and files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray
from PIL import Image

from captcha.data.problems import Problem, printable
from captcha.data.samples import Sample, Split, digest
from captcha.data.sources import Folder, Parquet, Source
from captcha.evaluation.calibration import ConfidenceFigures, Flags, Floats, calibrate
from captcha.evaluation.metrics import character_confusion
from captcha.evaluation.out_of_fold import OutOfFold, OutOfFoldFigures
from captcha.evaluation.results import Evaluation
from captcha.reading.confidence import Calibration
from captcha.settings import written
from captcha.tracking.entries import (
    Write,
    log_figure,
    log_files,
    log_input,
    log_json,
    log_metrics,
    log_params,
    log_picture,
    log_step_picture,
    log_tables,
    log_tags,
    log_text,
)
from captcha.tracking.models import find, first_line
from captcha.tracking.runs import RegistryError

THUMBNAILS = 100
"""Rows of a test's table that show their image: a file is logged for each, over a network a request."""


def log_settings(settings: Mapping[str, object]) -> None:
    """Log settings as params; None is logged as it is written on the command line."""
    log_params({key: written(value) for key, value in settings.items()})


def log_facts(facts: Mapping[str, object]) -> None:
    """Log what a run has found, beside its settings, as tags: MLflow prints all params of a run under each picture."""
    log_tags(facts)


class ImageSet(MetaDataset):
    """Images with labels as MLflow knows a data set: where they come from, their digest and their count."""

    def __init__(self, source: Source, samples: Sequence[Sample], context: str) -> None:
        self._images = len(samples)  # before what follows, which asks for the profile
        super().__init__(_dataset_source(source), name=f"{source.short_name}-{context}", digest=digest(samples))

    @property
    def profile(self) -> dict[str, int]:
        """The count, under the name by which MLflow shows it."""
        return {"num_rows": self._images}

    def to_dict(self) -> dict[str, str]:
        """Return what MLflow stores; a MetaDataset's own has no profile."""
        return {**super().to_dict(), "profile": json.dumps(self.profile)}

    @property
    def entity(self) -> dict[str, str | None]:
        """The fields of `mlflow.entities.Dataset`."""
        known = self.to_dict()
        return {name: known.get(name) for name in ("name", "digest", "source_type", "source", "schema", "profile")}


def log_inputs(split: Split, sources: Mapping[str, Source]) -> dict[str, ImageSet]:
    """Log each side of a split, with its source, as an input of the run, and its count and digest; return them."""
    sides = {"train": split.train, "validation": split.validation, "test": split.test}
    sets = {side: ImageSet(sources[side], samples, side) for side, samples in sides.items()}
    for side, each in sets.items():
        log_input(each.entity, side)
        log_facts({f"{side}_images": len(sides[side]), f"{side}_digest": each.digest})
    log_facts({"split_digest": split.digest})
    return sets


def log_left_out(problems: Sequence[Problem]) -> None:
    """Log how many files were left out for their problems, as a tag, and the problems as problems.csv, if any."""
    log_tags({"left_out": len({problem.file for problem in problems})})
    if problems:
        rows = [(printable(problem.file), problem.kind, problem.message) for problem in problems]
        log_text(pd.DataFrame(rows, columns=["file", "kind", "message"]).to_csv(index=False), "problems.csv")


def _dataset_source(source: Source) -> DatasetSource:
    if isinstance(source, Folder | Parquet):
        folder: DatasetSource = LocalArtifactDatasetSource(source.folder.resolve().as_uri())
        return folder
    return CodeDatasetSource({"drawn": source.written})


def log_predictions(evaluation: Evaluation, key: str, step: int) -> None:
    """Log a picture of what is read at a step, beside the same images at other steps."""
    from captcha.evaluation.plots import small_grid  # brings matplotlib: not before it is needed

    log_step_picture(small_grid(evaluation), key, step)


def log_test(
    evaluation: Evaluation, prefix: str = "test", model: str | None = None, images: ImageSet | None = None
) -> None:
    """Log the figures of a test, its tables and pictures; all names begin with the prefix.

    Exact match and character error rate are metrics, which MLflow draws; all figures stand in `test.json`, and what
    a person compares by in tags. How well the confidences say what is right is `confidence` in `test.json` and
    `test_confidence.png`. `test_predictions.json` has every reading and `test_confusion.json` every pair of
    characters, mistakes first; `test_mistakes.png` and `test_predictions.png` show the mistakes and the first images.
    `model` is the id of the logged model measured, or OWN, and `images` the data set.
    """
    # Brings matplotlib, as above.
    from captcha.evaluation.plots import confidence_figure, confusion_figure, mistake_grid, prediction_grid

    figures = evaluation.metrics()
    confidence = ConfidenceFigures.of(evaluation)
    drawn = {f"{prefix}/{key}": figures[key] for key in ("exact_match", "cer")} | confidence.drawn()
    of = (images.name, images.digest) if images else None
    log_metrics(drawn, step=0, model=model, dataset=of)  # MLflow draws one bar for a metric at step 0
    repeats = evaluation.with_repeats()
    if repeats.samples:
        figures |= {"exact_match_repeats": repeats.exact_match, "n_repeats": len(repeats.samples)}
    of_all = {"all": evaluation.metrics_of_all()} if evaluation.seen else {}
    log_json({**figures, **of_all, "confidence": confidence.as_dict()}, f"{prefix}.json")
    log_facts(
        {
            f"{prefix}_images": len(evaluation.samples),
            f"{prefix}_right": len(evaluation.samples) - evaluation.wrong,
            f"{prefix}_low": f"{figures['exact_match_low']:.4f}",
            f"{prefix}_high": f"{figures['exact_match_high']:.4f}",
        }
    )
    predictions = _predictions(evaluation, f"{prefix}_predictions")
    log_tables({f"{prefix}_predictions.json": predictions, f"{prefix}_confusion.json": _confusions(evaluation)})
    log_figure(confusion_figure(evaluation), f"{prefix}_confusion.png")
    log_figure(confidence_figure(evaluation), f"{prefix}_confidence.png")
    log_picture(mistake_grid(evaluation), f"{prefix}_mistakes.png")
    log_picture(prediction_grid(evaluation), f"{prefix}_predictions.png")


def _predictions(evaluation: Evaluation, table: str) -> pd.DataFrame:
    """Return every reading, mistakes first, the first of them beside their images, and log these images."""
    ordered = evaluation.mistakes_first()
    # MLflow compares the tables of runs by their first column of texts, and shows the second.
    columns = {
        "image": _thumbnails(ordered, f"table_images/{table}"),
        "label": [_quoted(text) for text in ordered.references],
        "prediction": [_quoted(text) for text in ordered.predictions],
        "right": [p == r for p, r in zip(ordered.predictions, ordered.references, strict=True)],
        "confidence": [reading.confidence for reading in ordered.readings],
        "probability": [reading.probability for reading in ordered.readings],
        "accepted": [reading.accepted for reading in ordered.readings],
    }
    # By these a promotion has the same images again.
    files = [str(each.folder.resolve() / each.name) for each in ordered.samples if each.folder]
    drawn = [each.name for each in ordered.samples if not each.folder]
    return pd.DataFrame(columns | {name: of for name, of in {"file": files, "drawn": drawn}.items() if of})


def _thumbnails(evaluation: Evaluation, folder: str) -> list[dict[str, str]]:
    """Log the images of the first rows into the folder of the run, and return for each row what MLflow shows as one.

    This is what `mlflow.log_table` makes of an `mlflow.Image`. But that logs two files for each row, one by one, and
    refuses rows without an image: these show a white pixel here.
    """
    images = {f"{i:03}": sample.image for i, sample in enumerate(evaluation.samples[:THUMBNAILS])}
    if len(evaluation.samples) > THUMBNAILS:
        images["none"] = np.full((1, 1, 3), 255, np.uint8)
    log_files({f"{folder}/{name}.webp": _thumbnail_writer(image) for name, image in images.items()}, picture=True)
    names = [f"{i:03}" if i < THUMBNAILS else "none" for i in range(len(evaluation.samples))]
    paths = [f"{folder}/{name}.webp" for name in names]
    return [{"type": "image", "filepath": path, "compressed_filepath": path} for path in paths]


def _thumbnail_writer(image: NDArray[np.uint8]) -> Write:
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((1024, 1024))  # changes only what is wider; WebP holds 16,383 pixels
    return lambda path: thumbnail.save(path, quality=90)


def _confusions(evaluation: Evaluation) -> pd.DataFrame:
    """Return how often each character was read as which, mistakes first; "" stands for none."""
    counts = character_confusion(evaluation.predictions, evaluation.references).most_common()
    counts.sort(key=lambda each: each[0][0] == each[0][1])
    rows = [(_quoted(label), _quoted(read), count) for (label, read), count in counts]
    return pd.DataFrame(rows, columns=["label", "prediction", "count"])


def _quoted(text: str) -> str:
    """Return a text as JSON writes it, in quotes.

    Without quotes MLflow takes what looks like a number for one: the comparison of tables shows 244e2 as 24400, and
    `mlflow.load_table` makes 42 of 00042 in a column of digits.
    """
    return json.dumps(text, ensure_ascii=False)


def log_engines(facts: Mapping[str, Any]) -> None:
    """Log what was measured of a model's engines, fp32 and int8, as engines.json; which is served, as tags."""
    log_json(facts, "engines.json")
    log_facts({"engine": facts["served"], "engine_reason": facts["reason"], "engine_tested": facts["tested"]})
    if times := facts.get("milliseconds"):
        log_metrics({f"engine/{name}_ms": each for name, each in times.items()})


def log_calibration(probabilities: Floats, right: Flags, said: str, precision: float) -> Calibration:
    """Return the calibration that held-out readings give, and log it, and what they are."""
    calibration = calibrate(probabilities, right, precision)
    log_json({"readings_of": said, "precision": precision, **calibration.as_dict()}, "calibration.json")
    log_facts(
        {"calibration": f"{said}, {int((~right).sum())} of them wrong", "threshold": f"{calibration.threshold:.6f}"}
    )
    return calibration


def log_overlap(evaluation: Evaluation) -> None:
    """Log as tags how many images were left out of a test, since training saw them, and how many of those are right."""
    seen = evaluation.seen
    tags = {"overlap": len(seen.samples) if seen else 0}
    log_tags(tags | ({"overlap_right": len(seen.samples) - seen.wrong} if seen else {}))


OUT_OF_FOLD = "out_of_fold.json"


def log_out_of_fold(
    readings: Sequence[OutOfFold], pooled: Sequence[OutOfFoldFigures], shown: Evaluation, images: ImageSet
) -> ConfidenceFigures:
    """Log the figures of a cross-validation, the table of its readings, and pictures; return those of the confidences.

    The metrics are of the last of the figures; `shown` are all readings beside their images.
    """
    # Brings matplotlib, as above.
    from captcha.evaluation.plots import confidence_figure, confusion_figure, mistake_grid

    last = pooled[-1]
    names = ("exact_match", "exact_match_low", "exact_match_high", "cer", "cer_low", "cer_high")
    of = (images.name, images.digest)
    confidence = ConfidenceFigures.of(shown)
    if len(pooled) > 1:  # several readings of one image prove no more than one
        confidence = replace(confidence, error_bound=None)
    drawn = {f"crossval/{name}": getattr(last, name) for name in names} | confidence.drawn()
    log_metrics(drawn, dataset=of)
    log_json({"figures": [vars(each) for each in pooled], "confidence": confidence.as_dict()}, "crossval.json")
    table = pd.DataFrame([asdict(each) | {"right": each.right} for each in readings])
    for column in ("label", "text"):
        table[column] = table[column].map(_quoted)
    log_tables({OUT_OF_FOLD: table, "crossval_confusion.json": _confusions(shown)})
    log_figure(confusion_figure(shown), "crossval_confusion.png")
    log_figure(confidence_figure(shown), "crossval_confidence.png")
    log_picture(mistake_grid(shown), "crossval_mistakes.png")
    return confidence


def find_crossval(experiment_id: str, data_digest: str, settings: Mapping[str, object]) -> str | None:
    """Return the id of the newest cross-validation of these images that has ended and had these settings."""
    told = f"tags.job = 'crossval' and tags.data_digest = '{data_digest}' and attributes.status = 'FINISHED'"
    wanted = {name: str(written(value)) for name, value in settings.items()}
    none = str(written(None))  # a setting that the code of that run did not have yet
    found = MlflowClient().search_runs([experiment_id], told, order_by=["attributes.start_time DESC"])
    for run in found:
        if all(run.data.params.get(name, none) == value for name, value in wanted.items()):
            return str(run.info.run_id)
    return None


def load_out_of_fold(run_id: str) -> tuple[list[OutOfFold], str]:
    """Return the readings of a cross-validation, and the digest of the images that it has read.

    Raises:
        RegistryError: there is no such run, or it is no cross-validation that has ended.
    """
    run = find(MlflowClient(), f"runs:/{run_id.removeprefix('runs:/')}")
    assert isinstance(run, Run)
    if run.data.tags.get("job") != "crossval":
        raise RegistryError(f"run {run_id} is no cross-validation: name the run of a captcha crossval")
    try:
        table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/{OUT_OF_FOLD}")
    except MlflowException as error:
        raise RegistryError(
            f"run {run_id} has no {OUT_OF_FOLD} ({first_line(error)}): let it end, with captcha crossval --resume"
        ) from None
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    readings = [OutOfFold.of(row | {name: json.loads(row[name]) for name in ("label", "text")}) for row in rows]
    return readings, run.data.tags["data_digest"]


def log_evaluated(samples: Sequence[Sample], source: Source, model_id: str | None) -> ImageSet:
    """Log the images that a model is evaluated on, and the logged model, as inputs of the run; return the data set."""
    dataset = ImageSet(source, samples, "eval")
    log_input(dataset.entity, "eval", model_id)
    return dataset
