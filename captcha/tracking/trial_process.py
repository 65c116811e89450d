"""Tries a registered model with the code that it brings along, and reads images with it.

`trial.py` runs this file as a program of its own, for each model: in one process the second model would silently be
run by the first one's code. So it imports nothing of captcha; the model's own copy of `captcha` is imported as MLflow
loads it. Nothing imports this file.
"""

import base64
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import validate_serving_input

AT_ONCE = 16
"""Images in one request."""


def main(model: Path, images: Path, answer: Path) -> None:
    """Serve the model its input example, then read the files in `images` in their order, and write what came out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what is to replace it prints the whole request where it fails
        validate_serving_input(str(model), (model / "serving_input_example.json").read_text())
    loaded = mlflow.pyfunc.load_model(str(model))
    _checked(loaded.predict(loaded.input_example))
    files = sorted(images.iterdir())
    readings: list[dict[str, Any]] = []
    began = time.process_time()
    for first in range(0, len(files), AT_ONCE):
        part = [base64.b64encode(file.read_bytes()).decode() for file in files[first : first + AT_ONCE]]
        readings += _checked(loaded.predict(pd.DataFrame({"image": part})))
    seconds = time.process_time() - began
    answer.write_text(json.dumps({"readings": readings, "seconds": seconds}))


def _checked(answered: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a model's answer as what a reading has."""
    rows = answered[["text", "confidence", "character_confidences"]].to_dict("records")
    return [
        {
            "text": str(row["text"]),
            "confidence": float(row["confidence"]),
            "character_confidences": [float(each) for each in row["character_confidences"]],
        }
        for row in rows
    ]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
