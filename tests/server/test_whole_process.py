"""`captcha serve` as a person starts it: a real process, a real registry, real HTTP, real signals."""

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.server.stripes import encoded, png

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TEXTS = ["abc", "cab", "b", "", "aabbcc"]
KEYS = ["the-first-key-of-the-test", "another-key-of-the-test"]


def promote(version: int) -> None:
    mlflow.MlflowClient().set_registered_model_alias("m", "champion", str(version))


@dataclass
class Serving:
    """A process that serves."""

    process: "subprocess.Popen[str]"
    port: int
    log: Path

    def ask(self, content: object, kind: str = "application/json", **headers: str) -> tuple[int, dict[str, str], Any]:
        """Status, headers and content of an answer."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"Content-Type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
        question = urllib.request.Request(f"http://127.0.0.1:{self.port}/invocations", body, headers)
        try:
            with urllib.request.urlopen(question, timeout=60) as answer:
                return answer.status, dict(answer.headers), json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), json.loads(error.read())

    def get(self, path: str, **headers: str) -> str:
        question = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        with urllib.request.urlopen(question, timeout=60) as answer:
            return str(answer.read().decode())

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "captcha", "serve", *options]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CAPTCHA_")}
    return {**kept, "PYTHONPATH": str(ROOT), "CAPTCHA_WATCH_SECONDS": "1", **variables}


Start = Callable[..., Serving]


@pytest.fixture
def start(store: Path, tmp_path: Path) -> Iterator[Start]:
    """A function that starts a server, and returns once it has said that it is ready."""
    processes = []

    def begin(*options: str, **variables: str) -> Serving:
        log = tmp_path / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command("-m", "models:/m@champion", "--port", "0", *options),
                cwd=store,
                env=environment(**variables),
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        processes.append(process)
        assert process.stdout
        line = process.stdout.readline()
        found = re.fullmatch(r"captcha: m/\d is served at http://127\.0\.0\.1:(\d+)\n", line)
        assert found, line + log.read_text()
        return Serving(process, int(found[1]), log)

    yield begin
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def test_it_reads_logs_counts_and_ends_with_0(start: Start) -> None:
    promote(1)
    serving = start()
    assert serving.get("/ping") == "\n"
    status, headers, answer = serving.ask({"inputs": [encoded(text) for text in TEXTS]}, X_Request_ID="mine")
    assert (status, [row["text"] for row in answer["predictions"]]) == (200, TEXTS)
    assert (headers["x-model-version"], headers["x-request-id"]) == ("m/1", "mine")
    assert serving.ask(png("cab"), "image/png")[2]["predictions"][0]["text"] == "cab"
    assert serving.ask(b"[" * 10_000)[0] == 400
    assert "captcha_images_total 6.0" in serving.get("/metrics").splitlines()
    assert serving.stop() == 0
    lines = [json.loads(line) for line in serving.log.read_text().splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines] == [200, 200, 200, 400, 200]
    assert base64.b64encode(png("abc")).decode()[:30] not in serving.log.read_text()
    assert "Traceback" not in serving.log.read_text()


def test_a_champion_promoted_under_load_takes_over_and_no_request_is_lost(start: Start) -> None:
    promote(1)
    serving = start()
    promoted = threading.Event()

    def ask(number: int) -> tuple[int, str, list[str]]:
        if number == 100:
            promote(2)
            promoted.set()
        if number > 300:  # so that the last ones come when the watch has looked
            time.sleep(0.2)
        status, headers, answer = serving.ask({"inputs": [encoded(TEXTS[number % 5]), encoded("c")]})
        return status, headers.get("x-model-version", ""), [row["text"] for row in answer["predictions"]]

    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(ask, range(500)))

    assert promoted.is_set()
    assert [status for status, _, _ in answers] == [200] * 500
    assert [texts for _, _, texts in answers] == [[TEXTS[number % 5], "c"] for number in range(500)]
    versions = [version for _, version, _ in answers]
    assert (versions[0], versions[-1]) == ("m/1", "m/2")
    assert set(versions) == {"m/1", "m/2"}
    assert 'captcha_model_info{name="m",version="2"} 1.0' in serving.get("/metrics")
    assert "m/2 is served from now on" in serving.log.read_text()


def test_a_damaged_champion_leaves_the_old_one_in_place(start: Start) -> None:
    promote(1)
    serving = start()
    client = mlflow.MlflowClient()
    model_id = str(client.get_model_version("m", "2").source).removeprefix("models:/")
    location = client.get_logged_model(model_id).artifact_location.removeprefix("file://")
    model = Path(urllib.parse.unquote(location), "artifacts", "recognizer", "model.onnx")
    content = model.read_bytes()
    model.write_bytes(content[:-1] + b"!")
    try:
        client.set_registered_model_alias("m", "champion", "2")
        deadline = time.monotonic() + 60
        while "is served still" not in serving.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert "m/1 is served still" in serving.log.read_text()
        assert "sha256 differs" in serving.log.read_text()
        assert serving.ask({"inputs": [encoded("abc")]})[1]["x-model-version"] == "m/1"
    finally:
        model.write_bytes(content)
    deadline = time.monotonic() + 60
    while serving.ask({"inputs": [encoded("abc")]})[1]["x-model-version"] != "m/2":
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_request_under_way_is_answered_after_sigterm(start: Start) -> None:
    serving = start()
    body = json.dumps({"inputs": [encoded("abc")]}).encode()
    with socket.create_connection(("127.0.0.1", serving.port), timeout=60) as connection:
        head = "POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:20])
        time.sleep(0.5)
        serving.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert serving.process.poll() is None
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", serving.port), timeout=5).close()
        connection.sendall(body[20:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"text": "abc"' in answer
    assert serving.process.wait(60) == 0


def test_sigterm_and_ctrl_c_at_any_time_end_it_with_0_once_it_serves(start: Start) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        serving = start()
        for _ in range(2):
            serving.process.send_signal(number)
        assert serving.process.wait(60) == 0


def test_keys_are_asked_for_and_a_changed_file_is_heeded(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"alice {KEYS[0]}\n")
    serving = start("--keys", str(file))
    asked = {"inputs": [encoded("abc")]}

    def statuses() -> list[int]:
        return [serving.ask(asked, Authorization=f"Bearer {key}")[0] for key in KEYS]

    assert serving.ask(asked)[0] == 401
    assert statuses() == [200, 401]
    file.write_text(f"bob {KEYS[1]}\n")
    assert statuses() == [401, 200]
    assert serving.get("/ping") == "\n"
    names = [json.loads(line).get("key") for line in serving.log.read_text().splitlines() if line.startswith("{")]
    assert {"alice", "bob"} <= set(names)
    for key in KEYS:
        assert key not in serving.log.read_text()


def test_slow_clients_are_cut_off_and_others_answered_meanwhile(start: Start) -> None:
    serving = start(CAPTCHA_HEADER_SECONDS="2", CAPTCHA_BODY_SECONDS="2")
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", serving.port), timeout=60)) for _ in range(100)
        ]
        for place, each in enumerate(slow):
            head = b"POST /invocations HTTP/1.1\r\nHost: localhost\r\n"
            each.sendall(head + (b"Content-Length: 900\r\n\r\n{" if place % 2 else b"Con"))
        begun = time.monotonic()
        assert serving.ask({"inputs": [encoded("abc")]})[0] == 200
        for place, each in enumerate(slow):
            with contextlib.suppress(ConnectionResetError):
                answer = b"".join(iter(lambda each=each: each.recv(65536), b""))  # type: ignore[misc]
                assert answer.startswith(b"HTTP/1.1 408 " if place % 2 else b"")
        assert time.monotonic() - begun < 60
    assert serving.ask({"inputs": [encoded("abc")]})[0] == 200


def test_a_request_that_asks_for_too_much_time_gets_504_and_the_processor_is_free_soon_after(start: Start) -> None:
    serving = start(CAPTCHA_DEADLINE="1")
    wide = encoded("abc" * 40)
    body = {"inputs": [wide] * 1000, "params": {"decoder": "beam", "beam_width": 10}}
    status, _, answer = serving.ask(body)
    assert (status, answer["error_code"]) == (504, "DEADLINE_EXCEEDED")
    time.sleep(3)
    before = _cpu_seconds(serving.process.pid)
    time.sleep(2)
    assert _cpu_seconds(serving.process.pid) - before < 1


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("options", "variables", "line"),
    [
        (("-m", "models:/nope@champion"), {}, "'models:/nope@champion' names no model"),
        (("-m", "models:/m/1", "--keys", "no-such-file"), {}, "no-such-file cannot be read: No such file"),
        (("-m", "models:/m/1", "--host", "192.0.2.1"), {}, "192.0.2.1, port 5001: "),
        (("-m", "models:/m/1"), {"CAPTCHA_MAX_BODY": "lots"}, "CAPTCHA_MAX_BODY must be a whole number"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    store: Path, options: tuple[str, ...], variables: dict[str, str], line: str
) -> None:
    done = subprocess.run(
        command(*options), cwd=store, env=environment(**variables), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    told = [each for each in done.stderr.splitlines() if each.startswith("captcha: ")]
    assert line in told[-1]
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_told_in_one_line(store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            command("-m", "models:/m/1", "--port", port), cwd=store, env=environment(), capture_output=True, text=True
        )
    assert done.returncode == 2
    assert f"127.0.0.1, port {port}: Address already in use; choose others with --host and --port" in done.stderr
