"""Labelled images that versions are compared on: those of a folder, or those that a run has tested its model on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
from mlflow.entities import Dataset, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from captcha.data.folders import encode_png
from captcha.data.packed import image_file
from captcha.data.samples import ImageMemory, Sample, digest
from captcha.data.sources import Folder, Parquet, parse_style
from captcha.reading.images import load_image
from captcha.tracking.models import fact, first_line
from captcha.tracking.runs import RegistryError

TABLE = "test_predictions.json"
OTHERS = "captcha promote VERSION --test DIR takes others"

SPLIT_SEED = "split_seed"
"""The tag of a run that has the seed of its split, where that is not the one of its training."""


@dataclass(frozen=True)
class HeldOut:
    """Labelled images by the content of their files; `name` is that of the data set."""

    name: str
    samples: list[Sample]
    contents: list[bytes]

    @property
    def digest(self) -> str:
        """By which the same images are known."""
        return digest(self.samples)

    def without(self, seen: Sequence[bool]) -> "HeldOut":
        """Return the images that are not marked."""
        kept = [i for i, mark in enumerate(seen) if not mark]
        return HeldOut(self.name, [self.samples[i] for i in kept], [self.contents[i] for i in kept])


def of_folder(source: Folder | Parquet, height: int) -> HeldOut:
    """Return the images of a folder or of shards.

    Raises:
        DataError: they have problems; all of them are printed first.
    """
    samples = list(source.samples(height, memory=ImageMemory(0)))
    contents = [image_file(sample.folder / sample.name) for sample in samples if sample.folder]
    return HeldOut(source.short_name, samples, contents)


def of_run(run: Run) -> HeldOut:
    """Return the images that a run has tested its model on: read or drawn again, and known by their digest.

    Raises:
        RegistryError: the run tested its model on none, or they cannot be had any more.
    """
    if "test/exact_match" not in run.data.metrics:
        raise RegistryError("no labels to test on")
    try:
        known = _test_set(run)
        table = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/{TABLE}")
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        images = _read(run, known, rows)
    except (MlflowException, OSError, KeyError, ValueError) as error:  # ours, too
        why = "its run does not say which" if isinstance(error, KeyError) else first_line(error)
        raise RegistryError(f"the images that it was tested on cannot be had any more: {why}; {OTHERS}") from None
    if images.digest != known.digest:
        raise RegistryError(
            f"the images that it was tested on cannot be had any more: they or their labels have changed; {OTHERS}"
        )
    return images


def _test_set(run: Run) -> Dataset:
    for each in run.inputs.dataset_inputs if run.inputs else []:
        if {tag.key: tag.value for tag in each.tags}.get(MLFLOW_DATASET_CONTEXT) == "test":
            return each.dataset
    raise KeyError(MLFLOW_DATASET_CONTEXT)


def _read(run: Run, known: Dataset, rows: Sequence[Mapping[str, str]]) -> HeldOut:
    """Return the images of a table: those of the paths in `file`, or those drawn by the names in `drawn`."""
    source = json.loads(known.source)
    if "uri" in source:
        root = Path(url2pathname(urlsplit(source["uri"]).path))
        files = [Path(row["file"]) for row in rows]
        contents = [image_file(file) for file in files]
        samples = [
            Sample(file.relative_to(root).as_posix(), json.loads(row["label"]), load_image(content), folder=root)
            for file, row, content in zip(files, rows, contents, strict=True)
        ]
        return HeldOut(known.name, samples, contents)
    style = parse_style(source["tags"]["drawn"].removeprefix("draw:"))
    seed = run.data.tags.get(SPLIT_SEED) or fact(run, "seed")
    drawn = style.samples(style.style.height, int(seed))  # at the style's own height: as it is drawn
    samples = [drawn[int(Path(row["drawn"]).stem)] for row in rows]
    return HeldOut(known.name, samples, [encode_png(sample.image) for sample in samples])
