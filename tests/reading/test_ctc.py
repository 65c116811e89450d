from itertools import groupby, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

from captcha.reading.ctc import (
    beam_search_decode,
    character_confidences,
    frames_needed,
    greedy_decode,
    text_and_character_probabilities,
    text_log_probability,
)
from captcha.reading.stopping import StoppedError, deadline
from captcha.reading.vocabulary import BLANK

Array = NDArray[np.floating[Any]]


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    """CTC's map from paths to texts, by itertools."""
    return tuple(label for label, _ in groupby(path) if label != BLANK)


def every_text_probability(log_probs: Array) -> dict[tuple[int, ...], float]:
    """The probability of every text of one sample, (T, C), by walking all C**T paths."""
    frames, classes = log_probs.shape
    probs = np.exp(log_probs.astype(np.float64))
    texts: dict[tuple[int, ...], float] = {}
    for path in product(range(classes), repeat=frames):
        text = collapse(path)
        texts[text] = texts.get(text, 0.0) + float(np.prod(probs[np.arange(frames), path]))
    return texts


def random_log_probs(frames: int, samples: int, classes: int, seed: int, sharpness: float = 1.5) -> Array:
    logits = np.random.default_rng(seed).normal(size=(frames, samples, classes)) * sharpness
    log_probs: Array = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    return log_probs.astype(np.float32)


def certain_log_probs(path: list[int], classes: int) -> Array:
    """(T, 1, C) of a model that is sure of this path: all other classes are impossible."""
    log_probs = np.full((len(path), 1, classes), -np.inf, np.float32)
    log_probs[np.arange(len(path)), 0, path] = 0.0
    return log_probs


CASES = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(2, 4), st.integers(0, 2**32 - 1))


@given(CASES)
@settings(max_examples=25, deadline=None)
def test_text_probability_sums_over_all_paths(case: tuple[int, int, int, int]) -> None:
    log_probs = random_log_probs(*case)
    for n in range(log_probs.shape[1]):
        texts = every_text_probability(log_probs[:, n])
        batch = np.repeat(log_probs[:, n : n + 1], len(texts), axis=1)  # all texts at once: lengths are mixed

        computed = np.exp(text_log_probability(batch, list(texts)))

        np.testing.assert_allclose(computed, list(texts.values()), rtol=1e-9)
        assert computed.sum() == pytest.approx(1, abs=1e-5)


def test_text_probability_is_pytorch_s_ctc_loss() -> None:
    log_probs = random_log_probs(40, 8, 12, seed=1)
    random = np.random.default_rng(2)
    labels = [random.integers(1, 12, size=length).tolist() for length in (0, 1, 2, 5, 5, 9, 14, 19)]

    loss = functional.ctc_loss(
        torch.from_numpy(log_probs).double(),
        torch.tensor([label for text in labels for label in text]),
        torch.full((8,), 40),
        torch.tensor([len(text) for text in labels]),
        reduction="none",
    )

    np.testing.assert_allclose(text_log_probability(log_probs, labels), -loss.numpy(), rtol=1e-9)


@pytest.mark.parametrize(("labels", "frames"), [([], 0), ([1], 1), ([1, 2, 1], 3), ([1, 1], 3), ([1, 1, 1, 2, 2], 8)])
def test_frames_needed_leaves_room_for_a_blank_between_repeats(labels: list[int], frames: int) -> None:
    assert frames_needed(labels) == frames
    if frames > 1:
        assert text_log_probability(random_log_probs(frames - 1, 1, 3, seed=0), [labels])[0] == -np.inf
    log_probability = text_log_probability(random_log_probs(max(frames, 1), 1, 3, seed=0), [labels])[0]
    assert np.isfinite(log_probability)


