"""Read images with a trained model."""

import logging
from collections.abc import Sequence
from pathlib import Path

import captcha
from captcha.reading.confidence import UNCALIBRATED
from captcha.reading.constraints import Constraints
from captcha.reading.engine import Engine
from captcha.reading.images import ImageError
from captcha.reading.recognizer import Decoder, Reading

logger = logging.getLogger(__name__)


def predict(
    files: Sequence[Path],
    model: str,
    decoder: Decoder,
    beam_width: int,
    engine: Engine = "auto",
    min_confidence: float | None = None,
    constraints: Constraints | None = None,
) -> list[Reading | ImageError]:
    """Return what each file says, or why it cannot be read, in their order.

    A text is accepted from `min_confidence` on, None stands for the model's own threshold.

    Raises:
        RegistryError: there is no such model.
        RecognizerError: the model's files are damaged, or it has no such engine.
        ConstraintError: no text that the model can spell keeps to the constraints, or they are too large.
    """
    recognizer = captcha.load(model, engine)
    if recognizer.calibration is None:
        logger.warning("%s %s", model, UNCALIBRATED)
    outcomes: list[Reading | ImageError] = []
    for file in files:
        try:
            outcomes.append(recognizer.read(file, decoder, beam_width, constraints).judged(min_confidence))
        except ImageError as error:
            outcomes.append(error)
    return outcomes
