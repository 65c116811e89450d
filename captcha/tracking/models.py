"""Models in MLflow: a URI → its recogniser, or the weights that another training starts from; both logged."""

import base64
import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

import captcha
from captcha.data.seen import SeenError, SeenPixels
from captcha.reading.recognizer import ARTIFACT, Recognizer
from captcha.tracking.naming import meant
from captcha.tracking.runs import RegistryError, connect

WEIGHTS_FOLDER, WEIGHTS_FILE = "weights", "model.safetensors"
"""Where a run keeps the weights that another training can start from; their sha256 is a tag of the run."""

SEEN_FILE = "training_pixels.npy"
"""Beside the weights: which pixels their training saw, and those of the models that it was started from."""

SEEN_TAG, UNKNOWN_TAG = "training_pixels", "training_pixels_unknown"
"""Tags of a run: how many images these are; the model that it was started from, where nobody noted that one's."""

SERVED_PACKAGES = ("mlflow", "onnxruntime", "numpy", "opencv-python-headless", "pillow")
"""What `captcha.reading` imports, and pandas, which comes with mlflow."""

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "image")]),
    outputs=Schema(
        [
            ColSpec(DataType.string, "text"),
            ColSpec(DataType.double, "confidence"),
            ColSpec(Array(DataType.double), "character_confidences"),
        ]
    ),
    params=ParamSchema([ParamSpec("decoder", DataType.string, "greedy"), ParamSpec("beam_width", DataType.long, 10)]),
)


def load_recognizer(model_uri: str) -> Recognizer:
    """Return the recogniser of a registered model or of runs:/RUN_ID, the one that its server reads with.

    Raises:
        RegistryError: if there is no such model.
        RecognizerError: if its files are damaged.
    """
    connect()
    if not model_uri.startswith(("models:/", "runs:/")):
        raise RegistryError(f"{model_uri!r} names no model: there is no such folder; {meant(model_uri)}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            source = model_uri
            if match := re.fullmatch(r"runs:/(\w+)", model_uri):
                client = MlflowClient()
                source = f"models:/{logged_model(client, client.get_run(match[1])).model_id}"
            path = Path(mlflow.artifacts.download_artifacts(source, dst_path=folder))
        except (MlflowException, OSError) as error:
            raise _no_model(model_uri, error) from None
        return Recognizer.load(path / "artifacts" / ARTIFACT)


def _no_model(uri: str, error: Exception) -> RegistryError:
    """Return the error for a URI that MLflow cannot follow: what may have been meant, or what MLflow says."""
    codes = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
    unknown = uri.startswith("models:") and isinstance(error, MlflowException) and error.error_code in codes
    if unknown or uri in ("models:/", "runs:/"):
        return RegistryError(f"{uri!r} names no model: {meant(uri)}")
    return RegistryError(f"{uri}: {first_line(error)}; train one first, or name another")


@dataclass(frozen=True)
class Resolved:
    """Which model a person has named, now that an alias may move; `run` trained it and holds its files."""

    uri: str
    """models:/NAME/VERSION, runs:/RUN_ID, models:/MODEL_ID, or a recogniser's folder."""
    name: str | None = None
    version: int | None = None
    model_id: str | None = None
    run: Run | None = None


def resolve(model: str) -> Resolved:
    """Return which model models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, models:/MODEL_ID or a folder names.

    Raises:
        RegistryError: there is no such model.
    """
    if model and Path(model).is_dir():
        return Resolved(model)
    if not model.startswith(("models:/", "runs:/")):
        raise RegistryError(
            f"{model!r} names no model: there is no such folder; use models:/NAME@ALIAS, models:/NAME/VERSION, "
            "runs:/RUN_ID or a recogniser's folder"
        )
    connect()
    client = MlflowClient()
    try:
        if match := re.fullmatch(r"models:/(m-\w+)", model):
            run_id = client.get_logged_model(match[1]).source_run_id
            return Resolved(model, model_id=match[1], run=client.get_run(run_id) if run_id else None)
        uri, run_id = _run_behind(client, model)
        run = client.get_run(run_id)
    except MlflowException as error:
        raise RegistryError(f"{model}: {first_line(error)}; train one first, or name another") from None
    model_id = logged_model(client, run).model_id
    if match := re.fullmatch(r"models:/(.+)/(\d+)", uri):
        return Resolved(uri, match[1], int(match[2]), model_id, run)
    return Resolved(uri, model_id=model_id, run=run)


@dataclass(frozen=True)
class Parent:
    """A trained model that another training starts from."""

    uri: str
    """models:/NAME/VERSION, also where an alias was asked for, or runs:/RUN_ID."""
    run_id: str
    seen: SeenPixels
    """Which pixels its training saw."""
    weights: bytes
    """The content of a safetensors file."""
    meaning: Mapping[str, str]
    """Its backbone, vocabulary and height, which the first versions did not keep in the file."""


def load_parent(uri: str) -> Parent:
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
        raise _no_model(uri, error) from None
    weights = _weights(uri, run)
    try:
        meaning = {name: fact(run, name) for name in ("backbone", "vocabulary", "height")}
        return Parent(resolved, run_id, load_seen(run, resolved), weights, meaning)
    except KeyError as error:
        raise RegistryError(f"{uri}: run {run_id} is no training, it does not say its {error}; name another") from None


def _content(run_id: str, name: str) -> bytes:
    """Return the content of a run's file. Raises MlflowException or OSError where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=folder)
        return Path(path).read_bytes()


def _weights(uri: str, run: Run) -> bytes:
    """Return the content of a run's weights, checked against their sha256."""
    run_id, name = run.info.run_id, f"{WEIGHTS_FOLDER}/{WEIGHTS_FILE}"
    try:
        weights = _content(run_id, name)
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"{uri}: run {run_id} has no {name} to start from ({first_line(error)}); name another"
        ) from None
    digest = run.data.tags.get(f"sha256.{WEIGHTS_FILE}")  # runs of the first versions have no such tag
    if digest and digest != hashlib.sha256(weights).hexdigest():
        raise RegistryError(f"{uri}: {name} of run {run_id} is damaged: its sha256 is not the one it was saved with")
    return weights


