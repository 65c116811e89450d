"""A registered version tried in a process of its own: that it runs, and what it reads of images."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from captcha.reading.recognizer import ARTIFACT, Reading
from captcha.tracking.models import download
from captcha.tracking.runs import RegistryError

PROGRAM = Path(__file__).with_name("trial_process.py")

PATIENCE, PATIENCE_PER_IMAGE = 180, 1
"""Seconds that a model has to start and to read its example, and those for each image."""


@dataclass(frozen=True)
class Tried:
    """What a model reads of images, in the images' order, and what that takes."""

    readings: list[Reading]
    seconds: float
    """CPU time of all readings, without the start."""
    bytes: int
    """Size of the recogniser's files."""


def try_version(uri: str, images: Sequence[bytes]) -> Tried:
    """Return what a version reads of image files' contents, once it has read its own input example.

    Its files are checked against their sha256; then its own code runs, in a process that has none of MLflow's
    variables: it knows of no tracking server and of no password.

    Raises:
        RegistryError: there is no such version, its files are damaged, or it does not run.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("model", "images"):
            (folder / name).mkdir()
        model = download(uri, folder / "model")
        for number, content in enumerate(images):
            (folder / "images" / f"{number:08}").write_bytes(content)
        # -P keeps this package's folder off the path, where modules have the names of others.
        command = [sys.executable, "-P", str(PROGRAM), str(model), str(folder / "images"), str(folder / "answer")]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        patience = PATIENCE + PATIENCE_PER_IMAGE * len(images)
        try:
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=patience)
        except subprocess.TimeoutExpired:
            raise RegistryError(f"{uri} does not run: it has read nothing within {patience} seconds") from None
        if done.returncode:
            told = _last_line(done.stderr).replace(f"{model}/", "") or f"exit code {done.returncode}"
            raise RegistryError(f"{uri} does not run: {told}")
        answer = json.loads((folder / "answer").read_text())
        size = sum(file.stat().st_size for file in (model / "artifacts" / ARTIFACT).rglob("*") if file.is_file())
    return Tried([Reading(**each) for each in answer["readings"]], answer["seconds"], size)


def _last_line(written: bytes) -> str:
    """Return the last line of what a process has written, shortened: of a traceback it is what went wrong."""
    lines = written.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""
