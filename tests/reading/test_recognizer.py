import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx.parser
import onnxruntime  # type: ignore[import-untyped]
import PIL.Image
import pytest
from numpy.typing import NDArray

import captcha
from captcha.reading.confidence import Calibration
from captcha.reading.constraints import ConstraintError, Constraints
from captcha.reading.engine import RecognizerError
from captcha.reading.images import ImageError, ImageSource
from captcha.reading.recognizer import COLUMNS_AT_ONCE, COLUMNS_WAITING, Recognizer, save_recognizer
from captcha.reading.vocabulary import Vocabulary

Image = NDArray[np.uint8]
HEIGHT = 16
VOCABULARY = Vocabulary("abc")

# Each column of pixels is a frame, its brightness the class: white is the blank, black "a", then "b" and "c".
STRIPES = (Path(__file__).parent / "stripes.onnxtxt").read_text()
SHADES = {" ": 255, "a": 0, "b": 85, "c": 170}


def stripes_log_probs(images: Image) -> NDArray[np.float32]:
    """What STRIPES computes, in NumPy."""
    columns = images.astype(np.float32).mean(axis=(1, 2)).T[:, :, None]
    logits = -0.005 * (columns - np.array([255, 0, 85, 170], np.float32)) ** 2
    log_probs: NDArray[np.float32] = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    return log_probs


def stripes_model(text: str = STRIPES) -> bytes:
    content: bytes = onnx.parser.parse_model(text).SerializeToString()
    return content


