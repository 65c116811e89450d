"""Stores that do not answer: real sockets, real processes, real files and a real small disk."""

import http.server
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from captcha.tracking import runs
from captcha.tracking import store as module
from captcha.tracking.models import load_recognizer, resolve
from captcha.tracking.runs import connect, tracked_run
from captcha.tracking.store import StoreError, cause, check_store, shown

LONGEST = 15
"""Seconds within which a store that does not answer is told."""


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*module.BOUNDS, "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


@contextmanager
def listening(backlog: int = 8) -> Iterator[int]:
    """A port that takes connections, so many at once, and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(backlog)
        yield listener.getsockname()[1]


@contextmanager
def answering(status: int, content: bytes, kind: str = "text/html") -> Iterator[int]:
    """A port at which a server of HTTP answers every request so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def told(uri: str, writing: bool = False) -> str:
    """Return the line that a store is refused with, which comes in time and holds no password."""
    began = time.monotonic()
    with pytest.raises(StoreError) as refused:
        check_store(uri, writing)
    assert time.monotonic() - began < LONGEST
    line = str(refused.value)
    assert "\n" not in line
    assert "secret" not in line
    return line


# Servers


def test_a_server_that_nobody_runs_is_told_at_once_and_without_the_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert told(f"http://me:secret@127.0.0.1:{port}") == (
        f"http://127.0.0.1:{port} cannot be reached (Connection refused): start it, or name another store with "
        "MLFLOW_TRACKING_URI"
    )


def test_a_server_that_takes_a_request_and_never_answers_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    with listening() as port:
        line = told(f"http://127.0.0.1:{port}")
        assert line.startswith(f"http://127.0.0.1:{port} does not answer within 1 seconds: start it, or ")


def test_a_host_that_drops_all_that_is_sent_to_it_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # What Linux does with a port whose line of waiting connections is full: as a host behind a silent firewall.
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    with listening(backlog=0) as port, socket.create_connection(("127.0.0.1", port)):
        with pytest.raises(TimeoutError), socket.create_connection(("127.0.0.1", port), 0.2):
            pass
        for scheme in ("http", "postgresql+psycopg2"):
            assert f"127.0.0.1:{port}" in (line := told(f"{scheme}://me:secret@127.0.0.1:{port}/runs"))
            assert "does not answer within 1 seconds" in line


def test_a_database_server_that_never_answers_or_is_not_there_is_told_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 2.0)
    with listening() as port:
        line = told(f"postgresql+psycopg2://me:secret@127.0.0.1:{port}/runs")
        assert line.startswith(f"postgresql+psycopg2://127.0.0.1:{port}/runs does not answer within 2 seconds")
    assert "Connection refused" in told(f"postgresql+psycopg2://me:secret@127.0.0.1:{port}/runs")
    line = told("mysql+nobody://me:secret@127.0.0.1/runs")
    assert line.startswith("mysql+nobody://127.0.0.1/runs cannot be used (")
    assert "needs a driver that is not installed, MySQLdb" in told("mysql+mysqldb://me:secret@127.0.0.1/runs")


@pytest.mark.parametrize(
    ("status", "content", "line"),
    [
        (
            500,
            b"<html>oh</html>",
            "answers 500 Internal Server Error: see that it is an MLflow server and what its log",
        ),
        (404, b"no", "answers 404 Not Found: see that it is an MLflow server"),
        (401, b"no", "answers 401 Unauthorized: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or"),
        (403, b"no", "answers 403 Forbidden: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or"),
        (
            403,
            b"Invalid Host header - possible DNS rebinding attack detected",
            "does not answer to this name: add it to the server's --allowed-hosts, or name another store",
        ),
        (200, b"<html>hello</html>", "is no MLflow server: it answers with text/html; name one with "),
    ],
    ids=str,
)
def test_a_server_that_is_none_of_mlflows_is_told(status: int, content: bytes, line: str) -> None:
    with answering(status, content) as port:
        assert told(f"http://127.0.0.1:{port}").startswith(f"http://127.0.0.1:{port} {line}")


