import hashlib
import json
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from captcha.reading import engine as engines
from captcha.reading.engine import RecognizerError, cpu_has, engine_of_environment, onnx_runtime
from captcha.reading.recognizer import Recognizer, save_recognizer
from captcha.reading.vocabulary import Vocabulary

STRIPES = (Path(__file__).parent / "stripes.onnxtxt").read_text()
VOCABULARY = Vocabulary("abc")


def graph(text: str = STRIPES) -> bytes:
    content: bytes = onnx.parser.parse_model(text).SerializeToString()
    return content


FP32, INT8 = graph(), graph(STRIPES.replace("-0.005", "-0.004"))
"""Two graphs that can be told apart; neither is quantised, which no reader asks for."""
IMAGE = np.full((16, 16, 3), 85, np.uint8)


def read_by(folder: Path, engine: str) -> str:
    """Which of the two graphs reads in this folder, told by what it gives."""
    recognizer = Recognizer.load(folder, engine)  # type: ignore[arg-type]
    ((_, log_probs),) = recognizer.log_probs([IMAGE])
    for name, content in (("fp32", FP32), ("int8", INT8)):
        expected = onnx_runtime(content, folder)(IMAGE.transpose(2, 0, 1)[None])
        if np.array_equal(log_probs, expected):
            assert recognizer.precision == name
            return name
    raise AssertionError("neither")


@pytest.mark.parametrize(
    ("fast", "served", "expected"), [(1, "int8", "int8"), (1, "fp32", "fp32"), (0, "int8", "fp32")]
)
def test_auto_is_int8_where_that_reads_the_same_and_the_cpu_is_made_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: int, served: str, expected: str
) -> None:
    save_recognizer(tmp_path, FP32, VOCABULARY, 16, INT8, served, ["avx9"])  # type: ignore[arg-type]
    monkeypatch.setattr(engines, "cpu_has", lambda any_of: bool(fast) and any_of == ["avx9"])
    assert [read_by(tmp_path, engine) for engine in ("auto", "fp32", "int8")] == [expected, "fp32", "int8"]


def test_an_engine_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    save_recognizer(tmp_path, FP32, VOCABULARY, 16)
    assert read_by(tmp_path, "auto") == "fp32"
    with pytest.raises(RecognizerError, match=r"has no int8 engine: .* use --engine fp32$"):
        Recognizer.load(tmp_path, "int8")
    with pytest.raises(RecognizerError, match=r"^unknown engine 'int4': use auto, fp32, int8$"):
        Recognizer.load(tmp_path, "int4")  # type: ignore[arg-type]


def test_a_folder_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Its settings, word for word, as that version wrote them."""
    (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "recognizer.json").write_text(
        """{
  "format": 1,
  "vocabulary": "abc",
  "height": 16,
  "sha256": {
    "model.onnx": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
    "recognizer.json": "d94d6fd89ac6a187c021f502bb18aac26ad1b65c8d1801d2f737e67ba01accf4"
  }
}
"""
    )
    with pytest.raises(RecognizerError, match=r"model.onnx is no model that ONNX Runtime can run"):
        Recognizer.load(tmp_path)


@pytest.mark.parametrize("int8_on", [None, ["avx2"]])
def test_a_folder_from_before_calibrations_is_read(tmp_path: Path, int8_on: list[str] | None) -> None:
    """Format 2, whose first writers named no instructions; the sha256 is of all it says, keys in their order."""
    (tmp_path / "model.onnx").write_bytes(FP32)
    settings: dict[str, object] = {"format": 2, "height": 16, "served": "fp32", "vocabulary": VOCABULARY.characters}
    settings |= {} if int8_on is None else {"int8_on": int8_on}
    own = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    sha256 = {"model.onnx": hashlib.sha256(FP32).hexdigest(), "recognizer.json": own}
    (tmp_path / "recognizer.json").write_text(json.dumps(settings | {"sha256": sha256}))
    assert Recognizer.load(tmp_path).calibration is None


def test_a_changed_choice_or_int8_file_is_refused(tmp_path: Path) -> None:
    save_recognizer(tmp_path, FP32, VOCABULARY, 16, INT8)
    settings = (tmp_path / "recognizer.json").read_text()
    (tmp_path / "recognizer.json").write_text(settings.replace('"served": "fp32"', '"served": "int8"'))
    with pytest.raises(RecognizerError, match=r"recognizer.json is not the file that was saved"):
        Recognizer.load(tmp_path)
    (tmp_path / "recognizer.json").write_text(settings.replace('"served": "fp32"', '"served": "int4"'))
    with pytest.raises(RecognizerError, match=r"recognizer.json is "):
        Recognizer.load(tmp_path)
    (tmp_path / "recognizer.json").write_text(settings.replace('"avx_vnni"', '"avx2"'))
    with pytest.raises(RecognizerError, match=r"recognizer.json is not the file that was saved"):
        Recognizer.load(tmp_path)
    (tmp_path / "recognizer.json").write_text(settings)
    (tmp_path / "model.int8.onnx").write_bytes(FP32)
    with pytest.raises(RecognizerError, match=r"model.int8.onnx is not the file that was saved"):
        Recognizer.load(tmp_path, "int8")


@pytest.mark.parametrize(
    ("flags", "found"), [("fpu avx2 avx512_vnni sse", True), ("fpu avx2 vnni", False), (None, False)]
)
def test_the_cpu_says_which_instructions_it_has(
    monkeypatch: pytest.MonkeyPatch, flags: str | None, found: bool
) -> None:
    def read_text(path: Path) -> str:
        if flags is None or str(path) != "/proc/cpuinfo":
            raise FileNotFoundError(path)
        return f"processor\t: 0\nflags\t\t: {flags}\nprocessor\t: 1\n"

    monkeypatch.setattr(Path, "read_text", read_text)
    assert cpu_has(["avx_vnni", "avx512_vnni"]) == found


def test_a_server_takes_its_engine_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPTCHA_ENGINE", raising=False)
    assert engine_of_environment() == "auto"
    monkeypatch.setenv("CAPTCHA_ENGINE", "int8")
    assert engine_of_environment() == "int8"
    monkeypatch.setenv("CAPTCHA_ENGINE", "bf16")
    with pytest.raises(RecognizerError, match=r"^CAPTCHA_ENGINE must be auto, fp32, int8, not 'bf16'$"):
        engine_of_environment()
