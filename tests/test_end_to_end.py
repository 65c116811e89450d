"""Whole jobs as a person starts them: real processes, real HTTP, real signals. A tiny training serves several tests."""

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from tests.processes import (
    BIN,
    CAPTCHA,
    MLFLOW,
    PATIENCE,
    ROOT,
    call,
    copy_project,
    environment,
    fetch,
    served,
    started,
    until,
)

pytestmark = pytest.mark.slow

# The least that learns to read the two large digits of the images below: seconds an epoch.
TINY = {"backbone": "compact", "height": "32", "batch_size": "8", "learning_rate": "0.003"}
PARAMETERS = [word for key, value in TINY.items() for word in ("-P", f"{key}={value}")]
OPTIONS = [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items()]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a hundred PNGs, 64 x 32 pixels, each of two large digits that its name tells."""
    folder = tmp_path_factory.mktemp("some images")
    for text in (f"{number:02}" for number in range(100)):
        image = cv2.imencode(".png", _two_digits(text))[1]
        (folder / f"{text}.png").write_bytes(image.tobytes())
    return folder


def _two_digits(text: str) -> Any:
    image = np.full((32, 64, 3), 255, np.uint8)
    return cv2.putText(image, text, (8, 26), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (0, 0, 0), 3)


@dataclass(frozen=True)
class Job:
    """A training that `mlflow run` has done with a tracking server."""

    project: Path
    tracking: str
    client: MlflowClient
    run: Run
    printed: str

    def call(self, *command: str | Path, cwd: Path | None = None) -> str:
        """Return what a command prints that tracks to the same server."""
        return call(*command, cwd=cwd or self.project, MLFLOW_TRACKING_URI=self.tracking)

    def run_of(self, entry_point: str, experiment: str = "captcha") -> Run:
        """Return the one run of an entry point in an experiment."""
        found = self.client.get_experiment_by_name(experiment)
        assert found
        condition = f"tags.`mlflow.project.entryPoint` = '{entry_point}'"
        [run] = self.client.search_runs([found.experiment_id], condition)
        return run


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real `mlflow server` on SQLite."""
    folder = tmp_path_factory.mktemp("server")
    storage = ("--backend-store-uri", "sqlite:///tracked.db", "--artifacts-destination", "./artifacts")
    with served(folder / "log", "health", MLFLOW, "server", *storage, "--workers", "1", cwd=folder) as address:
        yield address


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tracking: str, images: Path) -> Job:
    """A training by `mlflow run`, called from another folder than the project's, whose path has spaces."""
    project = copy_project(tmp_path_factory.mktemp("it") / "a project with spaces")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    command = (MLFLOW, "run", project, "--env-manager", "local", "-P", f"data={images}", "-P", "epochs=3")
    printed = call(*command, *PARAMETERS, cwd=elsewhere, MLFLOW_TRACKING_URI=tracking)
    assert list(elsewhere.iterdir()) == []
    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name("captcha")
    assert experiment
    [run] = client.search_runs([experiment.experiment_id], "tags.`mlflow.project.entryPoint` = 'main'")
    [left] = client.search_runs(["0"])  # what `mlflow run` itself has made
    assert (left.info.status, left.info.run_name) == ("FINISHED", run.info.run_name)
    assert run.info.run_id in left.data.tags["mlflow.note.content"]
    return Job(project, tracking, client, run, printed)


