"""Models whose batch norms are no longer as they were made."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from captcha.reading.vocabulary import Vocabulary
from captcha.training.model import BACKBONES, Crnn

HEIGHT = 32


@pytest.fixture(scope="session")
def random_images() -> Callable[..., Tensor]:
    """A function that gives uint8 images (count, 3, height, width) of noise."""

    def noise(count: int, width: int, height: int = HEIGHT) -> Tensor:
        generator = torch.Generator().manual_seed(width)
        return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)

    return noise


@pytest.fixture(scope="module", params=BACKBONES)
def model(request: pytest.FixtureRequest, random_images: Callable[..., Tensor]) -> Crnn:
    """A model of ten letters in eval mode, of each backbone."""
    torch.manual_seed(0)
    lived_in = Crnn(request.param, Vocabulary("abcdefghij"), HEIGHT).train()
    with torch.no_grad():
        lived_in(random_images(4, 96))
    return lived_in.eval()
