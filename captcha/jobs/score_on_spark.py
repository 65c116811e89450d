"""Score on Spark: its workers read the pieces, and `mlflow.pyfunc.spark_udf` runs the registered model.

Only whoever asks for Spark imports pyspark. The workers that read images import this module, but not MLflow, which
would take most of the time that they need to begin, and of their memory.
"""

import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd

import captcha
from captcha import CaptchaError
from captcha.data.pieces import Images, Piece, sized
from captcha.data.scores import Scores
from captcha.reading.images import WIDTH_STEP, Image, ImageError
from captcha.reading.limits import MAX_COLUMNS, MAX_REQUEST_COLUMNS, MAX_REQUEST_PIXELS, MAX_ROWS
from captcha.reading.recognizer import Recognizer

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

READ = {"text": "string", "confidence": "double", "accepted": "boolean"}
"""What is taken of the registered model's answer, with Spark's types."""

DAY = 24 * 3600


class SparkError(CaptchaError):
    """There is no Spark, or its job failed; one line."""


def require_spark() -> None:
    """See that there are Spark and Java.

    Raises:
        SparkError: one of them is missing.
    """
    if find_spec("pyspark") is None:
        raise SparkError("--engine spark needs Spark: pip install 'captcha-crnn[spark]'; or use --engine local")
    home = os.environ.get("JAVA_HOME")
    if not shutil.which(Path(home, "bin", "java") if home else "java"):
        where = f"in JAVA_HOME {home}" if home else "on PATH"
        raise SparkError(
            f"--engine spark needs Java 17 or later, and there is none {where}: "
            "install it (Debian: apt install openjdk-17-jre-headless), or use --engine local"
        )


def score_on_spark(
    recognizer: Recognizer, model: Path, images: Images, scores: Scores, master: str | None, part_images: int
) -> None:
    """Let Spark write the parts of all images that are not done; each is a task's, whole or not at all.

    Args:
        recognizer: the model's, whose height and precision the workers read with.
        model: its files, which Spark brings to the workers.
        images: they lie where each worker finds them.
        scores: lies where each worker may write to it.
        master: as for `score`.
        part_images: how many images a part has at the most.

    Raises:
        SparkError: Spark does not start, or its job fails.
    """
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        with tempfile.TemporaryDirectory() as temporary:
            spark = _session(recognizer, master)
            try:
                package = Path(captcha.__file__).parent
                code = shutil.make_archive(str(Path(temporary, "captcha")), "zip", package.parent, package.name)
                spark.sparkContext.addPyFile(code)  # a worker needs the model's libraries, and not this package
                left = images.left(scores.paths(), part_images, spark.sparkContext.defaultParallelism)
                _write(spark, recognizer, model, images, left, scores)
            finally:
                spark.stop()
    except (PySparkException, Py4JError) as error:
        raise SparkError(
            f"the Spark job failed: {_cause(error)}; the parts in {scores.folder} are whole, the same command goes on"
        ) from None


def _session(recognizer: Recognizer, master: str | None) -> "SparkSession":
    """Start Spark with what the workers need."""
    from pyspark.sql import SparkSession

    warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else it is whichever python3 is on PATH
    builder = SparkSession.builder.appName("captcha score")
    if master:
        builder = builder.master(master)
        if master.startswith("local"):
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")  # its ports are for nobody else
    settings: dict[str, object] = {
        "spark.log.level": "ERROR",
        # A task's file is moved to its place when the task ends, not when all have: a killed job keeps what it has.
        "spark.hadoop.mapreduce.fileoutputcommitter.algorithm.version": 2,
        "spark.hadoop.mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
        "spark.sql.execution.arrow.maxRecordsPerBatch": _rows_at_once(recognizer.height),
    }
    workers = {name: value for name, value in os.environ.items() if name.startswith("CAPTCHA_")}
    # A task has one core and, other than a request to a server, nobody who waits for it.
    workers = (
        {"CAPTCHA_THREADS": "1"} | workers | {"CAPTCHA_ENGINE": recognizer.precision, "CAPTCHA_DEADLINE": str(DAY)}
    )
    settings |= {f"spark.executorEnv.{name}": value for name, value in workers.items()}
    for name, value in settings.items():
        builder = builder.config(name, str(value))
    return builder.getOrCreate()


