import getpass
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import mlflow
import numpy as np
import onnx.parser
import pytest
from mlflow import MlflowClient

import captcha
from captcha.cli import app as cli
from captcha.reading.recognizer import Recognizer, save_recognizer
from captcha.reading.vocabulary import Vocabulary
from captcha.tracking.digests import FILES_TAG
from captcha.tracking.models import download, log_model, logged_model
from captcha.tracking.registry import register
from captcha.tracking.runs import RegistryError, tracked_run

USER = "anna-the-trainer"
# Reads the same, whatever the image: log_probs (1, N, 2), the blank as likely as FRAME says.
ALWAYS = """
<ir_version: 10, opset_import: ["": 18]>
always (uint8[N, 3, H, W] images) => (float[1, N, C] log_probs)
<float[2] frame = {FRAME}>
{
    shape = Shape(images)
    one = Constant<value_ints = [1]>()
    zero = Constant<value_ints = [0]>()
    count = Slice(shape, zero, one)
    two = Constant<value_ints = [2]>()
    wanted = Concat<axis = 0>(one, count, two)
    log_probs = Expand(frame, wanted)
}
"""
READS_NOTHING, READS_A = "-0.01, -4.6", "-4.6, -0.01"


def save(folder: Path, frame: str) -> Path:
    model = onnx.parser.parse_model(ALWAYS.replace("FRAME", frame)).SerializeToString()
    save_recognizer(folder, model, Vocabulary("a"), 16)
    return folder


