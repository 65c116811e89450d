"""What is known of registered versions and of runs: what they hold, and in which settings and metrics two differ."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from captcha.evaluation.metrics import wilson_interval
from captcha.reading.recognizer import ARTIFACT
from captcha.settings import CONTROLS, NONE, SETTINGS_OF, Settings, written
from captcha.tracking.champion import history
from captcha.tracking.descriptions import measured
from captcha.tracking.models import fact, find, logged_model, version_uri
from captcha.tracking.naming import not_registered
from captcha.tracking.promotion import DECISION_TAG
from captcha.tracking.runs import RegistryError, connect


@dataclass(frozen=True)
class Measured:
    """What a model reads of a set of images; None where it is not known."""

    data: str | None
    exact_match: float
    low: float | None
    """The 95 % interval, with `high`."""
    high: float | None
    cer: float | None
    images: int | None
    run_id: str | None = None
    date: str | None = None


@dataclass(frozen=True)
class Version:
    """A registered version as a table has it."""

    name: str
    version: int
    aliases: list[str]
    test: Measured | None
    """Of the test part of its training; None if there were no labels."""
    bytes: int | None
    """Size of the recogniser's files; None where they are gone."""
    date: str
    """As in 2026-01-31."""
    decision: str | None = None
    """How it was judged beside the champion the last time."""


@dataclass(frozen=True)
class Known:
    """Everything that is known of a run, or of a version and the run that trained it."""

    run_id: str | None
    run_name: str | None
    status: str | None
    job: str | None
    versions: list[Version]
    """The one that was asked for, or all that hold the run's model."""
    settings: dict[str, str]
    """Those that differ from their defaults."""
    data: str | None
    backbone: str | None
    vocabulary: str | None
    parent: str | None
    """The model that the training started from."""
    test: Measured | None
    metrics: dict[str, float]
    """The last value of each of the run's."""
    evaluations: list[Measured]
    """By `captcha evaluate`, the latest first."""
    moves: list[str]
    """The moves of the champion's alias to or from the versions, the latest first."""
    links: list[str]
    """MLflow's pages."""


@dataclass(frozen=True)
class Difference:
    """Two versions or runs side by side; a value that one of them does not have is None."""

    settings: dict[str, tuple[str | None, str | None]]
    """Those that differ."""
    metrics: dict[str, tuple[float | None, float | None]]
    """The last value of each metric."""
    same_test: bool | None
    """Whether both were tested on the same images; None where one was not tested, or does not say."""


def versions(name: str | None = None) -> list[Version]:
    """Return all registered versions, or those of one model, the latest first.

    Raises:
        RegistryError: there is no registered model of this name.
    """
    connect()
    client = MlflowClient()
    models = {model.name: model.aliases for model in mlflow.search_registered_models()}
    if name is not None and name not in models:
        raise RegistryError(not_registered(name))
    found = [
        version
        for each in sorted(models if name is None else [name])
        for version in mlflow.search_model_versions(filter_string=f"name = '{each}'")
    ]
    found.sort(key=lambda version: (version.name, -int(version.version)))
    return [_version(client, version, models[version.name], _run_of(client, version)) for version in found]


def moves(name: str) -> list[str]:
    """Return the moves of a registered model's champion, the latest first."""
    return [move.line for move in history(MlflowClient(), name)]


def show(named: str) -> Known:
    """Return what is known of a version or a run.

    Raises:
        RegistryError: there is none of that name.
    """
    connect()
    client = MlflowClient()
    found = find(client, named)
    run = _run_of(client, found) if isinstance(found, ModelVersion) else found
    registered = [found] if isinstance(found, ModelVersion) else _versions_of(client, found)
    aliases = {version.name: client.get_registered_model(version.name).aliases for version in registered}
    rows = [_version(client, version, aliases[version.name], run) for version in registered]
    tags = registered[0].tags if registered else {}

    def known(name: str, tag: str) -> str | None:
        return _fact(run, name) or tags.get(tag)

    settings = _settings(run) if run else {}
    defaults = _defaults(_job(run)) if run else {}
    return Known(
        run_id=run.info.run_id if run else None,
        run_name=run.info.run_name if run else None,
        status=run.info.status if run else None,
        job=_job(run) if run else None,
        versions=rows,
        settings={key: value for key, value in settings.items() if value != defaults.get(key)},
        data=known("data", "data"),
        backbone=known("backbone", "backbone"),
        vocabulary=known("vocabulary", "vocabulary"),
        parent=known("init_used", "init"),
        test=rows[0].test if rows else _test(tags, run),
        metrics=_metrics(run) if run else {},
        evaluations=list(_evaluations(client, registered, run)),
        moves=[
            move.line
            for version in registered
            for move in history(client, version.name)
            if int(version.version) in (move.before, move.after)
        ],
        links=_links(registered, run),
    )


def differences(first: str, second: str) -> Difference:
    """Return in which settings two versions or runs differ, and the metrics of both.

    Raises:
        RegistryError: there is none of one of the names, or no run is known to have trained a version.
    """
    connect()
    client = MlflowClient()
    runs = []
    for named in (first, second):
        found = find(client, named)
        run = _run_of(client, found) if isinstance(found, ModelVersion) else found
        if run is None:
            raise RegistryError(f"{named}: the run that trained it is gone; with a folder, the two can be compared")
        runs.append(run)
    settings = [_settings(run) for run in runs]
    metrics = [_metrics(run) for run in runs]
    digests = [_fact(run, "test_digest") for run in runs]
    return Difference(
        {key: pair for key, pair in _pairs(*settings).items() if pair[0] != pair[1]},
        _pairs(*metrics),
        None if None in digests else digests[0] == digests[1],
    )


def _pairs(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (first.get(key), second.get(key)) for key in sorted(first.keys() | second.keys())}


