"""Drawn captchas on disk: a folder of labelled images, and a sheet of them to look at."""

import csv
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from captcha.data.samples import LABELS_FILE, DataError, images_in
from captcha.drawing.rendering import draw_one
from captcha.drawing.styles import Style
from captcha.reading.images import Image, decode_image

SHEET_COLUMNS, SHEET_IMAGES = 3, 36
GAP = 6  # pixels between a sheet's images
NAME = r"[\w-]{1,60}"  # texts that every file system takes as a name


def some_images_in(folder: Path) -> list[Path]:
    """Return images of a folder, as many as a sheet shows, from all over it.

    Raises:
        DataError: if there are none.
    """
    files = images_in(folder)
    if not files:
        raise DataError(f"no images in {folder.absolute()}")
    return files[:: -(-len(files) // SHEET_IMAGES)]


def draw_all(style: Style, count: int, seed: int, fonts: Sequence[Path]) -> Iterator[tuple[str, Image]]:
    """Yield `count` texts with their images, one after the other."""
    return (draw_one(style, seed, index, fonts) for index in range(count))


def refuse_existing(folder: Path) -> None:
    """Raise FileExistsError unless the folder is missing or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder.absolute()} is not an empty folder: name a new one")


def write_folder(folder: Path, drawn: Iterable[tuple[str, Image]]) -> None:
    """Write images as PNGs named by their text, or numbered with a labels.csv where that cannot be.

    The folder appears once all is written; before, it is a hidden one beside it, which an error takes away.

    Raises:
        FileExistsError: if the folder is not empty.
    """
    refuse_existing(folder)
    folder = folder.absolute()
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a drawing that was killed
    unfinished.mkdir(parents=True)
    try:
        texts = []
        for number, (text, image) in enumerate(drawn):
            (unfinished / _numbered(number)).write_bytes(_png(image))
            texts.append(text)
        distinct = {text.casefold() for text in texts}  # some file systems do not tell A from a
        if len(distinct) == len(texts) and all(re.fullmatch(NAME, text) for text in texts):
            for number, text in enumerate(texts):
                (unfinished / _numbered(number)).rename(unfinished / f"{text}.png")
        else:
            with (unfinished / LABELS_FILE).open("w", encoding="utf-8", newline="") as stream:
                rows = csv.writer(stream)
                rows.writerow(("file", "label"))
                rows.writerows((_numbered(number), text) for number, text in enumerate(texts))
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished)
        raise


def _numbered(number: int) -> str:
    return f"{number:06}.drawn.png"


def _png(image: Image) -> bytes:
    data: bytes = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
    return data


def sheet(drawn: Sequence[Image], beside: Sequence[Path] = ()) -> bytes:
    """Return a PNG with the first drawn images in rows; with files, those on its right half, as high as the drawn.

    Raises:
        ValueError: a file is no image.
    """
    height = drawn[0].shape[0]
    halves = [_grid(drawn[:SHEET_IMAGES], "drawn")]
    if beside:
        real = []
        for file in beside:
            image = decode_image(file.read_bytes())
            width = max(1, round(image.shape[1] * height / image.shape[0]))
            same = image.shape[0] == height
            real.append(image if same else np.asarray(cv2.resize(image, (width, height)), np.uint8))
        halves.append(_grid(real, "beside"))
    rows = max(half.shape[0] for half in halves)
    pad = [np.pad(half, ((0, rows - half.shape[0]), (0, 0), (0, 0)), constant_values=255) for half in halves]
    return _png(np.hstack(pad))


def _grid(images: Sequence[Image], title: str) -> Image:
    """Return images in rows of SHEET_COLUMNS on white, under a title."""
    height, width = images[0].shape[0], max(image.shape[1] for image in images)
    rows = -(-len(images) // SHEET_COLUMNS)
    page = np.full((24 + rows * (height + GAP), SHEET_COLUMNS * (width + GAP) + GAP, 3), 255, np.uint8)
    cv2.putText(page, title, (GAP, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    for number, image in enumerate(images):
        row, column = divmod(number, SHEET_COLUMNS)
        top, left = 24 + row * (height + GAP), GAP + column * (width + GAP)
        page[top : top + height, left : left + image.shape[1]] = image
    return page
