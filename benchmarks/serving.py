"""What a request costs beside its model: python benchmarks/serving.py RECOGNIZER_FOLDER [REQUESTS].

RECOGNIZER_FOLDER holds model.onnx and recognizer.json. The first table takes a request with one image and one with 64
apart, in this process. The second sends them over HTTP on 127.0.0.1 to `captcha serve` and `mlflow models serve`, from
one client and from two at once, with one thread and two of the model. Last REQUESTS (1000) requests of one image go to
each server, and the memory of its processes is told.
"""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

os.environ["CAPTCHA_THREADS"] = "1"

import mlflow
import numpy as np
import PIL.Image
import psutil  # type: ignore[import-untyped]

from captcha.drawing.rendering import draw
from captcha.reading.images import decode_image, resize_to_height, stack
from captcha.reading.recognizer import Recognizer
from captcha.tracking.models import log_model, own_model_id
from captcha.tracking.runs import tracked_run

REPEATS = {1: 60, 64: 8}
"""How often a request is timed, by its number of images."""


def milliseconds(call: Callable[[], object], repeats: int) -> str:
    """Return median, minimum and maximum of a call's time."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return f"{np.median(times):.2f} ({min(times):.2f}-{max(times):.2f})"


def body(files: list[bytes]) -> bytes:
    """Return the request for some images."""
    return json.dumps({"inputs": [base64.b64encode(file).decode() for file in files]}).encode()


def print_parts(recognizer: Recognizer, files: list[bytes]) -> None:
    """Print what the parts of a request cost, one thread."""
    print(f"\n{'in this process, milliseconds a request':42}  {'1 image':>24}  {'64 images':>24}")
    columns = []
    for count, repeats in REPEATS.items():
        request = body(files[:count])
        texts = json.loads(request)["inputs"]
        contents = files[:count]
        images = [decode_image(content) for content in contents]
        batch = stack([resize_to_height(image, recognizer.height) for image in images])
        log_probs = recognizer.log_probs_of(batch)
        readings = recognizer.decode(log_probs)
        answer = [vars(reading) for reading in readings]
        parts: dict[str, Callable[[], object]] = {
            "JSON of request and answer": lambda request=request, answer=answer: (  # type: ignore[misc]
                json.loads(request),
                json.dumps(answer),
            ),
            "base64": lambda texts=texts: [base64.b64decode(text, validate=True) for text in texts],  # type: ignore[misc]
            "PNG": lambda contents=contents: [decode_image(content) for content in contents],  # type: ignore[misc]
            "resizing and the batch": lambda images=images: stack(  # type: ignore[misc]
                [resize_to_height(image, recognizer.height) for image in images]
            ),
            "model": partial(recognizer.log_probs_of, batch),
            "decoding of the text": partial(recognizer.decode, log_probs),
        }
        columns.append({name: milliseconds(call, repeats) for name, call in parts.items()})
    for name in columns[0]:
        print(f"{name:42}", *(f"{column[name]:>24}" for column in columns), sep="  ")


@contextmanager
def server(command: list[str], threads: int) -> Iterator[tuple[str, psutil.Process]]:
    """Run a server, and give its address and process once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "CAPTCHA_THREADS": str(threads)}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([*command, "--port", str(port)], env=environment, stdout=quiet, stderr=quiet)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"{address}/ping", timeout=5):  # nosec B310: http, to this machine
                    break
            except OSError:
                time.sleep(0.5)
        yield f"{address}/invocations", psutil.Process(process.pid)
    finally:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.terminate()
        process.wait()


def ask(address: str, request: bytes) -> None:
    """Send one request, and take its answer."""
    asked = urllib.request.Request(address, request, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=120) as answer:  # nosec B310: as above
        json.load(answer)


def at_once(clients: int, call: Callable[[], object]) -> None:
    """Let each client call once, all at the same time."""
    threads = [threading.Thread(target=call) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def megabytes(process: psutil.Process) -> float:
    """Return the resident memory of a process and its children."""
    return float(sum(each.memory_info().rss for each in [process, *process.children(recursive=True)]) / 2**20)


def main(folder: Path, requests: int) -> None:
    """Print the tables."""
    recognizer = Recognizer.load(folder)
    files = []
    for _, image in draw("kaptcha", 64, seed=1):
        file = io.BytesIO()
        PIL.Image.fromarray(image).save(file, "PNG")
        files.append(file.getvalue())
    print_parts(recognizer, files)
    with tempfile.TemporaryDirectory() as place:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/mlflow.db"
        os.chdir(place)
        with tracked_run("benchmark") as run:
            log_model(folder, files[0], step=0)
        uri = Path(mlflow.artifacts.download_artifacts(f"models:/{own_model_id(run.info.run_id)}"))
        program = Path(sys.executable).parent
        os.environ["PATH"] = f"{program}{os.pathsep}{os.environ['PATH']}"
        servers = {
            "captcha serve": [sys.executable, "-m", "captcha", "serve", "-m", str(folder)],
            "mlflow models serve": [f"{program}/mlflow", "models", "serve", "-m", str(uri), "--env-manager", "local"],
        }
        print(f"\n{'over HTTP, milliseconds a round':42}  {'1 image':>24}  {'64 images':>24}")
        for name, command in servers.items():
            for threads in (1, 2):
                with server(command, threads) as (address, process):
                    for clients in (1, 2):
                        cells = []
                        for count, repeats in REPEATS.items():
                            call = partial(ask, address, body(files[:count]))
                            call()
                            cells.append(milliseconds(partial(at_once, clients, call), repeats))
                        row = f"{name}, {threads} thread(s), {clients} client(s)"
                        print(f"{row:42}", *(f"{cell:>24}" for cell in cells), sep="  ", flush=True)
                    if threads == 1:
                        told = [megabytes(process)]
                        for _ in range(4):
                            for _ in range(requests // 4):
                                ask(address, body(files[:1]))
                            told.append(megabytes(process))
                        print(f"  memory over {requests} requests, MB:", *(f"{each:.0f}" for each in told), flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) == 3 else 1000)
