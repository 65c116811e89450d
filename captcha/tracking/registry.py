"""The MLflow registry: where runs are tracked, versions of a model, the champion."""

import contextlib
import hashlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from captcha import CaptchaError
from captcha.reading import serving
from captcha.reading.recognizer import MODEL_FILE, Recognizer
from captcha.reading.vocabulary import Vocabulary
from captcha.settings import CHAMPION, EXPERIMENT_NAME, MODEL_NAME_PATTERN, Backbone, project_root

LOGGED_MODEL = "recognizer"
"""Name of the model in the run that trained it."""


WEIGHTS_FOLDER, WEIGHTS_FILE = "weights", "model.safetensors"
"""Where a training run keeps what another can go on from; its sha256 is a tag of the run."""


class RegistryError(CaptchaError):
    """Something that is not where MLflow was asked for it; one line that says what to do."""


def connect() -> None:
    """Point MLflow at the project's own mlflow.db, unless the person has set a tracking server.

    Bare `mlflow ui` in the project's folder shows the same database.
    """
    # Lines that say nothing to a person: bars for files that are here already, migrations of a new database.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    if not mlflow.is_tracking_uri_set():
        database = project_root() / "mlflow.db"
        if not database.exists():
            _make_database(database)
        mlflow.set_tracking_uri(f"sqlite:///{database}")


def _make_database(database: Path) -> None:
    """Let MLflow make its tables aside, then give the file its name: trainings may start together in a new folder.

    Two at once in one file stumble over each other's tables.
    """
    with tempfile.TemporaryDirectory(dir=database.parent, prefix=".mlflow-", ignore_cleanup_errors=True) as aside:
        made = Path(aside, database.name)
        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        with contextlib.suppress(OSError):  # another was faster, or there are no hard links: then MLflow does it
            os.link(made, database)


@contextlib.contextmanager
def tracked_run(run_name: str, nested: bool = False) -> Iterator[Run]:
    """Start a run, or go on with the one that `mlflow run` has made; end it FINISHED, FAILED or KILLED.

    Standing alone, runs go to the experiment `captcha`; nested ones stand under the active run, which has the system
    metrics of them all.
    """
    if not nested:
        connect()
        _leave_unusable_run()
        if "MLFLOW_RUN_ID" not in os.environ:
            _set_experiment()
    try:
        yield mlflow.start_run(run_name=run_name, nested=nested, log_system_metrics=not nested)
    except (KeyboardInterrupt, SystemExit):
        _end_run("KILLED")
        raise
    except BaseException:
        _end_run("FAILED")
        raise
    _end_run("FINISHED")


def _end_run(status: str) -> None:
    """End the run; MLflow's lines about where to see it leave standard output to the results."""
    with contextlib.redirect_stdout(sys.stderr):
        mlflow.end_run(status)


def _set_experiment() -> None:
    """Choose MLFLOW_EXPERIMENT_NAME or our own; a new one in our own database keeps its artifacts in mlruns/."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT_NAME)
    ours = mlflow.get_tracking_uri() == f"sqlite:///{project_root() / 'mlflow.db'}"
    if ours and mlflow.get_experiment_by_name(name) is None:
        mlflow.create_experiment(name, artifact_location=(project_root() / "mlruns" / name).as_uri())
    mlflow.set_experiment(name)


def _leave_unusable_run() -> None:
    """Turn from a run of `mlflow run` whose artifacts nobody can write, to one of our own.

    Where `mlflow ui` has made the database, the default experiment keeps its artifacts behind that server
    (mlflow-artifacts:/0), and a process that writes to the database directly cannot reach them.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id is None or mlflow.get_tracking_uri().startswith("http"):
        return
    client = MlflowClient()
    if client.get_run(run_id).info.artifact_uri.startswith("mlflow-artifacts:"):
        note = f"The run itself stands in the experiment `{EXPERIMENT_NAME}`: this one's artifacts cannot be written."
        client.set_tag(run_id, "mlflow.note.content", note)
        client.set_tag(run_id, "mlflow.runName", "started by mlflow run, see its description")
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
            os.environ.pop(name, None)


def load_recognizer(model_uri: str) -> Recognizer:
    """Return the recognizer inside a registered model, or that of runs:/RUN_ID: the one that its server reads with.

    Raises:
        RegistryError: if there is no such model.
        RecognizerError: if its files are damaged.
    """
    connect()
    with tempfile.TemporaryDirectory() as folder:
        try:
            source = model_uri
            if match := re.fullmatch(r"runs:/(\w+)", model_uri):
                client = MlflowClient()
                source = f"models:/{_logged_model(client, client.get_run(match[1])).model_id}"
            path = Path(mlflow.artifacts.download_artifacts(source, dst_path=folder))
        except (MlflowException, OSError) as error:
            raise RegistryError(f"{model_uri}: {_first_line(error)}; train one first, or name another") from None
        return Recognizer.load(path / "artifacts" / serving.ARTIFACT)


@dataclass(frozen=True)
class TrainedModel:
    """What a training left for another to go on from."""

    uri: str
    """models:/NAME/VERSION, also where an alias was asked for, or runs:/RUN_ID."""
    run_id: str
    backbone: Backbone
    height: int
    vocabulary: Vocabulary
    data: str
    test_data: str
    seed: int
    weights: bytes
    """The content of a safetensors file."""


