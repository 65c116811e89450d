"""Real logged models in no time: each reads one character, whatever the image."""

from pathlib import Path

import cv2
import numpy as np
import onnx.parser

from captcha.reading.recognizer import save_recognizer
from captcha.reading.vocabulary import Vocabulary
from captcha.tracking.models import log_model

# Reads one character if an image has the height: log_probs (1, N, 3), of the blank, of "a" and of "b".
ALWAYS = """
<ir_version: 10, opset_import: ["": 18]>
always (uint8[N, 3, HEIGHT, W] images) => (float[1, N, C] log_probs)
<float[3] frame = {FRAME}>
{
    shape = Shape(images)
    one = Constant<value_ints = [1]>()
    zero = Constant<value_ints = [0]>()
    count = Slice(shape, zero, one)
    three = Constant<value_ints = [3]>()
    wanted = Concat<axis = 0>(one, count, three)
    log_probs = Expand(frame, wanted)
}
"""
READS_A, READS_B = "-4.6, -0.02, -4.6", "-4.6, -4.6, -0.02"


def log_reader(folder: Path, frame: str, height: int) -> None:
    """Log a model that reads always the same to the active run; `folder` is for its files."""
    model = onnx.parser.parse_model(ALWAYS.replace("FRAME", frame).replace("HEIGHT", str(height)))
    save_recognizer(folder / "recognizer", model.SerializeToString(), Vocabulary("ab"), height)
    example = cv2.imencode(".png", np.zeros((16, 32, 3), np.uint8))[1].tobytes()
    log_model(folder / "recognizer", example, step=0)
