"""What decoding costs beside the model: python benchmarks/decoding.py RECOGNIZER_FOLDER.

RECOGNIZER_FOLDER holds model.onnx and recognizer.json. Each line times the model and a decoder in turn, on one thread,
so that what else the machine does meets both; the ratios are those of the pairs. The log_probs are the model's own of
drawn images, which are peaked, and random ones, which are flat and spell texts as long as they can be.
"""

import os

os.environ["CAPTCHA_THREADS"] = "1"

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from captcha.drawing.rendering import draw
from captcha.reading.ctc import (
    beam_search_decode,
    greedy_decode,
    text_and_character_probabilities,
    text_log_probability,
)
from captcha.reading.images import resize_to_height, stack
from captcha.reading.recognizer import Recognizer

PAIRS = {1: 101, 64: 15}
"""How many pairs are timed, by the size of the batch."""


DECODERS: dict[str, Callable[[NDArray[np.float32]], object]] = {
    "greedy + exact probability": lambda log_probs: text_log_probability(log_probs, greedy_decode(log_probs)),
    "all three, as served": lambda log_probs: text_and_character_probabilities(log_probs, greedy_decode(log_probs)),
    "beam of 10": lambda log_probs: beam_search_decode(log_probs, 10),
}
"""All three: greedy text, its exact probability, and the confidences of its characters."""


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(folder: Path) -> None:
    """Print the table."""
    recognizer = Recognizer.load(folder)
    drawn = [image for _, image in draw("kaptcha", 64, seed=1)]
    images = stack([resize_to_height(image, recognizer.height) for image in drawn])
    print(f"{images.shape[2]} x {images.shape[3]} pixels, {recognizer.vocabulary.classes} classes, one thread,")
    print(f"NumPy {np.__version__}; milliseconds an image and the decoder's share of the model's time, as median")
    print("(minimum-maximum)\n")
    print(f"{'images':>6}  {'log_probs':9}  {'decoder':28}  {'model':>20}  {'decoder':>20}  {'share':>20}")
    for size, pairs in PAIRS.items():
        batch = images[:size]
        peaked = recognizer.log_probs_of(batch)
        logits = np.random.default_rng(1).normal(size=peaked.shape) * 1.5
        flat = (logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)).astype(np.float32)
        for name, log_probs in (("drawn", peaked), ("random", flat)):
            for decoder, decode in DECODERS.items():
                call = partial(decode, log_probs)
                call()
                times = np.array(
                    [(seconds(partial(recognizer.log_probs_of, batch)), seconds(call)) for _ in range(pairs)]
                )
                columns = [times[:, 0] * 1e3 / size, times[:, 1] * 1e3 / size, times[:, 1] / times[:, 0]]
                print(f"{size:6}  {name:9}  {decoder:28}", *(f"{spread(column):>20}" for column in columns), sep="  ")


def spread(values: np.ndarray) -> str:
    """Return the median, and the least and the most."""
    return f"{np.median(values):.3f} ({values.min():.3f}-{values.max():.3f})"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