def load_trained(uri: str) -> TrainedModel:
    """Return the model of models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID, as it came from its training.

    Raises:
        RegistryError: there is no such model or run, it is no training's, or its weights are missing or damaged.
    """
    connect()
    client = MlflowClient()
    try:
        resolved, run_id = _run_behind(client, uri)
        run = client.get_run(run_id)
    except MlflowException as error:
        raise RegistryError(f"{uri}: {_first_line(error)}; train one first, or name another") from None
    name = f"{WEIGHTS_FOLDER}/{WEIGHTS_FILE}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=folder)
            weights = Path(path).read_bytes()
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"{uri}: run {run_id} has no {name} to go on from ({_first_line(error)}); name another"
        ) from None
    digest = run.data.tags.get(f"sha256.{WEIGHTS_FILE}")  # runs of the first versions have no such tag
    if digest and digest != hashlib.sha256(weights).hexdigest():
        raise RegistryError(f"{uri}: {name} of run {run_id} is damaged: its sha256 is not the one it was saved with")
    params = run.data.params
    try:
        return TrainedModel(
            uri=resolved,
            run_id=run_id,
            backbone=cast(Backbone, params["backbone"]),
            height=int(params["height"]),
            vocabulary=Vocabulary(params["vocabulary_used"]),
            data=_data(run),
            test_data=params["test_data"],
            seed=int(params["seed"]),
            weights=weights,
        )
    except KeyError as error:
        raise RegistryError(f"{uri}: run {run_id} is no training, it has no param {error}; name another") from None


def _run_behind(client: MlflowClient, uri: str) -> tuple[str, str]:
    """Return the URI with any alias resolved, and the id of the run that trained the model."""
    if match := re.fullmatch(r"runs:/(\w+)", uri):
        return uri, match[1]
    match = re.fullmatch(r"models:/([^/@]+)(?:@(.+)|/(\d+))", uri)
    if not match:
        raise RegistryError(f"{uri!r} names no model: use models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID")
    name, alias, number = match.groups()
    version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    if not version.run_id:
        raise RegistryError(f"{uri}: the registry does not know which run trained it; name another")
    return f"models:/{name}/{version.version}", version.run_id


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
        raise RegistryError(f"run {run_id}: {_first_line(error)}") from None
    model = _logged_model(client, run)
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
    """Tell whether the champion's alias points to this version."""
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
        client.set_registered_model_alias(name, CHAMPION, number)
        return f"{name} version {number} registered, the first {CHAMPION}"
    before, now = champion.tags, version.tags
    if "exact_match" not in now:
        return f"{name} version {number} registered; version {champion.version} stays {CHAMPION}: no labels to test on"
    if before.get("test_digest") != now.get("test_digest"):
        reason = f"version {champion.version} stays {CHAMPION}: the two were tested on different images"
    elif float(now["exact_match"]) > float(before["exact_match"]):
        client.set_registered_model_alias(name, CHAMPION, number)
        reason = f"the new {CHAMPION}: {now['exact_match']} in place of {before['exact_match']} on the same test"
    else:
        reason = f"version {champion.version} stays {CHAMPION}: {before['exact_match']} on the same test"
    return f"{name} version {number} registered with {now['exact_match']} exact match; {reason}"


MODEL_DESCRIPTION = """Reads text CAPTCHAs: CRNN (convolutions, two bidirectional GRU layers) with CTC, on ONNX Runtime.

Input: a column `image` of base64 strings (with or without `data:` prefix) or bytes. Output: `text`, `confidence`
and the confidence of each character. Parameters: `decoder` (greedy or beam) and `beam_width`."""


def _version_tags(run: Run) -> dict[str, str]:
    """Return what a person compares versions by, from the run that trained it."""
    params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
    return {
        "backbone": params["backbone"],
        "data": _data(run),
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
    start = f" going on from {params['init_used']}," if "init_used" in params else ""
    trained = f"{params['backbone']}{start} trained on `{_data(run)}`, seed {params['seed']}"
    if "test/exact_match" not in metrics:
        return f"{trained}: not tested, there were no labels."
    return (
        f"{trained}: exact match {metrics['test/exact_match']:.2%} "
        f"({metrics['test/exact_match_low']:.2%} to {metrics['test/exact_match_high']:.2%}) "
        f"on {metrics['test/n']:.0f} test images that training never saw."
    )


def _data(run: Run) -> str:
    """Return what the run was trained on; `mlflow run` logs parameters as quoted for the shell, the tag is not."""
    return run.data.tags.get("data", run.data.params["data"])


def _logged_model(client: MlflowClient, run: Run) -> LoggedModel:
    """Return the recognizer that a run has logged."""
    outputs = run.outputs.model_outputs if run.outputs else []
    for output in outputs:
        model = client.get_logged_model(output.model_id)
        if model.name == LOGGED_MODEL:
            return model
    raise RegistryError(f"run {run.info.run_id} holds no model named {LOGGED_MODEL}: it did not end its training")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
