"""What machines do to a job: kills, signals, a tracking server that goes away. Real processes, a real MLflow server.

`docs/reliability.md` names the promises that these tests keep.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import psutil  # type: ignore[import-untyped]
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import load

from captcha.training.snapshot import load_snapshot
from tests.processes import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
MLFLOW = Path(sys.executable).parent / "mlflow"
PATIENCE = 900  # seconds for anything to happen, on a machine that does much else
TINY = ["--backbone=compact", "--height=32", "--batch-size=8", "--learning-rate=0.003"]

# The recipe of a training of seconds, and a job in a process of its own that uses it.
JOB = """
import sys, signal, os
from captcha.cli.app import main
from captcha.jobs import adapt, budget, train
from captcha.training import recipe
from captcha.training.recipe import Augmentation, Recipe
from captcha.data import sources
sources.DRAWN_IMAGES = 60
quick = Recipe(epoch_images=1, average_decay=0.5)
for job in (adapt.adapt, budget.budget, train.train, train.learn):
    job.__defaults__ = tuple(quick if each is recipe.DEFAULT else each for each in job.__defaults__)
kill_in_write = os.environ.get("KILL_IN_WRITE")
if kill_in_write:  # in the middle of a checkpoint's write: half of the file is there
    from captcha.training import snapshot
    write, left = snapshot.write_whole, [int(kill_in_write)]
    def torn(path, content, sync=True):
        left[0] -= 1
        if left[0] == 0:
            path.with_name(f".{path.name}.{os.getpid()}").write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, content, sync)
    snapshot.write_whole = torn
if __name__ == "__main__":  # not in the processes that draw
    main(sys.argv[1:])
"""


def heed_signals() -> None:
    """Undo what nohup, or a shell that runs the tests in the background, hands down."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


class Project:
    """A copy of the project with a folder of images, in which jobs are processes."""

    def __init__(self, folder: Path, database: Path, draw_digits: Callable[[Path, int], Path]) -> None:
        self.folder = folder
        folder.mkdir()
        shutil.copytree(ROOT / "captcha", folder / "captcha", ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("MLproject", "conda.yaml"):
            shutil.copy(ROOT / file, folder)
        shutil.copy(database, folder / "mlflow.db")
        draw_digits(folder / "digits", 60)
        (folder / "job.py").write_text(JOB)

    def environment(self, **extra: str) -> dict[str, str]:
        foreign = ("MLFLOW_", "CAPTCHA_", "PYTEST_", "PYTHONPATH")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        fixed = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.folder), "PYTHONUNBUFFERED": "1"}
        return kept | fixed | {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1"} | extra

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "job.py", *arguments],
            cwd=self.folder,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=heed_signals,
        )

    def run(self, *arguments: str, code: int = 0, **variables: str) -> str:
        """Return what a job prints, which must end with the exit code."""
        with self.start(*arguments, **variables) as process:
            said = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == code, said
        return said

    def json(self, *arguments: str) -> Any:
        """Return what a job prints with --json."""
        command, variables = [sys.executable, "job.py", *arguments, "--json"], self.environment()
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")

    def runs(self, condition: str = "") -> list[Run]:
        client = self.client
        experiments = [each.experiment_id for each in client.search_experiments()]
        return list(client.search_runs(experiments, condition, order_by=["attributes.start_time ASC"]))

    @property
    def unfinished(self) -> list[Path]:
        return sorted((self.folder / "mlruns" / "unfinished").glob("*/"))


@pytest.fixture(scope="module")
def make_project(
    tmp_path_factory: pytest.TempPathFactory, new_mlflow_database: Path, draw_digits: Callable[[Path, int], Path]
) -> Callable[[], Project]:
    return lambda: Project(tmp_path_factory.mktemp("project") / "captcha", new_mlflow_database, draw_digits)


TIMES = ("train/images_per_second", "train/epoch_seconds", "engine/fp32_ms", "engine/int8_ms")


def points(client: MlflowClient, run: Run) -> dict[str, list[tuple[int, float]]]:
    """Return the steps and values of each metric of a run that follows from the job, those of times without values."""
    return {
        key: [
            (each.step, 0 if key in TIMES else each.value) for each in client.get_metric_history(run.info.run_id, key)
        ]
        for key in run.data.metrics
        if not key.startswith("system/")
    }


