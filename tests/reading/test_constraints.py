"""The oracles are Python's own `re`, and counts worked out by hand."""

import re
import time
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captcha.reading.constraints import (
    Automaton,
    ConstraintError,
    Constraints,
    automaton_of,
    constraints_of,
    read_texts,
)
from captcha.reading.limits import MAX_PATTERN
from captcha.reading.vocabulary import Vocabulary

VOCABULARY = Vocabulary("ab0-")
TEXTS = ["".join(text) for length in range(6) for text in product("ab0-", repeat=length)]


def accepts(automaton: Automaton, text: str, vocabulary: Vocabulary = VOCABULARY) -> bool:
    arrival = 0
    for label in vocabulary.encode(text):
        onward = automaton.onward[automaton.states[arrival]]
        following = [each for each in onward if automaton.labels[each] == label]
        if not following:
            return False
        (arrival,) = following
    return bool(automaton.accepting[automaton.states[arrival]])


def allowed(constraints: Constraints) -> set[str]:
    automaton = automaton_of(constraints, VOCABULARY)
    return {text for text in TEXTS if accepts(automaton, text)}


def patterns() -> st.SearchStrategy[str]:
    """Patterns of the subset, which mean the same to `re`."""
    plain = st.sampled_from(["a", "b", "0", "-", ".", r"\d", r"\w", r"\D", "[ab]", "[^a]", "[0-9a]", r"[\d\-]"])

    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        times = st.sampled_from(["", "?", "*", "+", "{0}", "{2}", "{1,}", "{0,2}", "{1,3}"])
        groups = st.builds("({}{}){}".format, st.sampled_from(["", "?:"]), inner, times)
        return groups | st.builds("{}{}".format, inner, inner) | st.builds("{}|{}".format, inner, inner)

    return st.recursive(plain, larger, max_leaves=8)


@given(patterns())
@settings(max_examples=150, deadline=None)
def test_a_pattern_allows_what_python_s_re_matches(pattern: str) -> None:
    expected = {text for text in TEXTS if re.fullmatch(pattern, text)}
    if not expected - {""}:
        return  # it matches longer texts, or none
    assert allowed(Constraints(pattern=pattern)) == expected


@pytest.mark.parametrize(
    "pattern", ["a|", "(|a)b", "a{0}b", "(a*)*", "((ab)?b){0,2}", "(a|b)*a(a|b){2}", "a{2,}|-", ""]
)
def test_what_is_special_in_a_pattern_is_as_in_re(pattern: str) -> None:
    given = constraints_of(pattern=pattern)
    if given is None:
        assert pattern == ""
    else:
        assert allowed(given) == {text for text in TEXTS if re.fullmatch(pattern, text)}


def test_a_text_keeps_to_all_that_is_given() -> None:
    assert allowed(Constraints(length="2")) == {text for text in TEXTS if len(text) == 2}
    assert allowed(Constraints(length="1-3", characters="ax")) == {"a", "aa", "aaa"}
    assert allowed(Constraints(texts="ab\r\nb0-\n\nabab\nxyz", length="3-4")) == {"b0-", "abab"}
    assert allowed(Constraints(texts="ab\nb0-", pattern=".+[^0]")) == {"ab", "b0-"}
    assert allowed(Constraints(length="4", pattern="a+b?", characters="ab")) == {"aaaa", "aaab"}


def test_from_every_state_an_accepting_one_can_be_reached() -> None:
    automaton = automaton_of(Constraints(length="3", pattern="a(a|b)*|b{5}"), VOCABULARY)
    assert (len(automaton.accepting), automaton.accepting.sum()) == (6, 2)  # nothing of b{5} is left
    assert [len(arrivals) for arrivals in automaton.onward] == [1, 2, 2, 2, 0, 0]


@pytest.mark.parametrize("length", ["", "0", "0-3", "5-4", "-3", "3-", "five", "5.0", "1-2-3", " 5", "9" * 400, "٣"])
def test_a_length_that_is_none_is_refused(length: str) -> None:
    with pytest.raises(ConstraintError, match="the length must be a number of characters such as 5"):
        Constraints(length=length)


