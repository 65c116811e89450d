"""Small drawn pictures for the tests, so that none needs a download."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import pickletools
import pwd
import re
import shutil
import subprocess
import sys
import termios
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray
from picklescan.scanner import scan_bytes

settings.register_profile("steady", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("steady")  # the same examples each time, so that a failure stays; the fuzzers look for new ones

Draw = Callable[..., NDArray[np.uint8]]


@pytest.fixture(scope="session")
def draw() -> Draw:
    """A function that draws a text: (height, width, 3) RGB, dark on a light, slightly noisy ground."""

    def draw_text(text: str, width: int = 96, height: int = 32, seed: int = 0) -> NDArray[np.uint8]:
        rng = np.random.default_rng([seed, *text.encode()])
        image = rng.integers(200, 256, (height, width, 3), dtype=np.uint8)
        ink = [int(value) for value in rng.integers(0, 100, 3)]
        scale = 0.8 * min(height / 24, width / (18 * max(1, len(text))))
        cv2.putText(image, text, (4, height * 3 // 4), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 2)
        return image

    return draw_text


@pytest.fixture
def write_image(draw: Draw) -> Callable[..., Path]:
    """A function that draws a text and saves it under the path given, in the format of its extension."""

    def write(path: Path, text: str = "", **options: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        extension = path.suffix.lower()
        done, data = cv2.imencode(extension, draw(text or path.stem, **options)[:, :, ::-1])
        assert done
        path.write_bytes(data.tobytes())
        return path

    return write


@pytest.fixture
def captcha_folder(tmp_path: Path, write_image: Callable[..., Path]) -> Path:
    """A folder of 60 PNGs of three digits each, named by their label."""
    folder = tmp_path / "captchas"
    for number in range(60):
        write_image(folder / f"{number * 7:03d}.png")
    return folder


@pytest.fixture(scope="session")
def draw_digits(draw: Draw) -> Callable[[Path, int], Path]:
    """A function that fills a new folder with so many images of two digits, named by their label, 48 × 32 pixels."""

    def draw_folder(folder: Path, count: int) -> Path:
        folder.mkdir()
        for number in range(count):
            cv2.imwrite(str(folder / f"{number:02}.png"), draw(f"{number:02}", 48, 32)[:, :, ::-1])
        return folder

    return draw_folder


@pytest.fixture(scope="session")
def spoil(draw: Draw) -> Callable[[Path, Path], Path]:
    """A function that copies a folder and adds four files with a problem to the copy.

    They are one picture under two labels, one that is no image, and one whose label is empty.
    """

    def copy_and_spoil(folder: Path, spoilt: Path) -> Path:
        shutil.copytree(folder, spoilt)
        for name, text in {"one": "1", "two": "1", " ": "2"}.items():
            cv2.imwrite(str(spoilt / f"{name}.png"), draw(text, 48, 32)[:, :, ::-1])
        (spoilt / "torn.png").write_bytes(b"torn")
        return spoilt

    return copy_and_spoil


@pytest.fixture(scope="session")
def on_terminal() -> Callable[..., tuple[str, list[str]]]:
    """A function that runs a command with a terminal as its output; it takes what `subprocess.Popen` takes.

    It gives what was written, and the lines that stand on the terminal in the end.
    """

    def run(*command: str, **options: Any) -> tuple[str, list[str]]:
        ours, terminal = os.openpty()
        termios.tcsetwinsize(ours, (40, 120))
        with subprocess.Popen(command, stdout=terminal, stderr=terminal, **options):
            os.close(terminal)
            content = b"".join(iter(lambda: read(ours), b""))
        os.close(ours)
        written = content.decode().replace("\r\n", "\n")
        return written, [on_screen(line) for line in written.split("\n")]

    def read(ours: int) -> bytes:
        try:
            return os.read(ours, 65536)
        except OSError:  # how Linux says that all who wrote to the terminal are gone
            return b""

    def on_screen(line: str) -> str:
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        return shown.rstrip()

    return run


FRAMED_PICKLE = re.compile(rb"\x80[\x04\x05]\x95.{3}\x00{5}", re.DOTALL)
"""How a pickle of protocol 4 or 5 begins, wherever in a file: with its first frame, of less than 16 MB."""

NUMPY = b"\x93NUMPY"
"""How a file of NumPy begins."""

DECOMPRESS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
    b"\x78": zlib.decompress,
}


@pytest.fixture(scope="session")
def assert_no_pickle() -> Callable[[Path], None]:
    """A function that asserts that a folder has files and that none of them is a pickle or holds one.

    By picklescan, whatever a file is called, and by the bytes: picklescan alone says nothing of a pickle that calls
    nothing. Archives, compressed files and NumPy's are looked into.
    """

    def check(folder: Path) -> None:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        assert files, f"{folder} holds no files"
        assert [path for path in files if calls(path) or is_pickle(path.read_bytes())] == []

    def calls(path: Path) -> bool:
        """Return what picklescan says; of text it takes for an unknown import what is no pickle to its end."""
        content = path.read_bytes()
        kind = ".npy" if content.startswith(NUMPY) else path.suffix
        found = scan_bytes(io.BytesIO(content or b"\0"), path.name, kind)  # it fails on an empty file
        return bool(found.issues_count or (found.globals and not found.scan_err))

    def is_pickle(content: bytes) -> bool:
        if FRAMED_PICKLE.search(content) or is_whole(content):
            return True
        if content.startswith(NUMPY):
            return b"|O" in content[:256]  # objects, which NumPy pickles
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                return any(is_pickle(archive.read(name)) for name in archive.namelist())
        for magic, decompress in DECOMPRESS.items():
            with contextlib.suppress(OSError, EOFError, lzma.LZMAError, zlib.error):
                if content.startswith(magic) and is_pickle(decompress(content)):
                    return True
        return False

    def is_whole(content: bytes) -> bool:
        """Return whether a pickle begins with the first byte and comes to its end; the oldest have no magic."""
        try:
            pickletools.dis(content, io.StringIO())
        except Exception:  # what pickletools raises of bytes that are no opcodes is not documented
            return False
        return True

    return check


@pytest.fixture(scope="session")
def nobody() -> tuple[str, dict[str, Any]]:
    """A Python that user `nobody` may run, and what has `subprocess.Popen` run it as that user without groups.

    It is of this one's version, without its packages where this one lies in a folder that the user may not enter.
    """
    if os.geteuid() != 0:
        pytest.skip("only root may start a process as another user")
    known = pwd.getpwnam("nobody")
    user: dict[str, Any] = {"user": known.pw_uid, "group": known.pw_gid, "extra_groups": []}
    named = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (os.path.realpath(sys.executable), shutil.which(named, path="/usr/local/bin:/usr/bin:/bin")):
        with contextlib.suppress(PermissionError):
            if python and subprocess.run([python, "-c", ""], cwd="/", env={}, **user).returncode == 0:
                return python, user
    pytest.skip(f"user nobody may run no {named}")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch on one thread while a module's tests run: its small steps wait for each other on busy cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def unfinished_runs_aside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where runs of this process keep what they need until they have ended: not in the project."""
    from captcha.tracking import unfinished

    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unfinished, "project_root", lambda: folder)
        yield folder / "mlruns" / "unfinished"


@pytest.fixture(scope="session")
def new_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as MLflow makes it; copies are there at once, a new one takes seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with contextlib.chdir(path.parent):  # where the default experiment will keep its artifacts
        mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory, new_mlflow_database: Path) -> Iterator[Path]:
    """An empty folder that MLflow tracks into and that is the working folder while a module's tests run."""
    from mlflow.tracking import fluent
    from mlflow.tracking._tracking_service import utils

    folder = tmp_path_factory.mktemp("a folder with spaces")
    shutil.copy(new_mlflow_database, folder / "mlflow.db")
    with mock.patch.dict(os.environ), pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            del os.environ[name]
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        patch.setattr(utils, "_tracking_uri", None)
        patch.setattr(fluent, "_active_experiment_id", None)
        patch.chdir(folder)
        yield folder
