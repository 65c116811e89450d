"""CTC in NumPy: decoding, and the exact probability of a text and of its characters.

`log_probs` is (T, N, C): natural logarithms over the classes of each frame, class `BLANK` among them.
Every frame counts: padding is background that the model reads as blank, so there are no input lengths.
Graves et al., 2006, doi:10.1145/1143844.1143891.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captcha.reading.stopping import stop_if_unwanted
from captcha.reading.vocabulary import BLANK

LogProbs = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]


def frames_needed(labels: Sequence[int]) -> int:
    """Return the fewest frames that can spell the labels: adjacent repeats need a blank between them."""
    return len(labels) + sum(a == b for a, b in pairwise(labels))


def greedy_decode(log_probs: LogProbs) -> list[list[int]]:
    """Return the labels on each sample's most likely path (best-path decoding).

    Repeats merge before blanks go: `a a - a` gives `a a`. Not always the most likely text.
    """
    path = _checked(log_probs).argmax(axis=2)
    kept = path != BLANK
    kept[1:] &= path[1:] != path[:-1]
    return [path[kept[:, n], n].tolist() for n in range(path.shape[1])]


def beam_search_decode(log_probs: LogProbs, beam_width: int) -> list[list[int]]:
    """Return the labels of the likeliest text that a prefix beam search finds for each sample.

    After each frame it keeps the `beam_width` likeliest prefixes, the probability of each summed over its
    alignments; a width that holds every prefix finds the most likely text. Hannun et al., 2014, arXiv:1408.2873.

    Raises:
        ValueError: if `beam_width` is below 1.
    """
    log_probs = _checked(log_probs)
    if beam_width < 1:
        raise ValueError(f"beam_width must be at least 1, not {beam_width}")
    _, samples, classes = log_probs.shape
    sample = np.arange(samples)[:, None]
    # A prefix is a node of a trie that all samples share: equal prefixes have equal numbers, however they were
    # reached. Node 0 is the empty text, node -1 a dead beam; -2, which is no node, the parent of both.
    parents, lasts = [-2], [BLANK]
    children: dict[tuple[int, int], int] = {}
    nodes = np.zeros((samples, 1), np.intp)
    ends_in_blank = np.zeros((samples, 1))  # log probability of the prefix over alignments that end in a blank
    ends_in_label = np.full((samples, 1), -np.inf)  # and over those that end in its last label

    for frame in log_probs.astype(np.float64):
        stop_if_unwanted()
        width = nodes.shape[1]
        last = np.array(lasts)[nodes]  # of a dead beam: whichever, its probability is 0 and stays so
        parent = np.where(nodes < 0, -2, np.array(parents)[nodes])
        extends = nodes[:, :, None] == parent[:, None, :]
        stay_blank, stay_label, longer = _one_frame_more(frame, ends_in_blank, ends_in_label, last, extends)
        scores = np.concatenate(
            [np.logaddexp(stay_blank, stay_label), longer.reshape(samples, width * classes)], axis=1
        )
        best = _largest(scores, beam_width)
        stays = best < width
        origin = np.where(stays, best, (best - width) // classes)
        label = np.where(stays, BLANK, (best - width) % classes)
        alive = scores[sample, best] > -np.inf
        ends_in_blank = np.where(stays, stay_blank[sample, origin], -np.inf)
        ends_in_label = np.where(stays, stay_label[sample, origin], scores[sample, best])
        nodes = np.where(alive, nodes[sample, origin], -1)
        for n, k in zip(*(alive & ~stays).nonzero(), strict=True):
            child = (int(nodes[n, k]), int(label[n, k]))
            if child not in children:
                children[child] = len(parents)
                parents.append(child[0])
                lasts.append(child[1])
            nodes[n, k] = children[child]

    return [_spell(int(node), parents, lasts) for node in nodes[:, 0]]


def _one_frame_more(
    frame: Floats, ends_in_blank: Floats, ends_in_label: Floats, last: NDArray[np.intp], extends: NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats]:
    """Return the log-probabilities of the beam's prefixes after one frame more.

    The same prefixes ending in a blank (N, K) and in their last label (N, K), and each with one label more (N, K, C).
    `extends` (N, K, K) says which prefix is which other one with one label more.
    """
    sample, beam = np.arange(len(frame))[:, None], np.arange(last.shape[1])[None, :]
    total = np.logaddexp(ends_in_blank, ends_in_label)
    stay_blank = total + frame[:, BLANK, None]
    stay_label = ends_in_label + frame[sample, last]
    longer = total[:, :, None] + frame[:, None, :]
    longer[sample, beam, last] = ends_in_blank + frame[sample, last]  # a repeated label needs a blank before it
    longer[:, :, BLANK] = -np.inf
    # A longer prefix that is itself in the beam: both are one text.
    n, i, j = extends.nonzero()
    stay_label[n, j] = np.logaddexp(stay_label[n, j], longer[n, i, last[n, j]])
    longer[n, i, last[n, j]] = -np.inf
    return stay_blank, stay_label, longer


def _spell(node: int, parents: Sequence[int], lasts: Sequence[int]) -> list[int]:
    """Return the labels on the way from the trie's root to a node."""
    labels = []
    while node > 0:
        labels.append(lasts[node])
        node = parents[node]
    return labels[::-1]


