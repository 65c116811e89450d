"""Models in MLflow: a URI → its recogniser, or the weights that another training starts from; both logged."""

import base64
import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

import captcha
from captcha.data.disk import full_disk
from captcha.data.seen import SeenError, SeenPixels
from captcha.data.sources import short_data
from captcha.reading.constraints import CONSTRAINTS
from captcha.reading.engine import Engine
from captcha.reading.recognizer import ARTIFACT, Recognizer
from captcha.settings import CHAMPION, CHAMPION_URI, MODEL_NAME
from captcha.tracking.digests import FILES_TAG, check_files, files_tag
from captcha.tracking.entries import log_file, log_tags
from captcha.tracking.naming import meant
from captcha.tracking.runs import RegistryError, active_outbox, connect
from captcha.tracking.store import cause, stored_in

WEIGHTS_FOLDER, WEIGHTS_FILE = "weights", "model.safetensors"
"""Where a run keeps the weights that another training can start from; their sha256 is a tag of the run."""

SEEN_FILE = "training_pixels.npy"
"""Beside the weights: which pixels their training saw, and those of the models that it was started from."""

SEEN_TAG, UNKNOWN_TAG = "training_pixels", "training_pixels_unknown"
"""Tags of a run: how many images these are; the model that it was started from, where nobody noted that one's."""

RUN_URI = re.compile(r"runs:/(\w+)")
MODEL_URI = re.compile(r"models:/(m-\w+)")
VERSION_URI = re.compile(r"models:/([^/@]+)(?:@(.+)|/(\d+))")
"""Its groups are the name, the alias and the number; one of the last two is None."""

SERVED_PACKAGES = ("mlflow", "onnxruntime", "numpy", "opencv-python-headless", "pillow", "greenery")
"""What `captcha.reading` imports, and pandas, which comes with mlflow."""

SOURCE_TAGS = ("mlflow.source.git.commit", "mlflow.source.type")
"""Tags of a run that its model has too: the commit of the code; who trained it, and in which folder, stays there."""

NAMING_FILES = ("data", "val_data", "test_data", "drawn", "texts")
"""Settings that may name a folder or a file: a model has their last part, and digests of the images."""

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "image")]),
    outputs=Schema(
        [
            ColSpec(DataType.string, "text"),
            ColSpec(DataType.double, "confidence"),
            ColSpec(DataType.double, "probability"),
            ColSpec(DataType.boolean, "accepted", required=False),  # null where a model has no threshold
            ColSpec(Array(DataType.double), "character_confidences"),
        ]
    ),
    params=ParamSchema(
        [
            ParamSpec("decoder", DataType.string, "greedy"),
            ParamSpec("beam_width", DataType.long, 10),
            ParamSpec("min_confidence", DataType.double, None),
        ]
        + [ParamSpec(name, DataType.string, "") for name in CONSTRAINTS]  # the empty one is none
    ),
)


def load_recognizer(model_uri: str, engine: Engine = "auto") -> Recognizer:
    """Return the recogniser of a registered model or of runs:/RUN_ID, the one that its server reads with.

    Raises:
        RegistryError: if there is no such model.
        RecognizerError: if its files are damaged, or it has no such engine.
    """
    connect()
    if not _is_model_uri(model_uri):
        raise _names_none(model_uri, or_folder=True)
    with tempfile.TemporaryDirectory() as folder:
        return Recognizer.load(download(model_uri, Path(folder)) / "artifacts" / ARTIFACT, engine)


def download(model_uri: str, folder: Path) -> Path:
    """Copy all files of a model into an empty folder and return where they lie, to load or to serve from there.

    They are those that were logged: the registry has their sha256. Of models logged by earlier versions it has none;
    their recogniser checks its own files as it is loaded.

    Args:
        model_uri: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID or models:/MODEL_ID.
        folder: one that nobody else writes to.

    Raises:
        RegistryError: there is no such model, or a file of it has changed, is missing, or has come in addition.
    """
    connect()
    client = MlflowClient()
    try:
        noted: ModelVersion | LoggedModel
        if match := VERSION_URI.fullmatch(model_uri):
            noted = _registered(client, *match.groups())
            source = version_uri(noted)
        else:
            if match := MODEL_URI.fullmatch(model_uri):
                noted = client.get_logged_model(match[1])
            elif match := RUN_URI.fullmatch(model_uri):
                noted = logged_model(client, client.get_run(match[1]))
            else:
                raise RegistryError(f"{model_uri!r} names no model: {meant(model_uri)}")
            source = f"models:/{noted.model_id}"
        path = Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise _no_model(model_uri, error) from None
    if FILES_TAG in noted.tags:
        check_files(path, noted.tags[FILES_TAG], model_uri)
    return path


def _is_model_uri(uri: str) -> bool:
    """Return whether a URI is of one of the forms that are taken; MLflow would follow others, to any file."""
    return any(form.fullmatch(uri) for form in (RUN_URI, MODEL_URI, VERSION_URI))


