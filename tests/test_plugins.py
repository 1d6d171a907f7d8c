"""Extractors of other distributions: the example of docs/extractors.md, installed and used, and broken ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mmfeat import clip, extractors, models, plugins
from mmfeat.layout import FeatureFile
from mmfeat.media import MediaError
from mmfeat.recipe import RecipeError, load_recipe
from mmfeat.registry import Config, Entry, MissingBackendError, Registry
from mmfeat.track import Track
from tests.media_files import stripes, tone, write_media

GROUP = "mmfeat.extractors"
DOCS = Path(__file__).resolve().parents[1] / "docs" / "extractors.md"
RECIPE = "vision: {extractor: brightness, gamma: 2}\naudio: {extractor: librosa}\ntext: {extractor: transformers}\n"


def install(folder: Path, name: str, points: dict[str, str], version: str = "1.0", **modules: str) -> None:
    """What pip leaves of a distribution: its modules, and dist-info with entry points."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    for module, code in modules.items():
        (folder / f"{module}.py").write_text(code)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose distributions are installed, here and in processes started from here."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    before = set(sys.modules)
    yield folder
    for module in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]


def registry(*names: str) -> Registry:
    entries = [Entry(name, "vision", f"no_such_module_{name}", "", "MIT") for name in names]
    return Registry("extractor", entries, GROUP, ("vision", "audio", "text"))


def plugin(name: str = "bright", modality: str = "vision", module: str = "{module}", extra: str = "") -> str:
    return f"from mmfeat.registry import Entry\nENTRY = Entry({name!r}, {modality!r}, {module!r}, '', 'MIT')\n{extra}"


def test_a_plugin_is_listed_without_importing_what_it_needs(site: Path) -> None:
    install(
        site,
        "mm-bright",
        {"bright": "bright_entry:ENTRY"},
        bright_entry=plugin(module="bright_heavy"),
        bright_heavy="1/0",
    )
    found = registry("facemesh")
    assert found.entries["bright"].distribution == "mm-bright 1.0" and not found.broken
    assert "bright_heavy" not in sys.modules
    with pytest.raises(MissingBackendError, match=r"'bright' of mm-bright 1.0 cannot be used: ZeroDivisionError"):
        found.find("bright")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import no_such_package", "No module named 'no_such_package'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("ENTRY = 3", "is no mmfeat.extractors.Entry but int"),
        ("", "has no attribute 'ENTRY'"),
        (plugin(name="other"), "is named 'other'"),
        (plugin(modality="smell"), "modality 'smell' is none of vision, audio, text"),
    ],
)
def test_a_broken_plugin_is_named_and_breaks_nothing_else(site: Path, code: str, says: str) -> None:
    install(site, "mm-bad", {"bright": "bad_entry:ENTRY"}, bad_entry=code)
    install(site, "mm-good", {"good": "good_entry:ENTRY"}, good_entry=plugin(name="good"))
    found = registry("facemesh")
    assert set(found.entries) == {"facemesh", "good"}
    assert set(found.broken) == {"bright"} and "mm-bad 1.0" in found.broken["bright"] and says in found.broken["bright"]
    with pytest.raises(MissingBackendError, match=r"mm-bad 1.0"):
        found.find("bright")


def test_packages_that_cannot_be_looked_for_are_missing(site: Path) -> None:
    """Of a submodule, Python imports the package, which may not be there, be no package, or be broken."""
    (site / "breaks.py").write_text("raise SystemExit(3)")
    needs = ("nosuch.sub", "numpy", "json.sub.sub", "breaks.sub", ".relative")
    entry = Entry("bright", "vision", "m", "", "MIT", needs, "pip install nosuch")
    assert entry.missing() == ["nosuch.sub", "json.sub.sub", "breaks.sub", ".relative"]
    with pytest.raises(MissingBackendError, match=r"'bright' needs nosuch.sub, .*: pip install nosuch"):
        Registry("extractor", [entry]).find("bright")


def test_a_module_that_registers_nothing_is_named(site: Path) -> None:
    install(site, "mm-empty", {"bright": "empty_entry:ENTRY"}, empty_entry=plugin(module="empty_entry"))
    with pytest.raises(MissingBackendError, match=r"mm-empty 1.0.*module empty_entry does not register 'bright'"):
        registry().find("bright")


def test_a_name_that_two_claim_can_be_used_from_neither(site: Path) -> None:
    install(site, "mm-a", {"bright": "a_entry:ENTRY"}, a_entry=plugin())
    install(site, "mm-b", {"bright": "b_entry:ENTRY", "librosa": "b_entry:ENTRY"}, b_entry=plugin())
    found = registry("librosa")
    with pytest.raises(MissingBackendError, match=r"'bright' is in both mm-a 1.0 and mm-b 1.0: uninstall one"):
        found.find("bright")
    with pytest.raises(MissingBackendError, match=r"'librosa' is in both mmfeat and mm-b 1.0: uninstall one"):
        found.find("librosa")


def test_recipes_say_what_is_wrong_with_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extractors.BROKEN, "facemesh", "extractor 'facemesh' is in both mmfeat and mm-b 1.0")
    with pytest.raises(RecipeError, match=r"in both mmfeat and mm-b 1.0"):
        load_recipe("default")


def test_who_brings_an_extractor_is_part_of_its_fingerprint_its_release_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Nothing(Config):
        """No settings."""

    def fingerprint(distribution: str) -> str:
        entry = Entry("of-test", "vision", __name__, "", "MIT", distribution=distribution)
        monkeypatch.setitem(extractors.ENTRIES, "of-test", entry)
        return load_recipe("default").changed(vision={"extractor": "of-test"}).fingerprints()["vision"]

    extractors.register("of-test", Nothing, version=1)(object)
    assert fingerprint("mm-a 1.0") == fingerprint("mm-a 1.1") != fingerprint("mm-b 1.0")