def artifact(client: MlflowClient, run: Run, name: str) -> bytes:
    uri = client._tracking_client.tracking_uri
    return Path(
        mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=name, tracking_uri=uri)
    ).read_bytes()


def outcome(project: Project, run: Run) -> dict[str, Any]:
    """Return all of a training that must not depend on whether it was cut off."""
    client = project.client
    tags = run.data.tags
    ours = {
        key: tags[key] for key in tags if key.startswith(("sha256.", "test_", "split", "training_pixels", "overlap"))
    }
    pictures = sorted(
        re.sub(r"\+timestamp.*?(\.\w+)$", r"\1", each.path) for each in client.list_artifacts(run.info.run_id, "images")
    )
    return {
        "status": run.info.status,
        "params": {key: value for key, value in run.data.params.items() if key != "checkpoint_minutes"},
        "tags": ours,
        "metrics": points(client, run),
        "readings": json.loads(artifact(client, run, "test_predictions.json"))["data"],
        "files": sorted(each.path for each in client.list_artifacts(run.info.run_id)),
        "pictures": pictures,
        "inputs": sorted(str(each.dataset.digest) for each in run.inputs.dataset_inputs) if run.inputs else [],
    }


SOURCES = {
    "a folder": ["--data=digits"],
    "drawn": ["--data=draw:kaptcha"],
    "half of each": ["--data=digits", "--drawn=kaptcha"],
}
KILLS = {"a folder": 8, "drawn": 6, "half of each": 6}
SECONDS = {"a folder": 2, "drawn": 9, "half of each": 9}
"""From the moment a training begins, in which it is killed; processes that draw take some to begin."""


@pytest.mark.parametrize("source", SOURCES)
def test_a_training_killed_at_random_moments_ends_bit_for_bit_as_one_that_was_not(
    source: str, make_project: Callable[[], Project]
) -> None:
    """SIGKILL 20 times over the three sources, one of each in the middle of a checkpoint's write."""
    project, rng = make_project(), random.Random(source)
    asked = ["train", *TINY, "--epochs=12", "--patience=12", "--checkpoint-minutes=0.02", *SOURCES[source]]
    project.run(*asked)
    (whole,) = project.runs()
    for kill in range(KILLS[source]):
        variables = {"KILL_IN_WRITE": "3"} if kill == 1 else {}
        with project.start(*asked, "--resume=auto", **variables) as process:
            if not variables:
                follow(process, "training compact")
                time.sleep(rng.uniform(0, SECONDS[source]))
                process.kill()
            process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGKILL  # and not ended before
    project.run(*asked, "--resume=auto")
    ended = [run for run in project.runs() if run.info.status == "FINISHED"]
    assert ended[0].info.run_id == whole.info.run_id
    resumed = ended[-1]
    assert resumed.info.run_id != whole.info.run_id
    assert outcome(project, resumed) == outcome(project, whole)
    weights = [load(artifact(project.client, run, "weights/model.safetensors")) for run in (whole, resumed)]
    assert weights[0].keys() == weights[1].keys()
    assert all((value == weights[1][name]).all() for name, value in weights[0].items())
    assert not project.unfinished
    assert not project.runs("attributes.status = 'RUNNING'")


def test_every_tensor_of_a_resumed_trainings_last_checkpoint_is_that_of_one_that_was_not_cut_off(
    make_project: Callable[[], Project],
) -> None:
    states = []
    for cut in (False, True):
        project = make_project()
        asked = ["train", *TINY, "--epochs=3", "--data=digits", "--drawn=kaptcha"]
        if cut:
            project.run(*asked, code=-signal.SIGKILL, KILL_IN_WRITE="3")
            (kept,) = project.unfinished
            assert len(list(kept.glob("step-*.safetensors"))) == 2
            asked.append("--resume=auto")
        # Kept from ending by the last write of its end: the checkpoint of the last epoch is then on disk.
        (project.folder / "job.py").write_text(
            JOB.replace("    main(sys", "    train.log_recognizer = lambda *_: 1 / 0\n    main(sys")
        )
        project.run(*asked, code=1)
        (kept,) = project.unfinished
        states.append(load_snapshot(kept))
    whole, resumed = states
    assert whole
    assert resumed
    assert whole.learned_from == resumed.learned_from
    compared = list(same_tensors(whole.state, resumed.state))
    assert len(compared) > 200
    assert all(compared)


