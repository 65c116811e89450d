"""Images → texts: the exported model with its vocabulary and height, saved and loaded as one folder."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

from captcha.reading.confidence import Calibration
from captcha.reading.constrained_beam import constrained_beam_search_decode
from captcha.reading.constraints import Constraints, automaton_of
from captcha.reading.ctc import LogProbs, beam_search_decode, greedy_decode, text_and_character_probabilities
from captcha.reading.engine import MODEL_FILES, VNNI, Engine, Precision, RecognizerError, auto_on_this_cpu, onnx_runtime
from captcha.reading.images import Image, ImageError, ImageSource, load_image, padded_width, resize_to_height, stack
from captcha.reading.stopping import stop_if_unwanted
from captcha.reading.vocabulary import Vocabulary

FORMAT = 3
"""Of what SETTINGS_FILE says. Format 1 knew one engine, fp32; format 2 no calibration."""

SETTINGS_FILE = "recognizer.json"
ARTIFACT = "recognizer"
"""Name of the recogniser's folder in a registered model."""

COLUMNS_AT_ONCE = 8192
"""Columns of pixels that go through the model in one batch: bounds the memory, whatever the images' widths."""

COLUMNS_WAITING = 16 * COLUMNS_AT_ONCE
"""Columns that wait, in all widths together, for more of their width; beyond it the fullest batch goes as it is."""

Decoder = Literal["greedy", "beam"]


@dataclass(frozen=True)
class Reading:
    """What an image says: the text, and how sure that is."""

    text: str
    confidence: float
    """How often a text of this probability is right; the probability itself where the model has no calibration."""
    character_confidences: list[float]
    """The probability of each character against any other in its place."""
    probability: float = math.nan
    """The exact CTC probability of the text, by the model alone; where it is not given, the confidence is this."""
    accepted: bool | None = None
    """Whether the confidence reaches the model's threshold; None where it has none. Nothing read is not accepted."""

    def __post_init__(self) -> None:
        if math.isnan(self.probability):
            object.__setattr__(self, "probability", self.confidence)

    def judged(self, min_confidence: float | None) -> "Reading":
        """Return the reading, accepted by this least confidence in place of the model's; None keeps the model's."""
        if min_confidence is None:
            return self
        return replace(self, accepted=bool(self.text) and self.confidence >= min_confidence)