def text_log_probability(log_probs: LogProbs, labels: Sequence[Sequence[int]]) -> Floats:
    """Return the exact log-probability of each sample's labels, (N,): the sum over all their alignments.

    -inf where the labels cannot align with the frames. The forward algorithm, equations 5 to 8 of the paper.

    Raises:
        ValueError: if the two disagree on N, or a label is no class or the blank.
    """
    states, lengths = _states(log_probs, labels)
    return _ends(_forward(_emissions(log_probs, states), states)[-1], lengths)


def character_confidences(log_probs: LogProbs, labels: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return for each label how likely it is against any other in its place, the rest of the text as it is.

    That is P(text) / sum over all characters c of P(text with c in this place), each summed over all
    alignments; 0 where P(text) is 0.

    A place's alignments fall into what comes before it and after it, which do not depend on c (the forward and
    backward variables), and the frames in between, where c alone is read: O(T·N·L·C) for all places at once.

    Raises:
        ValueError: if the two disagree on N, or a label is no class or the blank.
    """
    states, lengths = _states(log_probs, labels)
    frames, samples, classes = log_probs.shape
    places = states.shape[1] // 2
    if places == 0:
        return [[] for _ in range(samples)]
    emissions = _emissions(log_probs, states)
    alpha = _forward(emissions, states)
    # The backward variable, a frame's own emission included: the forward one with time and states reversed.
    beta = _backward(emissions, states, lengths)

    place = np.arange(places)
    text = states[:, 1::2]  # (N, L)
    characters = np.arange(1, classes)
    nothing = np.full((samples, 1), BLANK)
    # (N, L, C - 1): may c follow the label before it, and the label after it follow c, without a blank between?
    # (Where there is none before or after, the variable that this lets in is -inf.)
    joins_left = np.concatenate([nothing, text[:, :-1]], axis=1)[:, :, None] != characters
    joins_right = np.concatenate([text[:, 1:], nothing], axis=1)[:, :, None] != characters
    is_last = (place == lengths[:, None] - 1)[:, :, None]

    reading = np.full((samples, places, classes - 1), -np.inf)  # everything up to this frame, which reads c
    whole = reading  # everything, over the frames at which c is read for the last time
    for t in range(frames):
        stop_if_unwanted()
        if t == 0:
            enter = np.where(place[None, :, None] == 0, 0.0, -np.inf)
        else:
            before = np.pad(alpha[t - 1, :, 1:-2:2], ((0, 0), (1, 0)), constant_values=-np.inf)
            enter = np.logaddexp(
                alpha[t - 1, :, :-1:2, None],
                np.where(joins_left, before[:, :, None], -np.inf),
            )
        reading = np.logaddexp(reading, enter) + log_probs[t, :, None, 1:].astype(np.float64)
        if t == frames - 1:
            leave = np.where(is_last, 0.0, -np.inf)
        else:
            after = np.pad(beta[t + 1, :, 3::2], ((0, 0), (0, 1)), constant_values=-np.inf)
            leave = np.logaddexp(
                beta[t + 1, :, 2::2, None],
                np.where(joins_right, after[:, :, None], -np.inf),
            )
        whole = np.logaddexp(whole, reading + leave)

    own = np.take_along_axis(whole, np.maximum(text, 1)[:, :, None] - 1, axis=2)[:, :, 0]
    every = np.logaddexp.reduce(whole, axis=2)
    possible = own > -np.inf
    shares = np.exp(np.where(possible, own, -np.inf) - np.where(possible, every, 0.0))
    return [shares[n, :length].tolist() for n, length in enumerate(lengths)]


def _checked(log_probs: LogProbs) -> LogProbs:
    if log_probs.ndim != 3 or log_probs.shape[0] < 1 or log_probs.shape[2] < 2:
        raise ValueError(f"log_probs must be (T, N, C) with at least a frame and two classes, not {log_probs.shape}")
    return log_probs


def _largest(scores: Floats, count: int) -> NDArray[np.intp]:
    """Return the columns of each row's `count` largest values, the largest first."""
    if count < scores.shape[1]:
        columns = np.sort(np.argpartition(-scores, count - 1, axis=1)[:, :count], axis=1)
    else:
        columns = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def _states(log_probs: LogProbs, labels: Sequence[Sequence[int]]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return blank, label, blank, …, label, blank of each text, (N, 2 L + 1) with blanks behind, and lengths (N,)."""
    _, samples, classes = _checked(log_probs).shape
    if len(labels) != samples:
        raise ValueError(f"log_probs hold {samples} samples, labels {len(labels)}")
    lengths = np.array([len(text) for text in labels], np.intp)
    states = np.full((samples, 2 * int(lengths.max(initial=0)) + 1), BLANK, np.intp)
    for n, text in enumerate(labels):
        if any(label == BLANK or not 0 <= label < classes for label in text):
            raise ValueError(f"labels of sample {n} must be classes 1 to {classes - 1}: {list(text)}")
        states[n, 1 : 2 * len(text) : 2] = text
    return states, lengths


def _emissions(log_probs: LogProbs, states: NDArray[np.intp]) -> Floats:
    """Return each frame's log-probability of each state's class, (T, N, S)."""
    return np.take_along_axis(log_probs, states[None], axis=2).astype(np.float64)


def _forward(emissions: Floats, states: NDArray[np.intp]) -> Floats:
    """Return the forward variable, (T, N, S): every way to begin and be in a state at a frame, in logarithms."""
    samples, width = states.shape
    start = np.full((samples, width), -np.inf)
    start[:, :2] = 0.0
    return _recursion(emissions, states, start)


def _backward(emissions: Floats, states: NDArray[np.intp], lengths: NDArray[np.intp]) -> Floats:
    """Return the backward variable, (T, N, S): every way to go on from a state at a frame to the text's end."""
    place = np.arange(states.shape[1])[None, :]
    end = np.where((place == 2 * lengths[:, None]) | (place == 2 * lengths[:, None] - 1), 0.0, -np.inf)
    return _recursion(emissions[::-1, :, ::-1], states[:, ::-1], end[:, ::-1])[::-1, :, ::-1]


def _recursion(emissions: Floats, states: NDArray[np.intp], start: Floats) -> Floats:
    skips = np.zeros(states.shape, bool)  # a blank between two different labels may be left out
    skips[:, 2:] = (states[:, 2:] != BLANK) & (states[:, 2:] != states[:, :-2])
    variables = np.empty(emissions.shape)
    variables[0] = start + emissions[0]
    for t in range(1, len(emissions)):
        previous = variables[t - 1]
        reach = previous.copy()
        reach[:, 1:] = np.logaddexp(reach[:, 1:], previous[:, :-1])
        reach[:, 2:] = np.where(skips[:, 2:], np.logaddexp(reach[:, 2:], previous[:, :-2]), reach[:, 2:])
        variables[t] = reach + emissions[t]
    return variables


def _ends(last: Floats, lengths: NDArray[np.intp]) -> Floats:
    """Return the log-probability of having read the whole text: in its last blank or its last label."""
    sample = np.arange(len(lengths))
    in_label = np.where(lengths > 0, last[sample, np.maximum(2 * lengths - 1, 0)], -np.inf)
    return np.asarray(np.logaddexp(last[sample, 2 * lengths], in_label))
