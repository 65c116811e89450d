"""Reads text CAPTCHAs with the model beside this file: `python read.py IMAGE…`, or `Reader().read("image.png")`.

`captcha export` writes this file as read.py; nothing imports it. It needs numpy, onnxruntime and Pillow.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from PIL import Image, ImageOps

FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
WIDTH_STEP = 16


def weights(size: int, wanted: int) -> Any:
    """Return each pixel's share in each pixel wanted, (wanted, size): by area where an axis shrinks, else linear."""
    scale, pixel, place = size / wanted, np.arange(size), np.arange(wanted)[:, None]
    if scale > 1:
        return (np.minimum((place + 1) * scale, pixel + 1) - np.maximum(place * scale, pixel)).clip(0) / scale
    centre = ((place + 0.5) * scale - 0.5).clip(0, size - 1)
    return (1 - abs(centre - pixel)).clip(0)


def probability(log_probs: Any, labels: list[int]) -> float:
    """Return the exact CTC probability of the labels, (T, C) log_probs: the sum over all their alignments."""
    states = np.array([0, *(state for label in labels for state in (label, 0))])
    skips = np.append([False, False], (states[2:] != 0) & (states[2:] != states[:-2]))[: len(states)]
    total = np.where(np.arange(len(states)) < 2, log_probs[0, states], -np.inf)
    for frame in log_probs[1:]:
        one, two = (np.append(np.full(by, -np.inf), total)[: len(total)] for by in (1, 2))
        total = np.logaddexp(np.logaddexp(total, one), np.where(skips, two, -np.inf)) + frame[states]
    return float(min(1.0, np.exp(np.logaddexp.reduce(total[-2:]))))


def confidence(probability: float, calibration: Any) -> float:
    """Return how often a text of this probability is right; the probability itself without a calibration."""
    if not calibration:
        return probability
    kept = min(max(probability, 1e-6), 1 - 1e-6)
    odds = calibration["slope"] * (np.log(kept) - np.log1p(-kept)) + calibration["intercept"]
    return float(1 / (1 + np.exp(-np.clip(odds, -30, 30))))


class Reader:
    """Reads images with the model in a folder; `engine` is fp32 or int8, by default the one that its training chose."""

    def __init__(self, folder: Path = Path(__file__).parent, engine: str | None = None) -> None:
        settings = json.loads((folder / "recognizer.json").read_text())
        self.characters, self.height = settings["vocabulary"], settings["height"]
        self.calibration = settings.get("calibration")
        model = folder / FILES[engine or settings["served"]]
        self.session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def read(self, source: Any) -> tuple[str, float, bool | None]:
        """Return the text of an image, its confidence, and whether the model's threshold accepts it, None without one.

        `source` is a path, an open file or a PIL image.
        """
        image = source if isinstance(source, Image.Image) else Image.open(source)
        image = ImageOps.exif_transpose(image).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        pixels = np.asarray(Image.alpha_composite(white, image).convert("RGB"), np.float64)
        if len(pixels) != self.height:
            width = max(1, round(pixels.shape[1] * self.height / len(pixels)))
            across = weights(pixels.shape[1], width)
            pixels = np.einsum("yh,hwc,xw->yxc", weights(len(pixels), self.height), pixels, across, optimize=True)
        padded = np.pad(pixels, ((0, 0), (0, -pixels.shape[1] % WIDTH_STEP), (0, 0)), "edge")
        batch = padded.round().astype(np.uint8).transpose(2, 0, 1)[None]
        (log_probs,) = self.session.run(["log_probs"], {"images": batch})
        path = log_probs[:, 0].argmax(axis=1)
        labels = [int(now) for before, now in zip([0, *path[:-1]], path, strict=True) if now and now != before]
        sure = confidence(probability(log_probs[:, 0], labels), self.calibration)
        accepted = bool(labels) and sure >= self.calibration["threshold"] if self.calibration else None
        return "".join(self.characters[label - 1] for label in labels), sure, accepted


if __name__ == "__main__":
    reader = Reader()
    for name in sys.argv[1:]:
        print(name, *reader.read(name), sep="\t")
