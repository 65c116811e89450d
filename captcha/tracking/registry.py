"""The MLflow registry: a run's model becomes a version, which says what it is, and challenges the champion."""

import contextlib
import json
import re
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from captcha import CaptchaError
from captcha.data.sources import short_data
from captcha.reading.engine import MODEL_FILES
from captcha.settings import CHALLENGER, CHAMPION, MODEL_NAME_LENGTH, MODEL_NAME_PATTERN
from captcha.tracking.card import version_card, write_card
from captcha.tracking.champion import history, present_champion, settle
from captcha.tracking.descriptions import measured, without_folders
from captcha.tracking.digests import FILES_TAG, files_tag
from captcha.tracking.models import download, fact, first_line, logged_model
from captcha.tracking.outbox import is_outage
from captcha.tracking.promotion import DECISION_TAG, FIRST, Rule, decide
from captcha.tracking.runs import RegistryError, connect

REGISTRATION_TAG = "registration"
"""A version's tag: what its registration has led to, or that it was cut off. Versions of earlier ones have none."""

_UNFINISHED = "unfinished: captcha register"


def register(run_id: str, name: str) -> tuple[str, int, str]:
    """Register the model of a run, once, as challenger, and make it champion where it earns that.

    Each step does nothing where it has been done, and the last one notes that all are: so after a kill, registering
    the run again does what is left, and after a registration that came to its end it changes nothing.

    Returns:
        The registered name, the version, and one line that says what happened.

    Raises:
        RegistryError: if there is no such run, it holds no model, or the model's files are not those that it logged.
    """
    if not re.match(MODEL_NAME_PATTERN, name) or len(name) > MODEL_NAME_LENGTH:
        shown = name if len(name) <= MODEL_NAME_LENGTH else f"{name[:20]}…"
        raise RegistryError(
            f"{shown!r} is no name for a registered model: use letters, digits, spaces, '.', '-' and '_', "
            f"{MODEL_NAME_LENGTH} at most"
        )
    connect(writing=True)
    client = MlflowClient()
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        wanted = "give a run's id alone, 32 letters and digits, as `mlflow ui` shows it"
        raise RegistryError(f"run {run_id}: {first_line(error)}; {wanted}") from None
    model = logged_model(client, run)
    version = _version_of(client, model, name)
    if version and _came_to_its_end(client, version):
        settle(client, name)
        return name, int(version.version), f"{name} version {version.version} is this model already"
    if not version:
        noted = {"model_id": model.model_id, FILES_TAG: _files_tag(model)}
        tags = _version_tags(run) | noted | {REGISTRATION_TAG: f"{_UNFINISHED} {run_id} completes it"}
        _make_room(client, name)
        version = client.create_model_version(
            name,
            f"models:/{model.model_id}",
            run_id=run_id,
            tags=tags,
            description=version_card(run),
            model_id=model.model_id,
        )
    _link(client, model, name, int(version.version))
    settle(client, name)
    told = _promote(client, name, version)
    write_card(name)
    client.set_model_version_tag(name, version.version, REGISTRATION_TAG, without_folders(told))
    return name, int(version.version), f"{name} version {version.version} {told}"


def _version_of(client: MlflowClient, model: LoggedModel, name: str) -> ModelVersion | None:
    """Return the version that is this logged model."""
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get("model_id") == model.model_id:
            return version
    return None


def _came_to_its_end(client: MlflowClient, version: ModelVersion) -> bool:
    """Return whether a registration was not cut off.

    Versions of earlier versions of captcha do not say; what can be told of them is whether any has become champion.
    """
    if REGISTRATION_TAG in version.tags:
        return not version.tags[REGISTRATION_TAG].startswith(_UNFINISHED)
    return bool(present_champion(client, version.name) or history(client, version.name))


def _make_room(client: MlflowClient, name: str) -> None:
    """Make the registered model that the versions belong to, unless it is there."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _files_tag(model: LoggedModel) -> str:
    """Return the sha256 of a logged model's files; they are still those that were logged, where that was noted."""
    with tempfile.TemporaryDirectory() as folder:
        return files_tag(download(f"models:/{model.model_id}", Path(folder)))


def _link(client: MlflowClient, model: LoggedModel, name: str, version: int) -> None:
    """Name the version on the model's own page, as `mlflow.register_model` does."""
    linked = json.loads(model.tags.get("mlflow.modelVersions", "[]"))
    link = {"name": name, "version": version}
    if link not in linked:
        client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": json.dumps([*linked, link])})


def is_champion(name: str, version: int) -> bool:
    """Return whether the champion's alias points to this version."""
    try:
        return int(MlflowClient().get_model_version_by_alias(name, CHAMPION).version) == version
    except MlflowException:
        return False


def _promote(client: MlflowClient, name: str, version: ModelVersion) -> str:
    """Let a version challenge the champion, and return what has become of it, however that ends.

    Once: a version that has been champion, as the alias or the history says, stays what has become of it since.
    """
    number, tags = int(version.version), version.tags
    champion = present_champion(client, name)
    registered = "registered" + (f" with {tags['exact_match']} exact match" if "exact_match" in tags else "")
    made = next((move for move in history(client, name) if move.after == number), None)
    if made or champion == number:
        return _told(registered, made.reason if made else "")
    client.set_registered_model_alias(name, CHALLENGER, version.version)
    try:
        decision = decide(client, version, Rule())
    except (CaptchaError, MlflowException, OSError) as error:
        if is_outage(error):
            raise
        why = f"not judged: {first_line(error)}"
        client.set_model_version_tag(name, version.version, DECISION_TAG, without_folders(why))
        return f"{registered}; {f'version {champion} stays {CHAMPION}' if champion else f'no {CHAMPION}'}, {why}"
    if decision.promoted:
        return _told(registered, decision.told)
    if decision.former is None:
        return f"registered, but not as {CHAMPION}: {decision.told}"
    return f"{registered}; version {decision.former} stays {CHAMPION}: {decision.told}"


def _told(registered: str, reason: str) -> str:
    """Return what to tell of a version that became champion, for the reason that the history gives."""
    if reason == FIRST:
        return f"registered, {FIRST}"
    return f"{registered}; the new {CHAMPION}" + (f": {reason}" if reason else "")


def _version_tags(run: Run) -> dict[str, str]:
    """Return what a person compares versions by, from the run that trained it."""
    tags: dict[str, str] = {}  # in the order in which MLflow shows them
    if figures := measured(run, "test"):  # none where a model was adapted to images without labels
        right, n, low, high = figures
        tags = {name: f"{run.data.metrics[f'test/{name}']:.4f}" for name in ("exact_match", "cer")}
        tags |= {"test_right": str(right), "test_images": str(n), "test_low": f"{low:.4f}", "test_high": f"{high:.4f}"}
    tags |= {"backbone": fact(run, "backbone"), "data": short_data(fact(run, "data"))}
    tags["vocabulary"] = fact(run, "vocabulary")
    with contextlib.suppress(KeyError):
        tags["init"] = fact(run, "init_used")
    if "engine" in run.data.tags:  # not in those of earlier versions, which knew fp32 alone
        tags["engine"] = run.data.tags["engine"]
    if figures:
        tags["test_digest"] = fact(run, "test_digest")
    return tags | {"weights_sha256": run.data.tags[f"sha256.{MODEL_FILES['fp32']}"]}