def predictions_of(client: MlflowClient, run: Run, folder: Path, prefix: str = "test") -> dict[str, tuple[str, float]]:
    """Return text and confidence of each file in the table that a run has logged."""
    path = client.download_artifacts(run.info.run_id, f"{prefix}_predictions.json", str(folder))
    table = json.loads(Path(path).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    return {Path(row["file"]).name: (json.loads(row["prediction"]), row["confidence"]) for row in rows}


def test_the_run_holds_parameters_metrics_pictures_and_tables(job: Job, images: Path) -> None:
    assert job.run.info.status == "FINISHED"
    params, metrics = job.run.data.params, job.run.data.metrics
    assert TINY.items() <= params.items()
    tags = job.run.data.tags
    assert (tags["data"], params["data"], params["epochs"]) == (str(images), str(images), "3")
    assert tags["vocabulary"] == "0123456789"
    for key in ("val/loss", "val/exact_match", "val/cer"):
        assert [each.step for each in job.client.get_metric_history(job.run.info.run_id, key)] == [0, 1, 2, 3]
    for key in ("train/loss", "train/lr", "train/images_per_second", "train/epoch_seconds"):
        assert [each.step for each in job.client.get_metric_history(job.run.info.run_id, key)] == [1, 2, 3]
    assert int(tags["test_right"]) / int(tags["test_images"]) == metrics["test/exact_match"]
    assert float(tags["test_low"]) <= metrics["test/exact_match"] <= float(tags["test_high"])
    assert any(key.startswith("system/") for key in metrics)
    assert job.run.inputs is not None
    assert {dataset.tags[0].value for dataset in job.run.inputs.dataset_inputs} == {"train", "validation", "test"}
    pictures = [file.path for file in job.client.list_artifacts(job.run.info.run_id, "images")]
    assert {int(re.split(r"[+%]", name)[2]) for name in pictures} == {0, 3}
    files = {file.path for file in job.client.list_artifacts(job.run.info.run_id)}
    assert files >= {"test_predictions.json", "test_confusion.json", "learning_curves.png", "weights"}


def test_the_registered_version_is_the_champion_and_tells_where_it_comes_from(job: Job, images: Path) -> None:
    version = job.client.get_model_version_by_alias("captcha-crnn", "champion")
    assert (version.version, version.run_id) == ("1", job.run.info.run_id)
    assert version.tags["data"] == images.name
    assert f"`{images.name}`" in str(version.description)
    assert version.tags["test_digest"] == job.run.data.tags["test_digest"]
    assert version.tags["exact_match"] == f"{job.run.data.metrics['test/exact_match']:.4f}"


def test_four_ways_read_the_same(job: Job, images: Path, tmp_path: Path) -> None:
    """The training's test, the entry point `evaluate`, `captcha predict`, and `mlflow models serve` over HTTP."""
    trained = predictions_of(job.client, job.run, tmp_path)
    run_project = (MLFLOW, "run", job.project, "--env-manager", "local", "-e")
    job.call(*run_project, "evaluate", "-P", f"data={images}", cwd=tmp_path)
    evaluation = job.run_of("evaluate")
    assert evaluation.info.status == "FINISHED"
    evaluated = predictions_of(job.client, evaluation, tmp_path, "eval")
    assert evaluation.data.tags["model"] == "models:/captcha-crnn/1"
    assert int(evaluation.data.tags["overlap"]) == len(list(images.iterdir())) - len(trained)  # it was trained on these

    rows = json.loads(job.call(*CAPTCHA, "predict", images, "--json"))
    predicted = {Path(row["file"]).name: (row["text"], row["confidence"]) for row in rows}

    files = sorted(images.iterdir())
    request = {"dataframe_split": {"columns": ["image"], "data": [[_base64(file)] for file in files]}}
    serve = (MLFLOW, "models", "serve", "-m", "models:/captcha-crnn@champion", "--env-manager", "local")
    log = tmp_path / "serve.log"
    with served(log, "ping", *serve, cwd=tmp_path, MLFLOW_TRACKING_URI=job.tracking) as address:
        answer = json.loads(fetch(f"{address}/invocations", request))["predictions"]
    answered = {file.name: (row["text"], row["confidence"]) for file, row in zip(files, answer, strict=True)}

    def texts(readings: dict[str, tuple[str, float]]) -> dict[str, str]:
        return {file: text for file, (text, _) in readings.items()}

    assert len(set(texts(predicted).values())) > 5, "the model reads too little for agreement to mean anything"
    assert texts(predicted) == texts(answered)
    assert trained
    tested = {file: reading for file, reading in predicted.items() if file in trained}
    assert texts(trained) == texts(evaluated) == texts(tested)
    for one, other in ((evaluated, tested), (answered, predicted)):
        assert [one[file][1] for file in other] == pytest.approx([c for _, c in other.values()], abs=1e-4)


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def test_json_stands_alone_on_standard_output(job: Job, images: Path) -> None:
    """With a tracking server MLflow prints where to find the run, elsewhere than there."""
    figures = json.loads(job.call(*CAPTCHA, "evaluate", images, "--json"))
    assert figures["all"]["n"] == len(list(images.iterdir()))
    assert figures["n"] == int(job.run.data.tags["test_images"])  # the others it was trained on
    assert (figures["model"], figures["version"]) == ("models:/captcha-crnn/1", 1)
    assert figures["exact_match_low"] <= figures["exact_match"] <= figures["exact_match_high"]


def test_the_entry_point_predict_prints_the_reading(job: Job, images: Path, tmp_path: Path) -> None:
    image = images / "30.png"
    command = (MLFLOW, "run", job.project, "--env-manager", "local", "-e", "predict", "-P", f"image={image}")
    lines = job.call(*command, cwd=tmp_path).splitlines()  # MLflow's own among them
    assert [line.startswith(f"{image}\t") for line in lines].count(True) == 1
    run = job.run_of("predict", "Default")
    assert (run.info.run_name, run.info.status) == ("predict", "FINISHED")
    assert run.data.tags["mlflow.note.content"].startswith("This command tracks nothing. `captcha predict ")


def test_an_entry_point_that_fails_before_its_run_begins_says_so(job: Job, tmp_path: Path) -> None:
    command = (MLFLOW, "run", job.project, "--env-manager", "local", "-P", "epochs=0", "--experiment-name", "mistakes")
    variables = {"MLFLOW_TRACKING_URI": job.tracking}
    done = subprocess.run(command, cwd=tmp_path, env=environment(**variables), capture_output=True, timeout=PATIENCE)
    assert done.returncode != 0
    run = job.run_of("main", "mistakes")
    assert (run.info.run_name, run.info.status) == ("train", "FAILED")
    assert run.data.tags["mlflow.note.content"].startswith("--epochs: Input should be greater than or equal to 1 `")


def test_the_entry_points_draw_and_check_do_so_in_the_project(job: Job, tmp_path: Path) -> None:
    command = (MLFLOW, "run", job.project, "--env-manager", "local", "-e")
    job.call(*command, "draw", "-P", "out=some drawn", "-P", "count=3", "-P", "sheet=sheet.png", cwd=tmp_path)
    assert len(list((job.project / "some drawn").iterdir())) == 3
    assert (job.project / "sheet.png").is_file()
    assert "3 with 3 different labels" in job.call(*command, "check", "-P", "data=some drawn", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_registry_is_read_and_the_champion_moved_over_http(job: Job, images: Path) -> None:
    run_id = job.run.info.run_id
    job.call(*CAPTCHA, "register", run_id, "--name=moved")
    [row] = json.loads(job.call(*CAPTCHA, "models", "moved", "--json"))
    version = job.client.get_model_version("moved", "1")
    assert (row["version"], row["aliases"]) == (1, ["champion"])
    assert (row["test"]["data"], row["test"]["images"]) == (str(images), int(version.tags["test_images"]))
    assert 1e6 < row["bytes"] < 1e8
    assert json.loads(job.call(*CAPTCHA, "show", "moved@champion", "--json"))["run_id"] == run_id
    outcome = json.loads(job.call(*CAPTCHA, "compare", run_id, "moved/1", images, "--json"))
    assert (outcome["images"], outcome["p"]) == ([], 1)
    job.client.delete_registered_model_alias("moved", "champion")
    assert job.call(*CAPTCHA, "promote", "moved/1") == (
        "moved: the champion has moved, none → version 1 (the first champion)\n"
    )


def test_the_entry_point_register_registers_once(job: Job, tmp_path: Path) -> None:
    run_id = job.run.info.run_id
    command = (MLFLOW, "run", job.project, "--env-manager", "local", "-e", "register", "-P", "name=another")
    assert "another version 1 registered" in job.call(*command, "-P", f"run_id={run_id}", cwd=tmp_path)
    assert "this model already" in job.call(*CAPTCHA, "register", run_id, "--name=another")
    [version] = job.client.search_model_versions("name = 'another'")
    assert version.run_id == job.run.info.run_id
    assert job.client.get_model_version_by_alias("another", "champion").version == version.version


def check_ui(address: str, project: Path) -> None:
    """Check that an `mlflow ui` shows the one training: its run, whose files it lists and hands out, and its model."""
    api = f"{address}/ajax-api/2.0/mlflow"
    experiments = json.loads(fetch(f"{api}/experiments/search", {"max_results": 100}))["experiments"]
    found = {"experiment_ids": [each["experiment_id"] for each in experiments], "filter": "metrics.`test/cer` >= 0"}
    [run] = json.loads(fetch(f"{api}/runs/search", found))["runs"]
    assert run["info"]["status"] == "FINISHED"
    run_id = run["info"]["run_id"]

    listed = json.loads(fetch(f"{api}/artifacts/list", run_id=run_id))["files"]
    names = {file["path"] for file in listed if not file["is_dir"]}
    assert names >= {"test_predictions.json", "test_confusion.png", "learning_curves.png"}
    pictures = json.loads(fetch(f"{api}/artifacts/list", run_id=run_id, path="images"))["files"]
    for path in [*names, *(file["path"] for file in pictures)]:
        content = fetch(f"{address}/get-artifact", run_uuid=run_id, path=path)
        assert content.startswith(
            {".png": b"\x89PNG", ".json": b"{", ".webp": b"RIFF", ".md": b"**"}[Path(path).suffix]
        )

    latest = json.loads(fetch(f"{api}/registered-models/get", name="captcha-crnn"))["registered_model"]
    assert [each["alias"] for each in latest["aliases"]] == ["champion"]
    [model] = run["outputs"]["model_outputs"]
    models = json.loads(fetch(f"{api}/logged-models/{model['model_id']}/artifacts/directories"))["files"]
    assert "MLmodel" in {file["path"] for file in models}
    assert list((project / "mlruns").iterdir())


BARE: tuple[str | Path, ...] = (MLFLOW, "run", ".", "-P", "epochs=3", *PARAMETERS)


def test_a_bare_ui_started_first_shows_the_run_that_follows(tmp_path: Path, images: Path) -> None:
    """The database is then the UI's, whose default experiment keeps its artifacts where no local run can write."""
    project = copy_project(tmp_path / "project")
    with served(tmp_path / "log", "health", MLFLOW, "ui", "--workers", "1", cwd=project) as address:
        assert (project / "mlflow.db").exists()
        call(*BARE, "--env-manager", "local", "-P", f"data={images}", cwd=project)
        check_ui(address, project)
        assert call(*CAPTCHA, "predict", images / "30.png", cwd=project).count("\t") == 2


def test_commands_that_start_together_in_a_new_folder_share_one_database(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    with contextlib.ExitStack() as stack:
        command = (*CAPTCHA, "register", "0" * 32)
        processes = [stack.enter_context(started(log, *command, cwd=project)) for log in logs]
        assert [process.wait(120) for process in processes] == [2, 2, 2]
    for log in logs:
        assert "Traceback" not in log.read_text()
        assert log.read_text().startswith("captcha: ")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wheels with the names and versions that conda.yaml pins, all empty but one.

    That one lends the packages of the tested environment: it brings a .pth file with their folder. They stand in for
    gigabytes of downloads; environments, their resolution and their installation are real.
    """
    folder = tmp_path_factory.mktemp("wheels")
    [requirements] = [each["pip"] for each in conda_dependencies() if isinstance(each, dict)]
    for requirement in [*requirements, "pip==999"]:
        name, version = requirement.split("==")
        stem = f"{name.replace('-', '_')}-{version}"
        with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
            information = f"{stem}.dist-info"
            wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{information}/RECORD", "")
            if name == "mlflow":
                wheel.writestr("lent.pth", f"{sysconfig.get_path('purelib')}\n")
    return folder


def conda_dependencies() -> list[Any]:
    dependencies: list[Any] = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    return dependencies


other_python = pytest.mark.skipif(
    f"python={sys.version_info.major}.{sys.version_info.minor}" not in conda_dependencies(),
    reason="the tested environment's packages are for another Python than conda.yaml asks for",
)


@other_python
def test_uv_makes_the_environment(tmp_path: Path, images: Path, job: Job, wheels: Path) -> None:
    """uv makes it for real, from conda.yaml as it is; the wheels it finds are stand-ins (see `wheels`)."""
    variables = {
        "MLFLOW_ENV_ROOT": str(tmp_path / "environments"),
        "UV_CACHE_DIR": str(tmp_path / "cache"),
        "UV_FIND_LINKS": str(wheels),
        "UV_NO_INDEX": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "MLFLOW_TRACKING_URI": job.tracking,
    }
    command = (MLFLOW, "run", job.project, "--env-manager", "uv", "-e", "predict", "-P", f"image={images / '30.png'}")
    assert f"{images / '30.png'}\t" in call(*command, cwd=tmp_path, **variables)
    [environment] = (tmp_path / "environments").iterdir()
    assert (environment / "pyvenv.cfg").read_text().count("uv = ") == 1


CONDA = """#!/bin/sh
# A stand-in for conda: it knows what MLflow asks of it and makes a virtual environment from the part under pip.
envs="$(dirname "$0")/../envs"
case "$1 $2" in
    "env list") printf '{"envs": ['; ls -d "$envs"/* | sed 's/.*/"&"/' | paste -sd,; printf ']}' ;;
    "env create") # -n NAME --file FILE
        PYTHON -m venv "$envs/$4"
        sed -n 's/^ *- \\(.*==.*\\)/\\1/p' "$6" >"$envs/$4/requirements.txt"
        PIP_NO_INDEX=1 PIP_FIND_LINKS=WHEELS "$envs/$4/bin/pip" install -r "$envs/$4/requirements.txt" ;;
