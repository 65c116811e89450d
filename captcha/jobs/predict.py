"""Read images with a trained model."""

from collections.abc import Sequence
from pathlib import Path

import captcha
from captcha.reading.engine import Engine
from captcha.reading.images import ImageError
from captcha.reading.recognizer import Decoder, Reading


def predict(
    files: Sequence[Path], model: str, decoder: Decoder, beam_width: int, engine: Engine = "auto"
) -> list[Reading | ImageError]:
    """Return what each file says, or why it cannot be read, in their order.

    Raises:
        RegistryError: there is no such model.
        RecognizerError: the model's files are damaged, or it has no such engine.
    """
    recognizer = captcha.load(model, engine)
    outcomes: list[Reading | ImageError] = []
    for file in files:
        try:
            outcomes.append(recognizer.read(file, decoder, beam_width))
        except ImageError as error:
            outcomes.append(error)
    return outcomes