def _run_behind(client: MlflowClient, uri: str) -> tuple[str, str]:
    """Return the URI with any alias resolved, and the id of the run that trained the model."""
    if match := re.fullmatch(r"runs:/(\w+)", uri):
        return uri, match[1]
    match = re.fullmatch(r"models:/([^/@]+)(?:@(.+)|/(\d+))", uri)
    if not match:
        raise RegistryError(f"{uri!r} names no model: {meant(uri)}")
    name, alias, number = match.groups()
    version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    if not version.run_id:
        raise RegistryError(f"{uri}: the registry does not know which run trained it; name another")
    return f"models:/{name}/{version.version}", version.run_id


def log_weights(content: bytes) -> None:
    """Log a safetensors file that a training can start from, and its sha256, to the active run."""
    _log_content(content, WEIGHTS_FILE)
    mlflow.set_tag(f"sha256.{WEIGHTS_FILE}", hashlib.sha256(content).hexdigest())


def _log_content(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        mlflow.log_artifact(str(file), WEIGHTS_FOLDER)


def log_seen(seen: SeenPixels) -> None:
    """Log which pixels a training saw, beside its weights, to the active run."""
    _log_content(seen.to_bytes(), SEEN_FILE)
    mlflow.set_tags({SEEN_TAG: seen.count, **({UNKNOWN_TAG: seen.unknown} if seen.unknown else {})})


def load_seen(run: Run, model: str) -> SeenPixels:
    """Return which pixels the training of a run saw; `model` names it where that is unknown, as of earlier versions.

    Raises:
        RegistryError: they were noted, but the file is missing or damaged.
    """
    tags, name = run.data.tags, f"{WEIGHTS_FOLDER}/{SEEN_FILE}"
    if SEEN_TAG not in tags:
        return SeenPixels.not_noted(model)
    try:
        seen = SeenPixels.from_bytes(_content(run.info.run_id, name), tags.get(UNKNOWN_TAG))
        if str(seen.count) != tags[SEEN_TAG]:
            raise SeenError(f"it holds {seen.count} images, not {tags[SEEN_TAG]}")
    except (MlflowException, OSError, SeenError) as error:
        raise RegistryError(
            f"{name} of run {run.info.run_id} is missing or damaged ({first_line(error)}), so nobody can tell whether "
            "its training saw an image; name another model"
        ) from None
    return seen


def log_model(recognizer: Path, example: bytes, step: int) -> ModelInfo:
    """Log the recogniser in a folder to the active run, under its name, as a model that MLflow can serve.

    The folder must be named `ARTIFACT`: the model keeps it in `artifacts/` under its own name.
    `example` is an image file's content, for the model's input example. The model's page shows the metrics that the
    run has at `step`, the epoch that the weights are of.
    """
    run = mlflow.active_run()
    assert run
    package = Path(captcha.__file__).parent
    with tempfile.TemporaryDirectory() as temporary:
        code = Path(temporary) / package.name
        shutil.copytree(package / "reading", code / "reading", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(package / "__init__.py", code)
        paths = list(sys.path)
        info: ModelInfo = mlflow.pyfunc.log_model(
            name=re.sub(r"[/:.%\"']", "-", run.info.run_name),  # MLflow allows these in no model's name
            step=step,
            python_model=str(package / "reading" / "serving.py"),
            code_paths=[str(code)],
            artifacts={ARTIFACT: str(recognizer)},
            signature=SIGNATURE,
            input_example=pd.DataFrame({"image": [base64.b64encode(example).decode()]}),
            pip_requirements=[f"{each}=={version(each)}" for each in SERVED_PACKAGES],
        )
        # MLflow has tried the example and left the model's copy of this package on the path: processes that are
        # started later would import that one.
        sys.path[:] = paths
    return info


def fact(run: Run, name: str) -> str:
    """Return what a run has found, a tag; runs of the first versions have most of it as params.

    The tag comes first: `mlflow run` logs params as it has quoted them for the shell.

    Raises:
        KeyError: the run has neither.
    """
    tags, params = run.data.tags, run.data.params
    return tags[name] if name in tags else params[{"vocabulary": "vocabulary_used"}.get(name, name)]


def logged_model(client: MlflowClient, run: Run) -> LoggedModel:
    """Return the recogniser that a run has logged."""
    if not run.outputs or not run.outputs.model_outputs:
        raise RegistryError(f"run {run.info.run_id} holds no model: it did not end its training")
    return client.get_logged_model(run.outputs.model_outputs[-1].model_id)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
