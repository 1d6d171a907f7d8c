"""A transcript's own words, whatever the transcript is."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
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


@given(st.text(max_size=40).filter(lambda text: not set(text) & set("[]{}<>*()")))
def test_no_letter_and_no_digit_is_lost(text: str) -> None:
    kept = "".join(words(text))
    assert [c for c in text if c.isalpha() or c.isdecimal()] == [c for c in kept if c.isalpha() or c.isdecimal()]


@given(st.integers(0, 10**400))
def test_any_number_can_be_said(number: int) -> None:
    (token,) = tokens(str(number))
    assert all(word.replace("'", "").isalpha() for way in token.spoken for word in way)


DIGITS = st.text("0123456789", min_size=1, max_size=60) | st.sampled_from(["9" * 29, "1" + "0" * 27])


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["", "$", "£", "-"]), DIGITS, st.sampled_from(".,/:"), DIGITS, st.sampled_from(["", "%", "€", "k"])
)
@example("$", "9" * 29, ".", "5", "")
@example("$", "1" + "0" * 27, ".", "00", "")
@example("", "1", "/", "9" * 5000, "")
def test_money_and_decimals_of_any_length_can_be_said(sign: str, left: str, mark: str, right: str, unit: str) -> None:
    (token,) = tokens(f"{sign}{left}{mark}{right}{unit}")
    assert all(word.replace("'", "").isalpha() for way in token.spoken for word in way)


def test_money_says_every_digit() -> None:
    (token,) = tokens("$" + "9" * 20 + ".25")  # more than a float holds
    assert token.spoken[0][:3] == ("ninety", "nine", "quintillion")
    assert token.spoken[0][-4:] == ("dollars", "twenty", "five", "cents")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It cost 2,000, then.", ["it", "cost", "two thousand", "then"]),
        ("$5 and $1", ["five dollars", "and", "one dollar"]),
        ("$5 million", ["five", "million dollars"]),
        ("£2.50", ["two pounds fifty pence"]),
        ("$0.99 or £1.01", ["ninety nine cents", "or", "one pound one penny"]),
        ("$1/2 of $5½", ["one half dollars", "of", "five and a half dollars"]),
        ("5² and 10⁶", ["five squared", "and", "ten to the six"]),
        ("50% of 3.14", ["fifty percent", "of", "three point one four"]),
        ("the 23rd at 10:30", ["the", "twenty third", "at", "ten thirty"]),
        ("at 10.30:45", ["at", "ten point three zero forty-five".replace("-", " ")]),
        ("in 1999", ["in", "nineteen ninety nine"]),
        ("well-known facts", ["well known", "facts"]),
        ("don’t say ‘no’", ["don't", "say", "no"]),
        ("R&B & soul", ["r and b", "and", "soul"]),
        ("the 5th of 20°C", ["the", "fifth", "of", "twenty degrees celsius"]),
        (
            "$3.5 million, $20k or 5€",
            ["three point five", "million dollars", "twenty thousand dollars", "or", "five euros"],
        ),
        ("from 3:05 to 8:00", ["from", "three oh five", "to", "eight"]),
        ("the 1990s and '80s", ["the", "nineteen nineties", "and", "eighties"]),
        ("5½ km at 60mph", ["five and a half", "kilometers", "at", "sixty miles per hour"]),
        ("3/4 of -5", ["three quarters", "of", "minus five"]),
        ("Dr. Jones, St. Louis, vs. Mr. T", ["doctor", "jones", "saint", "louis", "versus", "mister", "t"]),
        ("see www.example.com/faq", ["see", "example dot com slash faq"]),
        ("me@mail.org @bob #fun #1", ["me at mail dot org", "at bob", "hashtag fun", "number one"]),
        ("World War II", ["world", "war", "two"]),
        ("sooo ummm", ["so", "um"]),
        ("50 % w/o", ["fifty", "percent", "without"]),
        ("555-1234", ["five five five one two three four"]),
        ("end.Next", ["end", "next"]),
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(laughs) so [music] I <unk> {cough} said *sighs* no", ["so", "I", "said", "no"]),
        ("(clears throat) well (umm) yes (and so on)", ["well", "umm", "yes", "and", "so", "on"]),
        ("</i>a < b and c > d, 2 * 3 * 4", ["a", "b", "and", "c", "d", "2", "3", "4"]),
        ("[unclosed and (open", ["unclosed", "and", "open"]),
        ("[inaudible]", []),
    ],
)
def test_notes_of_other_sounds_are_no_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_words_that_are_read_in_several_ways() -> None:
    ways = {token.text: {" ".join(way) for way in token.spoken} for token in tokens("9/11 24/7 St 12/25/2020 3:30 Dr")}
    assert "nine eleven" in ways["9/11"] and "twenty four seven" in ways["24/7"]
    assert ways["St"] == {"saint", "street"} and ways["Dr"] == {"doctor", "drive"}
    assert "december twenty fifth twenty twenty" in ways["12/25/2020"] and "half past three" in ways["3:30"]


def test_words_of_the_text() -> None:
    assert words("2,000 “curly” dogs' — you/me, 你好。") == ["2,000", "curly", "dogs", "you", "me", "你", "好"]
    assert words("…!? 👍 -- %") == []
    assert words("") == []
