"""What a run logs, put into its outbox: params, tags, metrics, files, tables, pictures."""

import json
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mlflow.tracking.multimedia import compress_image_size
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES
from numpy.typing import NDArray
from PIL import Image

from captcha.tracking.runs import active_outbox

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # heavy: not before a job draws one

Write = Callable[[Path], object]
"""What writes a file, given its path."""


def log_params(values: Mapping[str, object]) -> None:
    """Log the params that the run lacks."""
    active_outbox().put("params", {"values": {key: str(value) for key, value in values.items()}})


def log_tags(values: Mapping[str, object], numbered: bool = True) -> None:
    """Log tags; `numbered` as for `Outbox.put`."""
    values = {key: str(value) for key, value in values.items()}
    active_outbox().put("tags", {"values": values}, numbered=numbered)


def log_metrics(
    values: Mapping[str, float], step: int = 0, model: str | None = None, dataset: tuple[str, str] | None = None
) -> None:
    """Log metrics at a step, of a logged model's id (OWN: of the run's own) and of a data set's name and digest."""
    at = {"time": round(time.time() * 1000), "step": step, "model": model, "dataset": dataset}
    active_outbox().put("metrics", {"values": {key: float(value) for key, value in values.items()}, **at})


def log_file(name: str, write: Write, picture: bool = False, numbered: bool = True) -> None:
    """Log the file that `write` writes, under a name that may lead through folders."""
    log_files({name: write}, picture, numbered)


def log_files(files: Mapping[str, Write], picture: bool = False, numbered: bool = True) -> None:
    """Log several files at once."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = _written(Path(temporary) / "files", files)
        active_outbox().put("files", {}, folder, picture=picture, numbered=numbered)


def log_json(content: object, name: str) -> None:
    """Log what JSON can hold as a file."""
    log_file(name, lambda path: path.write_text(json.dumps(content, indent=2)))


def log_text(text: str, name: str) -> None:
    """Log a text as a file."""
    log_file(name, lambda path: path.write_text(text))


def log_figure(figure: "Figure", name: str) -> None:
    """Log a figure as a picture."""
    log_file(name, figure.savefig, picture=True)


def log_picture(image: NDArray[np.uint8], name: str) -> None:
    """Log a picture, (H, W, 3)."""
    log_file(name, Image.fromarray(image).save, picture=True)


def log_step_picture(image: NDArray[np.uint8], key: str, step: int) -> None:
    """Log a picture of a step, which MLflow shows beside those of other steps with the same key.

    The names are those of `mlflow.log_image`, whose own would differ each time, so that a repeated one showed twice.
    """
    now = round(time.time() * 1000)
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"{active_outbox().run_id}/{key}/{step}")
    name = f"images/{key.replace('/', '~')}+step+{step}+timestamp+{now}+{number}"
    picture = Image.fromarray(image)
    log_files({f"{name}.png": picture.save, f"{name}+compressed.webp": compress_image_size(picture).save}, picture=True)
    log_tags({MLFLOW_LOGGED_IMAGES: True})


def log_tables(tables: Mapping[str, pd.DataFrame]) -> None:
    """Log tables as JSON files, as `mlflow.log_table` does."""
    writes: dict[str, Write] = {name: _table_writer(table) for name, table in tables.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = _written(Path(temporary) / "files", writes)
        active_outbox().put("tables", {"names": list(tables)}, folder)


def _table_writer(table: pd.DataFrame) -> Write:
    return lambda path: table.to_json(path, orient="split", index=False, date_format="iso")


def _written(folder: Path, files: Mapping[str, Write]) -> Path:
    for name, write in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name)
    return folder


def log_input(dataset: Mapping[str, Any], context: str, model_id: str | None = None) -> None:
    """Log a data set, by the fields of `mlflow.entities.Dataset`, as an input; with it the logged model read with."""
    active_outbox().put("input", {"dataset": dict(dataset), "context": context, "model_id": model_id})
