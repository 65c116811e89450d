import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from captcha.reading.ctc import beam_search_decode, character_confidences
from captcha.reading.recognizer import COLUMNS_AT_ONCE, Recognizer
from captcha.reading.stopping import StoppedError, caller_gone, deadline, stop_if_unwanted
from captcha.reading.vocabulary import Vocabulary

Image = NDArray[np.uint8]
LOG_PROBS = np.full((6, 2, 4), np.log(0.25), np.float32)


@pytest.fixture
def gone() -> Iterator[threading.Event]:
    """The event of a caller who waits so far."""
    event = threading.Event()
    token = caller_gone.set(event)
    yield event
    caller_gone.reset(token)


def test_nothing_stops_without_a_deadline_and_a_caller() -> None:
    stop_if_unwanted()


def test_what_is_past_its_deadline_stops_and_what_comes_after_it_does_not() -> None:
    with deadline(0.001):
        time.sleep(0.01)
        with pytest.raises(StoppedError, match="the time is over"):
            stop_if_unwanted()
    stop_if_unwanted()


def test_reading_goes_on_while_the_caller_waits_and_stops_at_the_next_batch_once_it_has_gone(
    gone: threading.Event,
) -> None:
    batches = []

    def log_probs_of(images: Image) -> NDArray[np.float32]:
        batches.append(len(images))
        if len(batches) == 3:
            gone.set()
        return np.full((1, len(images), 4), np.log(0.25), np.float32)

    image = np.zeros((16, 1024, 3), np.uint8)
    with pytest.raises(StoppedError, match="nobody waits"):
        Recognizer(log_probs_of, Vocabulary("abc"), 16).read([image] * 1000)
    assert batches == [COLUMNS_AT_ONCE // 1024] * 3


@pytest.mark.parametrize("decode", [lambda: beam_search_decode(LOG_PROBS, 3), lambda: confidences()])
def test_decoding_stops_in_the_middle_of_a_batch(gone: threading.Event, decode: object) -> None:
    assert callable(decode)
    decode()
    gone.set()
    with pytest.raises(StoppedError):
        decode()


def confidences() -> list[list[float]]:
    return character_confidences(LOG_PROBS, [[1], [2, 3]])


def test_other_threads_and_requests_are_not_stopped(gone: threading.Event) -> None:
    gone.set()
    problems: list[Exception] = []

    def work() -> None:
        try:
            stop_if_unwanted()
        except StoppedError as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert problems == []
