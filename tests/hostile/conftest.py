"""A tiny model, MLflow's server and `captcha serve` on it, as real processes."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.hostile.corpus_requests import picture

ROOT = Path(__file__).parents[2]
STRIPES = ROOT / "tests" / "reading" / "stripes.onnxtxt"
HEIGHT = 16
BIN = Path(sys.executable).parent
COMMANDS = {
    "mlflow": [str(BIN / "mlflow"), "models", "serve", "--env-manager", "local"],
    "captcha": [sys.executable, "-m", "captcha", "serve", "--host", "127.0.0.1"],
}


@dataclass(frozen=True)
class Server:
    """A server that is running."""

    kind: str
    """mlflow or captcha."""
    address: tuple[str, int]
    process: psutil.Process
    log: Path

    def memory(self) -> int:
        """Return the resident bytes of all its processes."""
        members = [self.process, *self.process.children(recursive=True)]
        return sum(int(member.memory_info().rss) for member in members)


@pytest.fixture(scope="session")
def recognizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recogniser that reads stripes of grey as a, b and c."""
    import onnx.parser

    from captcha.reading.recognizer import save_recognizer
    from captcha.reading.vocabulary import Vocabulary

    folder = tmp_path_factory.mktemp("stripes") / "recognizer"
    model = onnx.parser.parse_model(STRIPES.read_text()).SerializeToString()
    save_recognizer(folder, model, Vocabulary("abc"), HEIGHT)
    return folder


@pytest.fixture(scope="module")
def model_uri(tracking: Path, recognizer_folder: Path) -> str:
    """The URI of the recogniser as a logged model, in the store of this module's tests."""
    from captcha.tracking.models import log_model, own_model_id
    from captcha.tracking.runs import tracked_run

    with tracked_run("a training") as run:
        log_model(recognizer_folder, picture(), step=0)
    return f"models:/{own_model_id(run.info.run_id)}"


@pytest.fixture(scope="module")
def serve(tracking: Path, model_uri: str) -> Callable[[str], object]:
    """A function that starts a server of a kind and gives it once it answers, to be used with `with`."""

    @contextmanager
    def start(kind: str) -> Iterator[Server]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = tracking / f"{kind}-{port}.log"
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        with log.open("wb") as output:
            process = psutil.Popen(
                [*COMMANDS[kind], "-m", model_uri, "--port", str(port)],
                cwd=tracking,
                env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + 300
            while not _answers(port):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.3)
            yield Server(kind, ("127.0.0.1", port), process, log)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except psutil.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)

    return start


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
