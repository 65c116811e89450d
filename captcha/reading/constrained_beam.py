"""Prefix beam search that keeps to an automaton: the beam goes over prefixes and the state that each leads to.

How well a prefix can still be completed is known beforehand, by a Viterbi search from the end over states and frames.
The beam ranks by it, so what cannot be completed in the frames that are left is never kept, and a beam of any width
ends with a text that the automaton accepts, if the frames hold one.
"""

import math
from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from captcha.reading.constraints import Automaton
from captcha.reading.ctc import Floats, LogProbs, checked, spell
from captcha.reading.stopping import stop_if_unwanted
from captcha.reading.vocabulary import BLANK

ELEMENTS_AT_ONCE = 2**22
"""So many float64 are kept of the search from the end, but always those of one sample."""

IMPOSSIBLE = -math.inf
NOTHING = -37.0
"""A logarithm so far below another's adds nothing to their sum: e^-37 is below half the spacing of doubles at 1."""


def constrained_beam_search_decode(
    log_probs: LogProbs, automaton: Automaton, beam_width: int
) -> list[list[int] | None]:
    """Return the labels of the likeliest text that the search finds among those accepted, None where none is possible.

    After each frame it keeps `beam_width` prefixes: those of which the probability, summed over alignments, times that
    of the best alignment that completes them, is highest. A width that holds every prefix finds the likeliest text.

    Raises:
        ValueError: if `beam_width` is below 1.
    """
    exact = checked(log_probs).astype(np.float64)
    if beam_width < 1:
        raise ValueError(f"beam_width must be at least 1, not {beam_width}")
    at_once = max(1, ELEMENTS_AT_ONCE // (len(exact) * (len(automaton.states) + 2 * len(automaton.accepting))))
    found: list[list[int] | None] = []
    for start in range(0, exact.shape[1], at_once):
        part = exact[:, start : start + at_once]
        ways = _completions(part, automaton)
        for n in range(part.shape[1]):
            found.append(_beam_search(part[:, n], [each[:, n] for each in ways], automaton, beam_width))
    return found


def _completions(log_probs: Floats, automaton: Automaton) -> tuple[Floats, Floats, Floats]:
    """Return log-probabilities of the best way from a frame to the end, (T, N, A), (T, N, S) and (T, N, S).

    The first are of ways that read an arrival's class in the frame, the second of those that read a blank in it while
    the automaton is in a state, the third of those that leave a state with what they read.
    """
    frames, samples, _ = log_probs.shape
    accepting, states, labels = automaton.accepting, automaton.states, automaton.labels
    # States by which a class can come twice in a row stand first: a blank must come between.
    onward = [labels[np.array(arrivals, np.intp)] for arrivals in automaton.onward]
    twice = np.array([label in onward[state] for state, label in zip(states, labels, strict=True)])
    again = set(states[twice].tolist())
    leaving = sorted((s for s, arrivals in enumerate(automaton.onward) if arrivals), key=lambda s: s not in again)
    edges = np.array([arrival for state in leaving for arrival in automaton.onward[state]], np.intp)
    counts = np.array([len(automaton.onward[state]) for state in leaving], np.intp)
    begins = np.cumsum(counts) - counts
    origins = np.repeat(np.arange(len(again)), counts[: len(again)])
    places = np.searchsorted(leaving[: len(again)], states[twice])

    entering = np.empty((frames, samples, len(states)))
    resting = np.empty((frames, samples, len(accepting)))
    moving = np.full((frames, samples, len(accepting)), IMPOSSIBLE)
    after_blank = np.tile(np.where(accepting, 0.0, IMPOSSIBLE), (samples, 1))  # a state's best way on, any class next
    after_label = after_blank[:, states]  # an arrival's, whose class needs a blank before it comes again
    for t in range(frames - 1, -1, -1):
        stop_if_unwanted()
        np.add(log_probs[t].take(labels, axis=1), after_label, out=entering[t])
        np.add(log_probs[t][:, BLANK, None], after_blank, out=resting[t])
        if not leaving:
            after_blank, after_label = resting[t], np.maximum(resting[t][:, states], entering[t])
            continue
        ways = entering[t].take(edges, axis=1)
        best = np.maximum.reduceat(ways, begins, axis=1)
        moving[t][:, leaving] = best
        after_blank = np.maximum(resting[t], moving[t])
        after_label = np.maximum(after_blank.take(states, axis=1), entering[t])
        if again:  # the best way by another class than the best way's
            few = ways[:, : len(origins)]
            classes = np.where(few == best[:, origins], labels[edges[: len(origins)]], BLANK)
            first = np.maximum.reduceat(classes, begins[: len(again)], axis=1)
            few[labels[edges[: len(origins)]] == first[:, origins]] = IMPOSSIBLE
            other = np.maximum.reduceat(few, begins[: len(again)], axis=1)
            by_other = np.where(first[:, places] == labels[twice], other[:, places], best[:, places])
            by_other = np.maximum(resting[t][:, states[twice]], by_other)
            after_label[:, twice] = np.maximum(by_other, entering[t][:, twice])
    return entering, resting, moving


def _beam_search(log_probs: Floats, ways: Sequence[Floats], automaton: Automaton, beam_width: int) -> list[int] | None:
    """Return the labels of the likeliest text of one sample, (T, C); in plain Python, as that of `ctc`."""
    states, labels = automaton.states.tolist(), automaton.labels.tolist()
    # A prefix is a node of a trie, as in `ctc`; its arrival has its last label and the automaton's state.
    parents, arrivals = [-1], [0]
    children: dict[int, int] = {}
    # The most promising prefix first: its score, its log-probability, the parts of that over alignments that end in a
    # blank and in its last label, and its node.
    beam = [(0.0, 0.0, 0.0, IMPOSSIBLE, 0)]
    views = [[row.data for row in each] for each in ways]  # few of the many numbers are looked at
    for frame, enter, rest, move in zip(log_probs.tolist(), *views, strict=True):
        stop_if_unwanted()
        blank = frame[BLANK]
        kept = {prefix[4]: prefix for prefix in beam}
        grown = []
        for _, total, _, in_label, node in beam:
            arrival = arrivals[node]
            label = labels[arrival]
            parent = kept.get(parents[node])
            if parent is not None:
                in_label = _sum(in_label, parent[2 if labels[arrivals[parent[4]]] == label else 1])
            score = _sum(total + rest[states[arrival]], in_label + enter[arrival])
            if score > IMPOSSIBLE:
                in_blank, in_label = total + blank, in_label + frame[label]
                grown.append((score, _sum(in_blank, in_label), in_blank, in_label, node))
        bound = min(grown)[0] if len(grown) >= beam_width else IMPOSSIBLE
        for _, total, in_blank, _, node in beam:
            arrival = arrivals[node]
            state = states[arrival]
            if total + move[state] <= bound:
                continue
            likely = [(enter[each], each) for each in automaton.onward[state]]
            likely.sort(reverse=True)
            for way, following in likely[: beam_width + 1]:  # one of them may be less likely: the last label again
                if total + way <= bound:
                    break
                label = labels[following]
                before = in_blank if label == labels[arrival] else total
                score, key = before + way, node * len(states) + following
                if score > bound and children.get(key) not in kept:
                    probability = before + frame[label]
                    grown.append((score, probability, IMPOSSIBLE, probability, ~key))  # a node only if it is kept
        if not grown:
            return None
        grown.sort(key=itemgetter(0), reverse=True)
        beam = grown[:beam_width]
        for k, (score, total, in_blank, in_label, key) in enumerate(beam):
            if key < 0:
                if ~key not in children:
                    children[~key] = len(parents)
                    parents.append(~key // len(states))
                    arrivals.append(~key % len(states))
                beam[k] = (score, total, in_blank, in_label, children[~key])
    return spell(beam[0][4], parents, [labels[arrival] for arrival in arrivals])


def _sum(one: float, other: float) -> float:
    """Return the logarithm of the sum of two numbers that are given by theirs."""
    if one < other:
        one, other = other, one
    if not other - one > NOTHING:  # nor where both are impossible
        return one
    return one + math.log1p(math.exp(other - one))
