"""CTC in NumPy: decoding, and the exact probability of a text and of its characters.

`log_probs` is (T, N, C): natural logarithms over the classes of each frame, class `BLANK` among them.
Every frame counts: padding is background that the model reads as blank, so there are no input lengths.
Graves et al., 2006, doi:10.1145/1143844.1143891.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captcha.reading.stopping import stop_if_unwanted
from captcha.reading.vocabulary import BLANK

LogProbs = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]

SAFE = 1e-250
"""A probability this far from underflow at 1e-308 has lost nothing that counts."""

ELEMENTS_AT_ONCE = 2**15
"""So many float64 stay in a core's cache."""


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
    texts, lengths = _texts(log_probs, labels)
    with np.errstate(under="ignore", over="ignore", divide="ignore", invalid="ignore"):
        probabilities = _ends(_forward(_PROBABILITIES, log_probs, texts), lengths, np.add)
        log_probabilities = np.log(probabilities)
    lossy = np.flatnonzero(_is_lossy(probabilities))
    if lossy.size:
        forward = _forward(_LOGARITHMS, log_probs[:, lossy], texts[lossy])
        log_probabilities[lossy] = _ends(forward, lengths[lossy], np.logaddexp)
    return log_probabilities


def character_confidences(log_probs: LogProbs, labels: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return for each label how likely it is against any other in its place, the rest of the text as it is.

    That is P(text) / sum over all characters c of P(text with c in this place), each summed over all
    alignments; 0 where P(text) is 0.

    Raises:
        ValueError: if the two disagree on N, or a label is no class or the blank.
    """
    return text_and_character_probabilities(log_probs, labels)[1]


def text_and_character_probabilities(
    log_probs: LogProbs, labels: Sequence[Sequence[int]]
) -> tuple[Floats, list[list[float]]]:
    """Return `text_log_probability` and `character_confidences` for little more than the latter alone.

    A place's alignments fall into what comes before it and after it, which do not depend on its character c (the
    forward and backward variables), and the frames in between, where c alone is read: O(T·N·L·C) for all places.

    Raises:
        ValueError: if the two disagree on N, or a label is no class or the blank.
    """
    texts, lengths = _texts(log_probs, labels)
    with np.errstate(under="ignore", over="ignore", divide="ignore", invalid="ignore"):
        own, every = _weights(_PROBABILITIES, log_probs, texts, lengths)
        log_probabilities, shares = np.log(own), own[:, None] / every
    lossy = np.flatnonzero(_is_lossy(own))
    if lossy.size:
        own, every = _weights(_LOGARITHMS, log_probs[:, lossy], texts[lossy], lengths[lossy])
        log_probabilities[lossy] = own
        own, every = own[:, None], np.where(every > -np.inf, every, 0.0)
        shares[lossy] = np.exp(np.minimum(own - every, 0.0))
    # Each place's sum is over the same terms in another order: rounding can lift a share above 1.
    return log_probabilities, [
        row[:length] for row, length in zip(np.minimum(shares, 1.0).tolist(), lengths, strict=True)
    ]


class _Arithmetic(NamedTuple):
    """How weights are written: as probabilities, which is fast, or as logarithms, which do not underflow."""

    plus: np.ufunc
    times: np.ufunc
    zero: float
    one: float


_PROBABILITIES = _Arithmetic(np.add, np.multiply, 0.0, 1.0)
_LOGARITHMS = _Arithmetic(np.logaddexp, np.add, -np.inf, 0.0)


def _is_lossy(probabilities: Floats) -> NDArray[np.bool_]:
    """Return whether too little is left of a text's probability to tell what underflow took from it.

    What underflows at a state and frame is below 1e-307, and is multiplied by probabilities from there on. So the
    loss is that, times the number of states and frames, and nothing to a sum above SAFE.
    """
    return ~((probabilities > SAFE) & (probabilities < 1 / SAFE))


def _written(arithmetic: _Arithmetic, log_probs: LogProbs) -> Floats:
    exact = log_probs.astype(np.float64)
    return np.exp(exact) if arithmetic is _PROBABILITIES else exact


def _forward(arithmetic: _Arithmetic, log_probs: LogProbs, texts: NDArray[np.intp]) -> Floats:
    """Return the forward variable, (T + 1, N, 2 + S): every way to have come to a state before a frame.

    The S states are blank, label, blank, …, label, blank; all begin in the first. Two states that are never reached
    stand before them.
    """
    plus, times, zero, one = arithmetic
    frames, samples, _ = log_probs.shape
    states = np.full((samples, 2 * texts.shape[1] + 1), BLANK)
    states[:, 1::2] = texts
    emissions = _written(arithmetic, log_probs[:, np.arange(samples)[:, None], states])
    joins = np.zeros(states.shape, bool)  # a blank between two different labels may be left out
    joins[:, 3::2] = texts[:, 1:] != texts[:, :-1]
    variables = np.full((frames + 1, samples, states.shape[1] + 2), zero)
    variables[0, :, 2] = one
    stay, step, skip = variables[:-1, :, 2:], variables[:-1, :, 1:-1], variables[:-1, :, :-2]
    for stayed, stepped, skipped, emission, now in zip(stay, step, skip, emissions, variables[1:, :, 2:], strict=True):
        plus(stayed, stepped, out=now)
        plus(now, skipped, out=now, where=joins)
        times(now, emission, out=now)
    return variables


def _ends(variables: Floats, lengths: NDArray[np.intp], plus: np.ufunc) -> Floats:
    """Return the weight of having read the whole text: in its last blank or its last label."""
    sample, last = np.arange(len(lengths)), variables[-1]
    return np.asarray(plus(last[sample, 2 + 2 * lengths], last[sample, 1 + 2 * lengths]))


def _weights(
    arithmetic: _Arithmetic, log_probs: LogProbs, texts: NDArray[np.intp], lengths: NDArray[np.intp]
) -> tuple[Floats, Floats]:
    """Return the weight of each text, (N,), and for each of its places that of the texts with any character there."""
    plus, times, zero, _ = arithmetic
    frames, samples, classes = log_probs.shape
    places = texts.shape[1]
    place = np.arange(places)
    # The backward variable is the forward one of the text read from its end.
    mirrored = np.maximum(lengths[:, None] - 1 - place, 0)
    backwards = np.where(place < lengths[:, None], np.take_along_axis(texts, mirrored, axis=1), BLANK)
    variables = _forward(
        arithmetic, np.concatenate([log_probs, log_probs[::-1]], axis=1), np.concatenate([texts, backwards])
    )
    # (T, 2 N, L): all that comes before a place and ends before a frame, where its last is a blank, and altogether.
    by_blank = variables[:-1, :, 2:-1:2]
    by_any = plus(by_blank, variables[:-1, :, 1:-2:2])
    from_end = np.arange(samples, 2 * samples)[:, None], mirrored
    leave_by_any, leave_by_blank = (way[::-1, *from_end] for way in (by_any, by_blank))
    # The label before a place, and the one after it, need a blank in between, if they are read at the place too.
    around = np.pad(texts, ((0, 0), (1, 1)))
    left_n, left = around[:, :-2].nonzero()
    right_n, right = around[:, 2:].nonzero()
    as_left, as_right = around[left_n, left] - 1, around[right_n, right + 2] - 1

    probs = _written(arithmetic, log_probs[:, :, None, 1:])
    reading = whole = np.full((samples, places, classes - 1), zero)  # up to a frame, which reads c; all
    at_once = max(1, ELEMENTS_AT_ONCE // max(1, whole.size))
    for start in range(0, frames, at_once):
        stop_if_unwanted()
        now = slice(start, start + at_once)
        readings = np.repeat(by_any[now, :samples, :, None], classes - 1, axis=3)
        readings[:, left_n, left, as_left] = by_blank[now, left_n, left]
        for entered, prob in zip(readings, probs[now], strict=True):
            plus(reading, entered, out=entered)
            times(entered, prob, out=entered)
            reading = entered
        reading = reading.copy()
        left_by_blank = times(readings[:, right_n, right, as_right], leave_by_blank[now, right_n, right])
        times(readings, leave_by_any[now, :, :, None], out=readings)
        readings[:, right_n, right, as_right] = left_by_blank
        whole = plus(whole, plus.reduce(readings, axis=0))
    return _ends(variables[:, :samples], lengths, plus), plus.reduce(whole, axis=2)


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


def _texts(log_probs: LogProbs, labels: Sequence[Sequence[int]]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the labels as an array (N, L), with blanks behind, and their lengths (N,)."""
    _, samples, classes = _checked(log_probs).shape
    if len(labels) != samples:
        raise ValueError(f"log_probs hold {samples} samples, labels {len(labels)}")
    lengths = np.array([len(text) for text in labels], np.intp)
    texts = np.full((samples, int(lengths.max(initial=0))), BLANK, np.intp)
    for n, text in enumerate(labels):
        texts[n, : len(text)] = text
        if len(text) and not (min(text) > BLANK and max(text) < classes):
            raise ValueError(f"labels of sample {n} must be classes 1 to {classes - 1}: {list(text)}")
    return texts, lengths
