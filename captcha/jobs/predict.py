"""Read images with a trained model."""

from collections.abc import Sequence
from pathlib import Path

from captcha.reading.images import ImageError, decode_image
from captcha.reading.recognizer import Decoder, Reading
from captcha.tracking.models import load_recognizer


def predict(files: Sequence[Path], model: str, decoder: Decoder, beam_width: int) -> list[Reading | ImageError]:
    """Return what each file says, or why it cannot be read, in their order."""
    recognizer = load_recognizer(model)
    outcomes: list[Reading | ImageError] = []
    for file in files:
        try:
            outcomes.append(recognizer.read([decode_image(file.read_bytes())], decoder, beam_width)[0])
        except ImageError as error:
            outcomes.append(error)
        except OSError as error:
            outcomes.append(ImageError(f"cannot be read: {error.strerror}"))
    return outcomes