class Recognizer:
    """Reads images: `recognizer.read("captcha.png").text`, or many at once: `recognizer.read(paths)`.

    It preprocesses and decodes as in training's evaluations, whichever engine runs the model; threads may share it.
    `log_probs_of` is the model: it takes uint8 images (N, 3, height, W), RGB, and returns their log_probs
    (T, N, C), C being `vocabulary.classes`.
    """

    def __init__(
        self,
        log_probs_of: Callable[[Image], NDArray[np.float32]],
        vocabulary: Vocabulary,
        height: int,
        precision: Precision = "fp32",
        calibration: Calibration | None = None,
    ) -> None:
        self.log_probs_of = log_probs_of
        self.precision = precision
        self.vocabulary = vocabulary
        self.height = height
        self.calibration = calibration

    @classmethod
    def load(cls, folder: Path, engine: Engine = "auto") -> "Recognizer":
        """Return the recogniser that `save_recognizer` wrote, run by ONNX Runtime on the CPU.

        Raises:
            RecognizerError: a file is missing, of an unknown format, damaged or not the one that was saved; or the
                engine asked for is none, or not in this folder.
        """
        if engine not in get_args(Engine):
            raise RecognizerError(f"unknown engine {engine!r:.40}: use {', '.join(get_args(Engine))}")
        written = _read(folder / SETTINGS_FILE)
        try:
            saved = json.loads(written)
            if saved["format"] not in range(1, FORMAT + 1):
                raise RecognizerError(
                    f"{folder / SETTINGS_FILE} has format {saved['format']!r}, this version reads {FORMAT}: "
                    "use the version that wrote it"
                )
            expected = dict(saved.pop("sha256"))
            if _settings_sha256(saved) != expected[SETTINGS_FILE]:
                raise RecognizerError(f"{folder / SETTINGS_FILE} is not the file that was saved: its sha256 differs")
            vocabulary, height = Vocabulary(saved["vocabulary"]), int(saved["height"])
            served: Precision = saved.get("served", "fp32")
            int8_on = [str(each) for each in saved.get("int8_on", VNNI)]
            calibration = Calibration.of(saved["calibration"]) if saved.get("calibration") else None
            expected[MODEL_FILES["fp32"]], MODEL_FILES[served]
        except RecognizerError:
            raise
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise RecognizerError(f"{folder / SETTINGS_FILE} is damaged: {error!r}") from None
        precision: Precision = engine if engine != "auto" else auto_on_this_cpu(served, int8_on)
        file = MODEL_FILES[precision]
        if file not in expected:
            raise RecognizerError(f"{folder} has no int8 engine: it was made by an earlier version; use --engine fp32")
        model = _read(folder / file)
        if _sha256(model) != expected[file]:
            raise RecognizerError(f"{folder / file} is not the file that was saved: its sha256 differs")
        return cls(onnx_runtime(model, folder / file), vocabulary, height, precision, calibration)

    @overload  # a str is a sequence of str too, but one path
    def read(  # type: ignore[overload-overlap]
        self,
        images: ImageSource,
        decoder: Decoder = "greedy",
        beam_width: int = 10,
        constraints: Constraints | None = None,
    ) -> Reading: ...
    @overload
    def read(
        self,
        images: Sequence[ImageSource],
        decoder: Decoder = "greedy",
        beam_width: int = 10,
        constraints: Constraints | None = None,
    ) -> list[Reading]: ...
    def read(
        self,
        images: ImageSource | Sequence[ImageSource],
        decoder: Decoder = "greedy",
        beam_width: int = 10,
        constraints: Constraints | None = None,
    ) -> Reading | list[Reading]:
        """Return what an image says, or what each of several says, in their order.

        An image, of any size, is whatever `load_image` takes. It goes through the model only together with images of
        the same padded width: a reading does not depend on the images that came with it.

        Texts keep to the constraints, whatever the images look like; see `decode`.

        Raises:
            ImageError: an image cannot be read; among several, its place is named.
            ConstraintError: no text that the vocabulary can spell keeps to the constraints, or they are too large.
            RecognizerError: unknown decoder, `beam_width` below 1, or a model whose answer does not fit the
                vocabulary, or holds NaN.
        """
        if decoder not in get_args(Decoder):
            raise RecognizerError(f"unknown decoder {decoder!r}: use {' or '.join(get_args(Decoder))}")
        if beam_width < 1:
            raise RecognizerError(f"beam_width must be at least 1, not {beam_width}")
        if isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview):
            return self._read_each(_load_each(images), decoder, beam_width, constraints)
        (reading,) = self._read_each([load_image(images)], decoder, beam_width, constraints)
        return reading

    def _read_each(
        self, images: Iterable[Image], decoder: Decoder, beam_width: int, constraints: Constraints | None
    ) -> list[Reading]:
        readings: dict[int, Reading] = {}
        for members, log_probs in self.log_probs(images):
            readings |= zip(members, self.decode(log_probs, decoder, beam_width, constraints), strict=True)
        return [readings[i] for i in range(len(readings))]

    def log_probs(self, images: Iterable[Image]) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yield the model's log_probs (T, N, C) batch by batch, each with its N images' places in the order given.

        Images (H, W, 3) are taken one at a time; a batch holds those of one padded width, and is yielded when
        COLUMNS_AT_ONCE are reached, COLUMNS_WAITING are exceeded, or the images end. So memory is bounded, whatever
        the number of images and of widths.

        Raises:
            RecognizerError: the model's answer does not fit the vocabulary, or holds NaN.
            StoppedError: nobody wants the answer any more.
        """
        waiting: dict[int, dict[int, Image]] = defaultdict(dict)
        columns = 0
        for place, image in enumerate(images):
            stop_if_unwanted()
            resized = resize_to_height(image, self.height)
            width = padded_width(resized.shape[1])
            waiting[width][place] = resized
            columns += width
            if len(waiting[width]) < COLUMNS_AT_ONCE // width:
                if columns <= COLUMNS_WAITING:
                    continue
                width = max(waiting, key=lambda each: each * len(waiting[each]))
            batch = waiting.pop(width)
            columns -= width * len(batch)
            yield list(batch), self._checked_log_probs(stack(list(batch.values())))
        for batch in waiting.values():
            yield list(batch), self._checked_log_probs(stack(list(batch.values())))

    def _checked_log_probs(self, batch: Image) -> NDArray[np.float32]:
        stop_if_unwanted()
        log_probs = self.log_probs_of(batch)
        if log_probs.ndim != 3 or log_probs.shape[1:] != (len(batch), self.vocabulary.classes):
            raise RecognizerError(
                f"the model gave {log_probs.shape}, wanted (T, {len(batch)}, {self.vocabulary.classes}): "
                "model and vocabulary do not belong together"
            )
        if np.isnan(log_probs).any():
            raise RecognizerError("the model gave NaN: its weights are broken")
        return log_probs

    def decode(
        self,
        log_probs: NDArray[np.float32],
        decoder: Decoder = "greedy",
        beam_width: int = 10,
        constraints: Constraints | None = None,
    ) -> list[Reading]:
        """Return what log_probs (T, N, C) say, with the exact CTC probability of each text, calibrated.

        With constraints a beam of `beam_width` goes over the texts that keep to them, whichever the decoder. The
        probability is among all texts still: it is low where an image says something else. An image with too few
        frames for any such text is read as the empty one, with a confidence of 0.

        Raises:
            ConstraintError: no text that the vocabulary can spell keeps to the constraints, or they are too large.
        """
        found = self._labels(log_probs, decoder, beam_width, constraints)
        labels = [text or [] for text in found]
        log_probabilities, characters = text_and_character_probabilities(log_probs, labels)
        # Rounding in the model's float32 can lift a certain text a little above 1.
        probabilities = np.exp(np.minimum(log_probabilities, 0.0))
        probabilities[[text is None for text in found]] = 0.0
        calibration = self.calibration
        confidences = calibration.confidences(probabilities) if calibration else probabilities
        confidences[[text is None for text in found]] = 0.0
        return [
            Reading(self.vocabulary.decode(text), confidence, shares, probability).judged(
                calibration.threshold if calibration else None
            )
            for text, confidence, shares, probability in zip(
                labels, confidences.tolist(), characters, probabilities.tolist(), strict=True
            )
        ]

    def _labels(
        self, log_probs: LogProbs, decoder: Decoder, beam_width: int, constraints: Constraints | None
    ) -> Sequence[list[int] | None]:
        """Return the labels of each text, None where the constraints allow none."""
        if constraints is not None:
            automaton = automaton_of(constraints, self.vocabulary)
            return constrained_beam_search_decode(log_probs, automaton, beam_width)
        return greedy_decode(log_probs) if decoder == "greedy" else beam_search_decode(log_probs, beam_width)


def _load_each(images: Sequence[ImageSource]) -> Iterator[Image]:
    for place, image in enumerate(images):
        try:
            yield load_image(image)
        except ImageError as error:
            raise ImageError(f"image {place} (the first is image 0): {error}") from None


def save_recognizer(
    folder: Path,
    model: bytes,
    vocabulary: Vocabulary,
    height: int,
    int8: bytes | None = None,
    served: Precision = "fp32",
    int8_on: Sequence[str] = VNNI,
    calibration: Calibration | None = None,
) -> dict[str, str]:
    """Write what `Recognizer.load` reads, and return the sha256 of each file's content by its name.

    `model` and `int8`, the same model quantised, are ONNX graphs, their weights inside: uint8 `images`
    (N, 3, height, W) to float32 `log_probs` (T, N, C). `served` is the one that the engine `auto` stands for, on a
    CPU with one of the instructions `int8_on`; on others that is fp32. Both have one calibration: they read alike.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {MODEL_FILES["fp32"]: model} | ({MODEL_FILES["int8"]: int8} if int8 else {})
    sha256 = {name: _sha256(content) for name, content in graphs.items()}
    settings: dict[str, Any] = {
        "format": FORMAT,
        "vocabulary": vocabulary.characters,
        "height": height,
        "served": served,
        "int8_on": list(int8_on),
        "calibration": calibration.as_dict() if calibration else None,
    }
    sha256[SETTINGS_FILE] = _settings_sha256(settings)
    for name, content in graphs.items():
        (folder / name).write_bytes(content)
    (folder / SETTINGS_FILE).write_text(json.dumps({**settings, "sha256": sha256}, indent=2) + "\n")
    return sha256


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecognizerError(f"{path} cannot be read: {error.strerror}") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _settings_sha256(settings: dict[str, Any]) -> str:
    """Return the sha256 of what the settings say beside the files' sha256: a file cannot hold its own."""
    return _sha256(json.dumps(settings, sort_keys=True).encode())