@given(CASES)
@settings(max_examples=25, deadline=None)
def test_greedy_decodes_the_likeliest_of_all_paths(case: tuple[int, int, int, int]) -> None:
    log_probs = random_log_probs(*case)
    frames, samples, classes = log_probs.shape
    paths = np.array(list(product(range(classes), repeat=frames)))
    for n, labels in enumerate(greedy_decode(log_probs)):
        likelihoods = log_probs[np.arange(frames), n, paths].astype(np.float64).sum(axis=1)
        assert tuple(labels) == collapse(tuple(paths[likelihoods.argmax()].tolist()))
    assert samples == len(greedy_decode(log_probs))


@given(CASES, st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_no_beam_finds_more_than_the_likeliest_text(case: tuple[int, int, int, int], beam_width: int) -> None:
    log_probs = random_log_probs(*case)
    for n, labels in enumerate(beam_search_decode(log_probs, beam_width)):
        texts = every_text_probability(log_probs[:, n])
        assert 0 < texts[tuple(labels)] <= max(texts.values())


@given(CASES)
@settings(max_examples=25, deadline=None)
def test_a_beam_that_holds_every_prefix_finds_the_likeliest_text(case: tuple[int, int, int, int]) -> None:
    log_probs = random_log_probs(*case)

    decoded = beam_search_decode(log_probs, beam_width=4**6)

    for n, labels in enumerate(decoded):
        texts = every_text_probability(log_probs[:, n])
        assert texts[tuple(labels)] == pytest.approx(max(texts.values()), rel=1e-9)
    found = text_log_probability(log_probs, decoded)
    assert (found >= text_log_probability(log_probs, greedy_decode(log_probs)) - 1e-9).all()


def prefix_beam_search(log_probs: Array, beam_width: int) -> tuple[int, ...]:
    """Textbook prefix beam search of one sample, (T, C), with probabilities in a dictionary."""
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (1.0, 0.0)}
    for frame in np.exp(log_probs.astype(np.float64)):
        grown: dict[tuple[int, ...], tuple[float, float]] = {}
        for prefix, (blank, label) in beams.items():
            for c, p in enumerate(frame):
                if c == BLANK:
                    parts: list[tuple[tuple[int, ...], float, float]] = [(prefix, (blank + label) * p, 0.0)]
                elif prefix and prefix[-1] == c:
                    parts = [(prefix, 0.0, label * p), ((*prefix, c), 0.0, blank * p)]
                else:
                    parts = [((*prefix, c), 0.0, (blank + label) * p)]
                for text, in_blank, in_label in parts:
                    old = grown.get(text, (0.0, 0.0))
                    grown[text] = (old[0] + in_blank, old[1] + in_label)
        beams = dict(sorted(grown.items(), key=lambda item: -sum(item[1]))[:beam_width])
    return max(beams.items(), key=lambda item: sum(item[1]))[0]


@pytest.mark.parametrize(("beam_width", "classes"), [(1, 5), (2, 3), (3, 3), (4, 4), (20, 5)])
def test_narrow_beams_keep_what_a_textbook_beam_keeps(beam_width: int, classes: int) -> None:
    # Flat frames: prefixes leave the beam and come back, and must then still be the same prefixes.
    log_probs = random_log_probs(25, 60, classes, seed=beam_width, sharpness=0.7)

    expected = [list(prefix_beam_search(log_probs[:, n], beam_width)) for n in range(60)]

    assert beam_search_decode(log_probs, beam_width) == expected


