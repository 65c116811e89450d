"""Problems of labelled files, and facts about them."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median_low

from captcha.data.samples import Sample
from captcha.reading.ctc import frames_needed
from captcha.reading.images import frames
from captcha.reading.vocabulary import Vocabulary

PROBLEMS_SHOWN = 20


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file; a fatal problem must be mended before any training."""

    file: str
    kind: str
    message: str
    fatal: bool

    def __str__(self) -> str:
        """Return the one line to print."""
        return f"{self.file if self.file.isprintable() else repr(self.file)}: {self.message}"


@dataclass(frozen=True)
class Facts:
    """Counts over a folder's readable images. Sizes are (width, height) in pixels."""

    images: int
    texts: int  # different ones
    sizes: Counter[tuple[int, int]]
    formats: Counter[str]
    lengths: Counter[int]
    characters: Counter[str]
    with_repeats: int  # images whose text has the same character twice in a row


def facts_of(texts: Sequence[str], sizes: Iterable[tuple[int, int]], formats: Iterable[str]) -> Facts:
    """Return the facts of images with these texts, sizes and formats."""
    return Facts(
        images=len(texts),
        texts=len(set(texts)),
        sizes=Counter(sizes),
        formats=Counter(formats),
        lengths=Counter(map(len, texts)),
        characters=Counter(character for text in texts for character in text),
        with_repeats=sum(any(a == b for a, b in pairwise(text)) for text in texts),
    )


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


def copies(texts: Mapping[str, str], digests: Mapping[str, str]) -> list[Problem]:
    """Return a problem for each image that has the pixels of an earlier one, fatal if their texts differ."""
    problems = []
    first: dict[str, str] = {}
    for name, text in texts.items():
        original = first.setdefault(digests[name], name)
        if original == name:
            continue
        if texts[original] == text:
            message = f"the same picture as {original}, left out"
            problems.append(Problem(name, "copy", message, fatal=False))
        else:
            message = f"the same picture as {original}, but labelled {text!r} here and {texts[original]!r} there"
            problems.append(Problem(name, "contradicting labels", message, fatal=True))
    return problems


def leaks(known: Iterable[Sample], held_back: Iterable[Sample], part: str = "training") -> list[Problem]:
    """Return a fatal problem for each sample held back (a fixed validation or test set) whose pixels are in a part."""
    names = {sample.digest: sample.name for sample in known}
    pairs = [(s.name, names[s.digest]) for s in held_back if s.digest in names]
    return [Problem(name, "leak", f"the same picture as {twin} of the {part} data", fatal=True) for name, twin in pairs]


def format_problems(problems: Sequence[Problem], shown: int = PROBLEMS_SHOWN) -> str:
    """Return a line for each problem, errors first, kind by kind: `shown` of a kind, then a count of the others."""
    lines: list[str] = []
    for fatal in (True, False):
        of_kind: dict[str, list[Problem]] = {}
        for problem in problems:
            if problem.fatal == fatal:
                of_kind.setdefault(problem.kind, []).append(problem)
        for kind, members in of_kind.items():
            lines += [f"{'error' if fatal else 'warning'}: {problem}" for problem in members[:shown]]
            if len(members) > shown:
                lines.append(f"{'error' if fatal else 'warning'}: … and {len(members) - shown} more: {kind}")
    return "\n".join(lines)


def format_facts(facts: Facts) -> str:
    """Return the facts as a short table for the terminal."""
    if not facts.images:
        return "images      none readable"
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
    widths, heights = zip(*sizes.elements(), strict=True)
    median = f"{median_low(widths)} x {median_low(heights)} pixels"
    if len(sizes) == 1:
        return f"always {median}"
    ranges = f"widths {min(widths)} to {max(widths)}, heights {min(heights)} to {max(heights)}"
    return f"{len(sizes)} different ones; median {median}, {ranges}"


def _visible(character: str) -> str:
    return character if character.isprintable() and not character.isspace() else repr(character)
