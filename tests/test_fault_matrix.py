"""The fault matrix: every kind of damage costs its own clip at most, ends as docs/faults.md says, and leaves its
neighbours' features as they are without it."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfeat import corpus as corpora
from mmfeat.corpus import CorpusError
from mmfeat.layout import FeatureFile
from mmfeat.media import MediaError, open_media
from pipelines.cli import main
from tests.damage import KINDS, Kind, good
from tests.damage_csv import HEAD, NAMES, TABLES, Table

PAGE = Path(__file__).parents[1] / "docs" / "faults.md"


def write_table(root: Path, rows: list[tuple[str, str]]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with (root / "label.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(HEAD.split(","))
        table.writerows((video, clip, "", 0.5, "train") for video, clip in rows)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, tuple[str, str]], Path, Path]:
    """All kinds of damage in one corpus through two workers.

    Gives clip → status and reason, the feature file, and that of the good clips alone.
    """
    folder = tmp_path_factory.mktemp("faults")
    raw = folder / "corpus" / "Raw" / "v"
    raw.mkdir(parents=True)
    ids = []
    for number, kind in enumerate(KINDS):
        kind.make(raw / f"bad{number}", np.random.default_rng(number))
        ids.append(("v", f"bad{number}"))
        if number % 10 == 0:
            good(raw / f"good{number}")
            ids.append(("v", f"good{number}"))
    good(raw / "vanishes")
    write_table(folder / "corpus", [*ids, ("v", "vanishes")])
    (raw / "vanishes.mp4").unlink()
    assert main(["extract", str(folder / "corpus"), "-o", str(folder / "all.h5"), "--workers", "2"]) == 3
    write_table(folder / "corpus", [(video, clip) for video, clip in ids if clip.startswith("good")])
    other = ["extract", str(folder / "corpus"), "-o", str(folder / "good.h5"), "--workdir", str(folder / "anew")]
    assert main([*other, "--workers", "1"]) == 0
    with FeatureFile(folder / "all.h5") as file:
        found = {clip.id.partition("$_$")[2]: (clip.status, clip.reason) for clip in file.clips()}
    return found, folder / "all.h5", folder / "good.h5"


def outcome(status: str) -> str:
    """A clip's status without `no_face` and `no_text`, which all these clips have: fails, kept, damaged, no_video, …"""
    states = [state for state in status.split("+") if state not in ("ok", "no_face", "no_text")]
    return {"": "kept", "failed": "fails"}.get("+".join(states), "+".join(states))


@pytest.mark.parametrize("number", range(len(KINDS)), ids=[kind.name for kind in KINDS])
def test_each_kind_of_damage_ends_as_the_page_says(damaged, number):
    kind = KINDS[number]
    status, reason = damaged[0][f"bad{number}"]
    assert outcome(status) in kind.becomes.split("|"), (status, reason)
    if outcome(status) in ("fails", "damaged"):
        assert reason, "whatever is lost has a reason"
    if kind.reason:
        assert re.search(kind.reason, reason), reason


def test_a_file_that_vanished_is_named(damaged):
    status, reason = damaged[0]["vanishes"]
    assert status == "failed" and "no file" in reason


def test_neighbours_are_as_they_are_without_the_damage(damaged):
    with FeatureFile(damaged[1]) as whole, FeatureFile(damaged[2]) as alone:
        rows = {id: row for row, id in enumerate(whole.read("train", "id"))}
        ids = list(alone.read("train", "id"))
        assert len(ids) == len([number for number in range(len(KINDS)) if number % 10 == 0])
        for modality in ("audio", "vision"):
            lengths = alone.read("train", f"{modality}_lengths")
            for row, id in enumerate(ids):
                n = min(lengths[row], whole.dataset("train", modality).shape[1])
                ours, theirs = (
                    alone.dataset("train", modality)[row, :n],
                    whole.dataset("train", modality)[rows[id], :n],
                )
                assert np.array_equal(ours, theirs), (modality, id)


def test_no_permission(tmp_path):
    path = good(tmp_path / "clip")
    path.chmod(0)
    tmp_path.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # root reads everything
    try:
        with pytest.raises(MediaError, match=r"cannot be read|file not found"):
            open_media(path)
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("table", TABLES, ids=[table.name for table in TABLES])
def test_each_kind_of_table(tmp_path, table, capsys):
    (tmp_path / "Raw" / "v").mkdir(parents=True)
    for clip in "12":
        (tmp_path / "Raw" / "v" / f"{clip}.mp4").write_bytes(b"no film")
    (tmp_path / "label.csv").write_bytes(table.content)
    status = main(["check", str(tmp_path)])
    said = capsys.readouterr()
    if table.usable is None:
        assert status == 2 and said.out == ""
        assert said.err.startswith("mmfeat: ") and said.err.count("\n") == 1
        assert re.search(table.says, said.err), said.err
        return
    corpus = corpora.load(tmp_path)
    assert len(corpus.usable) == table.usable
    assert status == (0 if table.usable == len(corpus.clips) else 3)
    assert re.search(table.says, said.out), said.out