def _version(client: MlflowClient, version: ModelVersion, aliases: Mapping[str, Any], run: Run | None) -> Version:
    return Version(
        version.name,
        int(version.version),
        sorted(alias for alias, number in aliases.items() if int(number) == int(version.version)),
        _test(version.tags, run),
        _bytes(client, version.tags.get("model_id")),
        _date(version.creation_timestamp),
        version.tags.get(DECISION_TAG),
    )


def _run_of(client: MlflowClient, version: ModelVersion) -> Run | None:
    """Return the run that trained a version, None where it is gone."""
    with contextlib.suppress(MlflowException):
        return client.get_run(version.run_id) if version.run_id else None
    return None


def _versions_of(client: MlflowClient, run: Run) -> list[ModelVersion]:
    """Return the versions that hold a run's model."""
    found = client.search_model_versions(f"run_id = '{run.info.run_id}'")
    return sorted(found, key=lambda version: (version.name, int(version.version)))


def _test(tags: Mapping[str, str], run: Run | None) -> Measured | None:
    """Return what the test of the training gave: of a version by its tags, of a run that is none by its metrics."""
    metrics = run.data.metrics if run else {}
    match = tags.get("exact_match") or metrics.get("test/exact_match")
    if match is None:
        return None
    images = tags.get("test_images") or _fact(run, "test_images")
    count = int(images) if images else None
    low, high = (tags.get(name) or _fact(run, name) for name in ("test_low", "test_high"))
    if count and not (low and high):  # versions of earlier trainings have no interval
        low, high = map(str, wilson_interval(round(float(match) * count), count))
    cer = tags.get("cer") or metrics.get("test/cer")
    tested_on = _fact(run, "test_data")
    return Measured(
        tested_on if tested_on not in (None, NONE) else _fact(run, "data") or tags.get("data"),
        float(match),
        float(low) if low else None,
        float(high) if high else None,
        None if cer is None else float(cer),
        count,
    )


def _evaluations(client: MlflowClient, registered: list[ModelVersion], run: Run | None) -> Iterator[Measured]:
    """Give what `captcha evaluate` has measured of these versions, or of the model of the run."""
    wanted = {f"tags.model = '{version_uri(version)}'" for version in registered}
    if run and not registered:
        with contextlib.suppress(RegistryError):
            wanted.add(f"tags.model_id = '{logged_model(client, run).model_id}'")
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    found = {
        each.info.run_id: each for one in wanted for each in mlflow.search_runs(experiments, one, output_format="list")
    }
    for each in sorted(found.values(), key=lambda run: -run.info.start_time):
        if figures := measured(each, "eval"):
            _, images, low, high = figures
            match, cer = (each.data.metrics[f"eval/{key}"] for key in ("exact_match", "cer"))
            date = _date(each.info.start_time)
            yield Measured(_fact(each, "data"), match, low, high, cer, images, each.info.run_id, date)


def _bytes(client: MlflowClient, model_id: str | None) -> int | None:
    """Return the size of the files of a logged model's recogniser."""
    if not model_id:
        return None
    with contextlib.suppress(MlflowException, OSError):
        files = client.list_logged_model_artifacts(model_id, f"artifacts/{ARTIFACT}")
        return sum(file.file_size or 0 for file in files) or None
    return None


def _fact(run: Run | None, name: str) -> str | None:
    with contextlib.suppress(KeyError):
        return fact(run, name) if run else None
    return None


def _job(run: Run) -> str:
    """Return which job a run is of; those of the first versions did not say."""
    params = run.data.params
    told: str | None = run.data.tags.get("job")
    return told or ("adapt" if "threshold" in params else "train" if "backbone" in params else "evaluate")


def _settings(run: Run) -> dict[str, str]:
    """Return the settings of a run and the numbers of its recipe that differ, each written in one way."""
    job = _job(run)
    defaults, params = _defaults(job), run.data.params
    if job not in SETTINGS_OF:
        return dict(params)
    recipe = {key: value for key, value in params.items() if key.startswith("recipe.")}
    # Of the facts, which stand in tags, only the data has the meaning of the setting: as the person wrote it.
    named = {key: _fact(run, key) if key == "data" else params.get(key, default) for key, default in defaults.items()}
    return {key: _canonical(SETTINGS_OF[job], key, value) for key, value in named.items() if value is not None} | recipe


def _metrics(run: Run) -> dict[str, float]:
    """Return the last value of each metric, without those of the machine."""
    return {key: value for key, value in run.data.metrics.items() if not key.startswith("system/")}


def _defaults(job: str) -> dict[str, str | None]:
    """Return the default of each of a job's settings as a run's params write it, None where it has none."""
    fields = SETTINGS_OF[job].model_fields if job in SETTINGS_OF else {}
    return {
        key: None if field.is_required() else str(written(field.default))
        for key, field in fields.items()
        if key not in CONTROLS
    }


def _canonical(settings: type[Settings], name: str, value: str) -> str:
    """Return a setting as Python writes it: `mlflow run` logs what a person wrote, 1e-3 or true."""
    kind = settings.model_fields[name].annotation
    with contextlib.suppress(ValueError):
        return str(kind(value)) if kind in (int, float) else value.capitalize() if kind is bool else value
    return value


def _date(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d}"


def _links(registered: list[ModelVersion], run: Run | None) -> list[str]:
    """Return the addresses of MLflow's pages; of a database, those that a bare `mlflow ui` has."""
    tracking = str(mlflow.get_tracking_uri())
    server = tracking.rstrip("/") if tracking.startswith("http") else "http://127.0.0.1:5000"
    pages = [f"{server}/#/models/{version.name}/versions/{version.version}" for version in registered]
    return pages + ([f"{server}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"] if run else [])
