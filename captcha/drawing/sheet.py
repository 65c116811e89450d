"""Images in rows on one page, drawn ones beside real ones, to be compared by eye."""

from collections.abc import Sequence

import cv2
import numpy as np

from captcha.drawing.fonts import Pixels

SHEET_IMAGES = 36  # images that a sheet shows of each kind
COLUMNS = 3
GAP = 6  # pixels between two images
TITLE_HEIGHT = 24  # pixels


def make_sheet(drawn: Sequence[Pixels], beside: Sequence[Pixels] = ()) -> Pixels:
    """Return a page (H, W, 3) with the first SHEET_IMAGES drawn images in rows; those beside them on its right half.

    Images are (h, w, 3) RGB; the drawn ones are equally high, and the others are resized to their height.
    """
    halves = [_grid(drawn[:SHEET_IMAGES], "drawn")]
    if beside:
        halves.append(_grid([_resize_to_height(image, drawn[0].shape[0]) for image in beside], "beside"))
    height = max(half.shape[0] for half in halves)
    pad = [np.pad(half, ((0, height - half.shape[0]), (0, 0), (0, 0)), constant_values=255) for half in halves]
    return np.hstack(pad)


def _resize_to_height(image: Pixels, height: int) -> Pixels:
    if image.shape[0] == height:
        return image
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    return np.asarray(cv2.resize(image, (width, height)), np.uint8)


def _grid(images: Sequence[Pixels], title: str) -> Pixels:
    """Return images of one height in rows of COLUMNS on white, under a title."""
    height, width = images[0].shape[0], max(image.shape[1] for image in images)
    rows = -(-len(images) // COLUMNS)
    page = np.full((TITLE_HEIGHT + rows * (height + GAP), COLUMNS * (width + GAP) + GAP, 3), 255, np.uint8)
    cv2.putText(page, title, (GAP, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    for number, image in enumerate(images):
        row, column = divmod(number, COLUMNS)
        top, left = TITLE_HEIGHT + row * (height + GAP), GAP + column * (width + GAP)
        page[top : top + height, left : left + image.shape[1]] = image
    return page
