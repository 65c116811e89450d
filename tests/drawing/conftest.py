"""Drawing with one setting changed, for the tests that look at what the setting does."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from captcha.drawing.fonts import default_fonts
from captcha.drawing.rendering import draw_one
from captcha.drawing.styles import Style


@pytest.fixture(scope="session")
def image_of() -> Callable[..., NDArray[np.int64]]:
    """A function that draws one image (H, W, 3) of a seed and settings, black on white without anything else."""
    plain = Style(characters="n8", lengths=(3, 3), stroke=(5, 5))
    fonts = default_fonts()[-2:]  # a bold and a regular one

    def draw_image(seed: int = 0, /, **settings: object) -> NDArray[np.int64]:
        style = Style.model_validate(plain.model_dump() | settings)
        return draw_one(style, seed, 0, fonts)[1].astype(np.int64)

    return draw_image