esac
"""
CONDA_SH = 'conda() { [ "$1" = activate ] && . "HOME/envs/$2/bin/activate"; }\n'


@other_python
def test_bare_mlflow_run_makes_the_conda_environment_and_a_ui_shows_it(
    tmp_path: Path, images: Path, wheels: Path
) -> None:
    """MLflow's own path through conda; conda itself is a stand-in (see `CONDA`), and so are the wheels."""
    home = tmp_path / "conda"
    for folder in ("bin", "envs", "etc/profile.d"):
        (home / folder).mkdir(parents=True)
    conda = home / "bin" / "conda"
    conda.write_text(CONDA.replace("PYTHON", sys.executable).replace("WHEELS", str(wheels)))
    conda.chmod(0o755)
    (home / "etc/profile.d/conda.sh").write_text(CONDA_SH.replace("HOME", str(home)))
    project = copy_project(tmp_path / "project")
    call(*BARE, "-P", f"data={images}", cwd=project, MLFLOW_CONDA_HOME=str(home))
    [environment] = (home / "envs").iterdir()
    assert list(environment.glob("lib/*/site-packages/lent.pth"))
    with served(tmp_path / "log", "health", MLFLOW, "ui", "--workers", "1", cwd=project) as address:
        check_ui(address, project)


def next_commands(printed: str) -> dict[str, str]:
    """Return what a training prints at its end, by the labels in front."""
    labels = ("compare the runs", "serve the model", "read one image")
    return {label: line[22:] for line in printed.splitlines() for label in labels if line.startswith(label)}


