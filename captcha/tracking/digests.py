"""The sha256 of a logged model's files, as a tag keeps them, and files compared with it."""

import hashlib
import shutil
from pathlib import Path

from captcha.tracking.runs import RegistryError

FILES_TAG = "sha256"
"""Tag of a logged model and of its versions: the sha256 of every file, in the form of the program `sha256sum`."""

ADDED_BY_MLFLOW = "registered_model_meta"
"""A file that MLflow writes beside the others as it downloads a version: its name and number, which nothing loads."""


def files_tag(folder: Path) -> str:
    """Return a line `SHA256  PATH` for each file of a model's folder, those in its folders too."""
    return "\n".join(f"{digest}  {path}" for path, digest in _digests(folder).items())


def check_files(folder: Path, tag: str, model: str) -> None:
    """Compare a copy of a model's files with the tag; what Python has compiled is removed from the copy.

    A compiled file would be loaded in place of the one that was checked.

    Raises:
        RegistryError: a file has changed, is missing or was not there, and of which model; `model` names it.
    """
    for compiled in list(folder.rglob("__pycache__")):
        shutil.rmtree(compiled)
    noted = {path: digest for digest, path in (line.split("  ", 1) for line in tag.splitlines())}
    found = _digests(folder)
    for path in sorted(noted.keys() | found.keys()):
        if path not in found:
            told = "is missing"
        elif path not in noted:
            told = "was not among the files when the model was logged"
        elif found[path] != noted[path]:
            told = "is not the file that was logged: its sha256 differs"
        else:
            continue
        raise RegistryError(f"{model}: {path!r} {told}; put back the model's files, or name another model")


def _digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file by its path in the folder, in the paths' order."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(files.items())
        if name != ADDED_BY_MLFLOW
    }
