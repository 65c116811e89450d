"""What an outbox sends: a function for each kind of entry. Each can be repeated and leaves what it left the first time.

MLflow drops a metric that it has already (same key, step, time and value), and an input; a tag, a param and a file are
written over by the same.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_LOGGED_ARTIFACTS

from captcha.tracking.card import CARD_FILE, version_card
from captcha.tracking.descriptions import describe_training
from captcha.tracking.models import OWN, own_model_id, send_model
from captcha.tracking.registry import register
from captcha.tracking.runs import NOTE


def _params(run: str, files: None, values: Mapping[str, str]) -> None:
    """Log the params that the run lacks: `mlflow run` has logged some, and MLflow lets none change."""
    client = MlflowClient()
    known = client.get_run(run).data.params
    client.log_batch(run, params=[Param(key, value) for key, value in values.items() if key not in known])


def _tags(run: str, files: None, values: Mapping[str, str]) -> None:
    MlflowClient().log_batch(run, tags=[RunTag(key, value) for key, value in values.items()])


def _metrics(
    run: str,
    files: None,
    values: Mapping[str, float],
    time: int,
    step: int,
    model: str | None = None,
    dataset: Sequence[str] | None = None,
) -> None:
    """Log metrics; of a logged model (OWN: the one that the run has logged), and of a data set's name and digest."""
    model_id = own_model_id(run) if model == OWN else model
    name, digest = dataset or (None, None)
    MlflowClient().log_batch(
        run,
        metrics=[
            Metric(key, value, time, step, model_id=model_id, dataset_name=name, dataset_digest=digest, run_id=run)
            for key, value in values.items()
        ],
    )


def _input(run: str, files: None, dataset: Mapping[str, str], context: str, model_id: str | None = None) -> None:
    MlflowClient().log_inputs(
        run,
        datasets=[DatasetInput(Dataset(**dataset), [InputTag(MLFLOW_DATASET_CONTEXT, context)])],
        models=[LoggedModelInput(model_id)] if model_id else None,
    )


def _files(run: str, files: Path) -> None:
    MlflowClient().log_artifacts(run, str(files))


def _tables(run: str, files: Path, names: Sequence[str]) -> None:
    """Log tables, and note their names where MLflow's pages look for them."""
    client = MlflowClient()
    client.log_artifacts(run, str(files))
    noted = json.loads(client.get_run(run).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    noted += [table for name in names if (table := {"path": name, "type": "table"}) not in noted]
    client.set_tag(run, MLFLOW_LOGGED_ARTIFACTS, json.dumps(noted))


def _describe(run: str, files: None) -> None:
    client = MlflowClient()
    trained = client.get_run(run)
    client.set_tag(run, NOTE, describe_training(trained))
    client.log_text(run, version_card(trained), CARD_FILE)


def _end(run: str, files: None, status: str, time: int) -> None:
    MlflowClient().set_terminated(run, status, time)


def _register(run: str, files: None, name: str) -> None:
    register(run, name)


def _nothing(run: str, files: None) -> None:
    """Stand in the place of an entry that was left out."""


def send(call: str, run: str, files: Path | None, arguments: Mapping[str, Any]) -> None:
    """Send an entry of an outbox."""
    CALLS[call](run, files, **arguments)


CALLS: Mapping[str, Callable[..., None]] = {
    "params": _params,
    "tags": _tags,
    "metrics": _metrics,
    "input": _input,
    "files": _files,
    "tables": _tables,
    "model": send_model,
    "describe": _describe,
    "register": _register,
    "end": _end,
    "nothing": _nothing,
}