def test_a_server_that_answers_as_mlflow_does_is_taken_and_later_calls_are_bounded() -> None:
    with answering(200, b"{}", "application/json") as port:
        check_store(f"http://127.0.0.1:{port}", writing=True)
    assert {name: os.environ[name] for name in module.BOUNDS} == dict(module.BOUNDS)


def test_a_bound_that_a_person_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(200, b"{}", "application/json") as port:
        check_store(f"http://127.0.0.1:{port}")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_a_later_call_to_a_server_that_has_fallen_silent_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BOUNDS", dict(module.BOUNDS) | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"})
    with answering(200, b"{}", "application/json") as port:
        check_store(f"http://127.0.0.1:{port}")
    with listening() as port:
        began = time.monotonic()
        with pytest.raises(MlflowException, match="timed out"):
            mlflow.MlflowClient(f"http://127.0.0.1:{port}").search_experiments()
        assert time.monotonic() - began < LONGEST


def test_the_store_of_models_is_asked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(500, b"") as port:
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://127.0.0.1:{port}")
        with pytest.raises(StoreError, match=f"^http://127.0.0.1:{port} answers 500 "):
            connect()


# Files


@pytest.fixture
def database(new_mlflow_database: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(new_mlflow_database, tmp_path / "runs.db"))


def test_a_whole_database_is_taken_and_so_is_one_that_is_yet_to_be_made(database: Path) -> None:
    for path in (database, database.with_name("new.db"), database.parent / "new" / "folder" / "new.db"):
        for writing in (False, True):
            check_store(f"sqlite:///{path}", writing)
    assert [file.name for file in database.parent.iterdir()] == ["runs.db"]
    check_store("sqlite://")