@pytest.fixture(scope="module")
def run_id(tracking: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of a run of somebody called USER, whose model is version 1 and the champion of `checked`."""
    folder = save(tmp_path_factory.mktemp("by") / "recognizer", READS_A)
    example = cv2.imencode(".png", np.zeros((16, 32, 3), np.uint8))[1].tobytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(getpass, "getuser", lambda: USER)
        with tracked_run("a training") as run:
            mlflow.log_params({"seed": "0", "data": f"{tracking}/images"})
            facts = {"backbone": "compact", "data": f"{tracking}/images", "vocabulary": "a", "test_digest": "d1"}
            mlflow.set_tags(facts | {"sha256.model.onnx": "0123", "test_images": 40, "test_right": 36})
            mlflow.set_tags({"test_low": 0.5, "test_high": 0.9})
            mlflow.log_metrics({"test/exact_match": 0.9, "test/cer": 0.1})
            log_model(folder, example, step=0)
    register(run.info.run_id, "checked")
    return str(run.info.run_id)


@pytest.fixture
def files(run_id: str, tmp_path: Path) -> Iterator[Path]:
    """Where the store keeps the model's files; what a test does there is undone."""
    folder = Path(logged_model(MlflowClient(), mlflow.get_run(run_id)).artifact_location)
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield folder
    for path in folder.rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()
    for path, content in kept.items():
        path.write_bytes(content)


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("\n")


def test_the_registry_has_the_sha256_of_every_file_in_the_form_of_sha256sum(run_id: str, files: Path) -> None:
    tag = MlflowClient().get_model_version("checked", "1").tags[FILES_TAG]
    subprocess.run(["sha256sum", "--check", "--strict"], input=tag, cwd=files, check=True, text=True)
    listed = [line.split("  ")[1] for line in tag.splitlines()]
    assert {"MLmodel", "serving.py", "code/captcha/reading/ctc.py", "artifacts/recognizer/model.onnx"} <= {*listed}
    assert listed == sorted(path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file())
    assert len(tag) < 5000  # what MLflow's tables hold


CHANGED = "is not the file that was logged: its sha256 differs"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda files: append(files / "MLmodel"), f"'MLmodel' {CHANGED}"),
        (lambda files: append(files / "serving.py"), f"'serving.py' {CHANGED}"),
        (lambda files: append(files / "code/captcha/reading/ctc.py"), f"'code/captcha/reading/ctc.py' {CHANGED}"),
        (lambda files: save(files / "artifacts/recognizer", READS_NOTHING), f"'.*/recognizer/model.onnx' {CHANGED}"),
        (lambda files: (files / "requirements.txt").unlink(), "'requirements.txt' is missing"),
        (
            lambda files: (files / "code/numpy.py").write_text(""),
            "'code/numpy.py' was not among the files when the model was logged",
        ),
    ],
    ids=["MLmodel", "script", "code", "weights and their digest", "missing", "added"],
)
def test_a_file_that_was_changed_in_the_store_is_named_before_anything_is_loaded(
    change: Callable[[Path], object],
    told: str,
    run_id: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change(files)
    Recognizer.load(files / "artifacts" / "recognizer")  # which knows of no registry
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for uri in ("models:/checked/1", "models:/checked@champion", f"runs:/{run_id}", f"models:/{files.parent.name}"):
        with pytest.raises(RegistryError, match=rf"^{uri}: {told}; put back the model's files, or name another model$"):
            captcha.load(uri)
    assert list(tmp_path.iterdir()) == []


def test_every_command_that_reads_refuses_a_changed_model_in_one_line_with_exit_code_2(
    run_id: str, files: Path, captcha_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append(files / "code/captcha/reading/ctc.py")
    line = f"models:/checked/1: 'code/captcha/reading/ctc.py' {CHANGED}; put back the model's files"
    runs = len(mlflow.search_runs(search_all_experiments=True, output_format="list"))
    for command in (
        ("predict", str(captcha_folder), "--model", "models:/checked/1"),
        ("evaluate", str(captcha_folder), "--model", "models:/checked@champion"),
        ("compare", "checked/1", run_id, str(captcha_folder)),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(command)
        assert stopped.value.code == 2
        out, told = capsys.readouterr()
        assert out == ""
        assert told.count("\n") == 1
        assert line in told
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == runs


def test_what_python_has_compiled_in_the_store_is_neither_a_change_nor_loaded(
    run_id: str, files: Path, tmp_path: Path
) -> None:
    compiled = files / "code/captcha/reading/__pycache__/ctc.cpython-311.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"made by who knows whom")
    copy = download("models:/checked/1", tmp_path)
    assert (copy / "code/captcha/reading/ctc.py").exists()
    assert not list(copy.rglob("__pycache__"))
    assert captcha.load("models:/checked/1").vocabulary.characters == "a"


def test_the_checked_copy_is_a_model_that_mlflow_loads(run_id: str, tmp_path: Path) -> None:
    image = cv2.imencode(".png", np.zeros((16, 32, 3), np.uint8))[1].tobytes()
    model = mlflow.pyfunc.load_model(str(download("models:/checked@champion", tmp_path)))
    assert model.predict({"image": [image]})["text"].tolist() == ["a"]


def test_a_version_of_an_earlier_captcha_loads_as_before_and_says_nothing(
    run_id: str, files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    client, model_id = MlflowClient(), files.parent.name
    client.create_registered_model("earlier")
    client.create_model_version("earlier", f"models:/{model_id}", run_id, tags={"model_id": model_id})
    append(files / "MLmodel")
    assert captcha.load("models:/earlier/1").height == 16
    assert capfd.readouterr() == ("", "")
    (files / "artifacts/recognizer/model.onnx").write_bytes(b"changed")
    with pytest.raises(captcha.CaptchaError, match=r"model.onnx is not the file that was saved: its sha256 differs$"):
        captcha.load("models:/earlier/1")


def test_what_was_changed_between_logging_and_registering_is_not_registered(run_id: str, files: Path) -> None:
    append(files / "serving.py")
    with pytest.raises(RegistryError, match=rf"^models:/{files.parent.name}: 'serving.py' {CHANGED}; "):
        register(run_id, "never")
    assert MlflowClient().search_registered_models("name = 'never'") == []


def test_neither_files_nor_tags_nor_params_of_a_model_tell_who_trained_it_and_where(
    run_id: str, files: Path, place: Path
) -> None:
    client = MlflowClient()
    run = client.get_run(run_id)
    private = [USER, run.data.tags["mlflow.source.name"], str(place), str(Path(captcha.__file__).parents[1])]
    assert run.data.tags["mlflow.user"] == USER
    assert run.data.tags["data"] == f"{place}/images"
    model, version = client.get_registered_model("checked"), client.get_model_version("checked", "1")
    assert "trained on `images`" in str(version.description)
    logged = client.get_logged_model(files.parent.name)
    assert logged.params["data"] == "images"  # as the version's page shows it
    tags = [model.tags, version.tags, logged.tags, logged.params]
    texts = [*(value for each in tags for value in each.values()), str(model.description), str(version.description)]
    contents = {str(path): path.read_bytes() for path in files.rglob("*") if path.is_file()}
    contents |= {text: text.encode() for text in texts}
    told = [(name, word) for name, content in contents.items() for word in private if word.encode() in content]
    assert told == []
    assert b"/tmp" not in contents[str(files / "MLmodel")]