def _names_none(uri: str, or_folder: bool = False) -> RegistryError:
    """Return the error for what names no model, where a folder may be named too or not."""
    no_folder = "there is no such folder; " if or_folder and not uri.startswith(("models:/", "runs:/")) else ""
    return RegistryError(f"{uri!r:.200} names no model: {no_folder}{meant(uri)}")


def _no_model(uri: str, error: Exception) -> RegistryError:
    """Return the error for a URI that MLflow cannot follow: what may have been meant, or what MLflow says."""
    if uri.startswith("models:") and _unknown(error):
        return _names_none(uri)
    if _unknown(error):
        return RegistryError(f"{uri}: {first_line(error)}; train one first, or name another")
    full = full_disk(error, [Path(tempfile.gettempdir()), *map(Path, stored_in())])
    return RegistryError(full or f"{uri}: {first_line(error)}")


def _unknown(error: Exception) -> bool:
    """Return whether MLflow says that there is no such thing, and not that it cannot tell."""
    codes = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
    return isinstance(error, MlflowException) and error.error_code in codes


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
    if captcha.is_folder(model):
        return Resolved(model)
    connect()
    if not _is_model_uri(model):
        raise _names_none(model, or_folder=True)
    client = MlflowClient()
    try:
        if match := MODEL_URI.fullmatch(model):
            run_id = client.get_logged_model(match[1]).source_run_id
            return Resolved(model, model_id=match[1], run=client.get_run(run_id) if run_id else None)
        uri, run_id = _run_behind(client, model)
        run = client.get_run(run_id)
    except MlflowException as error:
        raise _no_model(model, error) from None
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
    if match := RUN_URI.fullmatch(uri):
        return uri, match[1]
    match = VERSION_URI.fullmatch(uri)
    if not match:
        raise _names_none(uri)
    version = _registered(client, *match.groups())
    if not version.run_id:
        raise RegistryError(f"{uri}: the registry does not know which run trained it; name another")
    return version_uri(version), version.run_id


def _registered(client: MlflowClient, name: str, alias: str | None, number: str) -> ModelVersion:
    return client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)


def version_uri(version: ModelVersion) -> str:
    """Return models:/NAME/VERSION."""
    return f"models:/{version.name}/{version.version}"


def find(client: MlflowClient, named: str) -> ModelVersion | Run:
    """Return the version or the run that a person names.

    A version is named by its number or `champion`, both of the default model name, by NAME/VERSION or NAME@ALIAS with
    `models:/` before it or without; a run by its id, with `runs:/` before it or without.

    Raises:
        RegistryError: there is none of that name; the line says which there are.
    """
    uri = _uri_of(named)
    if match := RUN_URI.fullmatch(uri):
        try:
            return client.get_run(match[1])
        except MlflowException as error:
            raise RegistryError(f"{named}: {first_line(error)}") from None
    if not (match := VERSION_URI.fullmatch(uri)):
        raise RegistryError(
            f"{named!r} names no version and no run: use a version's number, {CHAMPION}, NAME@ALIAS, NAME/VERSION or "
            "the id of a run"
        )
    try:
        return _registered(client, *match.groups())
    except MlflowException as error:
        told = f"{named!r} names no version: {meant(uri)}" if _unknown(error) else f"{named}: {first_line(error)}"
        raise RegistryError(told) from None


def _uri_of(named: str) -> str:
    if named == CHAMPION:
        return CHAMPION_URI
    if re.fullmatch(r"\d{1,9}", named):
        return f"models:/{MODEL_NAME}/{named}"
    if re.fullmatch(r"[0-9a-f]{32}", named):
        return f"runs:/{named}"
    return named if named.startswith(("models:/", "runs:/")) else f"models:/{named}"


def log_weights(content: bytes, numbered: bool = True) -> None:
    """Log a safetensors file that a training can start from, and its sha256, to the active run.

    `numbered` as for `Outbox.put`.
    """
    log_file(f"{WEIGHTS_FOLDER}/{WEIGHTS_FILE}", lambda path: path.write_bytes(content), numbered=numbered)
    log_tags({f"sha256.{WEIGHTS_FILE}": hashlib.sha256(content).hexdigest()}, numbered)


def log_seen(seen: SeenPixels, numbered: bool = True) -> None:
    """Log which pixels a training saw, beside its weights, to the active run."""
    log_file(f"{WEIGHTS_FOLDER}/{SEEN_FILE}", lambda path: path.write_bytes(seen.to_bytes()), numbered=numbered)
    log_tags({SEEN_TAG: seen.count, **({UNKNOWN_TAG: seen.unknown} if seen.unknown else {})}, numbered)


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


OWN = "own"
"""Stands for the model that the run itself logs, whose id is not known before it is sent."""

EXAMPLE = "example"


