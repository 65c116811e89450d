"""What a person sees first in `mlflow ui`: a saved view of an experiment, and a note that says how to read it."""

import base64
import json
import time
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE as NOTE_TAG

TESTED_MLFLOW = "3.17.2"
"""The version whose pages are known to open a view of this form. MLflow documents none: others get no view."""

VIEW = "captcha"
"""The view's name among the saved ones, and its key in the link."""
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"

LOCAL = "http://127.0.0.1:5000"
"""Where `mlflow ui` answers unless told otherwise."""


def write_view(experiment_id: str) -> None:
    """Give an experiment the view and the note that it lacks; those that it has may be a person's, and stay."""
    client = MlflowClient()
    tags = client.get_experiment(experiment_id).tags
    if _tested() and VIEW_TAG not in tags:
        client.set_experiment_tag(experiment_id, VIEW_TAG, _saved(STATE))
    if NOTE_TAG not in tags:
        client.set_experiment_tag(experiment_id, NOTE_TAG, NOTE.format(page=_page(experiment_id)))


def view_link(tracking_uri: str, experiment_id: str) -> str:
    """Return the link to an experiment's view, on the tracking server or, without one, on this machine's `mlflow ui`.

    With an untested MLflow the link leads to the same page, as MLflow arranges it.
    """
    server = urlsplit(tracking_uri)
    if server.scheme not in ("http", "https"):
        return f"{LOCAL}/{_page(experiment_id)}"
    host = server.netloc.rpartition("@")[2]  # a password stays out of what is printed
    return f"{server.scheme}://{host}{server.path.rstrip('/')}/{_page(experiment_id)}"


def view_of(run_id: str) -> str:
    """Return the link to the view of the experiment that a run stands in."""
    return view_link(mlflow.get_tracking_uri(), MlflowClient().get_run(run_id).info.experiment_id)


def _page(experiment_id: str) -> str:
    page = f"#/experiments/{experiment_id}/runs?compareRunsMode=CHART&workflowType=machine_learning"
    return f"{page}&viewStateShareKey={VIEW}" if _tested() else page


def _tested() -> bool:
    return bool(mlflow.__version__ == TESTED_MLFLOW)


def _saved(state: Mapping[str, Any]) -> str:
    """Return the value of the tag in which MLflow's pages save a view."""
    now = round(time.time() * 1000)
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    return json.dumps({"name": VIEW, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"})


def _section(name: str, columns: int, height: int) -> dict[str, Any]:
    """Return a section with so many charts beside each other, each that many pixels high."""
    return {"uuid": name, "name": name, "display": True, "columns": columns, "cardHeight": height}


def _closed(name: str) -> dict[str, Any]:
    return {"uuid": name, "name": name, "display": False}


def _chart(kind: str, section: str, title: str, **settings: Any) -> dict[str, Any]:
    return {"uuid": title, "type": kind, "metricSectionId": section, "displayName": title, **settings}


def _bar(section: str, metric: str) -> dict[str, Any]:
    return _chart("BAR", section, metric, metricKey=metric)


def _curve(section: str, metric: str, scale: str) -> dict[str, Any]:
    return _chart("LINE", section, metric, metricKey=metric, scaleType=scale, xAxisKey="step", lineSmoothness=0)


STATE: Mapping[str, Any] = {
    "orderByKey": "metrics.`test/exact_match`",
    "orderByAsc": False,
    "selectedColumns": [
        *(f"metrics.`{name}`" for name in ("test/exact_match", "test/cer")),
        *(f"params.`{name}`" for name in ("backbone", "drawn", "init", "epochs", "learning_rate", "seed")),
        "tags.`data`",
    ],
    "compareRunSections": [
        _section("Accuracy", columns=2, height=300),
        _section("Settings", columns=1, height=300),
        _section("Readings", columns=1, height=480),
        # MLflow puts the chart of every other metric into the section that the metric's name begins with.
        *map(
            _closed,
            (
                "test",
                "calibration",
                "val",
                "train",
                "engine",
                "promotion",
                "distill",
                "adapt",
                "budget",
                "crossval",
                "tune",
                "eval",
            ),
        ),
        *map(_closed, ("Model metrics", "System metrics")),
    ],
    "compareRunCharts": [
        _bar("Accuracy", "test/exact_match"),
        _curve("Accuracy", "val/exact_match", scale="linear"),
        _curve("Accuracy", "val/loss", scale="log"),
        _curve("Accuracy", "train/loss", scale="log"),
        _chart(
            "PARALLEL",
            "Settings",
            "settings",
            selectedParams=["backbone", "epochs", "learning_rate", "batch_size", "dropout"],
            selectedMetrics=["test/exact_match"],
        ),
        # Step 0 shows what an untrained network reads; all but the shortest trainings have a picture of step 5.
        # The params of a run would take the place of its picture.
        _chart("IMAGE", "Readings", "readings", imageKeys=["val/predictions"], step=5, showRunParams=False),
    ],
    "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0},
    "isAccordionReordered": True,  # MLflow would sort the sections by name
    "hideEmptyCharts": True,
}
"""Which runs, columns and charts the view shows; what is missing here MLflow takes from its defaults."""

NOTE = """Models that read text CAPTCHAs: each run is one training, adaptation or evaluation. \
**[Open the saved view]({page})**: best run first.

- **Which model is best?** Sort by `test/exact_match`, the share of the test images read without a mistake. Compare \
only runs with the same `test_digest`: they were tested on the same images.
- **Which version is best on a data set?** One search tells, as `search_logged_models` knows what each figure was \
measured on; `mlflow.modelVersions` among the tags of what it returns names the version. For the images that trainings \
have tested on:

```python
images = {{"dataset_name": "captcha-v2-test", "dataset_digest": "0123456789abcdef"}}
best = {{"field_name": "metrics.test/exact_match", "ascending": False, **images}}
mlflow.search_logged_models(["EXPERIMENT_ID"], datasets=[images], order_by=[best], max_results=1)
```

- **Accuracy**: the bar is that share. The curves follow the training epoch by epoch: `val/exact_match` chooses the \
epoch that is kept; where `train/loss` falls and `val/loss` rises, the model learns its images by heart.
- **Settings**: each line is a run, from its settings to its `test/exact_match`.
- **Readings**: validation images with what was read; the slider goes through the epochs. A run's \
own page has every reading of the test under *Artifacts*, in `test_predictions.json`.
"""
