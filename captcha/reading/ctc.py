"""CTC in NumPy: decoding, and the exact probability of a text and of its characters.

`log_probs` is (T, N, C): natural logarithms over the classes of each frame, class `BLANK` among them.
Every frame counts: padding is background that the model reads as blank, so there are no input lengths.
Graves et al., 2006, doi:10.1145/1143844.1143891.
"""

from collections.abc import Sequence
from itertools import pairwise
from operator import itemgetter
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
    path = checked(log_probs).argmax(axis=2)
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
    exact = checked(log_probs).astype(np.float64)
    if beam_width < 1:
        raise ValueError(f"beam_width must be at least 1, not {beam_width}")
    # Only how likely classes are beside one another counts, so each frame's likeliest class gets 1.
    likeliest = exact.max(axis=2, keepdims=True)
    np.subtract(exact, likeliest, out=exact, where=likeliest > -np.inf)
    probs = np.exp(exact, out=exact)
    return [_beam_search(probs[:, n], beam_width) for n in range(probs.shape[1])]


def _beam_search(probs: Floats, beam_width: int) -> list[int]:
    """Return the labels of the likeliest text of one sample, (T, C).

    In plain Python: the bounds leave so few prefixes and classes of a frame that calls of NumPy would cost more.
    """
    classes = probs.shape[1]
    # A prefix is a node of a trie: equal prefixes have equal numbers, however they were reached. Node 0 is the empty
    # text; node -1, which is no node, its parent. A child's key is its parent's number * classes + its label.
    parents, lasts = [-1], [BLANK]
    children: dict[int, int] = {}
    # The likeliest prefix first: its probability, the parts of it over alignments that end in a blank and in its last
    # label, and its node.
    beam = [(1.0, 1.0, 0.0, 0)]
    for frame, highest in zip(probs, probs[:, BLANK + 1 :].max(axis=1).tolist(), strict=True):
        stop_if_unwanted()
        prob = frame.tolist()
        scale = 1 / beam[0][0]  # a frame begins with 1 for the likeliest prefix
        blank = prob[BLANK] * scale
        kept = {prefix[3]: prefix for prefix in beam}
        grown = []
        for total, _, in_label, node in beam:
            last = lasts[node]
            parent = kept.get(parents[node])
            if parent is not None:  # with this label more it is the same text; a repeated one needs a blank between
                in_label += parent[1 if lasts[parent[3]] == last else 0]
            in_blank, in_label = total * blank, in_label * prob[last] * scale
            grown.append((in_blank + in_label, in_blank, in_label, node))
        # What is not above the least of a full beam is not kept.
        bound = min(grown)[0] if len(grown) >= beam_width else 0.0
        likely = []
        if highest > bound:
            likely = [label for label, p in enumerate(prob) if p > bound and label != BLANK]
            likely.sort(key=prob.__getitem__, reverse=True)
        for place, (total, in_blank, _, node) in enumerate(beam, 1):
            total *= scale
            if total * highest <= bound:
                break
            # Whatever comes earlier, among prefixes and among classes, is likelier, but for one class a prefix, its
            # own last one: beam_width texts are likelier than what comes after these classes.
            for label in likely[: beam_width // place + 1]:
                score = total * prob[label]
                if score <= bound:
                    break
                if label == lasts[node]:
                    score = in_blank * scale * prob[label]
                key = node * classes + label
                if score > bound and children.get(key) not in kept:
                    grown.append((score, 0.0, score, ~key))  # a node only if it is kept
        grown.sort(key=itemgetter(0), reverse=True)
        if not grown[0][0]:
            return []  # no text is possible
        beam = grown[:beam_width]
        if len(grown) > len(kept):
            for k, (score, _, _, key) in enumerate(beam):
                if key < 0:
                    if ~key not in children:
                        children[~key] = len(parents)
                        parents.append(~key // classes)
                        lasts.append(~key % classes)
                    beam[k] = (score, 0.0, score, children[~key])
    return spell(beam[0][3], parents, lasts)


def spell(node: int, parents: Sequence[int], lasts: Sequence[int]) -> list[int]:
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
    states = np.full((samples, 2 + 2 * texts.shape[1] + 1), BLANK)
    states[:, 3::2] = texts
    emissions = _written(arithmetic, log_probs[:, np.arange(samples)[:, None], states])
    emissions[:, :, :2] = zero
    joins = np.zeros(states.shape, bool)  # a blank between two different labels may be left out
    joins[:, 5::2] = texts[:, 1:] != texts[:, :-1]
    variables = np.full((frames + 1, *states.shape), zero)
    variables[0, :, 2] = one
    # All samples in one row, which NumPy adds faster: what one sends on to the next is never emitted there.
    rows = variables.reshape(frames + 1, -1)
    gate = np.where(joins, one, zero).reshape(-1)[2:]
    skips = np.empty_like(gate)
    stay, step, skip = rows[:-1, 2:], rows[:-1, 1:-1], rows[:-1, :-2]
    emitted = emissions.reshape(frames, -1)[:, 2:]
    for stayed, stepped, skipped, emission, now in zip(stay, step, skip, emitted, rows[1:, 2:], strict=True):
        plus(stayed, stepped, out=now)
        times(skipped, gate, out=skips)  # faster than a call with `where`
        plus(now, skips, out=now)
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
    around = np.full((samples, places + 2), BLANK)
    around[:, 1:-1] = texts
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


def checked(log_probs: LogProbs) -> LogProbs:
    """Return log_probs. Raises ValueError where they are not (T, N, C)."""
    if log_probs.ndim != 3 or log_probs.shape[0] < 1 or log_probs.shape[2] < 2:
        raise ValueError(f"log_probs must be (T, N, C) with at least a frame and two classes, not {log_probs.shape}")
    return log_probs


def _texts(log_probs: LogProbs, labels: Sequence[Sequence[int]]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the labels as an array (N, L), with blanks behind, and their lengths (N,)."""
    _, samples, classes = checked(log_probs).shape
    if len(labels) != samples:
        raise ValueError(f"log_probs hold {samples} samples, labels {len(labels)}")
    lengths = np.array([len(text) for text in labels], np.intp)
    texts = np.full((samples, int(lengths.max(initial=0))), BLANK, np.intp)
    for n, text in enumerate(labels):
        texts[n, : len(text)] = text
        if len(text) and not (min(text) > BLANK and max(text) < classes):
            raise ValueError(f"labels of sample {n} must be classes 1 to {classes - 1}: {list(text)}")
    return texts, lengths
