"""What a team's server bears: metrics a second of 1, 5 and 20 writers at once, and the registry's answers, by store.

    python -m benchmarks.team RECOGNIZER_FOLDER postgresql+psycopg2://USER@HOST/mlflow sqlite:////FOLDER/mlflow.db

For each store, which should be empty, an `mlflow server` is started. The stores take turns in each round, writers are
processes that log five metrics a call as an epoch does, and every figure is a median over the rounds with its range.
The table says what of the processors the server, the database and the writers had: the first to have all is the
bottleneck.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
import psutil  # type: ignore[import-untyped]
from mlflow import MlflowClient
from mlflow.entities import Metric
from tqdm import tqdm

import captcha
from captcha.tracking.models import log_model, own_model_id
from captcha.tracking.runs import tracked_run
from captcha.tracking.store import shown

WRITERS = (1, 5, 20)
METRICS = ("train/loss", "val/loss", "val/exact_match", "val/cer", "learning_rate")
MODEL, VERSIONS = "benchmark", 20
WORKERS = 2


@contextlib.contextmanager
def served(store: str, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Start a server on a store, and give its address and process once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--backend-store-uri", store]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", str(WORKERS), "--port", str(port)]
    command += ["--uvicorn-opts", "--timeout-worker-healthcheck 120"]
    variables = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log, subprocess.Popen(command, env=variables, stdout=log, stderr=log) as server:
        process = psutil.Process(server.pid)
        try:
            while True:
                with (
                    contextlib.suppress(OSError),
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5),  # nosec B310: this machine
                ):
                    break
                if server.poll() is not None:
                    sys.exit(f"{shown(store)}: the server has ended: {(folder / 'log').read_text()[-500:]}")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", process
        finally:
            for each in [*process.children(recursive=True), process]:
                each.terminate()


def processor_seconds(processes: Sequence[psutil.Process]) -> float:
    """Return what these processes, and those that they have waited for, have had of the processors."""
    total = 0.0
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(each.cpu_times()[:4])
    return total


@dataclass(frozen=True)
class Load:
    """What writers have written at once."""

    metrics: float
    """A second."""
    latency: float
    """Median seconds of a call."""
    slowest: float
    server: float
    """Processors that the server had of all there are, 0 to 1; so `database` and `writers`."""
    database: float
    writers: float


def write(address: str, server: psutil.Process, writers: int, seconds: float) -> Load:
    """Let so many processes write for so long."""
    client = MlflowClient(address)
    runs = [client.create_run("0").info.run_id for _ in range(writers)]
    databases = [each for each in psutil.process_iter() if each.name() == "postgres"]
    servers = [server, *server.children(recursive=True)]
    before = [processor_seconds(servers), processor_seconds(databases), _of_children()]
    begun = time.perf_counter()
    read, written = os.pipe()
    for run in runs:
        if os.fork() == 0:
            taken = _write_until(MlflowClient(address), run, begun + seconds)
            os.write(written, (json.dumps(taken) + "\n").encode())
            os._exit(0)
    os.close(written)
    with os.fdopen(read) as pipe:
        taken = [second for line in pipe for second in json.loads(line)]
    for _ in runs:
        os.wait()
    took = time.perf_counter() - begun
    databases = [*databases, *(each for each in psutil.process_iter() if each.name() == "postgres")]
    after = [processor_seconds(servers), processor_seconds(list(set(databases))), _of_children()]
    had = [(now - then) / took / (os.cpu_count() or 1) for now, then in zip(after, before, strict=True)]
    for run in runs:
        client.set_terminated(run)
    return Load(len(taken) * len(METRICS) / took, statistics.median(taken), max(taken), *had)


def _write_until(client: MlflowClient, run: str, deadline: float) -> list[float]:
    """Log metrics until then; return the seconds of each call, at most as many as a pipe takes at once."""
    taken: list[float] = []
    while (begun := time.perf_counter()) < deadline:
        now = round(time.time() * 1000)
        client.log_batch(run, metrics=[Metric(key, len(taken), now, len(taken)) for key in METRICS])
        taken.append(round(time.perf_counter() - begun, 4))
    return taken


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def register(address: str, recognizer: Path, folder: Path) -> None:
    """Register a recogniser as so many versions, the last of them the champion."""
    mlflow.set_tracking_uri(address)
    os.environ["MLFLOW_EXPERIMENT_NAME"] = "benchmark"
    with tracked_run("a training") as run:
        log_model(recognizer, (folder / "image.png").read_bytes(), 0)
    client = MlflowClient(address)
    client.create_registered_model(MODEL)
    model = own_model_id(run.info.run_id)
    for _ in range(VERSIONS):
        client.create_model_version(MODEL, f"models:/{model}", run_id=run.info.run_id, model_id=model)
    client.set_registered_model_alias(MODEL, "champion", str(VERSIONS))


def reads(address: str) -> dict[str, Callable[[], object]]:
    """Return what is asked of the registry, by name."""
    client = MlflowClient(address)

    def load() -> object:
        mlflow.set_tracking_uri(address)
        return captcha.load(f"models:/{MODEL}@champion")

    return {
        "which version is champion": lambda: client.get_model_version_by_alias(MODEL, "champion"),
        f"all {VERSIONS} versions": lambda: client.search_model_versions(f"name = '{MODEL}'"),
        "runs by a metric": lambda: client.search_runs(["0"], "metrics.`val/loss` > 0", max_results=50),
        "load the champion": load,
    }


def spread(values: Sequence[float], form: str = "{:.3g}") -> str:
    """Return the median of values, and their range."""
    low, middle, high = (form.format(each) for each in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}–{high})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print two tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recognizer", type=Path, help="folder of a recogniser")
    parser.add_argument("stores", nargs="+", metavar="STORE", help="database that mlflow server can use")
    parser.add_argument("--seconds", type=float, default=10, help="for each number of writers in each round")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(arguments)
    os.environ |= {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        image, recognizer = Path(temporary, "image.png"), Path(temporary, "recognizer")
        _draw(image)
        shutil.copytree(asked.recognizer, recognizer)
        running = {}
        for number, store in enumerate(asked.stores):
            (folder := Path(temporary, str(number))).mkdir()
            running[store] = stack.enter_context(served(store, folder))
            register(running[store][0], recognizer, image.parent)
        loads: dict[tuple[str, int], list[Load]] = {}
        answers: dict[tuple[str, str], list[float]] = {}
        for _ in tqdm(range(asked.rounds), unit="round"):
            for writers in WRITERS:
                for store, (address, server) in running.items():
                    loads.setdefault((store, writers), []).append(write(address, server, writers, asked.seconds))
            for store, (address, _) in running.items():
                for name, read in reads(address).items():
                    for _ in range(5):
                        begun = time.perf_counter()
                        read()
                        answers.setdefault((store, name), []).append(1000 * (time.perf_counter() - begun))
    print("| store | writers | metrics a second | ms a call | slowest, ms | server | database | writers' own |")
    print("|---|---|---|---|---|---|---|---|")
    for (store, writers), found in loads.items():
        row = [spread([each.metrics for each in found]), spread([1000 * each.latency for each in found])]
        row += [f"{1000 * max(each.slowest for each in found):.0f}"]
        for share in ("server", "database", "writers"):
            row.append(f"{statistics.median(getattr(each, share) for each in found):.0%}")
        print("|", " | ".join([shown(store).partition(":")[0], str(writers), *row]), "|")
    print("\n| store | what is asked | ms |\n|---|---|---|")
    for (store, name), taken in answers.items():
        print("|", " | ".join([shown(store).partition(":")[0], name, spread(taken)]), "|")


def _draw(path: Path) -> None:
    """Write an image that any recogniser takes."""
    import cv2
    import numpy as np

    cv2.imwrite(str(path), np.full((50, 150, 3), 255, np.uint8))


if __name__ == "__main__":
    main()
