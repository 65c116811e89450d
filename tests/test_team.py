"""A team's server as a team uses it: `mlflow server` on a real PostgreSQL, and nothing set but its address."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from tests.processes import CAPTCHA, ROOT, attempt, call, copy_project, served
from tests.team_loggers import value
from tests.team_server import team_server

pytestmark = pytest.mark.slow

LOGGERS, STEPS = 20, 20


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the server, which files go to."""
    return tmp_path_factory.mktemp("team")


@pytest.fixture(scope="module")
def team(files: Path) -> Iterator[str]:
    with team_server(files) as address:
        yield address


def test_a_model_is_trained_validated_promoted_served_and_scores_from_a_folder_that_knows_only_the_servers_address(
    team: str, files: Path, tmp_path: Path, draw_digits: Callable[[Path, int], Path]
) -> None:
    images, project = draw_digits(tmp_path / "images", 60), copy_project(tmp_path / "project")
    (elsewhere := tmp_path / "elsewhere").mkdir()
    known = {"MLFLOW_TRACKING_URI": team, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}

    def captcha(*arguments: str | Path) -> str:
        return call(*CAPTCHA, *arguments, cwd=elsewhere, **known)

    quick = ("--backbone=compact", "--epochs=1")
    captcha("train", f"--data={images}", *quick)
    validated = json.loads(captcha("crossval", images, "--folds=2", *quick, "--json"))
    assert validated["figures"][0]["n"] == 60
    MlflowClient(team).delete_registered_model_alias("captcha-crnn", "champion")  # where one epoch was enough for it
    assert "none → version 1" in captcha("promote", "captcha-crnn/1", "--without-evidence=of one epoch")

    [version] = MlflowClient(team).search_model_versions("name = 'captcha-crnn'")
    runs = MlflowClient(team).search_runs(["1"])
    assert len(runs) == 1 + 1 + 2  # the training, the cross-validation and its parts
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.info.artifact_uri.partition(":")[0] for run in runs} == {"mlflow-artifacts"}
    assert list((files / "artifacts").rglob("model.onnx"))
    assert list(elsewhere.iterdir()) == []

    champion = ("-m", "models:/captcha-crnn@champion")
    with served(tmp_path / "log", "ping", *CAPTCHA, "serve", *champion, cwd=elsewhere, **known) as address:
        image = (images / "07.png").read_bytes()
        asked = urllib.request.Request(f"{address}/invocations", image, {"Content-Type": "image/png"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert answer.headers["x-model-version"] == f"captcha-crnn/{version.version}"
            [read] = json.loads(answer.read())["predictions"]
    [there] = json.loads(captcha("predict", images / "07.png", "--model=models:/captcha-crnn@champion", "--json"))
    assert read["text"] == there["text"]
    scored = json.loads(
        captcha("score", images, tmp_path / "scores", "--model=models:/captcha-crnn@champion", "--json")
    )
    assert (scored["images"], scored["errors"], scored["model"]) == (60, 0, "models:/captcha-crnn/1")
    texts = {row["path"]: row["text"] for row in pq.read_table(tmp_path / "scores").to_pylist()}
    assert len(texts) == 60
    assert texts["07.png"] == read["text"]


def test_of_twenty_runs_that_log_at_once_with_readers_beside_no_metric_is_lost_and_none_stays_open(
    team: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The runs are of small loggers that write as a training does, since two cores bear no twenty trainings."""
    shutil.copytree(ROOT / "captcha", tmp_path / "captcha", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "MLproject", tmp_path)
    client, stop = MlflowClient(team), threading.Event()
    reading: list[float] = []

    def read() -> None:
        while not stop.is_set():
            begun = time.perf_counter()
            names = [each.experiment_id for each in client.search_experiments()]
            for run in client.search_runs(names, max_results=5):
                client.get_metric_history(run.info.run_id, "train/loss")
            reading.append(time.perf_counter() - begun)
            time.sleep(0.2)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        program = (sys.executable, "-m", "tests.team_loggers", str(LOGGERS), str(STEPS))
        printed = call(*program, cwd=tmp_path, MLFLOW_TRACKING_URI=team, PYTHONPATH=path)
    finally:
        stop.set()
        for reader in readers:
            reader.join()

    told = [json.loads(line) for line in printed.splitlines()]
    assert len({each["run"] for each in told}) == LOGGERS
    for each in told:
        run = client.get_run(each["run"])
        assert (run.info.run_name, run.info.status) == (f"logger {each['number']}", "FINISHED")
        losses = client.get_metric_history(each["run"], "train/loss")
        expected = [(step, value(each["number"], step)) for step in range(STEPS)]
        assert sorted((metric.step, metric.value) for metric in losses) == expected
        assert len(client.get_metric_history(each["run"], "val/exact_match")) == STEPS
    assert client.search_runs(["0", "1"], "attributes.status = 'RUNNING'") == []
    writing = sorted(second for each in told for second in each["seconds"])
    with capsys.disabled():
        print(
            f"\n{len(writing)} entries of {LOGGERS} processes: median {writing[len(writing) // 2]:.3f} s, the longest "
            f"{writing[-1]:.3f} s; {len(reading)} looks of 2 readers, the longest {max(reading):.3f} s"
        )


def test_a_server_with_passwords_takes_the_training_of_who_has_one_and_lets_others_read_but_not_promote(
    tmp_path: Path, draw_digits: Callable[[Path, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the settings that docs/team/compose.yaml gives the server."""
    images = draw_digits(tmp_path / "images", 60)
    (folder := tmp_path / "server").mkdir()
    services = yaml.safe_load((ROOT / "docs" / "team" / "compose.yaml").read_text())
    settings = services["configs"]["basic_auth"]["content"]
    settings = re.sub("database_uri = .*", f"database_uri = sqlite:///{folder}/users.db", settings)
    (folder / "basic_auth.ini").write_text(settings)
    secrets = {"MLFLOW_AUTH_ADMIN_PASSWORD": "the admin's password", "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret"}
    secrets["MLFLOW_AUTH_CONFIG_PATH"] = str(folder / "basic_auth.ini")
    with team_server(folder, "--app-name=basic-auth", **secrets) as address:

        def captcha(user: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
            known = {"MLFLOW_TRACKING_URI": address, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            if user:
                known |= {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": f"the {user}'s password"}
            return attempt(*CAPTCHA, *arguments, cwd=tmp_path, **known)

        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", secrets["MLFLOW_AUTH_ADMIN_PASSWORD"])
        for user in ("trainer", "reader"):
            account = {"username": user, "password": f"the {user}'s password"}
            name = "/api/2.0/mlflow/users/create"  # MLflow's own client for this would import its whole server
            http_request(get_default_host_creds(address), name, "POST", json=account).raise_for_status()

        training = ("train", f"--data={images}", "--backbone=compact", "--epochs=1")
        refused = captcha("", *training)
        told = "401 Unauthorized: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        assert (refused.returncode, refused.stderr.splitlines()) == (2, [f"captcha: {address} answers {told}"])
        trained = captcha("trainer", *training)
        assert trained.returncode == 0, trained.stderr
        MlflowClient(address).delete_registered_model_alias("captcha-crnn", "champion")  # where an epoch was enough
        promoting = ("promote", "captcha-crnn/1", "--without-evidence=of one epoch")
        refused = captcha("reader", *promoting)
        assert refused.returncode == 2
        [line] = refused.stderr.splitlines()
        assert "403" in line
        assert "champion" not in MlflowClient(address).get_registered_model("captcha-crnn").aliases
        promoted = captcha("trainer", *promoting)
        assert promoted.returncode == 0, promoted.stderr
        read = captcha("reader", "predict", images / "07.png", "--model=models:/captcha-crnn@champion", "--json")
        assert read.returncode == 0, read.stderr
