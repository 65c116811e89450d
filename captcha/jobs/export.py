"""Export a model into a folder that reads without MLflow, PyTorch and this package."""

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import captcha
from captcha import CaptchaError
from captcha.data.files import refuse_existing
from captcha.reading.confidence import UNCALIBRATED
from captcha.reading.engine import MODEL_FILES
from captcha.reading.recognizer import ARTIFACT, SETTINGS_FILE, Recognizer
from captcha.tracking.descriptions import exact_match_sentence, measured, short_uri
from captcha.tracking.models import Resolved, download, resolve

READER = "read.py"
NEEDED = ("numpy", "onnxruntime", "pillow")


class ExportError(CaptchaError):
    """A folder that cannot be written; one line."""


def export(model: str, out: Path) -> str:
    """Write a model's graphs, vocabulary and height, a reader of them and a README into a new folder; say so in a line.

    Raises:
        RegistryError: there is no such model.
        RecognizerError: its files are damaged.
        FileExistsError: there is something in `out`.
        ExportError: the folder cannot be written.
    """
    refuse_existing(out)
    resolved = resolve(model)
    with tempfile.TemporaryDirectory() as temporary:
        if captcha.is_folder(resolved.uri):
            source = Path(resolved.uri)
        else:
            source = download(resolved.uri, Path(temporary)) / "artifacts" / ARTIFACT
        recognizer = Recognizer.load(source, "fp32")
        files = [name for name in MODEL_FILES.values() if (source / name).exists()]
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
            try:
                unfinished.chmod(0o755)
                for name in [*files, SETTINGS_FILE]:
                    shutil.copy(source / name, unfinished / name)
                shutil.copy(Path(__file__).with_name("standalone.py"), unfinished / READER)
                (unfinished / "README.md").write_text(_readme(resolved, recognizer, files))
                unfinished.replace(out)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        except OSError as error:
            raise ExportError(f"{out.absolute()} cannot be written: {error.strerror}; name another folder") from None
    engines = " and ".join(name for name, file in MODEL_FILES.items() if file in files)
    return f"{resolved.uri} in {out}: {engines}; python {out / READER} IMAGE.png reads with it"


def _readme(resolved: Resolved, recognizer: Recognizer, files: list[str]) -> str:
    needed = " ".join(f"{name}=={version(name)}" for name in NEEDED)
    figures = measured(resolved.run, "test") if resolved.run else None
    match = f"\n{exact_match_sentence(*figures, 'test images')}.\n" if figures else ""
    int8 = MODEL_FILES["int8"] in files
    choice = (
        '`Reader(engine="int8")` is faster on CPUs with VNNI instructions, `Reader(engine="fp32")` may be on others; '
        "without a name it is the one that `recognizer.json` has as `served`, chosen by what the two read."
        if int8
        else "There is one engine, fp32."
    )
    calibration = recognizer.calibration
    confidence = (
        "The confidence says how often such a text is right: the exact CTC probability of the text, calibrated on "
        f"readings of images held out from training. A text is accepted from {calibration.threshold:.4f} on."
        if calibration
        else f"The model {UNCALIBRATED}; `accepted` is None."
    )
    return f"""# A reader of text CAPTCHAs

Exported from {short_uri(resolved.uri)} by captcha {captcha.__version__}. It knows the characters \
{recognizer.vocabulary.characters!r}.
{match}
```sh
pip install {needed}
python {READER} IMAGE.png
```

```python
from read import Reader

text, confidence, accepted = Reader().read("image.png")
```

{confidence} {choice}

The graph takes uint8 `images` (N, 3, {recognizer.height}, W), RGB, W a multiple of 16, and gives `log_probs` \
(T, N, C): natural logarithms, class 0 the blank, class i character i. `{READER}` shows how an image becomes such \
a batch and what is read of its answer. It checks neither sizes nor check sums: give it no files of strangers.

For research, accessibility and testing one's own CAPTCHAs.
"""
