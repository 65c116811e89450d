"""`captcha serve` as docs/security.md has it: by a user who may read one recogniser's folder, and change nothing."""

import json
import os
import re
import shutil
import subprocess
import sysconfig
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tests.server.stripes import png, save_stripes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def for_all() -> Iterator[Path]:
    """A folder that every user may enter, in it the package and a `recognizer` that nobody may change."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(ROOT / "captcha", folder / "captcha", ignore=shutil.ignore_patterns("__pycache__"))
        save_stripes(folder / "recognizer")
        for path in folder.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield folder


def state(folder: Path) -> dict[Path, tuple[int, bytes]]:
    found = [folder, *folder.rglob("*")]
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in found}


def test_captcha_serve_works_for_a_user_who_may_not_change_the_model(
    for_all: Path, nobody: tuple[str, dict[str, Any]]
) -> None:
    python, user = nobody
    packages = os.pathsep.join([str(for_all), sysconfig.get_path("purelib")])
    environment = {"PYTHONPATH": packages, "HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}
    changing = subprocess.run(["touch", for_all / "recognizer" / "model.onnx"], capture_output=True, text=True, **user)
    assert "Permission denied" in changing.stderr
    before = state(for_all)
    command = [python, "-m", "captcha", "serve", "-m", str(for_all / "recognizer"), "--port", "0"]
    with subprocess.Popen(command, cwd=for_all, env=environment, stdout=subprocess.PIPE, text=True, **user) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+$", line)
            assert found, line
            assert psutil.Process(process.pid).uids() == (user["user"],) * 3
            question = urllib.request.Request(f"{found[0]}/invocations", png("cab"), {"Content-Type": "image/png"})
            with urllib.request.urlopen(question, timeout=60) as answer:
                assert json.load(answer)["predictions"][0]["text"] == "cab"
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert state(for_all) == before
