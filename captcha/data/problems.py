"""Problems of labelled files, and facts about them."""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from captcha.data.samples import Sample
from captcha.reading.ctc import frames_needed
from captcha.reading.images import frames
from captcha.reading.vocabulary import Vocabulary

PROBLEMS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one file, or a row of labels.csv.

    A fatal problem stands in the way of training: it must be mended, or the file left out.
    """

    file: str
    kind: str
    message: str
    fatal: bool

    def __str__(self) -> str:
        """Return the one line to print."""
        return f"{printable(self.file)}: {self.message}"


def printable(file: str) -> str:
    """Return a file's name as it can be printed and written: with escapes where it is not plain text."""
    return file if file.isprintable() else repr(file)


@dataclass(frozen=True)
class Facts:
    """Counts over a folder's images. Sizes are (width, height) in pixels."""

    images: int
    texts: int  # different ones
    sizes: Counter[tuple[int, int]]
    formats: Counter[str]
    lengths: Counter[int]
    characters: Counter[str]
    with_repeats: int  # images whose text has the same character twice in a row


def facts_of(
    texts: Sequence[str] | NDArray[np.str_], sizes: Iterable[tuple[int, int]], formats: Iterable[str]
) -> Facts:
    """Return the facts of images with these texts, sizes and formats."""
    hashes = np.fromiter(map(hash, texts), np.int64, len(texts))  # not a million texts at once
    hashes.sort()  # np.unique would make a table of them, several times as large
    return Facts(
        images=len(texts),
        texts=int(np.count_nonzero(np.diff(hashes))) + (len(texts) > 0),
        sizes=Counter(sizes),
        formats=Counter(formats),
        lengths=Counter(map(len, texts)),
        characters=Counter(character for text in texts for character in text),
        with_repeats=sum(any(a == b for a, b in pairwise(text)) for text in texts),
    )


NO_LABEL = frozenset({"empty label", "no text"})
"""Kinds of problems of a label that says nothing about its picture, and so contradicts no other."""


def label_problems(name: str, text: str, width: int | None, vocabulary: Vocabulary | None) -> list[Problem]:
    """Return a label's problems; `width` is the resized image's in pixels, None where that is unreadable."""
    if not text.strip():
        return [Problem(name, "empty label", "the label is empty", fatal=True)]
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        return [
            Problem(name, "no text", f"the label {text!r} holds control characters or undecodable bytes", fatal=True)
        ]
    problems = []
    if vocabulary and (missing := vocabulary.missing(text)):
        message = f"the label {text!r} has characters outside the vocabulary: {missing!r}"
        problems.append(Problem(name, "outside the vocabulary", message, fatal=True))
    if width:
        available = frames(width)
        if (needed := frames_needed([ord(character) for character in text])) > available:
            message = f"the label {text!r} needs {needed} frames, the image's width gives {available}"
            problems.append(Problem(name, "label too long", message, fatal=True))
    return problems


def copies(texts: Mapping[str, str], digests: Mapping[str, str], doubted: Collection[str] = ()) -> list[Problem]:
    """Return the problems of images with the same pixels: each after the first is a copy, which is not fatal.

    Where their texts differ, each of them is a fatal problem, the first too: nobody knows which text is right. So it
    is with the copies of an image in `doubted`, which has two texts of its own, and that problem already.
    """
    first: dict[str, str] = {}
    other: dict[str, str] = {}  # an image that contradicts the first one
    for name, text in texts.items():
        original = first.setdefault(digests[name], name)
        if name in doubted or texts[original] != text:
            other.setdefault(digests[name], name)
    problems = []
    for name, text in texts.items():
        original, contradicting = first[digests[name]], other.get(digests[name])
        if contradicting and name not in doubted:
            twin = original if texts[original] != text else contradicting
            there = "twice" if twin in doubted else repr(texts[twin])
            message = f"the same picture as {printable(twin)}, but labelled {text!r} here and {there} there"
            problems.append(Problem(name, "contradicting labels", message, fatal=True))
        elif original != name and not contradicting:
            message = f"the same picture as {printable(original)}, left out"
            problems.append(Problem(name, "copy", message, fatal=False))
    return problems