def draw(text: str, height: int = HEIGHT, stripe: int = 4) -> Image:
    """An image that STRIPES reads as the text: a stripe for each character, white ones between."""
    row = [shade for character in text for shade in (255, SHADES[character]) for _ in range(stripe)]
    return np.tile(np.array([*row, *[255] * stripe], np.uint8)[None, :, None], (height, 1, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_recognizer(tmp_path / "saved", stripes_model(), VOCABULARY, HEIGHT)
    return tmp_path / "saved"


def test_a_saved_recognizer_reads_as_the_one_it_was_made_from(folder: Path) -> None:
    images = [draw("abc"), draw("ccaab"), draw("b")]

    loaded = Recognizer.load(folder)
    readings = loaded.read(images)

    assert (loaded.vocabulary, loaded.height) == (VOCABULARY, HEIGHT)
    assert [reading.text for reading in readings] == ["abc", "ccaab", "b"]
    expected = Recognizer(stripes_log_probs, VOCABULARY, HEIGHT).read(images)
    for reading, other in zip(readings, expected, strict=True):
        assert reading.confidence == pytest.approx(other.confidence, abs=1e-5)
        assert reading.character_confidences == pytest.approx(other.character_confidences, abs=1e-5)


def test_saving_twice_gives_the_same_files_and_tells_their_sha256(tmp_path: Path) -> None:
    first = save_recognizer(tmp_path / "deep" / "first", stripes_model(), VOCABULARY, HEIGHT)
    second = save_recognizer(tmp_path / "second", stripes_model(), VOCABULARY, HEIGHT)

    assert first == second
    assert first["model.onnx"] == hashlib.sha256((tmp_path / "second" / "model.onnx").read_bytes()).hexdigest()
    for file in ("model.onnx", "recognizer.json"):
        assert (tmp_path / "deep" / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.parametrize("characters", ['a"\\', "é中😀", "\u2028\n ", "\ud800x\0"])
def test_any_vocabulary_comes_back(tmp_path: Path, characters: str) -> None:
    save_recognizer(tmp_path, stripes_model(), Vocabulary(characters), HEIGHT)

    assert Recognizer.load(tmp_path).vocabulary.characters == characters


def test_images_of_any_height_are_resized() -> None:
    recognizer = Recognizer(stripes_log_probs, VOCABULARY, HEIGHT)

    small, big = np.full((3, 5, 3), SHADES["c"], np.uint8), draw("bac", height=80, stripe=30)

    assert [reading.text for reading in recognizer.read([small, big])] == ["c", "bac"]


def test_a_reading_does_not_depend_on_the_images_that_came_with_it(folder: Path) -> None:
    recognizer = Recognizer.load(folder)
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abc"), size=random.integers(1, 12))) for _ in range(40)]
    noisy = [cv2.add(draw(text), random.integers(0, 9, draw(text).shape, dtype=np.uint8)) for text in texts]
    images = [np.asarray(image, np.uint8) for image in noisy]

    together = recognizer.read(images)

    assert [reading.text for reading in together] == texts
    for image, reading in zip(images, together, strict=True):
        (alone,) = recognizer.read([image])
        assert alone.text == reading.text
        assert alone.confidence == pytest.approx(reading.confidence, abs=1e-6)
        assert alone.character_confidences == pytest.approx(reading.character_confidences, abs=1e-6)


def test_batches_hold_one_width_and_a_bounded_number_of_columns() -> None:
    shapes = []

    def log_probs_of(images: Image) -> NDArray[np.float32]:
        shapes.append(images.shape)
        return stripes_log_probs(images)

    height = COLUMNS_AT_ONCE // 64  # so that a width of more than one batch is no line of pixels
    wide = np.full((height, COLUMNS_AT_ONCE + 1, 3), 255, np.uint8)
    images = [draw("a", height), wide, *[draw("abc", height)] * (COLUMNS_AT_ONCE // 32 + 5), draw("b", height)]
    readings = Recognizer(log_probs_of, VOCABULARY, height).read(images)

    assert [reading.text for reading in readings] == ["a", "", *["abc"] * (len(images) - 3), "b"]
    assert sum(count for count, *_ in shapes) == len(images)
    assert all(count == 1 or count * width <= COLUMNS_AT_ONCE for count, _, _, width in shapes)
    assert len(shapes) == 4  # "a" and "b" together, the wide one, "abc" in two


def test_a_batch_is_read_before_more_images_are_taken() -> None:
    taken = 0

    def endless() -> Iterator[Image]:
        nonlocal taken
        while True:
            taken += 1
            yield draw("abc") if taken % 2 else draw("a")

    batches = Recognizer(stripes_log_probs, VOCABULARY, HEIGHT).log_probs(endless())
    size = COLUMNS_AT_ONCE // 32  # images "abc" are 28 columns wide
    for count in (1, 2):  # batches of "abc"; one of "a" is as many columns in twice as many images
        members, log_probs = next(batches)
        assert members == list(range(2 * size * (count - 1), 2 * size * count, 2))
        assert log_probs.shape[1] == size
        assert taken == 2 * size * count - 1


def test_images_of_many_widths_wait_for_no_more_columns_than_allowed() -> None:
    taken, given = 0, 0

    def of_many_widths() -> Iterator[Image]:
        nonlocal taken
        for place in range(3000):
            width = 16 * (1 + place % 120)
            taken += width
            yield np.full((HEIGHT, width, 3), 255, np.uint8)

    seen: set[int] = set()
    for members, log_probs in Recognizer(stripes_log_probs, VOCABULARY, HEIGHT).log_probs(of_many_widths()):
        given += log_probs.shape[0] * len(members)  # a frame of STRIPES is a column
        assert taken - given <= COLUMNS_WAITING
        assert not seen & set(members)
        seen |= set(members)
    assert seen == set(range(3000))


@pytest.mark.parametrize("widths", [[16] * 5, [16, 32, 16, 48, 32], list(range(1, 120, 7)) * 30])
def test_batches_are_those_of_all_images_sorted_by_width(widths: list[int]) -> None:
    images = [np.full((HEIGHT, width, 3), place % 256, np.uint8) for place, width in enumerate(widths)]
    padded = [-(-width // 16) * 16 for width in widths]
    wanted = []
    for width in set(padded):
        places = [place for place, other in enumerate(padded) if other == width]
        size = COLUMNS_AT_ONCE // width
        wanted += [places[start : start + size] for start in range(0, len(places), size)]

    got = [members for members, _ in Recognizer(stripes_log_probs, VOCABULARY, HEIGHT).log_probs(iter(images))]

    assert sorted(got) == sorted(wanted)


def test_one_image_gives_one_reading_and_several_a_list(tmp_path: Path) -> None:
    recognizer = Recognizer(stripes_log_probs, VOCABULARY, HEIGHT)
    picture = PIL.Image.fromarray(draw("abc"))
    path = tmp_path / "image.png"
    picture.save(path)
    sources: list[ImageSource] = [str(path), path, path.read_bytes(), draw("abc"), picture]

    for source in sources:
        assert recognizer.read(source).text == "abc"
    assert [reading.text for reading in recognizer.read(sources)] == ["abc"] * 5
    assert [reading.text for reading in recognizer.read((str(path),))] == ["abc"]


def test_a_bad_image_is_named_by_its_place_and_file(tmp_path: Path) -> None:
    recognizer = Recognizer(stripes_log_probs, VOCABULARY, HEIGHT)
    missing = tmp_path / "missing.png"
    problem = f"{missing}: cannot be read: No such file or directory"

    with pytest.raises(ImageError) as alone:
        recognizer.read(missing)
    with pytest.raises(ImageError) as among_others:
        recognizer.read([draw("a"), draw("b"), missing])

    assert str(alone.value) == problem
    assert str(among_others.value) == f"image 2 (the first is image 0): {problem}"


@pytest.mark.parametrize("nothing", [None, 5, iter(())])
def test_what_is_neither_an_image_nor_several_is_refused(nothing: Any) -> None:
    with pytest.raises(ImageError, match="is no image that can be read: give a path"):
        Recognizer(stripes_log_probs, VOCABULARY, HEIGHT).read(nothing)


def test_the_module_needs_none_of_what_training_and_tracking_need() -> None:
    heavy = {"torch", "pandas", "mlflow", "pydantic", "matplotlib", "scipy", "onnx"}
    script = f"import sys, captcha.reading.recognizer; print(sorted({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(captcha.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_leaves_nothing_in_the_users_home(folder: Path, tmp_path: Path) -> None:
    """Where onnxruntime reports its use, it leaves an identifier there; in CI, by its variables, it does not."""
    (tmp_path / "home").mkdir()
    home, program = str(tmp_path / "home"), f"import captcha; captcha.load({str(folder)!r})"
    environment = {"HOME": home, "TMPDIR": home, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    assert list((tmp_path / "home").iterdir()) == []


def test_no_images_give_no_readings() -> None:
    assert Recognizer(stripes_log_probs, VOCABULARY, HEIGHT).read([]) == []


def test_the_beam_reads_the_likelier_text_and_confidence_is_its_probability() -> None:
    # Two frames, blank 0.6 and "a" 0.4 in both: "" has 0.36, "a" 0.16 + 0.24 + 0.24.
    frame = np.log(np.array([0.6, 0.4, 1e-30, 1e-30], np.float32))
    recognizer = Recognizer(lambda images: np.tile(frame, (2, len(images), 1)), VOCABULARY, HEIGHT)
    image = draw("a")

    (greedy,) = recognizer.read([image])
    (beam,) = recognizer.read([image], decoder="beam", beam_width=3)

    assert (greedy.text, greedy.character_confidences) == ("", [])
    assert greedy.confidence == pytest.approx(0.36)
    assert beam.text == "a"
    assert beam.confidence == pytest.approx(0.64)
    assert beam.character_confidences == pytest.approx([1.0])


def test_a_reading_keeps_to_what_is_known_and_its_probability_is_among_all_texts() -> None:
    # The same frames: "aa" does not fit, since a blank must come between.
    frame = np.log(np.array([0.6, 0.4, 1e-30, 1e-30], np.float32))
    recognizer = Recognizer(lambda images: np.tile(frame, (2, len(images), 1)), VOCABULARY, HEIGHT)

    known = Constraints(length="1")
    assert recognizer.read(draw("a"), constraints=known) == recognizer.read(draw("a"), "beam", 3)
    likeliest, other, none = (
        recognizer.read([draw("a")], constraints=Constraints(texts=texts))[0] for texts in ("a\nb", "b", "aa")
    )
    assert (likeliest.text, other.text) == ("a", "b")
    assert [likeliest.confidence, other.confidence] == pytest.approx([0.64, 1.2e-30])
    assert (none.text, none.confidence, none.character_confidences) == ("", 0.0, [])
    with pytest.raises(ConstraintError, match="no text of the 3 characters"):
        recognizer.read([draw("a")], constraints=Constraints(characters="x"))


def test_confidence_never_exceeds_one_by_rounding() -> None:
    certain = np.full((40, 1, 4), -np.inf, np.float32)
    certain[:, :, 0] = 1e-6  # float32 rounding can leave a log-probability a little above 0

    (reading,) = Recognizer(lambda images: certain, VOCABULARY, HEIGHT).read([draw("a")])

    assert reading.confidence == 1.0


TWO_FRAMES = np.log(
    np.array([0.6, 0.4, 1e-30, 1e-30], np.float32)
)  # greedily "", of probability 0.36; a beam reads "a"


@pytest.mark.parametrize(("threshold", "accepted"), [(0.9, False), (0.5, True)])
def test_a_calibrated_confidence_stands_beside_the_probability_and_is_accepted_from_the_threshold_on(
    threshold: float, accepted: bool
) -> None:
    calibration = Calibration(2.0, 0.0, threshold)  # odds squared: 0.64 / 0.36, about 16 / 9 → 256 / 81
    frames = Recognizer(lambda i: np.tile(TWO_FRAMES, (2, len(i), 1)), VOCABULARY, HEIGHT, calibration=calibration)

    reading = frames.read(draw("a"), "beam")

    assert (reading.text, reading.accepted) == ("a", accepted)
    assert (reading.probability, reading.confidence) == pytest.approx((0.64, 256 / (256 + 81)))
    assert reading.judged(None) == reading
    assert [reading.judged(least).accepted for least in (0.0, 0.75, 0.77, 1.0)] == [True, True, False, False]
    nothing = frames.read(draw("a"))
    assert (nothing.text, nothing.judged(0.0).accepted) == ("", False)  # nothing read is never taken for a text


def test_without_a_calibration_confidence_is_the_probability_and_nobody_decides() -> None:
    frames = Recognizer(lambda images: np.tile(TWO_FRAMES, (2, len(images), 1)), VOCABULARY, HEIGHT)

    reading = frames.read(draw("a"), "beam")

    assert reading.confidence == reading.probability == pytest.approx(0.64)
    assert reading.accepted is None
    assert reading.judged(0.5).accepted


def test_a_calibration_is_saved_and_loaded_to_the_last_digit(tmp_path: Path) -> None:
    calibration = Calibration(0.1 + 0.2, -1 / 3, 0.9999999999999999)
    plain = save_recognizer(tmp_path / "plain", stripes_model(), VOCABULARY, HEIGHT)
    saved = save_recognizer(tmp_path / "saved", stripes_model(), VOCABULARY, HEIGHT, calibration=calibration)

    assert Recognizer.load(tmp_path / "saved").calibration == calibration
    assert Recognizer.load(tmp_path / "plain").calibration is None
    assert saved["recognizer.json"] != plain["recognizer.json"]


@pytest.mark.parametrize("name", ["slope", "intercept", "threshold"])
def test_a_changed_calibration_is_refused(tmp_path: Path, name: str) -> None:
    save_recognizer(tmp_path, stripes_model(), VOCABULARY, HEIGHT, calibration=Calibration(1.0, 0.5, 0.9))
    settings = json.loads((tmp_path / "recognizer.json").read_text())
    settings["calibration"][name] += 0.01
    (tmp_path / "recognizer.json").write_text(json.dumps(settings))
    with pytest.raises(RecognizerError, match=r"recognizer.json is not the file that was saved: its sha256 differs"):
        Recognizer.load(tmp_path)


@pytest.mark.parametrize(
    "calibration", ["steep", [1, 2, 3], {"slope": 1.0}, {"slope": 0, "intercept": 0, "threshold": 1}]
)
def test_a_calibration_that_is_none_is_one_line(tmp_path: Path, calibration: object) -> None:
    save_recognizer(tmp_path, stripes_model(), VOCABULARY, HEIGHT)
    settings = json.loads((tmp_path / "recognizer.json").read_text()) | {"calibration": calibration}
    sha256 = settings.pop("sha256")
    sha256["recognizer.json"] = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    (tmp_path / "recognizer.json").write_text(json.dumps(settings | {"sha256": sha256}))
    with pytest.raises(RecognizerError, match=r"^[^\n]*recognizer.json is damaged: [^\n]*$"):
        Recognizer.load(tmp_path)


def test_threads_may_share_a_recognizer(folder: Path) -> None:
    recognizer = Recognizer.load(folder)
    texts = ["abc", "b", "cabab", "aa"] * 8
    with ThreadPoolExecutor(8) as threads:
        readings = list(threads.map(lambda text: recognizer.read([draw(text)])[0], texts))

    assert [reading.text for reading in readings] == texts


def test_an_unknown_decoder_is_refused() -> None:
    recognizer = Recognizer(stripes_log_probs, VOCABULARY, HEIGHT)
    with pytest.raises(RecognizerError, match="unknown decoder 'best': use greedy or beam"):
        recognizer.read([draw("a")], decoder="best")  # type: ignore[call-overload]
    with pytest.raises(RecognizerError, match="beam_width must be at least 1"):
        recognizer.read([draw("a")], decoder="beam", beam_width=0)


@pytest.mark.parametrize(("threads", "cores", "used"), [(1, 8, 1), (3, 8, 3), (4, 2, 2)])
def test_the_model_has_the_threads_of_the_setting_but_no_more_than_cores(
    folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int, cores: int, used: int
) -> None:
    asked: list[int] = []

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, model: bytes, options: onnxruntime.SessionOptions, providers: list[str]) -> None:
            asked.append(options.intra_op_num_threads)
            super().__init__(model, options, providers=providers)

    monkeypatch.setattr("captcha.reading.engine.THREADS", threads)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)

    assert Recognizer.load(folder).read(draw("abc")).text == "abc"
    assert asked == [used]


@pytest.mark.parametrize("file", ["model.onnx", "recognizer.json"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(RecognizerError, match=rf"{file} cannot be read: No such file"):
        Recognizer.load(folder)


def test_a_changed_model_is_refused(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(RecognizerError, match=r"model.onnx is not the file that was saved: its sha256 differs"):
        Recognizer.load(folder)


@pytest.mark.parametrize(("key", "value"), [("vocabulary", "abd"), ("height", 17)])
def test_changed_settings_are_refused(folder: Path, key: str, value: object) -> None:
    settings = json.loads((folder / "recognizer.json").read_text())
    (folder / "recognizer.json").write_text(json.dumps({**settings, key: value}))
    with pytest.raises(RecognizerError, match=r"recognizer.json is not the file that was saved: its sha256 differs"):
        Recognizer.load(folder)


def test_an_unknown_format_says_so(folder: Path) -> None:
    settings = json.loads((folder / "recognizer.json").read_text())
    (folder / "recognizer.json").write_text(json.dumps({**settings, "format": 4}))
    with pytest.raises(RecognizerError, match="has format 4, this version reads 3"):
        Recognizer.load(folder)


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", '{"format": 1', '{"format": 1, "vocabulary": 5}', "\xff"),
        *("[" * 100_000, '{"format": 1, "vocabulary": "a", "height": 1e999, "sha256": {}}'),
        '{"format": 1, "vocabulary": "a", "height": %s}' % ("9" * 5000),
    ],
)
def test_damaged_settings_are_one_line(folder: Path, content: str) -> None:
    (folder / "recognizer.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(RecognizerError, match=r"^[^\n]*recognizer.json is damaged: [^\n]*$"):
        Recognizer.load(folder)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"no model", "is no model that ONNX Runtime can run"),
        (stripes_model(STRIPES.replace("images", "pixels")), r"must take images.*it takes \[\('pixels'"),
        (stripes_model(STRIPES.replace("uint8", "float")), "must take images, tensor.uint8"),
    ],
)
def test_a_file_that_is_no_such_model_is_refused_in_one_line(tmp_path: Path, model: bytes, message: str) -> None:
    save_recognizer(tmp_path, model, VOCABULARY, HEIGHT)
    with pytest.raises(RecognizerError, match=message) as caught:
        Recognizer.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros((5, 1, 3), np.float32), r"gave \(5, 1, 3\), wanted \(T, 1, 4\)"),
        (np.full((5, 1, 4), math.nan, np.float32), "gave NaN"),
    ],
)
def test_a_model_that_answers_nonsense_is_refused(answer: Any, message: str) -> None:
    with pytest.raises(RecognizerError, match=message):
        Recognizer(lambda images: answer, VOCABULARY, HEIGHT).read([draw("a")])


def test_a_model_for_another_height_says_what_failed(tmp_path: Path) -> None:
    save_recognizer(tmp_path, stripes_model(STRIPES.replace("3, H, W", "3, 8, W")), VOCABULARY, HEIGHT)
    with pytest.raises(RecognizerError, match=r"^the model failed on images of shape \(1, 3, 16, 16\): [^\n]*$"):
        Recognizer.load(tmp_path).read([draw("a")])