def check_commands(commands: dict[str, str], folder: Path, log: Path, path: str) -> None:
    """Check that the commands that serve and read work as printed, in a shell in this folder, with this PATH."""
    reading = call("sh", "-c", commands["read one image"], cwd=folder, PATH=path)
    file, text, _ = reading.split("\t")
    image = folder / file  # absolute, or from here
    serve = ("sh", "-c", commands["serve the model"].replace(" -p 5001", ' "$@"'), "sh")
    request = {"dataframe_split": {"columns": ["image"], "data": [[_base64(image)]]}}
    with served(log, "ping", *serve, cwd=folder, PATH=path) as address:
        [answer] = json.loads(fetch(f"{address}/invocations", request))["predictions"]
    assert answer["text"] == text


def experiments_at(address: str) -> set[str]:
    found = json.loads(fetch(f"{address}/api/2.0/mlflow/experiments/search", {"max_results": 100}))["experiments"]
    return {each["name"] for each in found}


def test_the_printed_commands_work_with_a_server(job: Job, tmp_path: Path) -> None:
    commands = next_commands(job.printed)
    address, page = commands["compare the runs"].split("/#/")
    assert address == job.tracking
    assert page.startswith(f"experiments/{job.run.info.experiment_id}/runs?")
    check_commands(commands, tmp_path, tmp_path / "serve.log", os.environ["PATH"])


