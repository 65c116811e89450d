"""The MLflow registry: versions of a model, what they say of themselves, the champion."""

import contextlib
import json
import re

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from captcha.reading.recognizer import MODEL_FILE
from captcha.settings import CHAMPION, MODEL_NAME_PATTERN
from captcha.tracking.card import write_card
from captcha.tracking.champion import move
from captcha.tracking.descriptions import describe_training, measured, percent
from captcha.tracking.models import fact, first_line, logged_model
from captcha.tracking.runs import RegistryError, connect

CHAMPION_FLOOR = 0.1
"""Exact match on its test images that a version needs to become champion."""


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
        wanted = "give a run's id alone, 32 letters and digits, as `mlflow ui` shows it"
        raise RegistryError(f"run {run_id}: {first_line(error)}; {wanted}") from None
    model = logged_model(client, run)
    with contextlib.suppress(MlflowException):
        client.create_registered_model(name)
    source = f"models:/{model.model_id}"
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get("model_id") == model.model_id:
            return name, int(version.version), f"{name} version {version.version} is this model already"
    version = client.create_model_version(
        name,
        source,
        run_id=run_id,
        tags={**_version_tags(run), "model_id": model.model_id},
        description=describe_training(run),
        model_id=model.model_id,
    )
    _link(client, model, name, int(version.version))
    told = _promote(client, name, version)
    write_card(name)
    return name, int(version.version), told


def _link(client: MlflowClient, model: LoggedModel, name: str, version: int) -> None:
    """Name the version on the model's own page, as `mlflow.register_model` does."""
    linked = json.loads(model.tags.get("mlflow.modelVersions", "[]"))
    tag = json.dumps([*linked, {"name": name, "version": version}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": tag})


def is_champion(name: str, version: int) -> bool:
    """Return whether the champion's alias points to this version."""
    try:
        return int(MlflowClient().get_model_version_by_alias(name, CHAMPION).version) == version
    except MlflowException:
        return False


def _promote(client: MlflowClient, name: str, version: ModelVersion) -> str:
    """Give the champion's alias to a version that has none to beat, or beats it on the same test images."""
    number = version.version
    new = version.tags
    if "exact_match" in new and float(new["exact_match"]) < CHAMPION_FLOOR:
        return (
            f"{name} version {number} registered, but not as {CHAMPION}: it reads {percent(new['exact_match'])} of the "
            f"test images, and a {CHAMPION} reads {percent(CHAMPION_FLOOR)} or more"
        )
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        move(client, name, number, f"the first {CHAMPION}")
        return f"{name} version {number} registered, the first {CHAMPION}"
    old = champion.tags
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


def _version_tags(run: Run) -> dict[str, str]:
    """Return what a person compares versions by, from the run that trained it."""
    tags: dict[str, str] = {}  # in the order in which MLflow shows them
    if figures := measured(run, "test"):  # none where a model was adapted to images without labels
        right, n, low, high = figures
        tags = {name: f"{run.data.metrics[f'test/{name}']:.4f}" for name in ("exact_match", "cer")}
        tags |= {"test_right": str(right), "test_images": str(n), "test_low": f"{low:.4f}", "test_high": f"{high:.4f}"}
    tags |= {name: fact(run, name) for name in ("backbone", "data", "vocabulary")}
    with contextlib.suppress(KeyError):
        tags["init"] = fact(run, "init_used")
    if figures:
        tags["test_digest"] = fact(run, "test_digest")
    return tags | {"weights_sha256": run.data.tags[f"sha256.{MODEL_FILE}"]}
