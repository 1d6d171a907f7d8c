"""label.csv as people write it: every problem is found at once, with its row, and nothing leads out of the corpus."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmfeat.corpus import CorpusError, load

HEADER = ["video_id", "clip_id", "text", "label", "label_T", "label_A", "label_V", "annotation", "mode"]


def corpus(root: Path, rows: list[list[str]], header: list[str] | None = None, files: bool = True) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with (root / "label.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header or HEADER, *rows])
    for row in rows if files else []:
        media = root / "Raw" / row[0] / f"{row[1]}.mp4"
        media.parent.mkdir(parents=True, exist_ok=True)
        media.write_bytes(b"media")
    return root


def row(
    video: str = "v1", clip: str = "0001", text: str = "hello", label: str = "1.0", mode: str = "train"
) -> list[str]:
    return [video, clip, text, label, "", "", "", "Positive", mode]


def test_a_sound_corpus_has_no_problems(tmp_path: Path) -> None:
    found = load(corpus(tmp_path, [row(), row(clip="0002", label="-0.5"), row("v2", mode="test")]))
    assert found.problems == []
    first = found.clips[0]
    assert (first.id, first.label, first.split, first.row) == ("v1$_$0001", 1.0, "train", 2)
    assert first.clip_id == "0001"  # not the number 1
    assert first.path == tmp_path / "Raw" / "v1" / "0001.mp4"
    assert math.isnan(first.label_T)


def test_words_that_pandas_takes_for_missing_stay_words(tmp_path: Path) -> None:
    texts = ["NA", "None", "null", "", "nan"]
    found = load(corpus(tmp_path, [row(clip=str(k), text=text) for k, text in enumerate(texts)]))
    assert [clip.text for clip in found.clips] == texts and not found.problems


def test_every_problem_is_listed_at_once_with_its_row(tmp_path: Path) -> None:
    root = corpus(
        tmp_path,
        [
            row(),  # 2
            row(clip="0002", label="much"),  # 3
            row(clip="0003", label="7"),  # 4
            row(clip="0004", mode="dev"),  # 5
            row(),  # 6: again
            row(mode="test"),  # 7: again, in another split
            row(clip="0005", label=""),  # 8
            row("../..", "0001"),  # 9
        ],
        files=False,
    )
    for clip in ("0001", "0002", "0003", "0004"):
        (root / "Raw/v1").mkdir(parents=True, exist_ok=True)
        (root / f"Raw/v1/{clip}.avi").write_bytes(b"x")
    found = load(root)
    kinds = [(problem.row, problem.kind) for problem in found.problems]
    assert kinds == [
        (3, "number"),
        (4, "range"),
        (5, "split"),
        (6, "duplicate"),
        (7, "leak"),
        (8, "label"),
        (8, "file"),
        (9, "id"),
    ]
    assert [clip.id for clip in found.usable] == ["v1$_$0001"]
    assert "row 2" in found.clips[4].refused and "split train" in found.clips[5].refused


def test_row_numbers_survive_quoted_line_breaks(tmp_path: Path) -> None:
    found = load(corpus(tmp_path, [row(text="two\nlines"), row(clip="2", label="x")]))
    assert found.clips[0].text == "two\nlines"
    assert [problem.row for problem in found.problems] == [4]


@pytest.mark.parametrize("start", ["\ufeff", ""])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_dialects_of_csv(tmp_path: Path, start: str, delimiter: str, newline: str) -> None:
    root = corpus(tmp_path, [row()])
    lines = [delimiter.join(HEADER), delimiter.join(['"v1"', "0001", '"hi, you; there"', "1", "", "", "", "", "train"])]
    (root / "label.csv").write_bytes((start + newline.join(lines) + newline).encode())
    found = load(root)
    assert not found.problems and found.clips[0].text == "hi, you; there"


def test_extra_columns_are_kept_and_order_does_not_matter(tmp_path: Path) -> None:
    header = ["speaker", "mode", "label", "text", "clip_id", "video_id"]
    root = corpus(tmp_path, [["anna", "valid", "0", "hm", "7", "v"]], header, files=False)
    (root / "Raw/v").mkdir(parents=True)
    (root / "Raw/v/7.webm").write_bytes(b"x")
    clip = load(root).clips[0]
    assert (clip.split, clip.label, clip.extra, clip.refused) == ("valid", 0.0, {"speaker": "anna"}, "")


def test_cuts_of_one_long_file(tmp_path: Path) -> None:
    header = [*HEADER, "start", "end"]
    rows = [[*row("long", str(k)), str(start), str(end)] for k, (start, end) in enumerate([(0, 2.5), (2.5, 4), (5, 3)])]
    root = corpus(tmp_path, rows, header, files=False)
    (root / "Raw").mkdir()
    (root / "Raw/long.mp4").write_bytes(b"x")
    found = load(root)
    assert [(clip.start, clip.end) for clip in found.usable] == [(0.0, 2.5), (2.5, 4.0)]
    assert {clip.path for clip in found.usable} == {root / "Raw/long.mp4"}
    assert [problem.kind for problem in found.problems] == ["times"]


@pytest.mark.parametrize(
    ("written", "seconds"), [("2.5", 2.5), ("1:02.5", 62.5), ("00:16:16,059", 976.059), ("7", 7.0)]
)
def test_times_may_be_written_as_a_clock(tmp_path: Path, written: str, seconds: float) -> None:
    root = corpus(tmp_path, [[*row(), written, "1:00:00"]], [*HEADER, "start", "end"])
    clip = load(root).clips[0]
    assert (clip.start, clip.end, clip.refused) == (pytest.approx(seconds), 3600.0, "")


@pytest.mark.parametrize("written", ["1:2:3:4", "a:b", ":", "nan", "1:-"])
def test_times_that_are_none_are_refused(tmp_path: Path, written: str) -> None:
    root = corpus(tmp_path, [[*row(), written, ""]], [*HEADER, "start", "end"])
    assert "not a number" in load(root).clips[0].refused


def test_empty_ids_are_refused(tmp_path: Path) -> None:
    root = corpus(tmp_path, [row("", "a"), row("v", "")], files=False)
    (root / "Raw").mkdir()
    (root / "Raw" / "a.mp4").write_bytes(b"x")
    assert ["cannot be a file's name" in clip.refused for clip in load(root).clips] == [True, True]


def test_files_that_are_none(tmp_path: Path) -> None:
    root = corpus(tmp_path, [row(clip=name) for name in ("empty", "folder", "dangling")], files=False)
    folder = root / "Raw" / "v1"
    (folder / "folder.mp4").mkdir(parents=True)
    (folder / "empty.mp4").touch()
    (folder / "dangling.mp4").symlink_to(root / "nowhere.mp4")
    reasons = [clip.refused for clip in load(root).clips]
    assert reasons[0] == "file is empty: empty.mp4" and all(why.startswith("no file Raw") for why in reasons[1:])


def test_accents_match_however_they_are_written(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    root = corpus(tmp_path, [row(composed, composed)], files=False)
    (root / "Raw" / decomposed).mkdir(parents=True)
    (root / "Raw" / decomposed / f"{decomposed}.mp4").write_bytes(b"x")
    assert load(root).clips[0].refused == ""


def test_decimal_commas(tmp_path: Path) -> None:
    assert [clip.label for clip in load(corpus(tmp_path, [row(label="-0,5")])).clips] == [-0.5]


def test_several_files_and_names_with_dots(tmp_path: Path) -> None:
    root = corpus(tmp_path, [row(clip="a.b"), row(clip="a")])
    (root / "Raw/v1/a.b.wav").write_bytes(b"x")
    (root / "Raw/v1/a.b.txt").write_bytes(b"x")
    (root / "Raw/v1/a.mov").write_bytes(b"x")
    found = load(root)
    assert [clip.path and clip.path.name for clip in found.clips] == ["a.b.mp4", "a.mov"]
    assert [(problem.row, problem.fatal) for problem in found.problems] == [(3, False)]


def test_a_video_in_two_splits_is_worth_a_word_but_allowed(tmp_path: Path) -> None:
    found = load(corpus(tmp_path, [row(), row(clip="2", mode="test")]))
    assert len(found.usable) == 2
    assert [(problem.kind, problem.fatal) for problem in found.problems] == [("video in two splits", False)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "lacks the column"),
        (b"video_id,clip_id,text,label\n", "lacks the column mode"),
        (b"video_id,clip_id,text,label,mode\n", "no rows"),
        (b"video_id,clip_id,text,label,mode,mode\nv,1,a,1,train,test\n", "more than once"),
        ("video_id,clip_id,text,label,mode\nv,1,你好,1,train\n".encode("gb18030"), "UTF-8"),
        (b'video_id,clip_id,text,label,mode\nv,1,"open,1,train\n', "line"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_clear_error(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "label.csv").write_bytes(content)
    with pytest.raises(CorpusError, match=says):
        load(tmp_path)


def test_missing_table_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no label\.csv"):
        load(tmp_path)
    with pytest.raises(CorpusError, match="no folder"):
        load(tmp_path / "nowhere")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.binary(max_size=400), st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")))
)
def test_any_bytes_give_clips_or_a_corpus_error(tmp_path: Path, content: bytes) -> None:
    for head in (b"", b"video_id,clip_id,text,label,mode\n"):
        (tmp_path / "label.csv").write_bytes(head + content)
        try:
            found = load(tmp_path)
        except CorpusError:
            continue
        assert all(clip.refused or clip.path for clip in found.clips)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(video=st.text(max_size=12), clip=st.text(max_size=12))
def test_no_id_leads_out_of_the_corpus(tmp_path: Path, video: str, clip: str) -> None:
    root = tmp_path / "corpus"
    (tmp_path / "outside.mp4").touch()
    corpus(root, [row(video, clip)], files=False)
    try:
        found = load(root)
    except CorpusError:
        return
    for each in found.clips:
        assert each.path is None or root in each.path.parents


def test_published_tables_are_read(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "label.csv").write_bytes((shared_data / "labels" / "SIMS_label.csv").read_bytes())
    found = load(tmp_path)
    assert len(found.clips) == 2281
    assert {problem.kind for problem in found.problems} == {"file"}
    grid = load(shared_data / "grid")
    assert not grid.problems and [clip.split for clip in grid.clips] == ["train"] * 4 + ["valid", "test"]