@pytest.mark.parametrize("by", ["mlflow run", "captcha"])
def test_the_printed_commands_work_with_another_database(by: str, tmp_path: Path, images: Path) -> None:
    """From another folder than the project's, by a shell that knows no MLFLOW_TRACKING_URI."""
    folder, project = tmp_path / "a shell's folder", copy_project(tmp_path / "a project")
    for needed in (folder, tmp_path / "another place"):
        needed.mkdir()
    here = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    command: tuple[str | Path, ...] = (*CAPTCHA, "train", f"--data={images}", "--epochs=2", *OPTIONS)
    if by == "mlflow run":  # as `make train` does, with a PATH that the shell does not have
        command = (MLFLOW, "run", project, "--env-manager", "local", "-P", f"data={images}", "-P", "epochs=2")
        command += tuple(PARAMETERS)
    uri = f"sqlite:///{tmp_path / 'another place'}/runs.db"
    experiment = f"by {by}"
    trained = call(*command, cwd=folder, PATH=here, MLFLOW_TRACKING_URI=uri, MLFLOW_EXPERIMENT_NAME=experiment)
    path = here if by == "captcha" else os.environ["PATH"]
    commands = next_commands(trained)
    compare = ("sh", "-c", commands["compare the runs"] + ' "$@"', "sh", "--workers", "1")
    with served(tmp_path / "ui.log", "health", *compare, cwd=folder, PATH=path) as address:
        assert experiments_at(address) >= {experiment}
    check_commands(commands, folder, tmp_path / "serve.log", path)


