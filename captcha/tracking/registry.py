"""The MLflow registry: versions of a model, what they say of themselves, the champion."""

import contextlib
import re

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from captcha.reading.recognizer import MODEL_FILE
from captcha.settings import CHAMPION, MODEL_NAME_PATTERN
from captcha.tracking.champion import move
from captcha.tracking.models import data_of, first_line, logged_model
from captcha.tracking.runs import RegistryError, connect


def register(run_id: str, name: str) -> tuple[str, int, str]:
    """Register the model of a run, once, and make it champion where it earns that.

    Returns:
        The registered name, the version, and one line that says what happened.

    Raises:
        RegistryError: if there is no such run, or it holds no model.
    """
    if not re.match(MODEL_NAME_PATTERN, name):
        raise RegistryError(
            f"{name!r} is no name for a registered model: use letters, digits, spaces, '.', '-' and '_'"
        )
    connect()
    client = MlflowClient()
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise RegistryError(f"run {run_id}: {first_line(error)}") from None
    model = logged_model(client, run)
    with contextlib.suppress(MlflowException):
        client.create_registered_model(name, description=MODEL_DESCRIPTION)
    source = f"models:/{model.model_id}"
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get("model_id") == model.model_id:
            return name, int(version.version), f"{name} version {version.version} is this model already"
    version = client.create_model_version(
        name,
        source,
        run_id=run_id,
        tags={"model_id": model.model_id, **_version_tags(run)},
        description=_version_description(run),
        model_id=model.model_id,
    )
    return name, int(version.version), _promote(client, name, version)


def is_champion(name: str, version: int) -> bool:
    """Return whether the champion's alias points to this version."""
    try:
        return int(MlflowClient().get_model_version_by_alias(name, CHAMPION).version) == version
    except MlflowException:
        return False


def _promote(client: MlflowClient, name: str, version: ModelVersion) -> str:
    """Give the champion's alias to a version that has none to beat, or beats it on the same test images."""
    number = version.version
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        move(client, name, number, f"the first {CHAMPION}")
        return f"{name} version {number} registered, the first {CHAMPION}"
    old, new = champion.tags, version.tags
    if "exact_match" not in new:
        return f"{name} version {number} registered; version {champion.version} stays {CHAMPION}: no labels to test on"
    if old.get("test_digest") != new.get("test_digest"):
        reason = f"version {champion.version} stays {CHAMPION}: the two were tested on different images"
    elif float(new["exact_match"]) > float(old["exact_match"]):
        better = f"{new['exact_match']} in place of {old['exact_match']} on the same test"
        move(client, name, number, better)
        reason = f"the new {CHAMPION}: {better}"
    else:
        reason = f"version {champion.version} stays {CHAMPION}: {old['exact_match']} on the same test"
    return f"{name} version {number} registered with {new['exact_match']} exact match; {reason}"


MODEL_DESCRIPTION = """Reads text CAPTCHAs: CRNN (convolutions, two bidirectional GRU layers) with CTC, on ONNX Runtime.

Input: a column `image` of base64 strings (with or without `data:` prefix) or bytes. Output: `text`, `confidence`
and the confidence of each character. Parameters: `decoder` (greedy or beam) and `beam_width`."""


def _version_tags(run: Run) -> dict[str, str]:
    """Return what a person compares versions by, from the run that trained it."""
    params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
    return {
        "backbone": params["backbone"],
        "data": data_of(run),
        "vocabulary": params["vocabulary_used"],
        **_test_tags(params, metrics),
        "onnx_sha256": tags[f"sha256.{MODEL_FILE}"],
        **({"init": params["init_used"]} if "init_used" in params else {}),
    }


def _test_tags(params: dict[str, str], metrics: dict[str, float]) -> dict[str, str]:
    if "test/exact_match" not in metrics:  # adapted to images without labels
        return {}
    return {
        "exact_match": f"{metrics['test/exact_match']:.4f}",
        "cer": f"{metrics['test/cer']:.4f}",
        "test_images": f"{metrics['test/n']:.0f}",
        "test_digest": params["test_digest"],
    }


def _version_description(run: Run) -> str:
    params, metrics = run.data.params, run.data.metrics
    start = f", started from {params['init_used']}," if "init_used" in params else ""
    trained = f"{params['backbone']}{start} trained on `{data_of(run)}`, seed {params['seed']}"
    if "test/exact_match" not in metrics:
        return f"{trained}: not tested, there were no labels."
    return (
        f"{trained}: exact match {metrics['test/exact_match']:.2%} "
        f"({metrics['test/exact_match_low']:.2%} to {metrics['test/exact_match_high']:.2%}) "
        f"on {metrics['test/n']:.0f} test images that training never saw."
    )
