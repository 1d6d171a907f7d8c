"""Whether a model file is whole, told from its size and its first and last bytes: nothing is loaded. And its sha256."""

from __future__ import annotations

import functools
import hashlib
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

_LFS = b"version https://git-lfs"
_ZIP, _GZIP, _PICKLE = b"PK", b"\x1f\x8b", b"\x80"
_LOADED = (
    "config.json",
    "generation_config.json",
    "*processor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "normalizer.json",
    "*.index.json",
)
"""The JSON files of a model's folder that transformers loads; what others leave beside them may be anything."""
_LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, as its own library has it."""


def damage(path: Path) -> str:
    """What is wrong with a file, such as `is empty`; empty where nothing shows.

    A file of a kind that is not known here is only asked to hold something. Raises OSError.
    """
    size = path.stat().st_size
    if not size:
        return "is empty"
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(_LFS):
        return "is a pointer of git-lfs, not the file itself (git lfs pull)"
    match path.suffix.lower():
        case ".safetensors":
            return _damage_of_safetensors(path, size)
        case ".json":
            return _damage_of_json(path)
        case ".zip" | ".task":
            return _damage_of_zip(path)
        case ".bin" | ".pt" | ".pth" if head.startswith(_ZIP):
            return _damage_of_zip(path)
        case ".bin" | ".pt" | ".pth" if path.suffix != ".bin" or path.name.startswith("pytorch_model"):
            # torch wrote plain pickles until 1.6; other makers' .bin files may hold anything.
            return "" if head.startswith(_PICKLE) else "is no file of torch's"
        case ".gz":
            return "" if head.startswith(_GZIP) else "is no gzip file"
    return ""


def damage_of_folder(folder: Path, files: Iterable[Path], weights: Iterable[str]) -> str:
    """The same of a transformers model, with the path: `files` are loaded of it, those like `weights` hold its weights.

    Raises OSError.
    """
    files = [file for file in files if file.suffix != ".json" or any(map(file.match, _LOADED))]
    if not any(file.match(pattern) for file in files for pattern in weights):
        return f"{folder} holds no weights ({' or '.join(weights)})"
    for file in files:
        if found := damage(file):
            return f"{file} {found}"
    for index in (file for file in files if file.name.endswith(".index.json")):
        kind = Path(index.name.removesuffix(".index.json")).suffix
        if not any(file.suffix == kind for file in files):
            continue  # of the format that is not loaded
        try:
            parts = set(map(str, json.loads(index.read_bytes())["weight_map"].values()))
        except (KeyError, TypeError, AttributeError):
            return f"{index} is no index of weights"
        if missing := sorted(name for name in parts if not (folder / name).is_file()):
            return f"{folder / missing[0]} is missing, which {index.name} names"
    return ""


def sha256(path: Path) -> str:
    """Of a file's content, read once per process (1 GB in about a second). Raises OSError."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage_of_safetensors(path: Path, size: int) -> str:
    """8 bytes that hold the header's length, a header of JSON, and tensors, whose last ends where the file does."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            return "is cut off, or no safetensors file"
        header = file.read(length)
    try:
        tensors = {name: tensor for name, tensor in json.loads(header).items() if name != "__metadata__"}
        stated = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return "has no header of a safetensors file"
    return "" if size == stated else f"has {size} bytes, not the {stated} that its header states"


def _damage_of_json(path: Path) -> str:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return f"is no JSON ({error})"
    return ""


def _damage_of_zip(path: Path) -> str:
    return "" if zipfile.is_zipfile(path) else "is cut off, or no zip archive"
