"""The `mmfeat` command: helps, exit statuses, and what is said when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmfeat import models
from mmfeat.layout import FeatureFile
from mmfeat.recipe import load_recipe
from pipelines import cli, exits
from pipelines.cli import main

NAMES = [module.__name__.rpartition(".")[2] for module in cli.COMMANDS]
HEADER = "video_id,clip_id,text,label,mode\n"


def corpus(folder: Path, *rows: str, files: tuple[str, ...] = ()) -> Path:
    (folder / "Raw" / "v").mkdir(parents=True)
    for name in files:
        (folder / "Raw" / "v" / name).write_bytes(b"no film")
    (folder / "label.csv").write_text(HEADER + "\n".join(rows))
    return folder


def test_help_loads_nothing_heavy():
    # A list of modules instead of a stopwatch: it fails on every machine alike.
    code = (
        "import sys\n"
        "from pipelines.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('LOADED', sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = said.partition("LOADED")[2]
    heavy = [
        "torch",
        "cv2",
        "librosa",
        "numpy",
        "dask",
        "distributed",
        "h5py",
        "pydantic",
        "rich",
        "transformers",
        "av",
    ]
    assert "argparse" in loaded
    assert not [name for name in heavy if f"'{name}'" in loaded]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_an_example_that_parses(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert "examples:" in capsys.readouterr().out
    module = cli.COMMANDS[NAMES.index(name)]
    import shlex

    for example in module.EXAMPLES:
        words = shlex.split(example.partition(" > ")[0])
        assert words[:2] == ["mmfeat", name]
        cli.parser().parse_args(words[1:])


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["extract", "corpus"], ["extract", "c", "-o", "f", "--workers", "0"]]
)
def test_bad_usage_is_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_check_of_a_good_corpus_is_0(tmp_path, capsys):
    folder = corpus(tmp_path / "c", "v,1,hello,1,train", "v,2,bye,-1,train", files=("1.mp4", "2.mp4"))
    assert main(["check", str(folder)]) == 0
    assert "2 rows, all usable" in capsys.readouterr().out


def test_check_lists_every_problem_with_its_line_and_is_3(tmp_path, capsys):
    rows = ("v,1,hello,1,train", "v,2,bye,-1,dev", "v,3,gone,0,test", "v,1,again,0,train", "v,4,high,2,test")
    folder = corpus(tmp_path / "c", *rows, files=("1.mp4", "2.mp4", "4.mp4"))
    assert main(["check", str(folder), "--label-range", "-1", "1"]) == 3
    lines = capsys.readouterr().out.splitlines()
    for line, what in ((3, "mode is 'dev'"), (4, "no file"), (5, "same clip as row 2"), (6, "outside -1 to 1")):
        assert any(shown.strip().startswith(f"{line} ") and what in shown for shown in lines), what
    assert any("5 rows, 4 refused" in shown for shown in lines)


def test_check_without_a_usable_clip_is_4(tmp_path):
    assert main(["check", str(corpus(tmp_path / "c", "v,1,hello,1,train"))]) == 4


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", HEADER])
def test_an_unusable_label_csv_is_2_and_one_line(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "label.csv").write_text(content)
    assert main(["check", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mmfeat: ") and said.count("\n") == 1 and "label.csv" in said


def test_extract_with_an_unknown_recipe_or_setting_is_2(tmp_path, capsys):
    folder = corpus(tmp_path / "c", "v,1,hello,1,train", files=("1.mp4",))
    out = tmp_path / "f.h5"
    assert main(["extract", str(folder), "-o", str(out), "--recipe", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "vision: {extractor: facemesh}\naudio: {extractor: librosa, hop: 1}\ntext: {extractor: transformers}\n"
    )
    assert main(["extract", str(folder), "-o", str(out), "--recipe", str(recipe)]) == 2
    assert "hop" in capsys.readouterr().err
    assert not out.exists()


def test_extract_names_the_command_that_gets_a_missing_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MMFEAT_MODELS", str(tmp_path / "empty"))
    assert main(["clip", str(tmp_path / "gone.mp4"), "--text", "hello"]) != 0
    said = capsys.readouterr().err
    nets = "face_detection_short_range face_landmark iris_landmark"
    assert said.endswith(f"; get them with: mmfeat models pull {nets} all-MiniLM-L6-v2\n")  # all at once


def test_extract_of_broken_files_only_is_4_and_writes_nothing(tmp_path, capsys):
    folder = corpus(tmp_path / "c", "v,1,hello,1,train", "v,2,gone,1,train", files=("1.mp4",))
    out = tmp_path / "f.h5"
    assert main(["extract", str(folder), "-o", str(out), "--workers", "1"]) == 4
    assert not out.exists()


def test_extract_of_some_broken_files_is_3_and_info_tells_why(tmp_path, capsys):
    from tests.test_pipelines_extract import write_clip

    folder = corpus(tmp_path / "c", "v,1,hello there,1,train", "v,2,bye,-1,test", "v,3,bye,-1,test", files=("3.mp4",))
    write_clip(folder / "Raw" / "v" / "1.mp4", seed=0)
    out = tmp_path / "f.h5"
    arguments = ["extract", str(folder), "-o", str(out), "--workers", "1"]
    assert main(arguments) == 3
    assert "1 clip packed" in capsys.readouterr().out
    assert main(arguments) == 3
    assert "2 clips of 3 had been extracted before" in capsys.readouterr().out
    shards = [path for part in ("vision", "audio") for path in (tmp_path / "mmfeat-work").glob(f"{part}-*/*/*.npz")]
    for shard in shards:
        shard.write_bytes(shard.read_bytes()[:-200])
    assert main([*arguments, "--retry-failed"]) == 3, "what the disk has lost is made again"
    lines = map(json.loads, (tmp_path / "mmfeat-work" / "journal.jsonl").read_text().splitlines())
    tries = sum(line["event"] == "clip" and line["id"] == "v$_$3" for line in lines)
    assert tries == 2, "what failed is tried again once"
    said = capsys.readouterr()
    assert f"and {len(shards) - 1} more. That is done now." in said.err and "1 clip packed" in said.out
    with FeatureFile(out) as file:
        statuses = {clip.id: clip for clip in file.clips()}
        assert statuses["v$_$2"].reason.startswith("no file") and statuses["v$_$3"].status == "failed"

    assert main(["info", str(out), "--columns"]) == 0
    said = capsys.readouterr().out
    assert "unaligned" in said and "no file Raw/v/2" in said and statuses["v$_$3"].reason[:20] in said
    assert "facemesh" in said and "librosa" in said


def test_info_of_something_else_is_2(tmp_path, capsys):
    other = tmp_path / "x.h5"
    assert main(["info", str(other)]) == 2
    other.write_text("not HDF5")
    assert main(["info", str(other)]) == 2
    assert "not a readable HDF5 file" in capsys.readouterr().err


def test_models_list_and_pull_of_an_unknown_one(capsys):
    assert main(["models", "list"]) == 0
    assert "face_landmark" in capsys.readouterr().out
    assert main(["models", "pull", "nonsense"]) == 2
    assert "all-MiniLM-L6-v2" in capsys.readouterr().err


def test_doctor_says_what_is_missing_and_is_3(tmp_path, capsys, monkeypatch):
    assert main(["doctor"]) == 0
    assert "The default recipe can run." in capsys.readouterr().out
    monkeypatch.setenv("MMFEAT_MODELS", str(tmp_path))
    (tmp_path / "iris_landmark.tflite").write_bytes(b"half of it")
    assert main(["doctor"]) == 3
    said = capsys.readouterr().out
    assert "missing: mmfeat models pull face_landmark" in said and "damaged: mmfeat models pull iris_landmark" in said
    assert "cannot run" in said and "face_landmark iris_landmark all-MiniLM-L6-v2\n" in said


def test_align_prints_json(shared_data, capsys):
    clip = shared_data / "grid" / "Raw" / "bbaf2n" / "0001.mpg"
    assert main(["align", str(clip), "--text", "bin blue at f two now", "--json"]) == 0
    words = json.loads(capsys.readouterr().out)
    assert [word["word"] for word in words] == ["bin", "blue", "at", "f", "two", "now"]
    assert all(word["start"] < word["end"] for word in words)


def test_demo_refuses_a_folder_with_somebody_elses_corpus(tmp_path, capsys):
    folder = corpus(tmp_path / "c", "v,1,hello,1,train")
    assert main(["demo", str(folder), "--clips", "1"]) == 2
    assert (folder / "label.csv").read_text().startswith(HEADER)


def test_unexpected_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("mmfeat.corpus.load", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["check", "anything"])


def test_ctrl_c_is_130(monkeypatch, capsys):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmfeat.corpus.load", interrupt)
    assert main(["check", "anything"]) == 130
    assert "continues" in capsys.readouterr().err


def test_every_expected_error_exists():
    import importlib

    for name in exits._EXPECTED:
        module, _, kind = name.rpartition(".")
        error = getattr(importlib.import_module(module), kind)
        # Names are compared with where a class is defined, not with where it can be imported from.
        assert issubclass(error, Exception) and error.__module__ == module, name


def test_a_closed_pipe_is_no_error(tmp_path):
    folder = corpus(tmp_path / "c", *(f"v,{n},hello,1,train" for n in range(3000)))
    command = f"{sys.executable} -m pipelines.cli check {folder} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ, check=False)
    assert done.stderr == ""


def test_a_recipe_spelled_out_is_the_same_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.pull()
    assert main(["recipe"]) == 0
    printed = capsys.readouterr().out
    assert "# number of cepstral coefficients\n  n_mfcc: 20\n" in printed
    (tmp_path / "mine.yaml").write_text(printed, encoding="utf-8")
    assert load_recipe(tmp_path / "mine.yaml").fingerprints() == load_recipe("default").fingerprints()


def test_a_setting_that_does_not_exist_is_answered_with_those_that_do(tmp_path: Path, capsys) -> None:
    assert main(["recipe"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out.replace("n_mfcc", "n_mfc"), encoding="utf-8")
    assert main(["recipe", str(tmp_path / "mine.yaml")]) == 2
    said = capsys.readouterr().err
    assert "n_mfc: Extra inputs" in said and "n_mfcc, htk" in said
