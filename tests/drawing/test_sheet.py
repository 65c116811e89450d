import cv2
import numpy as np
from numpy.typing import NDArray

from captcha.drawing.fonts import Pixels
from captcha.drawing.sheet import SHEET_IMAGES, make_sheet


def flat(red: int, height: int = 20, width: int = 50) -> Pixels:
    """An image of one colour that no title has: titles are grey."""
    return np.full((height, width, 3), (red, 200, 0), np.uint8)


def where(page: Pixels, red: int) -> NDArray[np.uint8]:
    return np.asarray((page == (red, 200, 0)).all(axis=2), np.uint8)


def box(page: Pixels, red: int) -> tuple[int, int, int, int]:
    """Return left, top, width and height of the one image of a colour."""
    found = where(page, red)
    left, top, width, height = cv2.boundingRect(found)
    assert found.sum() == width * height
    return left, top, width, height


def test_images_stand_whole_in_rows_of_three_in_their_order() -> None:
    page = make_sheet([flat(red) for red in (100, 101, 102, 103)])
    boxes = [box(page, red) for red in (100, 101, 102, 103)]
    assert all((width, height) == (50, 20) for _, _, width, height in boxes)
    (left, top, *_), *others = boxes
    assert [(x, y) for x, y, *_ in others] == [(left + 56, top), (left + 112, top), (left, top + 26)]


def test_images_beside_stand_on_the_right_as_high_as_the_drawn_and_keep_their_shape() -> None:
    page = make_sheet([flat(100), flat(101)], [flat(77, height=60, width=90), flat(78)])
    drawn_until = max(sum(box(page, red)[::2]) for red in (100, 101))
    left, top, width, height = box(page, 77)
    assert left > drawn_until
    assert top == box(page, 100)[1]
    assert (width, height) == (30, 20)
    assert box(page, 78)[2:] == (50, 20)


def test_of_many_drawn_images_the_first_are_shown_and_all_of_those_beside() -> None:
    page = make_sheet([flat(100)] * SHEET_IMAGES + [flat(101)] * 5, [flat(77)] * 40)
    area = {red: int(where(page, red).sum()) for red in (100, 101, 77)}
    assert area == {100: SHEET_IMAGES * 1000, 101: 0, 77: 40 * 1000}


def test_a_half_with_fewer_rows_ends_in_white() -> None:
    page = make_sheet([flat(100)], [flat(77)] * 7)
    assert page.shape[0] == make_sheet([flat(100)] * 7).shape[0]
    left, top, width, height = box(page, 100)
    assert (page[top + height :, : left + width] == 255).all()
