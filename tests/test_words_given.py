"""Word times from the user's own files: joined with the transcript, in the clip's time, read anew when corrected."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfeat.clip import extract_to_store
from mmfeat.corpus import Clip
from mmfeat.recipe import Recipe, RecipeError, load_recipe
from mmfeat.shards import Store
from mmfeat.track import Waveform, Word
from mmfeat.words import AlignmentError, find
from mmfeat.words.formats import WRITERS, write
from mmfeat.words.transcript import tokens
from pipelines.cli import main
from tests.media_files import tone, write_media


def aligner(**settings: Any) -> Any:
    entry = find("given")
    return entry.make(entry.config(**settings))


def silence(seconds: float) -> Waveform:
    return Waveform(np.zeros(round(seconds * 1000), np.float32), 1000)


def clip(words: Path, start: float | None = None, end: float | None = None) -> Clip:
    return Clip("v", "1", "test", words.with_suffix(".mp4"), "", math.nan, start=start, end=end, given={"words": words})


def csv(folder: Path, *rows: tuple[str, float, float]) -> Path:
    path = folder / "1.csv"
    path.write_text("word,start,end\n" + "".join(f'"{word}",{start},{end}\n' for word, start, end in rows))
    return path


def found(file: Path, text: str, seconds: float = 2.0, **cut: float) -> list[tuple[str, float, float]]:
    words = aligner()(silence(seconds), text, clip(file, **cut))
    assert all(text[slice(*word.span)] == word.text for word in words)
    return [(word.text, round(word.start, 6), round(word.end, 6)) for word in words]


def test_case_punctuation_and_pauses_do_not_count(tmp_path: Path) -> None:
    file = csv(tmp_path, ("<eps>", 0, 0.2), ("DONT", 0.2, 0.5), ("sil", 0.5, 0.6), ("worry", 0.6, 1), ("[noise]", 1, 2))
    assert found(file, "“Don’t” worry!") == [("Don’t", 0.2, 0.5), ("worry", 0.6, 1)]


def test_words_written_otherwise(tmp_path: Path) -> None:
    file = csv(
        tmp_path, ("two", 0, 0.2), ("thousand", 0.2, 0.5), ("well", 0.5, 0.6), ("known", 0.6, 1), ("你好", 1, 1.4)
    )
    expected = [("2,000", 0, 0.5), ("well-known", 0.5, 1), ("你", 1, 1.2), ("好", 1.2, 1.4)]
    assert found(file, "2,000 well-known: 你好") == expected
    assert found(csv(tmp_path, ("2000", 0, 1)), "2,000") == [("2,000", 0, 1)]


def test_a_phrase_is_spread_over_its_characters(tmp_path: Path) -> None:
    file = csv(tmp_path, ("So, it rained;", 0, 1))
    assert found(file, "so it rained") == [("so", 0, 0.2), ("it", 0.2, 0.4), ("rained", 0.4, 1)]


def test_sounds_that_are_no_words_on_both_sides(tmp_path: Path) -> None:
    file = csv(tmp_path, ("[laughs] so it", 0, 1), ("rained", 1, 2))
    for text in ("[laughs] so it rained", "so it rained (laughs)"):
        assert found(file, text) == [("so", 0, 0.5), ("it", 0.5, 1), ("rained", 1, 2)]


def test_a_pause_label_that_is_said_is_a_word(tmp_path: Path) -> None:
    file = csv(tmp_path, ("sil", 0, 0.5), ("sp", 0.5, 1))
    assert found(file, "Sil") == [("Sil", 0, 0.5)]


def test_an_unknown_word_has_times_all_the_same(tmp_path: Path) -> None:
    file = csv(tmp_path, ("the", 0, 0.2), ("<unk>", 0.2, 0.5), ("sang", 0.5, 1))
    assert found(file, "the Jabberwock sang")[1] == ("Jabberwock", 0.2, 0.5)


def test_a_mismatch_is_said_word_by_word(tmp_path: Path) -> None:
    file = csv(tmp_path, ("what", 0, 0.2), ("a", 0.2, 0.3), ("lovely", 0.3, 1), ("film", 1, 1.2))
    with pytest.raises(AlignmentError) as caught:
        found(file, "What lovely day this is")
    said = str(caught.value)
    assert "clip v$_$1" in said and str(file) in said
    assert "the file has 'a' before word 2; 'day this is' (word 3) is 'film' in the file" in said
    with pytest.raises(AlignmentError, match=r"'film' \(word 5\) is not in the file"):
        found(
            csv(tmp_path, ("what", 0, 0.2), ("a", 0.2, 0.3), ("lovely", 0.3, 1), ("good", 1, 2)),
            "What a lovely good film",
        )
    with pytest.raises(AlignmentError, match=r"there are none in it$"):
        found(csv(tmp_path), "What a lovely day")
    many = csv(tmp_path, *((str(number), number, number + 0.5) for number in range(1, 9)))
    with pytest.raises(AlignmentError, match="; and 1 more"):
        found(many, "x 2 x 4 x 6 x 8")


def test_a_clip_cut_out_of_a_recording(tmp_path: Path) -> None:
    file = csv(
        tmp_path, ("one", 9, 9.5), ("good", 9.5, 10.1), ("day", 10.2, 10.9), ("good", 20, 20.4), ("day", 20.4, 21)
    )
    assert found(file, "good day", 1.0, start=10, end=11) == [("good", 0, 0.1), ("day", 0.2, 0.9)]
    assert found(file, "good day", 1.2, start=19.9, end=21.1) == [("good", 0.1, 0.5), ("day", 0.5, 1.1)]
    with pytest.raises(AlignmentError, match="there are none in it at that time"):
        found(file, "good day", 5.0, start=12, end=17)
    with pytest.raises(AlignmentError, match=r"words: 'night' \(word 2\) is 'day' in the file$"):
        found(file, "good night", 1.6, start=9.5, end=11.1)


def test_words_outside_of_the_clip(tmp_path: Path) -> None:
    file = csv(tmp_path, ("so", 0.5, 1), ("late", 1.9, 2.3))
    assert found(file, "so late")[1] == ("late", 1.9, 2.0)
    with pytest.raises(AlignmentError, match=r"'late' from 1\.90 to 2\.30 s of a clip that is 1\.00 s long"):
        found(file, "so late", 1.0)
    for miss in ((2.0, 2.3), (2.1, 2.3), (2.2, 2.2)):
        with pytest.raises(AlignmentError, match=r"'late' from 2\.\d+ to 2\.\d+ s of a clip that is 2\.00 s long"):
            found(csv(tmp_path, ("so", 0.5, 1), ("late", *miss)), "so late")
    assert found(csv(tmp_path, ("so", 0.5, 1), ("late", 2.0, 2.004)), "so late")[1] == ("late", 2, 2)


def test_what_the_aligner_takes_is_no_difference(tmp_path: Path) -> None:
    file = csv(
        tmp_path,
        *(("a", 0, 0.1), ("well", 0.1, 0.2), ("known", 0.2, 0.3), ("film", 0.3, 0.4), ("of", 0.4, 0.5)),
        *(("two", 0.5, 0.6), ("thousand", 0.6, 0.7), ("你好", 0.7, 0.8), ("<unk>", 0.8, 0.9)),
    )
    with pytest.raises(AlignmentError, match=r"words: 'movie' \(word 3\) is 'film' in the file$"):
        found(file, "A well-known movie of 2,000 你好 Xyz")


def test_the_speaker_who_says_the_transcript(tmp_path: Path) -> None:
    file = tmp_path / "1.ctm"
    file.write_text("v A 0 1 so\nv A 1 0.5 it\nv B 0.5 0.5 good\nv B 1 0.5 day\n")
    assert found(file, "good day") == [("good", 0.5, 1), ("day", 1, 1.5)]
    with pytest.raises(
        AlignmentError, match=r"1\.ctm: there are 2 channels of words, 'A', 'B': choose one with `tier`"
    ):
        found(file, "so long")
    file.write_text("v A 0 1 so\nv B 0.5 0.5 so\n")
    with pytest.raises(AlignmentError, match="choose one with `tier`"):
        found(file, "so")
    assert aligner(tier="B")(silence(2), "so", clip(file))[0].start == 0.5


def test_nothing_to_find_needs_no_file(tmp_path: Path) -> None:
    assert aligner()(silence(1), " …! ", clip(tmp_path / "no.ctm")) == []
    with pytest.raises(AlignmentError, match=r"clip v\$_\$1: there is no file of word times .*no\.ctm"):
        found(tmp_path / "no.ctm", "hello")


def located(clip: Clip, **settings: Any) -> Path | None:
    words = {"aligner": "given", **settings}
    return load_recipe("default").model_copy(update={"words": words}).locate(clip).given.get("words")


def test_which_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Clip("v.1", "2", "test", tmp_path / "Raw" / "v.1" / "2.mp4", "", math.nan)
    (tmp_path / "Raw" / "v.1").mkdir(parents=True)
    (tmp_path / "Raw" / "v.1" / "2.ctm").touch()
    assert located(mine) == tmp_path / "Raw" / "v.1" / "2.ctm"
    (tmp_path / "Raw" / "v.1" / "2.TextGrid").touch()
    assert located(mine) == tmp_path / "Raw" / "v.1" / "2.TextGrid"
    monkeypatch.chdir(tmp_path)
    assert located(mine, folder="g", pattern="{video_id}/{clip_id}.json") == tmp_path / "g" / "v.1" / "2.json"
    assert located(mine, folder="g", pattern="all words.csd") == tmp_path / "g" / "all words.csd"
    assert located(replace(mine, given={"words": tmp_path / "x.ctm"})) == tmp_path / "x.ctm"
    assert load_recipe("default").locate(mine) == mine
    in_corpus = replace(mine, root=tmp_path / "corpus")  # wherever the command runs
    assert located(in_corpus, folder="g", pattern="x.csd") == tmp_path / "corpus" / "g" / "x.csd"
    assert located(in_corpus, folder=str(tmp_path), pattern="x.csd") == tmp_path / "x.csd"
    with pytest.raises(RecipeError, match=r"\{name\} is unknown; there are \{video_id\}"):
        located(mine, pattern="{name}.ctm")
    for outside in ({"folder": "../g"}, {"pattern": "../{media}.ctm"}, {"pattern": "/g/{media}.ctm"}):
        with pytest.raises(RecipeError, match="leads out of the"):
            located(mine, **outside)


@pytest.fixture
def corpus_clip(tmp_path: Path) -> tuple[Clip, Recipe, Store]:
    path = write_media(tmp_path / "Raw" / "v" / "1.wav", sound=tone(0.6), sound_codec="pcm_s16le")
    recipe = load_recipe("default").model_copy(update={"words": {"aligner": "given"}})
    return Clip("v", "1", "test", path, "So it rained", 0.0), recipe, Store(tmp_path / "work")


def extracted(clip: Clip, recipe: Recipe, store: Store) -> tuple[str, list[Word]]:
    report = extract_to_store(clip, recipe, store, ["words"])
    shard = store.read(recipe.locate(clip), "words", recipe.fingerprints()["words"])
    return report.reason, [Word(**{**word, "span": tuple(word["span"])}) for word in shard.details["words"]]


def test_a_corrected_file_is_read_again(corpus_clip: tuple[Clip, Recipe, Store]) -> None:
    clip, recipe, store = corpus_clip
    assert clip.path is not None
    prints = {"words": recipe.fingerprints()["words"]}
    reason, words = extracted(clip, recipe, store)
    assert "there is no file of word times" in reason and words == []

    csv(clip.path.parent, ("so", 0, 0.2), ("it", 0.2, 0.3), ("rained", 0.3, 0.5))
    assert store.missing(recipe.locate(clip), prints) == ("words",)
    assert extracted(clip, recipe, store)[1][2].end == 0.5
    assert store.missing(recipe.locate(clip), prints) == ()

    csv(clip.path.parent, ("so", 0, 0.2), ("it", 0.2, 0.3), ("rained", 0.3, 0.45))
    assert store.missing(recipe.locate(clip), prints) == ("words",)
    assert extracted(clip, recipe, store)[1][2].end == 0.45


_TEXT = "In 2,000 A.D. — don't “panic”: well-known 你好吗 & £5 sp sil, naïve. 50% R&B ok"


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(sorted(WRITERS)))
def test_what_any_aligner_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, ending: str
) -> None:
    """Every word with its times, to the format's precision."""
    expected = tokens(_TEXT)
    edges = sorted(data.draw(st.lists(st.floats(0, 60), min_size=len(expected) + 1, max_size=len(expected) + 1)))
    words = [Word(t.text, a, b, 0.5, t.span) for t, a, b in zip(expected, edges, edges[1:], strict=False)]
    path = tmp_path_factory.getbasetemp() / f"given{ending}"
    write(words, path, 60.0)
    back = aligner()(silence(60), _TEXT, clip(path))
    assert [(w.text, w.span) for w in back] == [(w.text, w.span) for w in words]
    precision = 1e-6 if ending in (".json", ".csv", ".textgrid") else 1e-3
    for one, other in zip(back, words, strict=True):
        assert abs(one.start - other.start) <= precision and abs(one.end - other.end) <= precision
        assert one.confidence == (0.5 if ending in (".json", ".csv", ".ctm") else 1)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.text("aAb1 你.-", max_size=4), st.floats(-5, 15), st.floats(0, 5)), max_size=5),
    st.text("aAb1 你.-", max_size=8),
    st.none() | st.floats(0, 9),
)
def test_times_are_finite_in_order_and_inside(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, float, float]],
    text: str,
    start: float | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps([{"word": word, "start": begin, "end": begin + long} for word, begin, long in rows]))
    try:
        words = aligner()(silence(3), text, clip(path, start))
    except AlignmentError:
        return
    assert [word.span for word in words] == [token.span for token in tokens(text)]
    assert all(0 <= word.start <= word.end <= 3 for word in words)


