"""Programs as a person starts them, for the tests: real processes, real HTTP, and nothing of them left behind."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
MLFLOW = BIN / "mlflow"
PATIENCE = 600  # seconds for anything to happen, on a machine that does much else
CAPTCHA = (sys.executable, "-m", "captcha")


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what it knows of MLflow, the tools of this Python first on PATH."""
    foreign = ("MLFLOW_", "CAPTCHA_", "PYTEST_", "CONDA_", "UV_", "VIRTUAL_ENV")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    kept["MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"] = "1"  # a training of seconds ends before MLflow's ten are over
    return kept | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"} | extra


def attempt(*command: str | Path, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Return what became of a command, whether it has succeeded or not."""
    return subprocess.run(
        command, cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=PATIENCE
    )


def call(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Return what a command prints on standard output; it must succeed."""
    done = attempt(*command, cwd=cwd, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def until(what: Callable[[], Any], log: Path, process: "subprocess.Popen[bytes] | None" = None) -> Any:
    """Return the first true thing that `what` gives, as long as the process lives."""
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        assert process is None or process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    return found


@contextmanager
def started(log: Path, *command: str | Path, cwd: Path, **variables: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a command in a process group of its own, and leave nothing of the group behind."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(**variables),
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_heed_signals,
        )
    try:
        yield process
    finally:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            members = [each for each in psutil.process_iter() if _group(each) == process.pid]
            for member in members:
                with contextlib.suppress(psutil.NoSuchProcess):  # it went as its parent did
                    member.send_signal(sent)
            psutil.wait_procs(members, timeout=5)
        process.wait()


def _heed_signals() -> None:
    """Undo what nohup, or a shell that runs the tests in the background, hands down."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


@contextmanager
def served(log: Path, health: str, *command: str | Path, cwd: Path, **variables: str) -> Iterator[str]:
    """Start a server on a free port, and give its address once it answers."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    variables["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # a dozen processes that nothing here needs
    with started(log, *command, "--port", str(port), cwd=cwd, **variables) as process:
        until(lambda: answers(f"{address}/{health}"), log, process)
        yield address


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Return whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def fetch(url: str, content: object = None, **query: str) -> bytes:
    """Return the body of the answer to a GET, or to a POST of the content as JSON."""
    body = None if content is None else json.dumps(content).encode()
    question = urllib.request.Request(f"{url}?{urllib.parse.urlencode(query)}" if query else url, body)
    question.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(question, timeout=60) as answer:
        return bytes(answer.read())


def copy_project(folder: Path) -> Path:
    """Copy to the folder what `mlflow run` needs of this project."""
    shutil.copytree(ROOT / "captcha", folder / "captcha")
    for file in ("MLproject", "conda.yaml"):
        shutil.copy(ROOT / file, folder)
    return folder