def prefix_beam_search_in_logarithms(log_probs: Array, beam_width: int) -> list[int]:
    """Prefix beam search of one sample, (T, C), over all pairs of a prefix and a class, in arrays of logarithms."""
    texts: list[tuple[int, ...]] = [()]
    in_blank, in_label = np.zeros(1), np.full(1, -np.inf)
    for frame in log_probs.astype(np.float64):
        total = np.logaddexp(in_blank, in_label)
        longer = total[:, None] + frame
        longer[:, BLANK] = -np.inf
        for k, text in enumerate(texts):
            if text:
                longer[k, text[-1]] = in_blank[k] + frame[text[-1]]
        stay_blank = total + frame[BLANK]
        stay_label = in_label + frame[[text[-1] if text else BLANK for text in texts]]
        for k, text in enumerate(texts):
            if text and text[:-1] in texts:
                longer_here = texts.index(text[:-1]), text[-1]
                stay_label[k] = np.logaddexp(stay_label[k], longer[longer_here])
                longer[longer_here] = -np.inf
        scores = np.concatenate([np.logaddexp(stay_blank, stay_label), longer.ravel()])
        best = [int(k) for k in np.argsort(-scores, kind="stable")[:beam_width] if scores[k] > -np.inf]
        grown = [(k, 0) if k < len(texts) else divmod(k - len(texts), len(frame)) for k in best]
        in_blank = np.array([stay_blank[k] if c == BLANK else -np.inf for k, c in grown])
        in_label = np.array([stay_label[k] if c == BLANK else longer[k, c] for k, c in grown])
        texts = [texts[k] if c == BLANK else (*texts[k], c) for k, c in grown]
    return list(texts[0]) if texts else []


@given(
    st.tuples(st.integers(1, 50), st.integers(1, 2), st.integers(2, 12), st.integers(0, 2**32 - 1)),
    st.integers(1, 25),
    st.sampled_from([0.1, 0.7, 1.5, 5.0, 30.0, 1e3, 1e5]),
    st.sampled_from([0.0, 2.0]),
    st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=60, deadline=None)
def test_the_bounds_exclude_nothing_that_a_beam_keeps(
    case: tuple[int, int, int, int], beam_width: int, sharpness: float, blank: float, impossible: float
) -> None:
    frames, samples, classes, seed = case
    random = np.random.default_rng(seed)
    logits = random.normal(size=(frames, samples, classes)) * sharpness
    logits[:, :, BLANK] += blank * sharpness  # as models like to read it
    log_probs = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
    log_probs[random.random(log_probs.shape) < impossible] = -np.inf

    expected = [prefix_beam_search_in_logarithms(log_probs[:, n], beam_width) for n in range(samples)]

    assert beam_search_decode(log_probs, beam_width) == expected


@pytest.mark.parametrize(("frames", "likelihood"), [(2000, 0.0), (50, -900.0)])
def test_a_beam_neither_underflows_nor_overflows(frames: int, likelihood: float) -> None:
    log_probs = random_log_probs(frames, 1, 4, seed=8, sharpness=0.3).astype(np.float64) + likelihood

    assert beam_search_decode(log_probs, 5) == [prefix_beam_search_in_logarithms(log_probs[:, 0], 5)]


def test_an_impossible_frame_leaves_a_beam_no_text() -> None:
    log_probs = np.concatenate([certain_log_probs([1, 2], 3), np.full((1, 1, 3), -np.inf, np.float32)])

    assert beam_search_decode(log_probs, 4) == [[]]


def test_a_beam_stops_at_the_first_frame_after_its_deadline() -> None:
    with deadline(-1), pytest.raises(StoppedError):
        beam_search_decode(random_log_probs(3, 1, 4, seed=0), 2)


def test_the_beam_finds_the_text_that_the_best_path_misses() -> None:
    # "a" by three paths has 0.64 (0.16 + 0.24 + 0.24), the best path "--" 0.36.
    log_probs = np.log(np.array([[[0.6, 0.4]], [[0.6, 0.4]]], np.float32))

    assert greedy_decode(log_probs) == [[]]
    assert beam_search_decode(log_probs, beam_width=2) == [[1]]


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_a_text_spread_over_frames_decodes_to_itself(data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(1, 4), max_size=8))
    path = [BLANK] * data.draw(st.integers(0 if labels else 1, 2))
    for label, following in zip(labels, [*labels[1:], BLANK], strict=False):
        path += [label] * data.draw(st.integers(1, 3))
        path += [BLANK] * data.draw(st.integers(int(label == following), 2))
    log_probs = certain_log_probs(path, classes=5)

    assert greedy_decode(log_probs) == [labels]
    assert beam_search_decode(log_probs, beam_width=1) == [labels]
    assert text_log_probability(log_probs, [labels])[0] == pytest.approx(0, abs=1e-12)
    assert character_confidences(log_probs, [labels]) == [[1.0] * len(labels)]