def leaks(train: Iterable[Sample], held_back: Iterable[Sample]) -> list[Problem]:
    """Return a fatal problem for each training sample whose pixels are held back (a fixed validation or test set)."""
    kept = {sample.digest: sample.name for sample in held_back}
    return [
        Problem(each.name, "leak", f"the same picture as {printable(name)}, which is held back", fatal=True)
        for each in train
        if (name := kept.get(each.digest)) is not None
    ]


def format_problems(problems: Sequence[Problem], shown: int = PROBLEMS_SHOWN, leave_out: bool = False) -> str:
    """Return a line for each problem, fatal ones first, kind by kind: `shown` of a kind, then a count of the others.

    Fatal problems are called errors, or left out where their files are.
    """
    lines: list[str] = []
    for fatal, word in ((True, "left out" if leave_out else "error"), (False, "warning")):
        of_kind: dict[str, list[Problem]] = {}
        for problem in problems:
            if problem.fatal == fatal:
                of_kind.setdefault(problem.kind, []).append(problem)
        for kind, members in of_kind.items():
            lines += [f"{word}: {problem}" for problem in members[:shown]]
            if len(members) > shown:
                lines.append(f"{word}: … and {len(members) - shown} more: {kind}")
    return "\n".join(lines)


def format_left_out(problems: Sequence[Problem], left: int) -> str:
    """Return the line that counts the files with a fatal problem, each by its first one; `left` images have none.

    A row of labels.csv whose file is missing counts as an image.
    """
    kinds: dict[str, str] = {}
    for problem in problems:
        if problem.fatal:
            kinds.setdefault(problem.file, problem.kind)
    if not kinds:
        return ""
    copied = {problem.file for problem in problems if problem.kind == "copy"} - kinds.keys()
    counts = ", ".join(f"{count} {kind}" for kind, count in Counter(kinds.values()).most_common())
    return f"left out {len(kinds)} of {left + len(copied) + len(kinds)} images: {counts}"


def format_facts(facts: Facts) -> str:
    """Return the facts as a short table for the terminal."""
    if not facts.images:
        return "images      none"
    rows = [
        ("images", f"{facts.images} with {facts.texts} different labels"),
        ("formats", ", ".join(f"{name} {count}" for name, count in facts.formats.most_common())),
        ("sizes", _sizes(facts.sizes)),
        ("lengths", ", ".join(f"{length} characters {count}" for length, count in sorted(facts.lengths.items()))),
        ("repeats", f"{facts.with_repeats / facts.images:.1%} of labels have a character twice in a row"),
        ("characters", f"{len(facts.characters)}, from the most to the least frequent"),
    ]
    cells = [f"{_visible(character):>4} {count:<6}" for character, count in facts.characters.most_common()]
    rows += [("", "".join(cells[start : start + 8]).rstrip()) for start in range(0, len(cells), 8)]
    return "\n".join(f"{name:<12}{text}" for name, text in rows)


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    widths, heights = zip(*sizes, strict=True)
    median = " x ".join(str(_median([(size[side], n) for size, n in sizes.items()])) for side in (0, 1)) + " pixels"
    if len(sizes) == 1:
        return f"always {median}"
    ranges = f"widths {min(widths)} to {max(widths)}, heights {min(heights)} to {max(heights)}"
    return f"{len(sizes)} different ones; median {median}, {ranges}"


def _median(counted: Iterable[tuple[int, int]]) -> int:
    """Return the lower median of values that are given with their counts."""
    in_order = sorted(counted)
    below = np.cumsum([count for _, count in in_order])
    return in_order[int(np.searchsorted(2 * below, below[-1]))][0]


def _visible(character: str) -> str:
    return character if character.isprintable() and not character.isspace() else repr(character)
