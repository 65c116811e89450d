"""A server of PostgreSQL for the tests: its own data, its own socket, started and stopped by them."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


class PostgreSQL:
    """A server of its own, on a socket in a folder that it owns."""

    def __init__(self, folder: Path, programs: Path, user: list[str]) -> None:
        self.folder, self.programs, self.user = folder, programs, user
        self.uri = f"postgresql+psycopg2://postgres@/mlflow?host={folder}"

    @contextmanager
    def running(self) -> Iterator[None]:
        data = f"--pgdata={self.folder}/data"
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off"
        self._call("initdb", data, "--auth=trust", "--username=postgres", "--no-sync")
        self._call("pg_ctl", "start", "--wait", data, f"--log={self.folder}/log", f"--options={options}")
        try:
            self._call("createdb", *self._named, "mlflow")
            yield
        finally:
            self._call("pg_ctl", "stop", "--wait", data, "--mode=immediate")

    def save(self, name: str) -> None:
        self._copy("mlflow", name)

    def restore(self, name: str) -> None:
        self._copy(name, "mlflow")

    def _copy(self, source: str, name: str) -> None:
        self._call("dropdb", *self._named, "--if-exists", "--force", name)
        self._call("createdb", *self._named, f"--template={source}", name)

    @property
    def _named(self) -> list[str]:
        return [f"--host={self.folder}", "--username=postgres"]

    def _call(self, program: str, *arguments: str) -> None:
        command = [*self.user, str(self.programs / program), *arguments]
        subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def new_postgresql() -> Iterator[PostgreSQL]:
    """Start a server with an empty database `mlflow`; the test is skipped where there is none, or only root to run it.

    PostgreSQL refuses root, which hands it to the user `postgres`.
    """
    programs = [Path(shutil.which("initdb") or "").resolve(), *Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    found = [program.parent for program in programs if program.name == "initdb"]
    if not found:
        pytest.skip("there is no initdb, on PATH or in /usr/lib/postgresql: install Debian's package postgresql")
    with TemporaryDirectory(prefix="captcha-postgresql-") as folder:
        user = []
        if os.getuid() == 0:
            if "postgres" not in [entry.pw_name for entry in pwd.getpwall()]:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
            shutil.chown(folder, "postgres")
            user = ["runuser", "--user=postgres", "--"]
        store = PostgreSQL(Path(folder), found[0], user)
        with store.running():
            yield store