@pytest.mark.parametrize(
    ("answer", "says"),
    [(None, "returned NoneType, not a Track"), (Track.empty(("b",)), "returned 1 columns that are not its 2 names")],
)
def test_an_extractor_that_breaks_the_contract_is_named(answer: object, says: str, tmp_path: Path, monkeypatch) -> None:
    class Careless:
        names = ("a", "b")

        def __call__(self, frames: object) -> object:
            return answer

    path = write_media(tmp_path / "a.mp4", stripes(3))
    monkeypatch.setattr(clip, "loaded", lambda part, recipe: Careless() if part == "vision" else recipe.make(part))
    with pytest.raises(MediaError, match=f"Careless {says}"):
        clip.extract(path, "hello")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


class TestExampleOfTheDocs:
    @pytest.fixture
    def corpus(self, site: Path, tmp_path: Path) -> Path:
        (code,), (project,) = blocks("python"), blocks("toml")
        described = tomllib.loads(project)
        points = described["project"]["entry-points"][GROUP]
        (module,) = described["tool"]["setuptools"]["py-modules"]
        install(site, described["project"]["name"], points, described["project"]["version"], **{module: code})
        write_media(tmp_path / "corpus/Raw/v/1.mp4", stripes(5), sound=tone(0.2))
        (tmp_path / "corpus/label.csv").write_text("video_id,clip_id,text,label,mode\nv,1,hello,1,train\n")
        (tmp_path / "r.yaml").write_text(RECIPE)
        return tmp_path / "corpus"

    def mmfeat(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=DOCS.parents[1], timeout=240)

    def test_it_is_thirty_lines(self) -> None:
        (code,) = blocks("python")
        assert len(code.splitlines()) <= 30

    def test_it_runs_in_workers_and_is_listed(self, corpus: Path, tmp_path: Path) -> None:
        models.pull(["all-MiniLM-L6-v2"])
        out = tmp_path / "f.h5"
        done = self.mmfeat("extract", corpus, "-o", out, "--recipe", tmp_path / "r.yaml", "--workers", 1)
        assert done.returncode == 0, done.stderr
        with FeatureFile(out) as file:
            assert file.feature_names("vision") == ["brightness"]
            seen = file.read("train", "vision")[0, :, 0]
        np.testing.assert_allclose(seen, (np.arange(5) * 4 / 255) ** 2, atol=2e-3)
        listed = self.mmfeat("doctor").stdout
        assert "brightness" in listed and "mmfeat-brightness 1.0" in " ".join(listed.split())
        spelled_out = self.mmfeat("recipe", tmp_path / "r.yaml").stdout
        assert "exponent on the mean grey level" in spelled_out


def test_a_plugin_cannot_take_the_place_of_what_comes_with_mmfeat(site: Path) -> None:
    code = "from mmfeat.extractors import Config, register\nregister('librosa', Config, 1)(type('Mine', (), {}))\n"
    install(
        site,
        "mm-greedy",
        {"greedy": "greedy_entry:ENTRY"},
        greedy_entry=plugin("greedy", "audio", "greedy_heavy"),
        greedy_heavy=code,
    )
    script = (
        "from mmfeat.extractors import find\n"
        "try:\n    find('greedy')\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
        "print(find('librosa').make.__name__)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "MissingBackendError" in ran and "mm-greedy" in ran and "comes with mmfeat" in ran
    assert ran.splitlines()[-1] == "Librosa"


def test_a_plugin_that_hangs_when_it_is_imported_is_not_imported_for_others(site: Path) -> None:
    models.pull()
    install(site, "mm-slow", {"slow": "slow_entry:ENTRY"}, slow_entry="import time\ntime.sleep(600)\n")
    commands = (
        ["pipelines.cli", "--help"],
        ["pipelines.cli", "recipe", "sims"],
        ["pipelines.cli", "models", "list"],
        ["cmc.cli", "--help"],
    )
    for module, *arguments in commands:
        done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    script = (
        "import sys\nfrom mmfeat.recipe import load_recipe\n"
        "recipe = load_recipe('default')\nrecipe.check()\nrecipe.fingerprints()\nrecipe.resolved()\n"
        "assert 'slow_entry' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_what_is_waited_for_is_said(site: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    code = "import time\ntime.sleep(0.5)\n"
    entry = code + plugin("slow", module="slow_heavy")
    heavy = f"{code}from mmfeat.extractors import Config, register\nregister('slow', Config, 1)(type('A', (), {{}}))\n"
    install(site, "mm-slow", {"slow": "slow_entry:ENTRY"}, slow_entry=entry, slow_heavy=heavy)
    monkeypatch.setattr(plugins, "PATIENCE", 0.1)
    found = registry("facemesh")
    assert found.entry("facemesh") and found.entry("other") is None
    assert capfd.readouterr().err == ""
    slow = found.entry("slow")
    assert slow is not None and slow.distribution == "mm-slow 1.0" and found.entry("slow") is slow
    said = "mmfeat: extractor 'slow' of mm-slow 1.0: importing {} takes more than 0.1 s; uninstall what it belongs to"
    assert said.format("slow_entry") in capfd.readouterr().err
    extractors._registry._discover()
    monkeypatch.setitem(extractors.ENTRIES, "slow", slow)
    assert extractors.find("slow").version == 1
    assert said.format("slow_heavy") in capfd.readouterr().err