@given(CASES)
@settings(max_examples=25, deadline=None)
def test_character_confidence_is_the_share_among_all_replacements(case: tuple[int, int, int, int]) -> None:
    log_probs = random_log_probs(*case)
    _, samples, classes = log_probs.shape
    texts = [list(text) for text in every_text_probability(log_probs[:, 0])]

    for n in range(samples):
        batch = np.repeat(log_probs[:, n : n + 1], len(texts), axis=1)
        for text, confidences in zip(texts, character_confidences(batch, texts), strict=True):
            assert len(confidences) == len(text)
            for i, confidence in enumerate(confidences):
                replaced = [[*text[:i], c, *text[i + 1 :]] for c in range(1, classes)]
                same = np.repeat(log_probs[:, n : n + 1], len(replaced), axis=1)
                share = np.exp(text_log_probability(same, replaced))
                assert confidence == pytest.approx(share[text[i] - 1] / share.sum(), rel=1e-9)


def log_probability_by_frames(log_probs: Array, labels: list[int]) -> float:
    """The forward algorithm of one sample, (T, C), state by state in logarithms."""
    states = [BLANK, *(state for label in labels for state in (label, BLANK))]
    ways = [0.0] + [-np.inf] * (len(states) - 1)  # before the first frame
    for frame in log_probs.astype(np.float64):
        before = ways
        ways = []
        for s, state in enumerate(states):
            joins = s > 1 and state != BLANK and state != states[s - 2]
            from_states = before[s - (2 if joins else min(s, 1)) : s + 1]
            ways.append(float(np.logaddexp.reduce(from_states) + frame[state]))
    return float(np.logaddexp.reduce(ways[-2:]))