@pytest.mark.parametrize(
    "pattern",
    [
        *["(", ")", "a**", "*", "[", "[b-a]", "{2}", "a{2", "a{3,2}", "a{,2}", "\\", "\\x1", "\\1", "(?i)a"],
        *["^a", "a$", "a|b$", r"\bb", "(?=a)b", "(?!a)b", "(?<=a)b", "(a)(?P=n)", "a++", "(" * 900 + "a" + ")" * 900],
    ],
)
def test_a_pattern_that_is_not_of_the_subset_is_refused_in_one_line(pattern: str) -> None:
    with pytest.raises(ConstraintError, match=r"^the pattern (is not of the subset|has more than)[^\n]*$"):
        automaton_of(Constraints(pattern=pattern), VOCABULARY)


def test_anchors_in_classes_are_characters() -> None:
    vocabulary = Vocabulary("a$^")
    automaton = automaton_of(Constraints(pattern=r"[$a][a\^]"), vocabulary)
    assert {text for text in map("".join, product("a$^", repeat=2)) if accepts(automaton, text, vocabulary)} == {
        *["$a", "$^", "aa", "a^"]
    }


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"pattern": "a" * (MAX_PATTERN + 1)}, "more than 1000 characters .CAPTCHA_MAX_PATTERN.: shorten"),
        ({"pattern": "a{1001}"}, "stands for more than 1000 characters"),
        ({"pattern": "((a{100}){100}){100}"}, "stands for more than 1000 characters"),
        ({"pattern": "(a?){99999999999999999999}"}, "stands for more than 1000 characters"),
        ({"pattern": "(a|b)*a(a|b){20}"}, "more than 100000 transitions"),
        ({"length": "999999"}, "more than 100000 transitions"),
        ({"texts": "ab" * 100_000}, "more than 100000 transitions"),
        ({"texts": "\n".join(map("".join, product("ab0-", repeat=9)))}, "more than 100000 transitions"),
    ],
)
def test_what_would_explode_is_refused_before_it_does(given: dict[str, str], line: str) -> None:
    begun = time.monotonic()
    with pytest.raises(ConstraintError, match=line):
        automaton_of(Constraints(**given), VOCABULARY)
    assert time.monotonic() - begun < 60  # what is not bounded takes all memory, or hours


@pytest.mark.parametrize(
    "given",
    [
        {"characters": "xyz"},
        {"texts": "xy\nz"},
        {"pattern": "x"},
        {"pattern": "[^ab0\\-]"},
        {"length": "3", "texts": "ab\nab0-"},
        {"length": "3", "pattern": "(ab)+"},
        {"characters": "ab", "pattern": ".*0"},
    ],
)
def test_what_no_text_keeps_to_is_refused_by_name_without_a_word_of_it(given: dict[str, str]) -> None:
    line = f"no text of the 4 characters that the model reads keeps to what is given ({', '.join(given)}): loosen it"
    with pytest.raises(ConstraintError, match=f"^{re.escape(line)}$"):
        automaton_of(Constraints(**given), VOCABULARY)


def test_nothing_known_is_none_and_what_is_known_can_be_logged() -> None:
    assert constraints_of() is None
    assert constraints_of("", "", None, "") is None
    known = constraints_of("4-6", None, "b\na\n\nb\n", "x+")
    assert known == Constraints(length="4-6", texts="b\na\n\nb\n", pattern="x+")
    # printf 'a\nb' | sha256sum
    assert known.written() == {"length": "4-6", "texts": "2, sha256 7e18f737311b", "pattern": "x+"}
    assert Constraints(texts="\ud800").written()["texts"].startswith("1, sha256 ")  # as JSON may bring it


def test_a_file_of_texts_is_read_and_one_that_cannot_be_is_named(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes(b"\xef\xbb\xbfab\r\n\xc3\xa9\n")
    assert read_texts(file).splitlines() == ["ab", "é"]
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConstraintError, match=r"texts.txt is not text in UTF-8: save"):
        read_texts(file)
    with pytest.raises(ConstraintError, match=r"none.txt cannot be read: No such file"):
        read_texts(tmp_path / "none.txt")
    with pytest.raises(ConstraintError, match="the list of valid texts is empty"):
        Constraints(texts="\n\n")
