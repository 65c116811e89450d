"""Characters and their class indices; the one home of the CTC blank."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from captcha import CaptchaError

BLANK = 0


class VocabularyError(CaptchaError):
    """Characters that make no vocabulary, or a text that one cannot spell; one line."""


@dataclass(frozen=True)
class Vocabulary:
    """An ordered set of characters: class 0 is the CTC blank, class i the character i - 1.

    Raises:
        VocabularyError: if there is no character, or one stands twice.
    """

    characters: str

    def __post_init__(self) -> None:
        if not self.characters:
            raise VocabularyError("the vocabulary is empty: give at least one character")
        twice = sorted({c for c in self.characters if self.characters.count(c) > 1})
        if twice:
            raise VocabularyError(f"the vocabulary has characters twice: {' '.join(map(repr, twice))}")

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "Vocabulary":
        """Return the characters of the texts in code point order."""
        return cls("".join(sorted(set(chain.from_iterable(texts)))))

    @property
    def classes(self) -> int:
        """How many classes a model of this vocabulary tells apart, the blank among them."""
        return len(self.characters) + 1

    def missing(self, text: str) -> str:
        """Return the characters of the text that the vocabulary lacks, each once, in order."""
        return "".join(dict.fromkeys(c for c in text if c not in self.characters))

    def encode(self, text: str) -> list[int]:
        """Return the class index of each character.

        Raises:
            VocabularyError: naming the characters that the vocabulary lacks.
        """
        if missing := self.missing(text):
            raise VocabularyError(f"{text!r} has characters outside the vocabulary: {missing!r}")
        return [self.characters.index(c) + 1 for c in text]

    def decode(self, labels: Sequence[int]) -> str:
        """Return the text of class indices that hold no blank."""
        return "".join(self.characters[label - 1] for label in labels)
