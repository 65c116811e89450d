"""What is known of a text before it is read → an automaton over the vocabulary's classes, for the decoder to keep to.

Length, characters and a list of texts are automata of their own; a pattern becomes one by its positions (Glushkov,
1961). Their product is built state by state, so that its size is bounded while it grows.
"""

import functools
import hashlib
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from captcha import CaptchaError
from captcha.reading.limits import MAX_PATTERN, MAX_TRANSITIONS
from captcha.reading.stopping import stop_if_unwanted
from captcha.reading.vocabulary import BLANK, Vocabulary

if TYPE_CHECKING:
    from greenery import Charclass, Pattern


class ConstraintError(CaptchaError):
    """Constraints that are none, contradict one another or are too large; one line, which repeats nothing given."""


@dataclass(frozen=True)
class Constraints:
    """What a person knows of every text; None where it is not known. A text keeps to all that is given.

    Raises:
        ConstraintError: a length that is none, or no text in the list.
    """

    length: str | None = None
    """Number of characters, such as 5, or the least and the most, such as 4-6."""
    characters: str | None = None
    """The characters that may occur, in any order."""
    texts: str | None = None
    """The texts that may occur, one a line."""
    pattern: str | None = None
    """A regular expression of the whole text, of the subset in SYNTAX."""

    def __post_init__(self) -> None:
        if self.length is not None:
            _bounds(self.length)
        if self.texts is not None and not any(self.texts.splitlines()):
            raise ConstraintError("the list of valid texts is empty: write one text a line")

    def written(self) -> dict[str, str]:
        """Return what is given, by its name, as a run logs it: of a list of texts the number and a digest."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if self.texts is not None:
            texts = sorted(set(filter(None, self.texts.splitlines())))
            content = "\n".join(texts).encode(errors="surrogatepass")  # JSON can write a lone surrogate
            given["texts"] = f"{len(texts)}, sha256 {hashlib.sha256(content).hexdigest()[:12]}"
        return given

    def told(self) -> str:
        """Return in a few words what is given."""
        return ", ".join(f"{name} {value}" for name, value in self.written().items())


CONSTRAINTS = tuple(each.name for each in fields(Constraints))
"""The names of what may be known, which are those of options and of a request's parameters."""


def constraints_of(
    length: str | None = None, characters: str | None = None, texts: str | None = None, pattern: str | None = None
) -> Constraints | None:
    """Return what is known, each None or empty where it is not; None where nothing is.

    Raises:
        ConstraintError: as `Constraints`.
    """
    given = [value or None for value in (length, characters, texts, pattern)]
    return Constraints(*given) if any(given) else None


def constraints_named(
    length: str | None, characters: str | None, texts: str | None, pattern: str | None
) -> Constraints | None:
    """Return the same where `texts` names their file, as settings do.

    Raises:
        ConstraintError: as `Constraints`, or the file cannot be read.
    """
    return constraints_of(length, characters, read_texts(Path(texts)) if texts else None, pattern)


def read_texts(file: Path) -> str:
    """Return the content of a file of valid texts, one a line, in UTF-8.

    Raises:
        ConstraintError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConstraintError(f"{file.absolute()} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConstraintError(f"{file.absolute()} is not text in UTF-8: save it as that, one text a line") from None


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton of S states over classes, from each of which an accepting state can be reached.

    A state and the class by which one comes to it are an arrival. There are A of them; arrival 0 is the start, where
    nothing has been read yet: state 0, and the blank for its class.
    """

    accepting: NDArray[np.bool_]
    """(S,): whether the text may end here."""
    states: NDArray[np.intp]
    """(A,): the state of each arrival."""
    labels: NDArray[np.intp]
    """(A,): its class."""
    onward: Sequence[Sequence[int]]
    """For each state the arrivals that one more character leads to; their classes differ."""


@functools.lru_cache(maxsize=8)
def automaton_of(constraints: Constraints, vocabulary: Vocabulary) -> Automaton:
    """Return the automaton of the texts that the vocabulary can spell and the constraints allow.

    Raises:
        ConstraintError: there is no such text, the pattern is none, or the automaton has too many transitions.
        StoppedError: nobody wants it any more.
    """
    labels = {character: label for label, character in enumerate(vocabulary.characters, 1)}
    if constraints.characters is not None:
        labels = {character: labels[character] for character in constraints.characters if character in labels}
    parts: list[_Part] = [_Length(*_bounds(constraints.length), list(labels.values()))]
    if constraints.texts is not None:
        parts.append(_Texts(constraints.texts.splitlines(), labels))
    if constraints.pattern is not None:
        parts.append(_Pattern(_parsed(constraints.pattern), labels))
    automaton = _product(parts)
    if automaton is None or not automaton.onward[0]:  # the empty text alone is none
        named = ", ".join(constraints.written())
        raise ConstraintError(
            f"no text of the {len(vocabulary.characters)} characters that the model reads keeps to what is given "
            f"({named}): loosen it"
        )
    return automaton


