"""Whether the store of runs and models can be used: told in one line, within seconds, before MLflow asks it.

MLflow itself waits for minutes, or for ever, and says several lines.
"""

import os
import re
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from captcha import CaptchaError
from captcha.settings import project_root

PATIENCE = 8.0
"""Seconds that a store has to answer the first time; with the imports, a person waits no 15."""

BOUNDS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "PGCONNECT_TIMEOUT": "10",
}
"""What MLflow and PostgreSQL's client take from the environment, where a person has not set it.

A request is tried three times, for 10 seconds each: a server that falls silent later is noticed within 35 seconds.
MLflow's own bounds are eight times and 120 seconds each.
"""

ANOTHER = "or name another store with MLFLOW_TRACKING_URI"


class StoreError(CaptchaError):
    """A store of runs and models that cannot be used; one line that says why, where, and what to do."""


def check_store(uri: str, writing: bool = False) -> None:
    """Return if the store of this URI answers, and if it can be written where that is wanted.

    Raises:
        StoreError: it is unreachable, silent, damaged, locked, may not be read or written, or of a newer MLflow.
    """
    for name, value in BOUNDS.items():
        os.environ.setdefault(name, value)
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("http", "https"):
        _within(PATIENCE, shown(uri), lambda: _check_server(uri))
    elif scheme == "sqlite":
        _check_file(uri, writing)
    elif scheme in ("postgresql", "mysql", "mssql"):
        _within(PATIENCE, shown(uri), lambda: _check_database(uri))


def shown(uri: str) -> str:
    """Return a URI as it can be printed: without a name and a password."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", uri)


def _within(seconds: float, where: str, check: Callable[[], None]) -> None:
    """Call the function, for so long at most: no library bounds the whole of looking up a name, connecting, reading."""
    raised: list[BaseException] = []

    def note() -> None:
        try:
            check()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=note, daemon=True)  # one that hangs does not keep the program from its end
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise StoreError(f"{where} does not answer within {seconds:g} seconds: start it, {ANOTHER}")
    if raised:
        raise raised[0]


def _check_server(uri: str) -> None:
    where = shown(uri)
    try:
        answer = http_request(
            get_default_host_creds(uri),
            "/api/2.0/mlflow/experiments/search",
            "GET",
            params={"max_results": 1},
            raise_on_status=False,
        )
    except Exception as error:  # MLflow makes one of its own of whatever requests raises
        raise StoreError(f"{where} cannot be reached ({_network_fault(error)}): start it, {ANOTHER}") from None
    if answer.status_code == 403 and "Invalid Host header" in answer.text:  # MLflow's words
        raise StoreError(f"{where} does not answer to this name: add it to the server's --allowed-hosts, {ANOTHER}")
    if answer.status_code in (401, 403):
        raise StoreError(
            f"{where} answers {answer.status_code} {answer.reason}: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if answer.status_code != 200:
        raise StoreError(
            f"{where} answers {answer.status_code} {answer.reason}: see that it is an MLflow server and what its log "
            f"says, {ANOTHER}"
        )
    try:
        understood = isinstance(answer.json(), dict)
    except ValueError:
        understood = False
    if not understood:
        kind = answer.headers.get("Content-Type", "something unknown").partition(";")[0]
        raise StoreError(f"{where} is no MLflow server: it answers with {kind}; name one with MLFLOW_TRACKING_URI")


def _network_fault(error: Exception) -> str:
    text = str(error)
    if match := re.search(r"\[Errno -?\d+\] ([\w ]+)", text):
        return match[1]
    if "timed out" in text:
        return "it does not answer"
    return cause(error)


def _check_file(uri: str, writing: bool) -> None:
    """Check a database of SQLite's; one that is not there is made by MLflow, in a folder that may be written."""
    from sqlalchemy import make_url  # MLflow imports it where it needs it, which takes a second

    name = make_url(uri).database
    if not name or name == ":memory:" or name.startswith("file:"):
        return
    path = Path(name).absolute()
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise StoreError(f"the database {path} cannot be read: {error.strerror}; see to that, {ANOTHER}") from None
    if is_folder:
        raise StoreError(f"the database {path} is a folder: name a file with MLFLOW_TRACKING_URI=sqlite:///FILE")
    folder = next(each for each in path.parents if each.exists())
    unwritable = f"the database {path} cannot be written: you may not write into {folder}; get leave to, {ANOTHER}"
    if not path.exists():
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StoreError(unwritable)
        return
    if not os.access(path, os.R_OK):
        raise StoreError(f"the database {path} cannot be read: you may not read it; get leave to, {ANOTHER}")
    if writing and not os.access(folder, os.W_OK | os.X_OK):  # SQLite keeps a journal beside it
        raise StoreError(unwritable)
    if writing and not os.access(path, os.W_OK):
        raise StoreError(f"the database {path} is read-only: get leave to write it, {ANOTHER}")
    try:
        revision = _ask_file(path, writing)
    except sqlite3.Error as error:
        raise StoreError(f"the database {path} {_sqlite_fault(error)}") from None
    if revision and not _known(revision):
        raise StoreError(
            f"the database {path} was made by a newer MLflow than {mlflow.__version__}: install that one, {ANOTHER}"
        )


def _ask_file(path: Path, writing: bool) -> str | None:
    """Return the revision of a database's tables, None where it has none yet."""
    connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
    try:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if writing:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        if "alembic_version" not in tables:
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else None
    finally:
        connection.close()


def _known(revision: str) -> bool:
    """Return whether this MLflow knows a revision of its tables: each has a file, named by it."""
    files = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    return not files.is_dir() or any(file.name.startswith(revision) for file in files.iterdir())


def _sqlite_fault(error: sqlite3.Error) -> str:
    """Return what ails a database, and what to do, as the end of a sentence."""
    text = str(error)
    if "locked" in text or "busy" in text:
        return f"is locked by another process for more than {PATIENCE:g} seconds: wait until that has ended, or end it"
    if "not a database" in text or "malformed" in text:
        return f"is damaged ({text}): put a copy of it in its place, {ANOTHER}"
    return f"cannot be used ({text}): see to that, {ANOTHER}"


def _check_database(uri: str) -> None:
    from mlflow.store.db.utils import create_sqlalchemy_engine
    from sqlalchemy import text

    where = shown(uri)
    try:
        engine = create_sqlalchemy_engine(uri)
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        finally:
            engine.dispose()
    except ModuleNotFoundError as error:
        raise StoreError(f"{where} needs a driver that is not installed, {error.name}: install it, {ANOTHER}") from None
    except Exception as error:  # each driver has errors of its own
        raise StoreError(f"{where} cannot be used ({cause(error)}): start it, or mend the URI") from None


def cause(error: BaseException) -> str:
    """Return in one line why something failed, without SQLAlchemy's statement; its kind where its message is empty.

    MLflow's messages go on in the next line where the first ends in a colon; other lines after the first are advice.
    """
    lines = [line.strip(" #") for line in str(error).partition("[SQL:")[0].splitlines() if line.strip(" #")]
    told = lines[:1] or [type(error).__name__]
    for line in lines[1:]:
        if not told[-1].endswith(":") and not told[-1].startswith("File "):  # above which MLflow says what failed
            break
        told.append(line)
    return shown(" ".join(told).rstrip(": "))


def stored_in() -> list[str]:
    """Return the folders of this machine in which runs and models are kept, as far as they lie there."""
    uri = mlflow.get_tracking_uri()
    folders = [str(project_root() / "mlruns")]
    return [*folders, str(Path(uri.removeprefix("sqlite:///")).parent)] if uri.startswith("sqlite:///") else folders
