"""`import captcha`: what it offers from Python, and what reading brings into memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import onnx.parser
import PIL.Image
import pytest
from numpy.typing import NDArray

import captcha
from captcha import CaptchaError
from captcha.reading.images import ImageSource
from captcha.reading.recognizer import ARTIFACT, save_recognizer
from captcha.reading.vocabulary import Vocabulary
from captcha.tracking.models import log_model
from captcha.tracking.runs import tracked_run

# Each column of pixels is a frame, its brightness the class: white is the blank, black "a", then "b" and "c".
STRIPES = (Path(__file__).parent / "reading" / "stripes.onnxtxt").read_text()
SHADES = {"a": 0, "b": 85, "c": 170}
TORCH = {"torch", "torchvision"}
HEAVY = TORCH | {"matplotlib", "mlflow", "pandas", "sklearn", "scipy", "onnx", "safetensors", "fontTools"}


def striped(text: str) -> NDArray[np.uint8]:
    row = [shade for character in text for shade in (*[255] * 4, *[SHADES[character]] * 4)]
    return np.tile(np.array([*row, *[255] * 4], np.uint8)[None, :, None], (16, 1, 3))


@pytest.fixture(scope="module")
def folder(tracking: Path) -> Path:
    """A recogniser's folder; it reads stripes."""
    model = onnx.parser.parse_model(STRIPES).SerializeToString()
    save_recognizer(tracking / ARTIFACT, model, Vocabulary("abc"), 16)
    return tracking / ARTIFACT


@pytest.fixture(scope="module")
def image(tracking: Path) -> Path:
    """The file of an image that says cab."""
    path = tracking / "image.png"
    PIL.Image.fromarray(striped("cab")).save(path)
    return path


@pytest.fixture(scope="module")
def run_id(folder: Path, image: Path) -> str:
    """The id of a run that has logged the recogniser."""
    with tracked_run("a training") as run:
        log_model(folder, image.read_bytes(), step=0)
    return str(run.info.run_id)


def test_a_model_is_loaded_from_its_folder_and_from_its_run(folder: Path, run_id: str, image: Path) -> None:
    for model in (folder, str(folder), f"runs:/{run_id}"):
        assert captcha.load(model).read(image).text == "cab"


@pytest.mark.parametrize("model", ["./nowhere", "no/where", "/no/where", Path("nowhere"), ""])
def test_mlflow_is_not_asked_about_what_can_only_be_a_folder(
    model: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captcha.tracking.models.load_recognizer", None)
    with pytest.raises(CaptchaError, match=r"names no model: there is no such folder; use models:/NAME@ALIAS, [^\n]*$"):
        captcha.load(model)


def test_an_image_is_a_path_bytes_an_array_or_a_pil_image_and_a_list_gives_a_list(folder: Path, image: Path) -> None:
    reader = captcha.load(folder)
    forms: list[ImageSource] = [str(image), image, image.read_bytes(), striped("cab"), PIL.Image.open(image)]
    readings = [reader.read(form) for form in forms]
    assert {reading.text for reading in readings} == {"cab"}
    assert reader.read(forms) == readings
    assert reader.read([]) == []


@pytest.mark.parametrize(
    "model", ["models:/nobody@champion", "no such folder", "", "s3://a/b", "runs:/0123456789abcdef"]
)
def test_a_model_that_is_not_there_is_an_error_of_one_line(folder: Path, model: str) -> None:
    with pytest.raises(CaptchaError, match=r"^[^\n]*(train one first|there is no such folder|names no model)[^\n]*$"):
        captcha.load(model)


def test_an_image_that_cannot_be_read_is_an_error_of_one_line(folder: Path, tmp_path: Path) -> None:
    for wrong in (tmp_path / "absent.png", b"no image", np.zeros((3, 3)), 7):
        with pytest.raises(CaptchaError, match=r"^[^\n]+$"):
            captcha.load(folder).read(wrong)  # type: ignore[arg-type]


def test_what_is_promised_is_there() -> None:
    assert captcha.__all__ == sorted(captcha.__all__)
    assert all(hasattr(captcha, name) for name in captcha.__all__)
    assert (Path(captcha.__file__).parent / "py.typed").is_file()


# What is imported


def imported(program: str, *arguments: str | Path) -> set[str]:
    """Return the top-level packages in memory after a program has run in a process of its own."""
    tail = "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    command = [sys.executable, "-c", program + tail, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if program == COMMAND:
        assert " INFO " not in done.stderr  # MLflow's lines, which tell a person nothing
    return set(json.loads(done.stdout.splitlines()[-1]))


COMMAND = """
import sys
from captcha.cli.app import main
try:
    main(sys.argv[1:])
except SystemExit as stopped:
    assert not stopped.code, stopped.code
"""


def test_import_captcha_alone_brings_nothing_heavy() -> None:
    assert not imported("import captcha") & (HEAVY | {"numpy", "cv2", "PIL", "onnxruntime", "pydantic", "typer"})


def test_a_recognisers_folder_is_read_with_without_mlflow_and_torch(folder: Path, image: Path) -> None:
    found = imported(COMMAND, "predict", image, "--model", folder)
    assert {"onnxruntime", "cv2"} <= found
    assert not found & HEAVY


def test_a_registered_model_is_read_with_without_torch_and_matplotlib(run_id: str, image: Path) -> None:
    found = imported(COMMAND, "predict", image, "--model", f"runs:/{run_id}")
    assert "mlflow" in found
    assert not found & (TORCH | {"matplotlib", "onnx", "safetensors"})


def test_an_evaluation_needs_no_torch_and_matplotlib_only_for_its_pictures(run_id: str, tracking: Path) -> None:
    images = tracking / "labelled"
    images.mkdir(exist_ok=True)
    for text in ("abc", "cab"):
        PIL.Image.fromarray(striped(text)).save(images / f"{text}.png")
    before_pictures = (
        """
import sys
from captcha.jobs import evaluate
evaluate.log_test = lambda evaluation, *_: print("read", evaluation.exact_match)
"""
        + COMMAND
    )
    found = imported(before_pictures, "evaluate", images, "--model", f"runs:/{run_id}")
    assert not found & (TORCH | {"matplotlib", "onnx", "safetensors"})
    assert not imported(COMMAND, "evaluate", images, "--model", f"runs:/{run_id}") & TORCH
    assert mlflow.active_run() is None
