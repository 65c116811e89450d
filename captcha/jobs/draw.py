"""Draw captchas of a style into a labelled folder, and some of them on a sheet beside real ones."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from captcha.data.files import refuse_existing
from captcha.data.folders import encode_png, images_in, write_folder
from captcha.data.samples import DataError
from captcha.data.sources import FIRST_DRAWN_FOLDER
from captcha.drawing.fonts import default_fonts, fonts_below, fonts_for
from captcha.drawing.rendering import draw_one
from captcha.drawing.sheet import SHEET_IMAGES, make_sheet
from captcha.drawing.styles import Style, load_style
from captcha.drawing.word import check_fits
from captcha.reading.images import Image, load_image

logger = logging.getLogger(__name__)


def draw(
    out: Path,
    style_name: str,
    count: int,
    seed: int,
    *,
    fonts: Path | None = None,
    sheet: Path | None = None,
    beside: Path | None = None,
) -> str:
    """Draw `count` captchas into the folder `out`, which must be new or empty, and say in a line what was written.

    Args:
        out: the folder, which appears once all is drawn; the sheet is written last.
        style_name: a built-in style's name, or a TOML file's.
        count: images, at least one.
        seed: image i follows from it and i, given style and fonts; a training on draw:STYLE has other numbers.
        fonts: folder with the .ttf and .otf files to draw with; None takes the default fonts.
        sheet: PNG file to write, with the first of the images.
        beside: folder of images to show beside them on the sheet.

    Raises:
        StyleError: if there is no such style, or a text may not fit its image.
        FontError: if no font can draw the style.
        DataError: if there are no images in `beside`.
        ImageError: if a file in `beside` is not an image.
        FileExistsError: if `out` is not empty.
    """
    style = load_style(style_name)
    usable, lacking = fonts_for(style, fonts_below(fonts) if fonts else default_fonts())
    if lacking:
        logger.info("left out: " + ", ".join(f"{font.name} (lacks {missing})" for font, missing in lacking.items()))
    check_fits(style, usable)
    refuse_existing(out)
    page = None
    if sheet:  # drawn first, so that an error in the images beside comes before all are drawn
        real = [load_image(file) for file in some_images_in(beside)] if beside else []
        page = make_sheet([image for _, image in _draw_all(style, min(count, SHEET_IMAGES), seed, usable)], real)
    with (
        _appears(sheet, None if page is None else encode_png(page)),
        tqdm(_draw_all(style, count, seed, usable), total=count, unit="image", disable=None, leave=False) as bar,
    ):
        write_folder(out, bar)
    return f"{count} images in {out}" + (f", some of them on {sheet}" if sheet else "")


@contextlib.contextmanager
def _appears(file: Path | None, content: bytes | None) -> Iterator[None]:
    """Write a file beside its place now, so that what hinders it is told early, and move it there in the end."""
    if file is None or content is None:
        yield
        return
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        if file.is_dir():
            raise IsADirectoryError(f"{file.absolute()} is a folder: name a file")
        try:
            unfinished.write_bytes(content)
        except OSError as error:
            raise OSError(f"{file.absolute()} cannot be written: {error.strerror}") from None
        yield
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _draw_all(style: Style, count: int, seed: int, fonts: Sequence[Path]) -> Iterator[tuple[str, Image]]:
    return (draw_one(style, seed, FIRST_DRAWN_FOLDER + index, fonts) for index in range(count))


def some_images_in(folder: Path) -> list[Path]:
    """Return at most SHEET_IMAGES images of a folder, evenly spaced in the order of their names.

    Raises:
        DataError: if there are none.
    """
    files = images_in(folder)
    if not files:
        raise DataError(f"no images in {folder.absolute()}")
    return files[:: -(-len(files) // SHEET_IMAGES)]
