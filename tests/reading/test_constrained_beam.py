"""The oracle is the sum over all paths, of all texts, of which those that a plain predicate allows are compared."""

import re
from collections.abc import Callable
from itertools import groupby, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from captcha.reading.constrained_beam import constrained_beam_search_decode
from captcha.reading.constraints import Constraints, automaton_of
from captcha.reading.ctc import beam_search_decode, text_log_probability
from captcha.reading.stopping import StoppedError, deadline
from captcha.reading.vocabulary import BLANK, Vocabulary

Array = NDArray[np.floating[Any]]
VOCABULARY = Vocabulary("abc")
KNOWN: list[tuple[Constraints, Callable[[str], object]]] = [
    (Constraints(length="2"), lambda text: len(text) == 2),
    (Constraints(length="1-3"), lambda text: 1 <= len(text) <= 3),
    (Constraints(characters="zb"), lambda text: set(text) <= {"b"}),
    (Constraints(texts="ab\naa\n\ncab\nbbb\nxyz\n"), lambda text: text in ("ab", "aa", "cab", "bbb")),
    (Constraints(texts="aa\nbbb"), lambda text: text in ("aa", "bbb")),
    (Constraints(pattern="(a|b)*a(a|b)"), lambda text: re.fullmatch("[ab]*a[ab]", text)),
    (
        Constraints(length="2-4", characters="ac", pattern="[^a]{2,}|aa"),
        lambda text: text in ("aa", "cc", "ccc", "cccc"),
    ),
]


def every_text_probability(log_probs: Array) -> dict[str, float]:
    """The probability of every text of one sample, (T, C), by walking all C**T paths."""
    frames, classes = log_probs.shape
    probs = np.exp(log_probs.astype(np.float64))
    texts: dict[str, float] = {}
    for path in product(range(classes), repeat=frames):
        text = VOCABULARY.decode([label for label, _ in groupby(path) if label != BLANK])
        texts[text] = texts.get(text, 0.0) + float(np.prod(probs[np.arange(frames), path]))
    return texts


def random_log_probs(frames: int, samples: int, classes: int, seed: int, sharpness: float = 1.5) -> Array:
    logits = np.random.default_rng(seed).normal(size=(frames, samples, classes)) * sharpness
    log_probs: Array = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
    return log_probs


@pytest.mark.parametrize(("constraints", "allows"), KNOWN, ids=lambda each: getattr(each, "written", str)())
@given(
    st.tuples(st.integers(1, 5), st.integers(0, 2**32 - 1)), st.sampled_from([0.1, 1.5, 6.0]), st.sampled_from([0, 0.2])
)
@settings(max_examples=15, deadline=None)
def test_a_beam_finds_the_likeliest_text_allowed_and_any_width_finds_one_that_is(
    constraints: Constraints,
    allows: Callable[[str], object],
    case: tuple[int, int],
    sharpness: float,
    impossible: float,
) -> None:
    frames, seed = case
    log_probs = random_log_probs(frames, 2, 4, seed, sharpness)
    log_probs[np.random.default_rng(seed).random(log_probs.shape) < impossible] = -np.inf
    automaton = automaton_of(constraints, VOCABULARY)

    found = {width: constrained_beam_search_decode(log_probs, automaton, width) for width in (1, 2, 4**6)}

    for n in range(2):
        texts = every_text_probability(log_probs[:, n])
        allowed = {text: probability for text, probability in texts.items() if allows(text) and probability > 0}
        for width, labels in found.items():
            text = labels[n]
            if not allowed:
                assert text is None
                continue
            assert text is not None
            assert VOCABULARY.decode(text) in allowed
            if width == 4**6:
                assert allowed[VOCABULARY.decode(text)] == pytest.approx(max(allowed.values()), rel=1e-9)


@pytest.mark.parametrize("width", [1, 2, 5, 20])
def test_where_every_text_is_allowed_it_is_about_as_good_as_the_plain_beam(width: int) -> None:
    log_probs = random_log_probs(25, 40, 4, seed=width, sharpness=2.5)
    automaton = automaton_of(Constraints(characters="abc"), VOCABULARY)

    ours = constrained_beam_search_decode(log_probs, automaton, width)

    texts = [text for text in ours if text is not None]
    plain = text_log_probability(log_probs, beam_search_decode(log_probs, width))
    assert len(texts) == 40
    assert text_log_probability(log_probs, texts).mean() >= plain.mean() - 0.05


@pytest.mark.parametrize("width", [1, 10])
def test_what_an_image_does_not_show_is_still_read_and_nothing_underflows(width: int) -> None:
    log_probs = np.full((40, 1, 4), -60.0)
    log_probs[:, :, BLANK] = 0.0  # the model is sure that there is no text
    automaton = automaton_of(Constraints(length="20", characters="a"), VOCABULARY)

    assert constrained_beam_search_decode(log_probs, automaton, width) == [[1] * 20]
    assert constrained_beam_search_decode(log_probs[:39], automaton, width) == [[1] * 20]
    assert constrained_beam_search_decode(log_probs[:38], automaton, width) == [None]  # it needs 19 blanks between


def test_a_sample_decodes_alone_as_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    log_probs = random_log_probs(12, 7, 4, seed=3)
    automaton = automaton_of(Constraints(length="3-4"), VOCABULARY)
    together = constrained_beam_search_decode(log_probs, automaton, 3)

    assert together == [constrained_beam_search_decode(log_probs[:, n : n + 1], automaton, 3)[0] for n in range(7)]
    monkeypatch.setattr("captcha.reading.constrained_beam.ELEMENTS_AT_ONCE", 500)
    assert constrained_beam_search_decode(log_probs, automaton, 3) == together
    assert constrained_beam_search_decode(log_probs[:, :0], automaton, 3) == []


def test_it_stops_after_its_deadline_and_names_wrong_arguments() -> None:
    automaton = automaton_of(Constraints(length="2"), VOCABULARY)
    with deadline(-1), pytest.raises(StoppedError):
        constrained_beam_search_decode(random_log_probs(3, 1, 4, seed=0), automaton, 2)
    with pytest.raises(ValueError, match="beam_width must be at least 1, not 0"):
        constrained_beam_search_decode(random_log_probs(3, 1, 4, seed=0), automaton, 0)