def same_tensors(one: Any, other: Any) -> Iterator[bool]:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            yield from same_tensors(one[key], other[key])
    elif hasattr(one, "shape"):
        yield one.shape == other.shape and bool((one == other).all())
    else:
        yield one == other


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, 3])
def test_a_signal_after_the_first_epoch_keeps_the_best_epoch_and_says_how_to_go_on(
    number: int, times: int, make_project: Callable[[], Project]
) -> None:
    project = make_project()
    with project.start("train", *TINY, "--epochs=30", "--data=digits") as process:
        assert process.stdout
        said = ""
        while "epoch   1/30" not in said:
            said += process.stdout.readline()
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.2)
        said += process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 128 + number, said
    (run,) = project.runs()
    assert run.info.status == "KILLED"
    command = f"captcha train --resume {run.info.run_id}"
    assert f"go on with: {command}" in said
    assert "Traceback" not in said
    assert run.data.tags["mlflow.note.content"] == f"Stopped before its end. `{command}` goes on."
    assert "weights/model.safetensors" in {
        each.path for each in project.client.list_artifacts(run.info.run_id, "weights")
    }
    if times == 3:
        return
    said = project.run("train", "--resume", run.info.run_id, "--register-best")
    (run,) = project.runs()
    assert run.info.status == "FINISHED"
    assert "registered" in said
    epochs = [step for step, _ in points(project.client, run)["val/exact_match"]]
    assert epochs == list(range(len(epochs)))
    assert 2 <= len(epochs) < 30


def test_a_signal_at_any_moment_ends_a_training(make_project: Callable[[], Project]) -> None:
    """Forty moments from the first line of its run on; none is swallowed."""
    project, rng, codes = make_project(), random.Random(0), []
    for _ in range(40):
        with project.start("train", *TINY, "--epochs=1000", "--data=digits") as process:
            assert process.stdout
            while "training compact" not in process.stdout.readline():
                assert process.poll() is None
            time.sleep(rng.uniform(0, 3))
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)
            codes.append(process.returncode)
    assert codes == [143] * 40
    assert {run.info.status for run in project.runs()} == {"KILLED"}


def test_a_run_whose_process_is_gone_is_listed_then_marked_killed_and_told(
    make_project: Callable[[], Project],
) -> None:
    project = make_project()
    with project.start("train", *TINY, "--epochs=30", "--data=digits") as process:
        assert process.stdout
        while "epoch   1/30" not in process.stdout.readline():
            assert process.poll() is None
        process.kill()
    (run,) = project.runs()
    assert run.info.status == "RUNNING"
    listed = project.json("runs", "--stale")
    assert [(each["run_id"], each["status"]) for each in listed] == [(run.info.run_id, "STALE")]
    said = project.run("evaluate", "digits", "--model=nothing", code=2)
    said += project.run("train", *TINY, "--epochs=1", "--data=digits")
    assert f"({run.info.run_id}) was cut off: its process is gone" in said
    assert project.client.get_run(run.info.run_id).info.status == "KILLED"
    assert project.json("runs", "--stale") == []


def test_what_has_changed_since_is_refused_with_its_name(make_project: Callable[[], Project]) -> None:
    project = make_project()
    project.run("train", *TINY, "--epochs=3", "--data=digits", code=-signal.SIGKILL, KILL_IN_WRITE="2")
    (run,) = project.runs()
    resume = ["train", "--resume", run.info.run_id]
    said = project.run(*resume, "--learning-rate=0.01", code=2)
    assert "learning-rate is 0.01, it was 0.003" in said
    first = min((project.folder / "digits").iterdir())
    first.rename(first.with_name("99x.png"))
    assert "the data has changed" in project.run(*resume, code=2)
    assert "adapt" not in project.run("train", "--resume", "0" * 32, code=2)
    assert project.client.get_run(run.info.run_id).info.status in ("RUNNING", "KILLED")
    assert len(project.runs()) == 1


