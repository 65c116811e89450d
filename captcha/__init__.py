"""Train, track, register and serve recognisers of text CAPTCHAs (CRNN + CTC) with MLflow.

To read images from Python:

    import captcha
    reader = captcha.load("models:/captcha-crnn@champion")
    reader.read("image.png").text
"""

import gc
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from captcha.reading.engine import Engine
    from captcha.reading.recognizer import Recognizer

__version__ = "0.1.0"
__all__ = ["CaptchaError", "__version__", "load"]


class CaptchaError(ValueError):
    """An error that a person caused and can mend; its one line says what is wrong, where, and what to do."""


def is_folder(model: "str | Path") -> bool:
    """Return whether a model is named by its folder; no name at all, or one too long for a path, names none."""
    try:
        return bool(str(model)) and Path(model).is_dir()
    except OSError:
        return False


def load(model: "str | Path", engine: "Engine" = "auto") -> "Recognizer":
    """Return the recogniser of a model; its `read` takes a path, bytes, a uint8 array, a PIL image, or a list.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, or a recogniser's folder, read without MLflow.
        engine: fp32 or int8; auto takes int8 where it reads the same and the CPU is known to be faster with it.

    Raises:
        CaptchaError: there is no such model or engine, or its files are damaged.
    """
    # Imported here, so that `import captcha` itself loads nothing heavy.
    if is_folder(model):
        from captcha.reading.recognizer import Recognizer

        return Recognizer.load(Path(model), engine)
    # Only MLflow knows what a name alone may mean; what has a slash in it could but be a folder.
    names_folder = isinstance(model, Path) or not model or "/" in model or "\\" in model
    if names_folder and not str(model).startswith(("models:", "runs:")):
        raise CaptchaError(
            f"{str(model)!r:.200} names no model: there is no such folder; use models:/NAME@ALIAS, "
            "models:/NAME/VERSION, runs:/RUN_ID or a recogniser's folder"
        )
    collecting = gc.isenabled()
    gc.disable()  # MLflow's import makes a million objects and no garbage: looking for some takes a fifth of its time
    try:
        from captcha.tracking.models import load_recognizer

        return load_recognizer(str(model), engine)
    finally:
        if collecting:
            gc.enable()
