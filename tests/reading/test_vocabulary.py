import pytest
from hypothesis import given
from hypothesis import strategies as st

from captcha.reading.vocabulary import BLANK, Vocabulary


@given(st.data())
def test_a_text_of_known_characters_encodes_and_decodes_to_itself(data: st.DataObject) -> None:
    characters = data.draw(st.lists(st.characters(), min_size=1, max_size=20, unique=True))
    text = data.draw(st.text(st.sampled_from(characters), max_size=10))

    vocabulary = Vocabulary("".join(characters))
    labels = vocabulary.encode(text)

    assert BLANK not in labels
    assert all(label < vocabulary.classes for label in labels)
    assert vocabulary.decode(labels) == text


@given(st.lists(st.text(max_size=5), max_size=5).filter(any))
def test_the_vocabulary_of_texts_spells_them_whatever_their_order(texts: list[str]) -> None:
    vocabulary = Vocabulary.from_texts(texts)

    assert vocabulary == Vocabulary.from_texts(texts[::-1])
    assert not any(vocabulary.missing(text) for text in texts)
    assert set(vocabulary.characters) == set("".join(texts))


def test_classes_are_the_characters_and_the_blank() -> None:
    vocabulary = Vocabulary("ba1")

    assert vocabulary.classes == 4
    assert vocabulary.encode("1ab") == [3, 2, 1]
    assert vocabulary.decode([]) == ""


def test_characters_that_the_vocabulary_lacks_are_named_once() -> None:
    vocabulary = Vocabulary("ab")

    assert vocabulary.missing("xaxyb") == "xy"
    with pytest.raises(ValueError, match=r"'xaxyb' has characters outside the vocabulary: 'xy'"):
        vocabulary.encode("xaxyb")


def test_an_empty_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty"):
        Vocabulary("")
    with pytest.raises(ValueError, match="is empty"):
        Vocabulary.from_texts(["", ""])


def test_a_character_that_stands_twice_is_named() -> None:
    with pytest.raises(ValueError, match="twice: 'a'"):
        Vocabulary("aba")
