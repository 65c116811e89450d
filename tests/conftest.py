"""Small drawn pictures for the tests, so that none needs a download."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

Draw = Callable[..., NDArray[np.uint8]]


@pytest.fixture(scope="session")
def draw() -> Draw:
    """A function that draws a text: (height, width, 3) RGB, dark on a light, slightly noisy ground."""

    def draw_text(text: str, width: int = 96, height: int = 32, seed: int = 0) -> NDArray[np.uint8]:
        rng = np.random.default_rng([seed, *text.encode()])
        image = rng.integers(200, 256, (height, width, 3), dtype=np.uint8)
        ink = [int(value) for value in rng.integers(0, 100, 3)]
        scale = 0.8 * min(height / 24, width / (18 * max(1, len(text))))
        cv2.putText(image, text, (4, height * 3 // 4), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 2)
        return image

    return draw_text


@pytest.fixture
def write_image(draw: Draw) -> Callable[..., Path]:
    """A function that draws a text and saves it under the path given, in the format of its extension."""

    def write(path: Path, text: str = "", **options: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        extension = path.suffix.lower()
        done, data = cv2.imencode(extension, draw(text or path.stem, **options)[:, :, ::-1])
        assert done
        path.write_bytes(data.tobytes())
        return path

    return write


@pytest.fixture
def captcha_folder(tmp_path: Path, write_image: Callable[..., Path]) -> Path:
    """A folder of 60 PNGs of three digits each, named by their label."""
    folder = tmp_path / "captchas"
    for number in range(60):
        write_image(folder / f"{number * 7:03d}.png")
    return folder