def test_real_files(shared_data: Path) -> None:
    folder = shared_data / "alignment"
    text = (folder / "sense_and_sensibility_01_austen_64kb-0870.txt").read_text()
    words = found(folder / "sense_and_sensibility_01_austen_64kb-0870.json", text, 7.1)
    assert len(words) == 22 and words[0] == ("and", 0.2, 0.37) and words[-1] == ("them", 6.61, 6.79)
    assert found(shared_data / "grid" / "bbaf2n.align", "Bin blue at F two now.", 3.0)[3] == ("F", 1.42, 1.64)
    with pytest.raises(AlignmentError, match=r"'uh' \(word 39\) is not in the file; 'words' \(word 51\) is 'word'"):
        found(folder / "acoustic_corpus.TextGrid", (folder / "acoustic_corpus.lab").read_text(), 26.7)


@pytest.mark.parametrize("ending", sorted(WRITERS))
def test_the_command_reads_back_what_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str) -> None:
    """In the time of the recording, also for a part of it."""
    media = write_media(tmp_path / "a.wav", sound=tone(4), sound_codec="pcm_s16le")
    source = csv(tmp_path, ("so", 0.5, 0.9), ("it", 1.5, 1.75), ("rained", 1.75, 2.5), ("sp", 2.5, 3), ("hard", 3, 3.2))
    said = tmp_path / "said.txt"
    said.write_text("\ufeffIt rained,\nhard!", encoding="utf-8")
    command = ["align", str(media), "--text-file", str(said), "--start", "1", "--end", "3.5", "--json"]
    assert main([*command, "--words", str(source), "-o", str(tmp_path / f"out{ending}")]) == 0
    first = json.loads(capsys.readouterr().out)
    assert [(w["word"], w["start"], w["end"]) for w in first] == [
        ("It", 1.5, 1.75),
        ("rained", 1.75, 2.5),
        ("hard", 3.0, 3.2),
    ]
    assert main([*command, "--words", str(tmp_path / f"out{ending}")]) == 0
    assert json.loads(capsys.readouterr().out) == first


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--language", "zh"], 2, "knows en, not language 'zh', which is known by: "),
        (["--aligner", "nonsense"], 2, "aligner 'nonsense' does not exist; there are: "),
        (["-o", "words.doc"], 2, "-o words.doc: the ending must be one of .json, .TextGrid"),
        (["--start", "nan"], 2, "a.wav: the clip's start, nan s, is no time in a file"),
        (["--end", "inf"], 2, "the clip's end, inf s, is no time"),
        (["--start", "2", "--end", "1"], 2, "the clip ends at 1 s, not after its start at 2 s"),
        (["--start", "99"], 2, "the clip starts at 99 s, but the file is 1.00 s long"),
        (["--set", "aligner=given"], 2, "the aligner is chosen with --aligner"),
        (["--text", " … 😀 !!"], 2, "--text: there is no word in it to align"),
        (["--text", ""], 2, "--text: there is no word in it to align"),
        (["--set", "beams"], 2, "KEY=VALUE"),
        (["--set", "nonsense=3"], 2, "nonsense: Extra inputs"),
        (["--aligner", "given"], 4, "a.wav: there is no file of word times"),
        (["--aligner", "pocketsphinx", "--words", "a.srt"], 2, "--words is for the aligner given"),
        (["--aligner", "given", "--words", "no.srt"], 4, "there is no file of word times no.srt"),
        (["--text-file", "no.txt"], 2, "no.txt: No such file"),
    ],
)
def test_what_the_command_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, said: str
) -> None:
    media = write_media(tmp_path / "a.wav", sound=tone(1), sound_codec="pcm_s16le")
    text = [] if {"--text-file", "--text"} & {*options} else ["--text", "so"]
    assert main(["align", str(media), *text, *options]) == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--model", "--words", "--aligner", "--language"])
def test_an_empty_option_is_no_option_left_out(capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["align", "a.wav", "--text", "so", option, ""])
    assert caught.value.code == 2 and f"argument {option}: it is empty" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_text_file_in_any_unicode(tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str) -> None:
    media = write_media(tmp_path / "a.wav", sound=tone(1), sound_codec="pcm_s16le")
    said = tmp_path / "said.txt"
    said.write_text("So näive", encoding=encoding)
    words = csv(tmp_path, ("so", 0, 0.5), ("näive", 0.5, 0.9))
    assert main(["align", str(media), "--text-file", str(said), "--words", str(words), "--json"]) == 0
    assert [word["word"] for word in json.loads(capsys.readouterr().out)] == ["So", "näive"]
    said.write_bytes("näive".encode("latin-1"))
    assert main(["align", str(media), "--text-file", str(said), "--words", str(words)]) == 2
    assert f"{said}: not UTF-8 (byte 1)" in capsys.readouterr().err
