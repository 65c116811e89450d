"""A labelled folder on disk: images named by their text, or numbered beside a labels.csv."""

import csv
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2

from captcha.data.samples import LABELS_FILE
from captcha.reading.images import Image

NAME = r"[\w-]{1,60}"  # texts that every file system takes as a name


def refuse_existing(folder: Path) -> None:
    """Raise FileExistsError unless the folder is missing or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder.absolute()} is not an empty folder: name a new one")


def write_folder(folder: Path, labelled: Iterable[tuple[str, Image]]) -> None:
    """Write (text, image) pairs as PNGs named by their text, or numbered with a labels.csv where that cannot be.

    The folder appears once all is written; before, it is a hidden one beside it, which an error takes away.

    Raises:
        FileExistsError: if the folder is not empty.
    """
    refuse_existing(folder)
    folder = folder.absolute()
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left behind by a process that was killed
    unfinished.mkdir(parents=True)
    try:
        _write_files(unfinished, labelled)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished)
        raise


def _write_files(folder: Path, labelled: Iterable[tuple[str, Image]]) -> None:
    texts = []
    for number, (text, image) in enumerate(labelled):
        (folder / _numbered(number)).write_bytes(encode_png(image))
        texts.append(text)
    if _can_be_names(texts):
        for number, text in enumerate(texts):
            (folder / _numbered(number)).rename(folder / f"{text}.png")
    else:
        _write_labels(folder / LABELS_FILE, texts)


def _can_be_names(texts: Sequence[str]) -> bool:
    """Return whether each text can name a file, and no two the same one."""
    distinct = {text.casefold() for text in texts}  # some file systems do not tell A from a
    return len(distinct) == len(texts) and all(re.fullmatch(NAME, text) for text in texts)


def _write_labels(file: Path, texts: Sequence[str]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("file", "label"))
        rows.writerows((_numbered(number), text) for number, text in enumerate(texts))


def _numbered(number: int) -> str:
    return f"{number:06}.drawn.png"


def encode_png(image: Image) -> bytes:
    """Return an image (H, W, 3) RGB as the bytes of a PNG file."""
    data: bytes = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
    return data