class _Part(Protocol):
    """One constraint as a deterministic automaton; its states can be keys."""

    start: Any

    def moves(self, state: Any) -> Mapping[int, Any]:
        """Return the next state for each class that may come."""

    def accepts(self, state: Any) -> bool:
        """Return whether the text may end here."""


def _bounds(length: str | None) -> tuple[int, int | None]:
    """Return the least and the most characters of a length as it is written, any number where there is none."""
    if length is None:
        return 0, None
    found = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", length)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high:
        raise ConstraintError("the length must be a number of characters such as 5, or the least and the most as 4-6")
    return low, high


class _Length:
    """Counts characters; without a most it has one state."""

    def __init__(self, low: int, high: int | None, labels: Sequence[int]) -> None:
        self.start, self.low, self.high, self.labels = 0, low, high, labels

    def moves(self, state: int) -> Mapping[int, int]:
        if state == self.high:
            return {}
        return dict.fromkeys(self.labels, state if self.high is None else state + 1)

    def accepts(self, state: int) -> bool:
        return state >= self.low


class _Texts:
    """A trie; texts with other characters are left out."""

    def __init__(self, texts: Iterable[str], labels: Mapping[str, int]) -> None:
        self.start, self.ends = 0, set[int]()
        self.children: list[dict[int, int]] = [{}]
        for text in filter(None, texts):
            if any(character not in labels for character in text):
                continue
            node = 0
            for character in text:
                node = self.children[node].setdefault(labels[character], len(self.children))
                if node == len(self.children):
                    self.children.append({})
                    _check_size(node)
            self.ends.add(node)

    def moves(self, state: int) -> Mapping[int, int]:
        return self.children[state]

    def accepts(self, state: int) -> bool:
        return state in self.ends


SYNTAX = (
    r"characters, \ before special ones, ., [a-z], [^a-z], \d, \w, \s, groups, |, ?, *, +, {n}, {n,} and {n,m}, "
    "of the whole text, without ^ and $"
)
"""What a pattern may have: no anchor, look-around, back-reference or flag."""


def _parsed(pattern: str) -> "Pattern":
    """Return a pattern's tree.

    Raises:
        ConstraintError: it is too long, or not of the subset.
    """
    from greenery.parse import NoMatch, parse  # not before a pattern is given: takes a moment

    if len(pattern) > MAX_PATTERN:
        raise ConstraintError(f"the pattern has more than {MAX_PATTERN} characters (CAPTCHA_MAX_PATTERN): shorten it")
    plain = re.sub(r"\\.|\[\^?(?:\\.|[^\]\\])*\]", "", pattern)  # without escapes and classes
    try:
        if "^" in plain or "$" in plain:  # greenery takes both for characters
            raise ValueError
        return parse(pattern)
    except (NoMatch, ValueError, IndexError, RecursionError):
        raise ConstraintError(f"the pattern is not of the subset that can be used: {SYNTAX}") from None


class _Fragment(NamedTuple):
    """A part of a pattern; sets of positions are the bits of a number."""

    empty: bool
    """Whether it may be the empty text."""
    first: int
    """The positions where it may begin."""
    last: int
    """The positions where it may end."""


