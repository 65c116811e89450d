"""The folder that a model is exported to, read where neither MLflow nor PyTorch nor this package is."""

import importlib.metadata
import math
import re
import subprocess
import sys
import venv
from pathlib import Path

import cv2
import numpy as np
import onnx.parser
import PIL.Image
import pytest

from captcha.cli import app as cli
from captcha.jobs import export as job
from captcha.jobs.export import ExportError, export
from captcha.jobs.standalone import confidence, probability, weights
from captcha.reading.confidence import Calibration
from captcha.reading.ctc import text_log_probability
from captcha.reading.engine import RecognizerError
from captcha.reading.recognizer import Recognizer, save_recognizer
from captcha.reading.vocabulary import Vocabulary

HEIGHT = 16
STRIPES = (Path(__file__).parents[1] / "reading" / "stripes.onnxtxt").read_text()
SHADES = {" ": 255, "a": 0, "b": 85, "c": 170}


def graph(text: str = STRIPES) -> bytes:
    content: bytes = onnx.parser.parse_model(text).SerializeToString()
    return content


def picture(text: str, height: int, stripe: int) -> PIL.Image.Image:
    row = [shade for character in text for shade in (255, SHADES[character]) for _ in range(stripe)]
    return PIL.Image.fromarray(np.tile(np.array([*row, *[255] * stripe], np.uint8), (height, 1))).convert("RGB")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A recogniser whose int8 engine reads other probabilities, so that the two can be told apart."""
    int8 = graph(STRIPES.replace("-0.005", "-0.004"))
    calibration = Calibration(0.5, 0.3, 0.9)
    save_recognizer(tmp_path / "model", graph(), Vocabulary("abc"), HEIGHT, int8, "int8", calibration=calibration)
    return tmp_path / "model"


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has what the exported README names, with what that needs, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    (site,) = (folder / "lib").glob("python*/site-packages")
    wanted, done = list(job.NEEDED), set()
    while wanted:
        name = re.split(r"[^\w.-]", wanted.pop())[0]
        if name.lower() in done:
            continue
        done.add(name.lower())
        found = importlib.metadata.distribution(name)
        wanted += [each for each in found.requires or () if "extra ==" not in each]
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    return folder / "bin" / "python"


def test_an_exported_folder_reads_without_mlflow_torch_and_captcha(
    model: Path, tmp_path: Path, bare_python: Path
) -> None:
    out = tmp_path / "some" / "where"
    line = export(str(model), out)
    assert line == f"{model} in {out}: fp32 and int8; python {out / 'read.py'} IMAGE.png reads with it"
    files = {"a.png": picture("abc", 16, 4), "b.webp": picture("ccaab", 40, 10), "c.bmp": picture("b", 8, 4)}
    clear = picture("cab", 20, 7).convert("RGBA")
    clear.putalpha(PIL.Image.fromarray(np.where(np.asarray(clear)[..., 0] == 255, 0, 255).astype(np.uint8)))
    for name, image in (files | {"d.png": clear}).items():
        image.save(tmp_path / name, lossless=True)  # which WebP alone asks for
    names = [str(tmp_path / name) for name in (*files, "d.png")]

    isolated = [str(bare_python), "-I", str(out / "read.py"), *names]
    done = subprocess.run(isolated, capture_output=True, text=True, check=True, cwd="/")
    for absent in ("mlflow", "torch", "captcha", "cv2", "onnx"):
        missing = subprocess.run([bare_python, "-I", "-c", f"import {absent}"], capture_output=True, text=True, cwd="/")
        assert f"No module named '{absent}'" in missing.stderr

    rows = [row.split("\t") for row in done.stdout.splitlines()]
    readings = Recognizer.load(model, "int8").read(names)
    assert [row[:2] for row in rows] == [[name, each.text] for name, each in zip(names, readings, strict=True)]
    assert readings[0].text == "abc"
    assert [row[3] for row in rows] == [str(each.accepted) for each in readings]
    assert float(rows[0][2]) == pytest.approx(readings[0].confidence, rel=1e-5)  # where no pixel is resized


def test_the_readme_has_the_model_and_the_versions_that_it_was_made_with(model: Path, tmp_path: Path) -> None:
    export(str(model), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    for name in job.NEEDED:
        assert f"{name}=={importlib.metadata.version(name)}" in text
    assert "Exported from folder model by captcha" in text
    assert "'abc'" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("README.md", "model.int8.onnx", "model.onnx", "read.py", "recognizer.json")
    }


def test_a_model_of_an_earlier_version_is_exported_with_its_one_engine(tmp_path: Path) -> None:
    save_recognizer(tmp_path / "old", graph(), Vocabulary("abc"), HEIGHT)
    assert ": fp32; python" in export(str(tmp_path / "old"), tmp_path / "out")
    assert not (tmp_path / "out" / "model.int8.onnx").exists()
    assert "one engine, fp32" in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_that_exists_is_left_as_it_is(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(model), str(tmp_path / "out")])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"captcha: {tmp_path / 'out'} is not an empty folder: name a new one"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_nothing_half_written_stays(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a disk that fills up as the last file is written."""

    def full(*arguments: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(job, "_readme", full)
    with pytest.raises(ExportError, match=r"out cannot be written: No space left on device; name another folder$"):
        export(str(model), tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_damaged_model_is_not_exported(model: Path, tmp_path: Path) -> None:
    (model / "model.onnx").write_bytes(b"")
    with pytest.raises(RecognizerError, match="sha256"):
        export(str(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shape", "wanted"), [((70, 200), (64, 183)), ((128, 301), (64, 150)), ((40, 90), (64, 144)), ((33, 5), (32, 5))]
)
def test_the_reader_resizes_as_opencv_does(shape: tuple[int, int], wanted: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    how = cv2.INTER_AREA if shape[0] > wanted[0] else cv2.INTER_LINEAR
    expected = cv2.resize(image, wanted[::-1], interpolation=how)
    down, across = weights(shape[0], wanted[0]), weights(shape[1], wanted[1])
    resized = np.einsum("yh,hwc,xw->yxc", down, image.astype(float), across)
    assert np.abs(resized.round() - expected).max() <= 1


@pytest.mark.parametrize("labels", [[], [1], [1, 1], [1, 2, 1], [2, 2, 3, 3]])
def test_the_readers_probability_is_the_exact_one(labels: list[int]) -> None:
    log_probs = np.log(np.random.default_rng(1).dirichlet(np.ones(4), 9))
    expected = math.exp(text_log_probability(log_probs[:, None], [labels])[0])
    assert probability(log_probs, labels) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("exact", [0.0, 1e-9, 0.03, 0.5, 0.97, 1 - 1e-9, 1.0])
def test_the_readers_confidence_is_the_recognisers(exact: float) -> None:
    calibration = Calibration(1.7, -0.4, 0.9)
    assert confidence(exact, calibration.as_dict()) == pytest.approx(calibration.confidences(exact), rel=1e-12)
    assert confidence(exact, None) == exact


def test_the_reader_is_some_forty_lines_and_imports_three_libraries() -> None:
    text = Path(job.__file__).with_name("standalone.py").read_text()
    code = [line for line in text.splitlines() if line.strip() and not line.strip().startswith(("#", '"""'))]
    assert len(code) < 60
    assert set(re.findall(r"^(?:import|from) (\w+)", text, re.M)) - set(sys.stdlib_module_names) == {
        *("numpy", "onnxruntime", "PIL")
    }