def test_very_many_rows(tmp_path):
    """A million take ten times as long and are tried by tests/benchmarks/scale.py."""
    (tmp_path / "Raw" / "v").mkdir(parents=True)
    (tmp_path / "Raw" / "v" / "7.mp4").write_bytes(b"no film")
    rows = "\n".join(f"v,{number},word,0.5,train" for number in range(10**5))
    (tmp_path / "label.csv").write_text(f"{HEAD}\n{rows}\n")
    corpus = corpora.load(tmp_path)
    assert len(corpus.clips) == 10**5 and [clip.clip_id for clip in corpus.usable] == ["7"]


def test_names_that_nobody_expects(tmp_path):
    """Those that a csv can say are extracted; those that it cannot are in nobody's way."""
    (tmp_path / "Raw" / "v").mkdir(parents=True)
    film = good(tmp_path / "clip", sound=None)
    for name in NAMES.values():
        (tmp_path / "Raw" / "v" / f"{name}.mp4").symlink_to(film)
    sayable = [name for name in NAMES.values() if not any(0xD800 <= ord(c) < 0xE000 for c in name)]
    assert len(NAMES) - len(sayable) == 1, "bytes that are not UTF-8"
    write_table(tmp_path, [("v", name) for name in sayable])
    assert main(["extract", str(tmp_path), "-o", str(tmp_path / "features.h5"), "--workers", "1"]) == 0
    with FeatureFile(tmp_path / "features.h5") as file:
        assert list(file.read("train", "id")) == [f"v$_${name}" for name in sayable]


@given(
    st.binary(max_size=400) | st.text(alphabet='abv12,;\t"\n\r.-', max_size=300).map(lambda s: f"{HEAD}\n{s}".encode())
)
def test_no_table_is_an_accident(tmp_path_factory, content):
    """Whatever bytes a label.csv holds: a corpus, or CorpusError."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "label.csv").write_bytes(content)
    try:
        corpus = corpora.load(folder)
    except CorpusError:
        return
    assert all(clip.refused for clip in corpus.clips), "there are no files"


CRASHING = """
import os
import av

opened = av.open

def av_open(file, *more, **options):
    if str(file).endswith("crash.mp4"):
        os.abort()
    return opened(file, *more, **options)

av.open = av_open
"""


ACCIDENTS = {
    "a clip that crashes whoever opens it": "fails after three tries; the page about the run is written, without its "
    "picture",
    "a note of failure (`.failed`) that was cut short": "the clip is extracted again",
}
"""What the next test tries."""


def test_a_crash_and_then_its_torn_note(tmp_path):
    """As where the decoder itself has a fault: whichever process opens the file dies, whoever that is."""
    root, out = tmp_path / "corpus", tmp_path / "f.h5"
    (root / "Raw" / "v").mkdir(parents=True)
    for name in ("crash", "fine"):
        good(root / "Raw" / "v" / name)
    write_table(root, [("v", "crash"), ("v", "fine")])
    (tmp_path / "sitecustomize.py").write_text(CRASHING)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"}
    command = [sys.executable, "-m", "pipelines.cli", "extract", root, "-o", out, "--workers", "1"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 3, run.stderr
    page = (tmp_path / "f_report.html").read_text()
    assert page.count("data:image/jpeg") == 1 and "crashed the worker process 3 times" in page
    assert "decoding it crashed: Aborted" in page

    torn = list((tmp_path / "mmfeat-work").rglob("*.failed"))
    assert torn
    for note in torn:
        note.write_bytes(note.read_bytes()[:9])
    assert main(["extract", str(root), "-o", str(out), "--workers", "1"]) == 0
    with FeatureFile(out) as file:
        assert {clip.id for clip in file.clips() if clip.status != "failed"} == {"v$_$crash", "v$_$fine"}


def page() -> str:
    """The tables of docs/faults.md."""
    words = {"fails": "fails", "kept": "kept, nothing is amiss", "damaged": "kept, marked `damaged`"}

    def say(kind: Kind) -> str:
        return " or ".join(words.get(word, f"kept, marked `{word}`") for word in kind.becomes.split("|"))

    def usable(table: Table) -> str:
        if table.usable is None:
            return "the whole file is refused, exit status 2"
        rows = table.content.count(b"v,") + table.content.count(b"etc,")
        return "that row is refused, the others are read" if rows > table.usable else "all rows are read"

    lines = ["| the file | the clip |", "|---|---|", *(f"| {kind.name} | {say(kind)} |" for kind in KINDS)]
    lines += ["", "| what else happens | |", "|---|---|", *(f"| {what} | {how} |" for what, how in ACCIDENTS.items())]
    lines += ["", "| label.csv | |", "|---|---|", *(f"| {table.name} | {usable(table)} |" for table in TABLES)]
    return "\n".join(lines)


def test_the_page_says_what_is_tested():
    assert page() in PAGE.read_text(encoding="utf-8"), "run: python -m tests.test_fault_matrix"


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8").partition("| the file |")[0]
    PAGE.write_text(f"{before}{page()}\n", encoding="utf-8")