@pytest.mark.parametrize("job", ["budget", "crossval", "adapt"])
def test_finished_parts_of_a_job_are_not_trained_again(job: str, make_project: Callable[[], Project]) -> None:
    project = make_project()
    model = ["--model=models:/captcha-crnn@champion", "--threshold=0.001", "--rounds=3", "--epochs=2"]
    if job == "adapt":
        project.run("train", *TINY, "--epochs=3", "--data=digits")
        asked = ["adapt", "digits", *model, "--batch-size=8"]
    elif job == "crossval":
        asked = ["crossval", "digits", "--folds=2", "--backbone=compact", "--epochs=3"]
    else:
        asked = ["budget", "digits", "--labels=20,all", "--seeds=1", "--drawn=none", "--backbone=compact"]
        asked += ["--epochs=3"]
    whole = project.json(*asked)
    before = len(project.runs())
    with project.start(*asked) as process:  # killed once its first part is done
        while not any('"result"' in file.read_text() for file in project.folder.glob("mlruns/unfinished/*/parts.json")):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
        process.communicate()
    cut = len(project.runs())
    again = project.json(*asked, "--resume=auto")
    own = ("run_id", "seconds", "model_version", "message")

    def without_own(found: Any) -> Any:
        if isinstance(found, list):
            return [without_own(each) for each in found]
        return {key: value for key, value in found.items() if key not in own}

    assert without_own(again) == without_own(whole)
    assert cut > before
    parents = project.runs(f"tags.job = '{job}'")
    assert [run.info.status for run in parents] == ["FINISHED", "FINISHED"]
    children = [
        [run for run in project.runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        for parent in parents
    ]
    assert [run.info.run_name for run in children[0]] == [run.info.run_name for run in children[1]]
    for one, other in zip(*children, strict=True):
        assert points(project.client, one) == points(project.client, other)
        assert other.info.status == "FINISHED"
    assert not project.unfinished


def test_a_full_disk_ends_a_training_in_one_line_and_with_more_room_it_goes_on(
    tmp_path: Path, new_mlflow_database: Path, draw_digits: Callable[[Path, int], Path]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=44m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only who may mount can make a small disk")
    try:
        project = Project(disk / "captcha", new_mlflow_database, draw_digits)
        asked = ["train", *TINY, "--epochs=3", "--data=digits"]
        said = project.run(*asked, code=2)
        assert "No space left on device: free some space on the disk of" in said.splitlines()[-1]
        assert "Traceback" not in said
        (kept,) = project.unfinished
        assert not list(kept.glob(".*"))  # nothing half-written
        subprocess.run(["mount", "-o", "remount,size=400m", str(disk)], check=True)
        project.run(*asked, "--resume=auto")
        (run,) = project.runs()
        assert run.info.status == "FINISHED"
        assert [step for step, _ in points(project.client, run)["val/loss"]] == [0, 1, 2, 3]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# The tracking server goes away


@contextmanager
def server(folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A real tracking server on a database and artifacts in a folder."""
    command = [str(MLFLOW), "server", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--port", str(port)]
    variables = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert time.monotonic() < deadline
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.3)
        yield process
    finally:
        end_group(process)


def end_group(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # ended by the test already
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()


def follow(process: "subprocess.Popen[str]", what: str) -> str:
    """Return what a job prints until it has printed something."""
    assert process.stdout
    said = ""
    while what not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    return said


def test_a_training_outlives_an_outage_and_the_server_has_everything_once_in_order(
    make_project: Callable[[], Project], new_mlflow_database: Path
) -> None:
    project, port = make_project(), free_port()
    shutil.copy(new_mlflow_database, project.folder / "server.db")
    uri = f"http://127.0.0.1:{port}"
    asked = ["train", *TINY, "--epochs=12", "--data=digits"]
    project.run(*asked)
    (whole,) = project.runs()
    with server(project.folder, port) as process, project.start(*asked, MLFLOW_TRACKING_URI=uri) as training:
        said = follow(training, "epoch   2/12")
        end_group(process)
        gone = time.monotonic()
        said += follow(training, "epoch   7/12")  # it neither stops nor stands still
        assert time.monotonic() - gone < 120
        with server(project.folder, port):
            said += training.communicate(timeout=PATIENCE)[0]
            assert training.returncode == 0, said
            client = MlflowClient(uri)
            (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
            assert run.info.status == "FINISHED"
            assert points(client, run) == points(project.client, whole)
            times = [each.timestamp for each in client.get_metric_history(run.info.run_id, "val/loss")]
            assert times == sorted(times)
            assert len(client.search_model_versions("name = 'captcha-crnn'")) == 1
    assert not project.unfinished


def test_a_training_whose_server_never_comes_back_ends_with_3_and_can_be_sent_later(
    make_project: Callable[[], Project], new_mlflow_database: Path
) -> None:
    project, port = make_project(), free_port()
    shutil.copy(new_mlflow_database, project.folder / "server.db")
    uri = f"http://127.0.0.1:{port}"
    asked = ["train", *TINY, "--epochs=5", "--data=digits"]
    project.run(*asked)
    (whole,) = project.runs()
    with server(project.folder, port) as process, project.start(*asked, MLFLOW_TRACKING_URI=uri) as training:
        said = follow(training, "epoch   2/5")
        end_group(process)
        said += training.communicate(timeout=PATIENCE)[0]
    assert training.returncode == 3, said
    (kept,) = project.unfinished
    assert f"captcha sync {kept}" in said.splitlines()[-1]
    assert "Traceback" not in said
    project.run("sync", str(kept), code=2, MLFLOW_TRACKING_URI=uri)
    assert kept.exists()
    with server(project.folder, port):
        project.run("sync", str(kept))
        client = MlflowClient(uri)
        (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
        assert run.info.status == "FINISHED"
        assert points(client, run) == points(project.client, whole)
        assert client.get_model_version_by_alias("captcha-crnn", "champion").run_id == run.info.run_id
        ours = ("sha256.model.onnx", "sha256.model.safetensors", "test_right", "mlflow.loggedArtifacts")
        assert [run.data.tags[key] for key in ours] == [whole.data.tags[key] for key in ours]
    assert not project.unfinished


LOST = """
import sys, time, mlflow
mlflow.set_tracking_uri(sys.argv[1])
mlflow.config.enable_async_logging()
with mlflow.start_run():
    for step in range(3):
        mlflow.log_metric("before", 1.0, step)
    mlflow.flush_async_logging()
    print("ready", flush=True)
    sys.stdin.readline()
    for step in range(3):
        mlflow.log_metric("during", 1.0, step)
    print("logged", flush=True)
    sys.stdin.readline()
"""


def test_mlflows_own_asynchronous_logging_loses_what_an_outage_outlasts(
    make_project: Callable[[], Project], new_mlflow_database: Path
) -> None:
    """Why there is an outbox: MLflow's queue drops what its retries do not bring through, and a kill drops the rest."""
    project, port = make_project(), free_port()
    shutil.copy(new_mlflow_database, project.folder / "server.db")
    uri = f"http://127.0.0.1:{port}"
    short = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
    with (
        server(project.folder, port) as process,
        subprocess.Popen(
            [sys.executable, "-c", LOST, uri],
            env=project.environment(**short),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as logging_process,
    ):
        assert logging_process.stdin
        assert logging_process.stdout
        assert logging_process.stdout.readline() == "ready\n"
        end_group(process)
        logging_process.stdin.write("\n")
        logging_process.stdin.flush()
        assert logging_process.stdout.readline() == "logged\n"
        time.sleep(20)  # longer than its retries
        with server(project.folder, port):
            logging_process.stdin.write("\n")
            logging_process.stdin.flush()
            logging_process.communicate(timeout=PATIENCE)
            client = MlflowClient(uri)
            (run,) = client.search_runs(["0"])
    assert "before" in run.data.metrics
    assert "during" not in run.data.metrics
