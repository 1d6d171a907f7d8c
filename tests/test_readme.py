"""What the pages tell a reader to type works: every command line parses, every Python block runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cmc.cli import parser as cmc_parser
from mmfeat import models
from mmfeat.demo import make_demo
from pipelines.cli import parser as mmfeat_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARSERS = {"mmfeat": lambda arguments: mmfeat_parser(), "cmc": cmc_parser}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Lines of code blocks that call one of our commands."""
    found: dict[str, None] = {}
    for page in PAGES:
        for line in "\n".join(blocks(page, "")).splitlines():
            command = line.split("#")[0].strip()
            if re.match(r"(mmfeat|cmc) ", command):
                found[command] = None
    return list(found)


@pytest.mark.parametrize("command", commands())
def test_command_lines_parse(command: str) -> None:
    program, *arguments = shlex.split(re.sub(r"\$\{?\w+\}?", "0", command))
    try:
        PARSERS[program](arguments).parse_args(arguments)
    except SystemExit as error:
        pytest.fail(f"{command} is not understood (status {error.code})")


def test_there_are_commands_to_test() -> None:
    found = commands()
    assert any(line.startswith("mmfeat extract") for line in found) and any("cmc predict" in line for line in found)


def test_python_of_the_readme_runs(tmp_path: Path) -> None:
    """On a tiny demo corpus: extraction through Dask, training, evaluation, prediction, as a reader types it."""
    models.pull()
    demo = make_demo(tmp_path / "CORPUS", clips=12, workers=1)
    shutil.copy(next(demo.folder.glob("Raw/*/*.mp4")), tmp_path / "clip.mp4")
    for number, block in enumerate(blocks(ROOT / "README.md", "python")):
        script = tmp_path / f"block{number}.py"
        script.write_text(block, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, script.name],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "features.h5").is_file() and (tmp_path / "RUN" / "run.json").is_file()