def _rows_at_once(height: int) -> int:
    """Return how many images the model gets at once: so many that the widest are no more than one request may have."""
    return max(1, min(MAX_ROWS, MAX_REQUEST_COLUMNS // MAX_COLUMNS, MAX_REQUEST_PIXELS // (MAX_COLUMNS * height)))


def _write(
    spark: "SparkSession", recognizer: Recognizer, model: Path, images: Images, left: list[Piece], scores: Scores
) -> None:
    import mlflow
    from pyspark.sql.functions import col, lit, when

    if not left:
        return
    logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)  # it would advise another environment each time
    # A model brings a `captcha` of its own, with `captcha.reading` alone: a worker that has loaded it cannot run our
    # code any more. Spark hands a worker on only to tasks of the same environment.
    environment = spark.sparkContext.environment
    environment["CAPTCHA_WORKER"] = "images"
    pieces = spark.sparkContext.parallelize([(json.dumps(asdict(piece)),) for piece in left], len(left))
    frames = spark.createDataFrame(pieces, "piece string").mapInPandas(
        _reader(images, recognizer.height, _rows_at_once(recognizer.height)), "path string, image binary, error string"
    )
    environment["CAPTCHA_WORKER"] = "model"
    taken = answered(model)
    result = ", ".join(f"{name} {READ[name]}" for name in taken)
    read = mlflow.pyfunc.spark_udf(spark, str(model), result_type=result, env_manager="local")
    rows = frames.select("path", read("image").alias("read"), "error")
    sound = col("error").isNull()
    columns = {name: when(sound, col(f"read.{name}") if name in taken else lit(None).cast(READ[name])) for name in READ}
    rows = rows.select("path", *(column.alias(name) for name, column in columns.items()), "error")
    rows.write.mode("append").parquet(f"file://{scores.folder.absolute()}")  # Spark would take as_uri's %20 for a name


def answered(model: Path) -> list[str]:
    """Return which of `READ` a model's signature says that it answers; versions of older code accept nothing."""
    import mlflow

    names = mlflow.models.get_model_info(str(model)).signature.outputs.input_names()
    return [name for name in READ if name in names]


Frames = Iterator[pd.DataFrame]


def _reader(images: Images, height: int, rows: int) -> Callable[[Frames], Frames]:
    """Return what a worker does with its pieces: path, image and error of each file, `rows` at once.

    The image is a bitmap, resized already, so that the model's own check finds nothing that it would end the job for;
    in the place of a bad image stands a blank one.
    """

    def read(frames: Frames) -> Frames:
        blank = _bitmap(np.full((height, WIDTH_STEP, 3), 255, np.uint8))
        for frame in frames:
            for written in frame["piece"]:
                waiting: list[tuple[str, bytes, str | None]] = []
                for name, image in sized(images.found(Piece(**json.loads(written))), height):
                    if isinstance(image, ImageError):
                        waiting.append((name, blank, str(image)))
                    else:
                        waiting.append((name, _bitmap(image), None))
                    if len(waiting) == rows:
                        yield pd.DataFrame(waiting, columns=["path", "image", "error"])
                        waiting = []
                yield pd.DataFrame(waiting, columns=["path", "image", "error"])

    return read


def _bitmap(image: Image) -> bytes:
    """Return an image (H, W, 3) as a BMP file, which takes least time and loses nothing."""
    done, content = cv2.imencode(".bmp", image[:, :, ::-1])
    assert done
    return content.tobytes()


def _cause(error: Any) -> str:
    """Return in one line what Spark says, without its stack traces."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(("\t", "  "))]
    return " ".join(lines[-1].split())[:300] if lines else type(error).__name__