def test_a_training_on_a_terminal_shows_one_bar_under_its_messages(
    on_terminal: Callable[..., tuple[str, list[str]]], tmp_path: Path, images: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/runs.db"
    command = (*CAPTCHA, "train", f"--data={images}", "--epochs=2", *OPTIONS)
    variables = environment(MLFLOW_TRACKING_URI=uri, PYTHONPATH=str(ROOT))
    written, shown = on_terminal(*command, cwd=tmp_path, env=variables)
    assert shown[0] == "loading PyTorch and MLflow …"
    frames = re.findall(r"\repoch (\d)/2  [^\r]*?(█+)[^\r]*? left", written)
    assert {epoch for epoch, _ in frames} == {"1", "2"}
    last_of_first = [len(bar) for epoch, bar in frames if epoch == "1"][-1]
    assert all(len(bar) > last_of_first / 2 for epoch, bar in frames if epoch == "2"), "a second bar began"
    assert [line.split()[1] for line in shown if re.fullmatch(r"epoch .* images/s(  \*)?", line)] == ["1/2", "2/2"]
    assert not [line for line in shown if line.endswith(" left")], "the bar was left behind"


def interrupt_group(process: psutil.Process) -> None:
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C


def terminate_group(process: psutil.Process) -> None:
    os.killpg(process.pid, signal.SIGTERM)


def hang_up_group(process: psutil.Process) -> None:
    os.killpg(process.pid, signal.SIGHUP)  # as a terminal does that is closed


def kill_child(process: psutil.Process) -> None:
    [child] = captchas_below(process)
    child.kill()


def captchas_below(process: psutil.Process) -> list[psutil.Process]:
    """Return the `python -m captcha` that a process has started, once it is there."""
    return [each for each in process.children(recursive=True) if each.cmdline()[1:3] == ["-m", "captcha"]]


def training(by: str, images: Path, name: str) -> tuple[str | Path, ...]:
    """Return the command that trains a model of that name, for far longer than a test waits."""
    if by == "captcha":
        return (*CAPTCHA, "train", f"--data={images}", f"--name={name}", *OPTIONS)
    where = ("--experiment-name", "captcha") if by == "mlflow run in captcha" else ()
    return (
        MLFLOW,
        "run",
        ".",
        *where,
        "--env-manager",
        "local",
        "-P",
        f"data={images}",
        "-P",
        f"name={name}",
        *PARAMETERS,
    )


def runs_of(job: Job, name: str, condition: str = "") -> list[Run]:
    """Return the runs that train a model of this name; `mlflow run` leaves a second one elsewhere."""
    experiments = [each.experiment_id for each in job.client.search_experiments() if each.name == "captcha"]
    return list(job.client.search_runs(experiments, f"params.name = '{name}'{condition}"))


@pytest.mark.parametrize(
    ("by", "end", "statuses"),
    [
        ("captcha", interrupt_group, {"KILLED"}),
        ("captcha", hang_up_group, {"KILLED"}),
        ("mlflow run", interrupt_group, {"KILLED", "FAILED"}),
        ("mlflow run", terminate_group, {"KILLED"}),
        # A process that is killed marks nothing: only where the run is the one that `mlflow run` made does it end.
        ("mlflow run in captcha", kill_child, {"FAILED"}),
    ],
)
def test_a_training_that_is_ended_says_so_and_registers_nothing(
    by: str, end: Callable[[psutil.Process], None], statuses: set[str], tmp_path: Path, job: Job, images: Path
) -> None:
    name = f"{by.split()[0]}-{end.__name__}"
    log = tmp_path / "log"
    with started(log, *training(by, images, name), cwd=job.project, MLFLOW_TRACKING_URI=job.tracking) as process:
        until(lambda: runs_of(job, name, " and metrics.`val/loss` > 0"), log, process)
        end(psutil.Process(process.pid))
        assert process.wait(PATIENCE) != 0
        until(lambda: runs_of(job, name)[0].info.status != "RUNNING", log)
    [run] = runs_of(job, name)
    assert run.info.status in statuses
    with pytest.raises(MlflowException, match="not found"):
        job.client.get_registered_model(name)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see what signals a process awaits")
def test_a_run_ended_before_its_training_began_says_so(tmp_path: Path, job: Job, images: Path) -> None:
    """`mlflow run` has made the run, dies of SIGTERM itself, and its child is still busy importing."""
    log = tmp_path / "log"
    command = training("mlflow run in captcha", images, "early")
    with started(log, *command, cwd=job.project, MLFLOW_TRACKING_URI=job.tracking) as process:
        until(lambda: any(map(_awaits_sigterm, captchas_below(psutil.Process(process.pid)))), log, process)
        assert not runs_of(job, "early", " and metrics.`val/loss` > 0")
        terminate_group(process)
        until(lambda: runs_of(job, "early")[0].info.status != "RUNNING", log)
    [run] = runs_of(job, "early")
    assert run.info.status == "KILLED"
    assert run.data.tags["mlflow.note.content"].startswith("terminated `captcha train ")


def _awaits_sigterm(process: psutil.Process) -> bool:
    [caught] = [line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "SigCgt" in line]
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_training_and_what_reads_with_its_model_leave_nothing_in_the_temporary_folder(
    images: Path, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    variables = {"TMPDIR": str(temporary), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    model = ("--model", "models:/captcha-crnn/1")
    commands: list[list[str | Path]] = [
        ["train", "--data", images, "--epochs", "1", *OPTIONS],
        ["evaluate", images, *model],
        ["predict", images / "11.png", *model],
        ["show", "1"],
    ]
    for command in commands:
        subprocess.run(
            [*CAPTCHA, *command], cwd=tmp_path, env=environment(**variables), capture_output=True, timeout=PATIENCE
        )
        assert list(temporary.iterdir()) == [], command
    assert len(MlflowClient(variables["MLFLOW_TRACKING_URI"]).search_model_versions()) == 1


@pytest.mark.parametrize("command", ["predict", "evaluate", "train", "models", "register"])
def test_a_server_that_never_answers_is_told_within_15_seconds(command: str, images: Path, tmp_path: Path) -> None:
    arguments: dict[str, list[str | Path]] = {
        "predict": [images / "11.png"],
        "evaluate": [images],
        "train": ["--data", images],
        "register": ["0"],
    }
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with subprocess.Popen(
            [*CAPTCHA, command, *arguments.get(command, [])],
            cwd=tmp_path,
            env=environment(MLFLOW_TRACKING_URI=f"http://me:secret@{address}", NO_PROXY="*"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            taken, _ = listener.accept()
            began = time.monotonic()  # not before: imports take what the machine lets them
            with taken:
                out, err = process.communicate(timeout=PATIENCE)
    assert time.monotonic() - began < 15
    assert (process.returncode, out) == (2, "")
    assert err == (
        f"captcha: http://{address} does not answer within 8 seconds: start it, or name another store with "
        "MLFLOW_TRACKING_URI\n"
    )


@pytest.mark.parametrize("command", ["", "train", "evaluate", "predict", "register", "check", "draw"])
def test_help_is_there(command: str, tmp_path: Path) -> None:
    assert "--help" in call(*CAPTCHA, *command.split(), "--help", cwd=ROOT)
