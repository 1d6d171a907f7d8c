"""A transcript's own words, whatever the transcript is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfeat.words.transcript import tokens


def said(text: str) -> list[str]:
    return [" ".join(token.spoken[0]) for token in tokens(text)]


def words(text: str) -> list[str]:
    return [token.text for token in tokens(text)]


@given(st.text(max_size=60) | st.text("aZé9,.'’- $€%&你ア👍\u0301\ufe0f", max_size=30))
def test_spans_rise_and_hold_their_words_in_any_text(text: str) -> None:
    end = 0
    for token in tokens(text):
        assert end <= token.span[0] < token.span[1] <= len(text)
        assert text[slice(*token.span)] == token.text
        assert token.spoken and all(way and all(way) for way in token.spoken)
        end = token.span[1]


@given(st.text(max_size=40))
def test_no_letter_and_no_digit_is_lost(text: str) -> None:
    kept = "".join(words(text))
    assert [c for c in text if c.isalpha() or c.isdecimal()] == [c for c in kept if c.isalpha() or c.isdecimal()]


@given(st.integers(0, 10**400))
def test_any_number_can_be_said(number: int) -> None:
    (token,) = tokens(str(number))
    assert all(word.replace("'", "").isalpha() for way in token.spoken for word in way)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It cost 2,000, then.", ["it", "cost", "two thousand", "then"]),
        ("$5 and $1", ["five dollars", "and", "one dollar"]),
        ("$5 million", ["five", "million dollars"]),
        ("£2.50", ["two pounds fifty pence"]),
        ("50% of 3.14", ["fifty percent", "of", "three point one four"]),
        ("the 23rd at 10:30", ["the", "twenty third", "at", "ten thirty"]),
        ("at 10.30:45", ["at", "ten point three zero forty-five".replace("-", " ")]),
        ("in 1999", ["in", "nineteen ninety nine"]),
        ("well-known facts", ["well known", "facts"]),
        ("don’t say ‘no’", ["don't", "say", "no"]),
        ("R&B & soul", ["r and b", "and", "soul"]),
        ("the U.S. (umm) ok 👍🏽!", ["the", "u. s.", "umm", "ok"]),
        ("café", ["cafe"]),
        ("e.g. this", ["for example", "this"]),
    ],
)
def test_said(text: str, expected: list[str]) -> None:
    assert said(text) == expected


def test_ways_to_say_a_number() -> None:
    (year,) = tokens("1999")
    assert ("nineteen", "ninety", "nine") in year.spoken
    assert ("one", "thousand", "nine", "hundred", "ninety", "nine") in year.spoken
    (call,) = tokens("911")
    assert ("nine", "one", "one") in call.spoken


def test_capitals_may_be_spelled_or_said() -> None:
    (token,) = tokens("NASA")
    assert token.spoken == (("nasa",), ("n.", "a.", "s.", "a."))


def test_words_of_the_text() -> None:
    assert words("2,000 “curly” dogs' — you/me, 你好。") == ["2,000", "curly", "dogs", "you", "me", "你", "好"]
    assert words("…!? 👍 -- %") == []
    assert words("") == []