def log_model(recognizer: Path, example: bytes, step: int, dataset: tuple[str, str] | None = None) -> None:
    """Log the recogniser in a folder to the active run as a model that MLflow can serve.

    Args:
        recognizer: the folder, named `ARTIFACT`: the model keeps it in `artifacts/` under its own name.
        example: an image file's content, for the model's input example.
        step: the epoch, or the round, that the weights are of.
        dataset: name and digest of the data set that the metrics of validation at this step were measured on.
    """
    assert recognizer.name == ARTIFACT
    with tempfile.TemporaryDirectory() as temporary:
        files = Path(temporary) / "files"
        files.mkdir()
        shutil.copytree(recognizer, files / ARTIFACT)
        (files / EXAMPLE).write_bytes(example)
        active_outbox().put("model", {"step": step, "dataset": dataset}, files)


def send_model(run_id: str, files: Path, step: int, dataset: Sequence[str] | None) -> None:
    """Make a run's model of what `log_model` put into the outbox, or complete it; link the metrics at its step."""
    client = MlflowClient()
    run = client.get_run(run_id)
    if not (run.outputs and run.outputs.model_outputs):
        model = _begun_model(client, run)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            _save_model(folder, files, Model(run_id=run_id, model_id=model.model_id))
            client.set_logged_model_tags(model.model_id, {FILES_TAG: files_tag(folder)})
            client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    if dataset:
        _link_metrics(client, run_id, own_model_id(run_id), step, dataset)


def _begun_model(client: MlflowClient, run: Run) -> LoggedModel:
    """Return the logged model that an earlier attempt began, or a new one."""
    begun = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    if begun:
        return begun[0]
    return client.create_logged_model(
        run.info.experiment_id,
        name=re.sub(r"[/:.%\"']", "-", run.info.run_name),  # MLflow allows these in no model's name
        source_run_id=run.info.run_id,
        tags={key: value for key, value in run.data.tags.items() if key in SOURCE_TAGS},
        params={key: short_data(value) if key in NAMING_FILES else value for key, value in run.data.params.items()},
    )


def _save_model(folder: Path, files: Path, described: Model) -> None:
    """Write the model's folder as MLflow loads it: the recogniser, and the code that reads with it."""
    package = Path(captcha.__file__).parent
    with tempfile.TemporaryDirectory() as temporary:
        code = Path(temporary) / package.name
        shutil.copytree(package / "reading", code / "reading", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(package / "__init__.py", code)
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(package / "reading" / "serving.py"),
            code_paths=[str(code)],
            artifacts={ARTIFACT: str(files / ARTIFACT)},
            signature=SIGNATURE,
            input_example=pd.DataFrame({"image": [base64.b64encode((files / EXAMPLE).read_bytes()).decode()]}),
            pip_requirements=[f"{each}=={version(each)}" for each in SERVED_PACKAGES],
            mlflow_model=described,
        )
    _leave_out_paths(folder)


def _leave_out_paths(model: Path) -> None:
    """Take out of MLmodel where this machine keeps the code and the recogniser: who serves the model need not know.

    MLflow finds both beside MLmodel: of the code's path it takes the name alone.
    """
    description = Model.load(str(model))
    function = description.flavors["python_function"]
    function["model_code_path"] = Path(function["model_code_path"]).name
    function["artifacts"][ARTIFACT]["uri"] = function["artifacts"][ARTIFACT]["path"]
    description.save(str(model / MLMODEL_FILE_NAME))


def own_model_id(run_id: str) -> str:
    """Return the id of the model that a run has logged."""
    client = MlflowClient()
    return str(logged_model(client, client.get_run(run_id)).model_id)


def _link_metrics(client: MlflowClient, run_id: str, model_id: str, step: int, dataset: Sequence[str]) -> None:
    """Show on a model's page the metrics that its run has at a step, those of validation beside their data set.

    `mlflow.pyfunc.log_model` would show all that the run has there: the processor's load first, and no data set.
    """
    shown = []
    for key in client.get_run(run_id).data.metrics:
        name, digest = dataset if key.startswith("val/") else (None, None)
        for each in client.get_metric_history(run_id, key) if not key.startswith("system/") else ():
            if each.step == step and each.model_id is None:  # the same point, so that the run gets none twice
                shown.append(Metric(key, each.value, each.timestamp, step, model_id, name, digest, run_id))
    client.log_batch(run_id, metrics=shown)


def fact(run: Run, name: str) -> str:
    """Return what a run has found, a tag; runs of the first versions have most of it as params.

    The tag comes first: `mlflow run` logs params as it has quoted them for the shell.

    Raises:
        KeyError: the run has neither.
    """
    tags, params = run.data.tags, run.data.params
    return tags[name] if name in tags else params[{"vocabulary": "vocabulary_used"}.get(name, name)]


def logged_model(client: MlflowClient, run: Run) -> LoggedModel:
    """Return the recogniser that a run has logged, the last one whose files are there whole."""
    for output in reversed(run.outputs.model_outputs if run.outputs else []):
        model = client.get_logged_model(output.model_id)
        if model.status == LoggedModelStatus.READY:
            return model
    raise RegistryError(f"run {run.info.run_id} holds no model: it did not end its training")


def first_line(error: BaseException) -> str:
    """Return in one line why something failed."""
    return cause(error)
