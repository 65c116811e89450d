"""Read any number of images into a folder of Parquet, here or on Spark, in a tracked run of its own."""

import hashlib
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

import captcha
from captcha.data.pieces import Files, Images, Piece, Shards, sized
from captcha.data.samples import DataError
from captcha.data.scores import Row, Scores, opened
from captcha.data.sources import Parquet, parse_images
from captcha.reading.engine import RecognizerError, engine_of_environment
from captcha.reading.images import Image, ImageError
from captcha.reading.recognizer import ARTIFACT, COLUMNS_WAITING, SETTINGS_FILE, Reading, Recognizer
from captcha.tracking.descriptions import short_uri
from captcha.tracking.entries import log_metrics
from captcha.tracking.models import Resolved, download, resolve
from captcha.tracking.records import log_facts, log_settings
from captcha.tracking.runs import NOTE, connect, tracked_run

ScoreEngine = Literal["local", "spark"]

PART_IMAGES = 10_000
"""Images of one part at the most: what is lost where a worker is killed, and what it loads the model for."""


@dataclass(frozen=True)
class ScoreOutcome:
    """The result of a scoring; what an earlier one had scored already is counted in `before` alone."""

    run_id: str
    model: str
    """models:/NAME/VERSION, also where an alias was asked for; or runs:/RUN_ID, or a folder."""
    output: str
    images: int
    errors: int
    """How many of these images could not be read."""
    before: int
    seconds: float
    """From the first image to the last part, Spark's start included."""

    @property
    def images_per_second(self) -> float:
        """How fast they were read; 0 where there were none."""
        return self.images / self.seconds if self.images else 0.0

    def as_json(self) -> dict[str, object]:
        """Return what `--json` prints."""
        return {**asdict(self), "images_per_second": self.images_per_second}


def score(source: str, output: Path, model: str, engine: ScoreEngine, master: str | None) -> ScoreOutcome:
    """Write what a model reads of each image, or why it cannot be read, into the parts of a folder.

    An image that the folder has a row of already is left out.

    Args:
        source: a folder of images, with its sub-folders; a Parquet file with a column `image`, or a folder of them.
        output: the folder; a new one, or one that the same model has begun.
        model: models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID; `local` reads with a recogniser's folder too.
        engine: `local` is this process.
        master: where Spark runs, as local[2] or spark://HOST:PORT; None leaves it to Spark's own settings.

    Raises:
        DataError: there are no such images, or the output is not of this model.
        RegistryError: there is no such model.
        RecognizerError: its files are damaged, or Spark cannot run it.
        SparkError: there is no Spark, or its job failed.
    """
    images = _parsed(source, output)
    if engine == "spark":
        from captcha.jobs.score_on_spark import require_spark

        require_spark()
    connect(writing=True)  # a store that does not answer is told before images are read
    resolved = resolve(model)  # once: an alias may move meanwhile
    with tempfile.TemporaryDirectory() as temporary:
        files, folder = _files(resolved, Path(temporary), engine)
        recognizer = Recognizer.load(folder, engine_of_environment())
        digest = hashlib.sha256((folder / SETTINGS_FILE).read_bytes()).hexdigest()  # it holds those of the graphs
        read_by = {"model": resolved.uri, "sha256": digest, "precision": recognizer.precision}
        with opened(output, read_by) as scores, tracked_run(_name(resolved, source)) as run:
            log_settings({"data": source, "output": output, "model": model, "engine": engine, "master": master})
            log_facts({"job": "score", **read_by, "model_version": resolved.version or "none"})
            before = scores.parts()
            start = time.monotonic()
            if engine == "local":
                left = images.left(scores.paths(), PART_IMAGES)
                _score_here(recognizer, images, left, scores, run.info.run_id)
            else:
                from captcha.jobs.score_on_spark import score_on_spark

                score_on_spark(recognizer, files, images, scores, master, PART_IMAGES)
            seconds = time.monotonic() - start
            counted = [scores.errors(part) for part in scores.parts() - before]
            outcome = ScoreOutcome(
                run.info.run_id,
                resolved.uri,
                str(output),
                sum(rows for rows, _ in counted),
                sum(errors for _, errors in counted),
                sum(scores.errors(part)[0] for part in before),
                seconds,
            )
            _log(outcome)
    return outcome


def _parsed(source: str, output: Path) -> Images:
    """Return the images that a person has named.

    Raises:
        DataError: there is no such folder or shard, or the output would lie among the images.
        StyleError: a style is named in place of them.
    """
    found = parse_images(source)
    images = Shards(str(found.path.absolute())) if isinstance(found, Parquet) else Files(str(found.path.absolute()))
    if output.resolve().is_relative_to(Path(images.path).resolve()):
        raise DataError(f"{output.absolute()} lies in {images.path}, whose images are scored: name a folder outside")
    return images


def _files(resolved: Resolved, temporary: Path, engine: ScoreEngine) -> tuple[Path, Path]:
    """Return where a model's files lie, as MLflow loads them, and where its recogniser does."""
    if captcha.is_folder(resolved.uri):
        if engine == "spark":
            raise RecognizerError(
                f"{resolved.uri} is a recogniser's folder, and Spark runs what MLflow has logged: name "
                "models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID, or use --engine local"
            )
        return Path(resolved.uri), Path(resolved.uri)
    files = download(resolved.uri, temporary)
    return files, files / "artifacts" / ARTIFACT


def _name(resolved: Resolved, source: str) -> str:
    return f"score {Path(source).resolve().name} with {short_uri(resolved.uri)}"


def _score_here(recognizer: Recognizer, images: Images, left: Sequence[Piece], scores: Scores, run_id: str) -> None:
    """Read the pieces one after the other, a part of each."""
    with tqdm(total=sum(piece.images for piece in left), unit="image", disable=None, leave=False) as bar:
        for number, piece in enumerate(left):
            found = sized(images.found(piece), recognizer.height)
            scores.write(f"part-{number:05}-{run_id}.parquet", list(_rows(recognizer, found, bar)))


def _rows(recognizer: Recognizer, images: Iterable[tuple[str, Image | ImageError]], bar: "tqdm[Any]") -> Iterator[Row]:
    """Yield a row for each image; as many are read at once as the recogniser lets wait."""
    waiting: list[tuple[str, Image | ImageError]] = []
    columns = 0
    for name, image in images:
        waiting.append((name, image))
        columns += 0 if isinstance(image, ImageError) else image.shape[1]
        if columns > COLUMNS_WAITING:
            yield from _read(recognizer, waiting)
            bar.update(len(waiting))
            waiting, columns = [], 0
    yield from _read(recognizer, waiting)
    bar.update(len(waiting))


def _read(recognizer: Recognizer, waiting: Sequence[tuple[str, Image | ImageError]]) -> Iterator[Row]:
    readings = iter(recognizer.read([image for _, image in waiting if not isinstance(image, ImageError)]))
    for name, image in waiting:
        outcome: Reading | str = str(image) if isinstance(image, ImageError) else next(readings)
        yield Row(name, outcome)


def _log(outcome: ScoreOutcome) -> None:
    """Log the figures of a scoring."""
    figures = {"images": outcome.images, "errors": outcome.errors, "images_per_second": outcome.images_per_second}
    log_metrics({f"score/{name}": each for name, each in figures.items()})
    earlier = f", and {outcome.before} were there from an earlier run" if outcome.before else ""
    log_facts({NOTE: f"{outcome.images} images read by {outcome.model}, {outcome.errors} of them errors{earlier}."})