def shares_by_replacing(log_probs: Array, labels: list[int]) -> list[float]:
    """Each character's share of one sample, (T, C), from the texts with every character in its place."""
    shares = []
    for i, label in enumerate(labels):
        replaced = [
            log_probability_by_frames(log_probs, [*labels[:i], c, *labels[i + 1 :]])
            for c in range(1, log_probs.shape[1])
        ]
        possible = replaced[label - 1] > -np.inf
        shares.append(float(np.exp(replaced[label - 1] - np.logaddexp.reduce(replaced))) if possible else 0.0)
    return shares


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 3), st.integers(2, 5), st.integers(0, 2**32 - 1)),
    st.sampled_from([0.1, 1.5, 30.0, 1e3, 1e5]),
    st.sampled_from([0.0, 0.2]),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_every_probability_is_that_of_the_sums_in_logarithms(
    case: tuple[int, int, int, int], sharpness: float, impossible: float, as_read: bool
) -> None:
    frames, samples, classes, seed = case
    random = np.random.default_rng(seed)
    logits = random.normal(size=(frames, samples, classes)) * sharpness
    log_probs = (logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)).astype(np.float32)
    log_probs[random.random(log_probs.shape) < impossible] = -np.inf
    labels = [random.integers(1, classes, size=random.integers(0, 6)).tolist() for _ in range(samples)]
    if as_read:
        labels = greedy_decode(log_probs)

    found, shares = text_and_character_probabilities(log_probs, labels)

    expected = [log_probability_by_frames(log_probs[:, n], text) for n, text in enumerate(labels)]
    np.testing.assert_allclose(found, expected, rtol=1e-15, atol=1e-9)
    np.testing.assert_allclose(text_log_probability(log_probs, labels), expected, rtol=1e-15, atol=1e-9)
    for n, text in enumerate(labels):
        np.testing.assert_allclose(shares[n], shares_by_replacing(log_probs[:, n], text), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("frames", [152, 300])  # there a float has a few bits left, or none
def test_a_text_near_or_below_the_smallest_float_has_its_probability_beside_a_certain_one(frames: int) -> None:
    log_probs = np.full((frames, 2, 3), -5.0, np.float32)
    log_probs[:, 1] = [0.0, -800.0, -800.0]
    log_probs[-1] = [-900.0, 0.0, -np.inf]

    found, shares = text_and_character_probabilities(log_probs, [[1, 2, 1], [1]])

    assert found[0] == pytest.approx(log_probability_by_frames(log_probs[:, 0], [1, 2, 1]), abs=1e-9)
    assert found[1] == pytest.approx(0, abs=1e-9)
    assert shares[0] == pytest.approx(shares_by_replacing(log_probs[:, 0], [1, 2, 1]), abs=1e-9)
    assert shares[1] == pytest.approx([1])


@pytest.mark.parametrize("samples", [1, 40])
def test_many_frames_in_several_parts_are_as_one_by_one(samples: int) -> None:
    log_probs = random_log_probs(150, samples, 40, seed=5, sharpness=6)
    labels = [text[: 3 + n % 5] for n, text in enumerate(greedy_decode(log_probs))]

    found, shares = text_and_character_probabilities(log_probs, labels)

    n = samples - 1
    assert found[n] == pytest.approx(log_probability_by_frames(log_probs[:, n], labels[n]), abs=1e-9)
    assert shares[n] == pytest.approx(shares_by_replacing(log_probs[:, n], labels[n]), rel=1e-9)


def test_long_improbable_texts_lose_no_precision() -> None:
    log_probs = random_log_probs(300, 2, 40, seed=3, sharpness=4)
    texts = greedy_decode(log_probs)

    assert (text_log_probability(log_probs, texts) > -np.inf).all()
    confidences = np.concatenate(character_confidences(log_probs, texts))
    assert ((confidences > 0) & (confidences <= 1)).all()


def test_an_impossible_text_has_no_probability_and_no_confidence() -> None:
    log_probs = certain_log_probs([1, 2], classes=4)

    assert text_log_probability(log_probs, [[3]])[0] == -np.inf
    assert character_confidences(log_probs, [[1, 1]]) == [[0.0, 0.0]]
    assert character_confidences(log_probs, [[3, 3, 3]]) == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("width", [1, 10])
def test_a_sample_decodes_alone_as_in_its_batch(width: int) -> None:
    log_probs = random_log_probs(20, 6, 9, seed=4)
    together = beam_search_decode(log_probs, width)

    assert together == [beam_search_decode(log_probs[:, n : n + 1], width)[0] for n in range(6)]
    assert greedy_decode(log_probs) == [greedy_decode(log_probs[:, n : n + 1])[0] for n in range(6)]
    batch_probability = text_log_probability(log_probs, together)
    batch_confidences = character_confidences(log_probs, together)
    for n in range(6):
        alone = log_probs[:, n : n + 1]
        assert text_log_probability(alone, [together[n]])[0] == batch_probability[n]
        assert character_confidences(alone, [together[n]])[0] == batch_confidences[n]


def test_an_empty_batch_gives_nothing() -> None:
    log_probs = np.zeros((5, 0, 3), np.float32)

    assert greedy_decode(log_probs) == []
    assert beam_search_decode(log_probs, 3) == []
    assert text_log_probability(log_probs, []).shape == (0,)
    assert character_confidences(log_probs, []) == []


def test_wrong_arguments_are_named() -> None:
    log_probs = random_log_probs(4, 2, 3, seed=0)
    with pytest.raises(ValueError, match="beam_width must be at least 1, not 0"):
        beam_search_decode(log_probs, 0)
    with pytest.raises(ValueError, match="hold 2 samples, labels 1"):
        text_log_probability(log_probs, [[1]])
    for wrong in ([BLANK], [3], [-1]):
        with pytest.raises(ValueError, match="sample 1 must be classes 1 to 2"):
            character_confidences(log_probs, [[1], wrong])
    with pytest.raises(ValueError, match=r"log_probs must be \(T, N, C\)"):
        greedy_decode(log_probs[:, 0])
