"""The scan for pickles finds what is planted; tests/jobs/test_train.py has it look at what a training leaves."""

import gzip
import io
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save


class Calls:
    """What a hostile file pickles: unpickled, it calls a function of its choice."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("print('called')",)


def torch_file() -> bytes:
    content = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, content)
    return content.getvalue()


def array(values: np.ndarray, allow_pickle: bool) -> bytes:
    content = io.BytesIO()
    np.save(content, values, allow_pickle=allow_pickle)
    return content.getvalue()


def safetensors_file(header: int) -> bytes:
    """Return the content of a file whose header has so many bytes."""
    for padding in range(header):
        content = save({"weight": torch.zeros(3)}, {"padding": "x" * padding})
        if int.from_bytes(content[:8], "little") == header:
            return content
    raise AssertionError(f"no padding gives a header of {header} bytes")


def archive(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("inner", content)
    return packed.getvalue()


PLANTED = {
    **{f"a call, protocol {n}": pickle.dumps(Calls(), n) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
    **{f"numbers, protocol {n}": pickle.dumps({"step": [1, 2]}, n) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
    "behind other bytes": b"\x89PNG\r\n" + bytes(100) + pickle.dumps(Calls()),
    "in an archive": archive(archive(pickle.dumps(Calls()))),
    "in gzip": gzip.compress(pickle.dumps(Calls())),
    "in zlib, as joblib does": zlib.compress(pickle.dumps(Calls())),
    "cut off behind its call": pickle.dumps(Calls(), 0)[:-1],
    "of PyTorch": torch_file(),
    "an array of objects": array(np.array([Calls()], dtype=object), allow_pickle=True),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_pickle_is_found_whatever_its_file_is_called(
    kind: str, assert_no_pickle: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "picture.png").write_bytes(PLANTED[kind])
    with pytest.raises(AssertionError, match=r"picture\.png"):
        assert_no_pickle(tmp_path)


def test_what_is_no_pickle_is_let_through(
    assert_no_pickle: Callable[[Path], None], write_image: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("a.png", "a.jpg", "a.bmp"):
        write_image(tmp_path / name)
    noise = np.random.default_rng(0).integers(0, 256, 2_000_000, dtype=np.uint8)
    (tmp_path / "noise").write_bytes(b"\0" + noise.tobytes())
    (tmp_path / "noise.npy").write_bytes(array(noise, allow_pickle=False))
    (tmp_path / "noise.zip").write_bytes(archive(noise.tobytes()))
    (tmp_path / "text").write_text("In the beginning.\n")
    (tmp_path / "figure").write_text("0.95\n")
    (tmp_path / "conda.yaml").write_text("channels:\n- conda-forge\ndependencies:\n- python=3.11\n")
    (tmp_path / "empty").touch()
    for header in (640, 896, 1152, 1408):  # their lengths begin with the two bytes that a pickle begins with
        (tmp_path / f"{header}.safetensors").write_bytes(safetensors_file(header))
    assert_no_pickle(tmp_path)


def test_a_folder_without_files_is_no_proof(assert_no_pickle: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="holds no files"):
        assert_no_pickle(tmp_path)