def test_a_damaged_database_is_told(database: Path) -> None:
    whole = database.read_bytes()
    for content in (whole[: len(whole) // 2], b"no database" * 1000, whole[:20] + b"\xff" * 200 + whole[220:]):
        database.write_bytes(content)
        line = told(f"sqlite:///{database}")
        assert line.startswith(f"the database {database} is damaged (")
        assert line.endswith("): put a copy of it in its place, or name another store with MLFLOW_TRACKING_URI")
        assert database.read_bytes() == content


def test_a_folder_in_the_place_of_a_database_is_told(tmp_path: Path) -> None:
    assert told(f"sqlite:///{tmp_path}") == (
        f"the database {tmp_path} is a folder: name a file with MLFLOW_TRACKING_URI=sqlite:///FILE"
    )


def test_a_database_of_a_newer_mlflow_is_told(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    connection.close()
    assert told(f"sqlite:///{database}").startswith(
        f"the database {database} was made by a newer MLflow than {mlflow.__version__}: install that one, or "
    )


def test_a_database_that_another_process_has_locked_is_told_in_time(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    program = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(f"BEGIN {sys.argv[2]}")
print("locked", flush=True)
sys.stdin.read()
"""
    for kind, hinders_reading in (("EXCLUSIVE", True), ("IMMEDIATE", False)):
        command = [sys.executable, "-c", program, str(database), kind]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            for writing in (False, True):
                if writing or hinders_reading:
                    line = told(f"sqlite:///{database}", writing)
                    assert line.startswith(f"the database {database} is locked by another process for more than 1 sec")
                else:
                    check_store(f"sqlite:///{database}")
            process.communicate()
        check_store(f"sqlite:///{database}", writing=True)


def as_an_ordinary_user(uri: str, writing: bool, sound: Path) -> str:
    """Return what an ordinary user is told of a store, whoever runs the tests; OK where it is taken.

    A sound database is looked at before: as an ordinary user the process may not read where the packages lie.
    """
    program = """
import os, sys
from captcha.tracking import store
from captcha.tracking.store import StoreError, check_store
check_store(f"sqlite:///{sys.argv[3]}", writing=True)
store._known = lambda revision: True  # a stand-in: it looks among MLflow's files
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    check_store(sys.argv[1], sys.argv[2] == "True")
    print("OK")
except StoreError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, uri, str(writing), str(sound)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users reach: those of pytest are closed to them."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
        Path(name).chmod(0o700)


def test_what_an_ordinary_user_may_not_read_or_write_is_told(new_mlflow_database: Path, open_folder: Path) -> None:
    folder = open_folder
    database = Path(shutil.copy(new_mlflow_database, folder / "runs.db"))
    uri = f"sqlite:///{database}"

    def told_to(uri: str, writing: bool) -> str:
        return as_an_ordinary_user(uri, writing, new_mlflow_database)

    folder.chmod(0o000 if os.getuid() else 0o700)
    assert told_to(uri, writing=False).startswith(f"the database {database} cannot be read: Permission de")
    folder.chmod(0o555)
    database.chmod(0o444)
    assert told_to(uri, writing=False) == "OK"
    line = told_to(uri, writing=True)
    assert line.startswith(f"the database {database} cannot be written: you may not write into {folder}; get leave to")
    new = f"sqlite:///{folder}/new.db"
    assert told_to(new, writing=False).startswith(f"the database {folder}/new.db cannot be written: ")
    folder.chmod(0o777)
    assert told_to(uri, writing=True).startswith(f"the database {database} is read-only: get leave to")
    database.chmod(0o600 if os.getuid() == 0 else 0o200)
    assert told_to(uri, writing=False).startswith(f"the database {database} cannot be read: you may not")


# Full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that gives a folder which is a disk of its own, of so many kB."""
    mounted: list[Path] = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)])
        if done.returncode:
            pytest.skip("this user may not mount a small disk: see `mount -t tmpfs -o size=1m none FOLDER`")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_database_that_a_full_disk_lets_nobody_make_is_told_and_leaves_nothing(
    small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(200)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(runs, "project_root", lambda: disk)
    with pytest.raises(StoreError, match=f"^database or disk is full: free some space on the disk of {disk}$"):
        connect()
    assert list(disk.iterdir()) == []


def test_a_full_temporary_folder_is_told_by_name_where_a_model_is_copied_into_it(
    small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with tracked_run("a training") as run:
        model = mlflow.initialize_logged_model("a model")
        (tmp_path / "large").write_bytes(bytes(2_000_000))
        mlflow.MlflowClient().log_model_artifacts(model.model_id, str(tmp_path / "large").rsplit("/", 1)[0])
        mlflow.finalize_logged_model(model.model_id, "READY")
    del run
    disk = small_disk(1000)
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    with pytest.raises(ValueError, match=f"^No space left on device: free some space on the disk of {disk}$"):
        load_recognizer(f"models:/{model.model_id}")
    assert list(disk.iterdir()) == []


# Lines


def test_a_cause_is_one_line_that_is_not_cut_off() -> None:
    assert cause(ValueError("")) == "ValueError"
    assert cause(ValueError("one\ntwo")) == "one"
    assert cause(ValueError("these failed:\n##### File a.onnx #####\nno such key\nmore")) == (
        "these failed: File a.onnx no such key"
    )
    database = "(sqlite3.OperationalError) disk I/O error\n[SQL: SELECT 1]\n(Background on this error at: https://x)"
    assert cause(ValueError(database)) == "(sqlite3.OperationalError) disk I/O error"
    assert cause(ValueError("request to http://me:secret@host/x failed")) == "request to http://host/x failed"
    assert shown("postgresql://me:secret@host:1/x") == "postgresql://host:1/x"


@pytest.mark.parametrize(
    "uri", ["file:///etc", "http://127.0.0.1:9/x", "runs:/0123/weights", "models:/x/../../etc", "x" * 5000, ""]
)
def test_nothing_but_the_forms_of_a_model_is_followed(uri: str) -> None:
    for look_up in (load_recognizer, resolve):
        with pytest.raises(ValueError, match=r"^'[^\n]{0,200} names no model: ") as refused:
            look_up(uri)
        assert len(str(refused.value)) < 500
