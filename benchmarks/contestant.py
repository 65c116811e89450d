"""One contestant in a process of its own: reads the same images as the others, and times itself when it is asked.

    python benchmarks/contestant.py KIND MODEL THREADS < requests > answers

Requests and answers are lines of JSON. It runs in this project's environment or in that of the peers, so at its top it
imports nothing but the standard library. Of what a contestant's own package sets, the number of threads alone is
changed.
"""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AT_ONCE = 16
"""Images in a batch, where a contestant's model takes batches."""

LEAST_SECONDS = 0.1
"""What is faster is repeated until so much time has gone by."""


@dataclass(frozen=True)
class Contestant:
    """What is timed of a contestant."""

    batches: Callable[[list[bytes], int], list[Any]]
    """Image files → what its model takes, prepared, in batches of at most so many images."""
    model: Callable[[Any], object]
    """A prepared batch through the model alone: no preparation, no decoding."""
    read: Callable[[list[bytes]], list[str]]
    """Image files → texts, as its users call it."""
    packages: Sequence[str]
    """Those whose versions matter."""
    megabytes: float
    """Size of the model's file."""


def ours(folder: Path, engine: str) -> Contestant:
    """Return this project's recogniser in a folder, run by ONNX Runtime."""
    from captcha.reading.engine import MODEL_FILES
    from captcha.reading.recognizer import Recognizer

    recognizer = Recognizer.load(folder, engine)  # type: ignore[arg-type]  # it refuses others
    megabytes = (folder / MODEL_FILES[recognizer.precision]).stat().st_size / 1e6
    return _of_recognizer(recognizer, ["onnxruntime"], megabytes)


def our_torch(weights: Path) -> Contestant:
    """Return this project's model run by PyTorch, from the weights that a training has logged."""
    import torch

    from captcha.training.checkpoint import Checkpoint
    from captcha.training.export import torch_recognizer

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    recognizer = torch_recognizer(Checkpoint.from_bytes(weights.read_bytes()).model())
    return _of_recognizer(recognizer, ["torch"], weights.stat().st_size / 1e6)


def _of_recognizer(recognizer: Any, packages: Sequence[str], megabytes: float) -> Contestant:
    from captcha.reading.images import load_image, padded_width, resize_to_height, stack

    def batches(files: list[bytes], size: int) -> list[Any]:
        of_width: dict[int, list[Any]] = {}
        for file in files:
            image = resize_to_height(load_image(file), recognizer.height)
            of_width.setdefault(padded_width(image.shape[1]), []).append(image)
        return [stack(each[i : i + size]) for each in of_width.values() for i in range(0, len(each), size)]

    def read(files: list[bytes]) -> list[str]:
        return [reading.text for reading in recognizer.read(files)]

    return Contestant(batches, recognizer.log_probs_of, read, packages, megabytes)


def ddddocr(which: str) -> Contestant:
    """Return ddddocr with its default model or, for `beta`, the larger one; both take one image at a time."""
    import ddddocr as package

    reader = package.DdddOcr(beta=which == "beta", show_ad=False)
    engine = reader.ocr_engine
    session = engine.session
    (name,) = [each.name for each in session.get_inputs()]

    def batches(files: list[bytes], size: int) -> list[Any]:
        from ddddocr.utils.image_io import load_image_from_input

        return [engine._preprocess_image(load_image_from_input(file), False) for file in files]

    def model(batch: Any) -> object:
        return session.run(None, {name: batch})

    def read(files: list[bytes]) -> list[str]:
        return [str(reader.classification(file)) for file in files]

    file = "common.onnx" if which == "beta" else "common_old.onnx"
    megabytes = Path(str(package.__file__)).with_name(file).stat().st_size / 1e6
    return Contestant(batches, model, read, ["ddddocr", "onnxruntime"], megabytes)


def whisperer() -> Contestant:
    """Return captcha-whisperer, which takes batches."""
    import numpy as np
    from captcha_whisperer import CaptchaRecognizer
    from captcha_whisperer.preprocess import preprocess_bytes

    reader = CaptchaRecognizer()

    def batches(files: list[bytes], size: int) -> list[Any]:
        images = [preprocess_bytes(file) for file in files]
        return [np.concatenate(images[i : i + size]) for i in range(0, len(images), size)]

    def model(batch: Any) -> object:
        return reader._session.run(None, {reader._input_name: batch})

    def read(files: list[bytes]) -> list[str]:
        groups = [files[i : i + AT_ONCE] for i in range(0, len(files), AT_ONCE)]
        answers = [reader.recognize_batch([preprocess_bytes(file) for file in group]) for group in groups]
        return [answer["text"] for group in answers for answer in group]

    return Contestant(
        batches, model, read, ["captcha-whisperer", "onnxruntime"], reader.model_path.stat().st_size / 1e6
    )


def load(kind: str, model: str, threads: int) -> Contestant:
    """Return the contestant of this kind, its model on so many threads."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if threads == 1 and hasattr(os, "sched_setaffinity"):  # for what takes its threads from elsewhere, as OpenCV does
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    _set_threads_of_onnxruntime(threads)
    if kind == "torch":
        return our_torch(Path(model))
    if kind == "ddddocr":
        return ddddocr(model)
    if kind == "whisperer":
        return whisperer()
    return ours(Path(model), kind)


def _set_threads_of_onnxruntime(threads: int) -> None:
    """Let every session have so many threads, whatever else its package sets: not all let their users choose."""
    import onnxruntime  # type: ignore[import-untyped]

    session_of = onnxruntime.InferenceSession

    def with_threads(model: Any, sess_options: Any = None, **others: Any) -> Any:
        options = sess_options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return session_of(model, options, **others)

    onnxruntime.InferenceSession = with_threads


def seconds_each(work: Callable[[Any], object], parts: Sequence[Any], first: Any, images: int) -> float:
    """Return seconds an image for working on all parts, after `first`, a small one on which caches fill."""
    work(first)
    passes, started = 0, time.perf_counter()
    while passes == 0 or time.perf_counter() - started < LEAST_SECONDS:
        for part in parts:
            work(part)
        passes += 1
    return (time.perf_counter() - started) / passes / images


def answer(contestant: Contestant, request: dict[str, Any]) -> Any:
    """Return texts (None for an image that the contestant refuses) for `read`, else seconds an image of a measure."""
    files = [Path(path).read_bytes() for path in request["files"]]
    if request["measure"] == "read":
        return [_text_or_none(contestant, file) for file in files]
    together = request["together"]
    if request["measure"] == "model":
        (first,) = contestant.batches(files[:1], 1)
        return seconds_each(contestant.model, contestant.batches(files, together), first, len(files))
    groups = [files[i : i + together] for i in range(0, len(files), together)]
    return seconds_each(contestant.read, groups, files[:1], len(files))


def _text_or_none(contestant: Contestant, file: bytes) -> str | None:
    try:
        (text,) = contestant.read([file])
    except Exception:  # of any package
        return None
    return text


def main() -> None:
    """Answer line by line until the input ends; what a package prints meanwhile goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    kind, model, threads = sys.argv[1:]

    def say(what: object) -> None:
        print(json.dumps(what), file=answers)

    try:
        contestant = load(kind, model, int(threads))
        versions = {name: importlib.metadata.version(name) for name in contestant.packages}
        say({"versions": versions, "megabytes": contestant.megabytes})
    except Exception as error:  # whatever keeps it from taking part is told to the others
        say({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"})
        return
    for line in sys.stdin:
        say(answer(contestant, json.loads(line)))


if __name__ == "__main__":
    main()