class _Pattern:
    """The automaton of a pattern's positions: a state is the set of those that may have been read last.

    Position 0 stands before the text; each of the others is a class of characters at its place in the pattern, with
    repetitions written out.
    """

    def __init__(self, tree: "Pattern", labels: Mapping[str, int]) -> None:
        if _positions(tree) > MAX_PATTERN:
            raise ConstraintError(
                f"the pattern stands for more than {MAX_PATTERN} characters (CAPTCHA_MAX_PATTERN) once its repetitions "
                "are written out: repeat less"
            )
        self.labels = labels
        self.follow: list[int] = [0]
        self.admitted = dict.fromkeys(labels.values(), 0)
        whole = self._pattern(tree)
        self.follow[0] = whole.first
        self.start, self.ends = 1, whole.last | whole.empty

    def moves(self, state: int) -> Mapping[int, int]:
        following = 0
        for position in _bits(state):
            following |= self.follow[position]
        return {label: following & there for label, there in self.admitted.items() if following & there}

    def accepts(self, state: int) -> bool:
        return bool(state & self.ends)

    def _pattern(self, tree: "Pattern") -> _Fragment:
        """Return a tree's fragment, having entered its positions: alternatives of sequences of repetitions."""
        either = _Fragment(False, 0, 0)
        for sequence in tree.concs:
            whole = _Fragment(True, 0, 0)
            for repeated in sequence.mults:
                least, most = repeated.multiplier.min.v, repeated.multiplier.max.v
                for copy in range(max(least, 1) if most is None else most):
                    part = self._item(repeated.multiplicand)
                    if most is None and copy >= least - 1:
                        self._let_follow(part.last, part.first)
                    if copy >= least:
                        part = part._replace(empty=True)
                    whole = self._joined(whole, part)
            either = _Fragment(either.empty or whole.empty, either.first | whole.first, either.last | whole.last)
        return either

    def _item(self, item: "Pattern | Charclass") -> _Fragment:
        if hasattr(item, "concs"):
            return self._pattern(item)
        position = 1 << len(self.follow)
        self.follow.append(0)
        for character, label in self.labels.items():
            if item.accepts(character):
                self.admitted[label] |= position
        return _Fragment(False, position, position)

    def _joined(self, one: _Fragment, other: _Fragment) -> _Fragment:
        self._let_follow(one.last, other.first)
        first = one.first | (other.first if one.empty else 0)
        return _Fragment(one.empty and other.empty, first, other.last | (one.last if other.empty else 0))

    def _let_follow(self, positions: int, following: int) -> None:
        for position in _bits(positions):
            self.follow[position] |= following


def _positions(item: "Pattern | Charclass") -> int:
    """Return how many positions a pattern has once its repetitions are written out."""
    if not hasattr(item, "concs"):
        return 1
    repeated = [each for sequence in item.concs for each in sequence.mults]
    counts = [each.multiplier.min.v if each.multiplier.max.v is None else each.multiplier.max.v for each in repeated]
    return sum(max(n, 1) * _positions(each.multiplicand) for n, each in zip(counts, repeated, strict=True))


def _bits(number: int) -> Iterable[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


def _check_size(transitions: int) -> None:
    if transitions > MAX_TRANSITIONS:
        raise ConstraintError(
            f"what is given needs an automaton of more than {MAX_TRANSITIONS} transitions (CAPTCHA_MAX_TRANSITIONS): "
            "give fewer texts, a shorter length or a simpler pattern"
        )


def _product(parts: Sequence[_Part]) -> Automaton | None:
    """Return the automaton of the texts that all parts accept, without states that lead to none; None if it has none.

    Raises:
        ConstraintError: it has too many transitions.
    """
    start = tuple(part.start for part in parts)
    numbers = {start: 0}
    steps: list[tuple[int, int, int]] = []  # from, class, to
    waiting = deque([start])
    while waiting:
        stop_if_unwanted()
        state = waiting.popleft()
        moves = [part.moves(own) for part, own in zip(parts, state, strict=True)]
        for label in min(moves, key=len):
            if not all(label in each for each in moves):
                continue
            following = tuple(each[label] for each in moves)
            if following not in numbers:
                numbers[following] = len(numbers)
                waiting.append(following)
            steps.append((numbers[state], label, numbers[following]))
        _check_size(len(steps))
    accepting = [all(part.accepts(own) for part, own in zip(parts, state, strict=True)) for state in numbers]
    alive = _leading_to(accepting, steps)
    if not alive[0]:
        return None
    renumbered = np.cumsum(alive) - 1
    arrivals = {(0, BLANK): 0}
    onward: list[list[int]] = [[] for _ in range(sum(alive))]
    for before, label, after in steps:
        if alive[before] and alive[after]:
            arrival = arrivals.setdefault((int(renumbered[after]), label), len(arrivals))
            onward[renumbered[before]].append(arrival)
    states, labels = np.array(list(arrivals), np.intp).T
    return Automaton(np.array(accepting)[alive], states, labels, onward)


def _leading_to(accepting: Sequence[bool], steps: Sequence[tuple[int, int, int]]) -> list[bool]:
    """Return for each state whether an accepting one can be reached from it."""
    before: list[list[int]] = [[] for _ in accepting]
    for state, _, following in steps:
        before[following].append(state)
    alive = list(accepting)
    waiting = [state for state, accepts in enumerate(accepting) if accepts]
    while waiting:
        for state in before[waiting.pop()]:
            if not alive[state]:
                alive[state] = True
                waiting.append(state)
    return alive
