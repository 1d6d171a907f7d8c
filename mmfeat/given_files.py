"""Files made earlier by other means, from which a part's result is taken: where a clip's lies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mmfeat.corpus import Clip

FIELDS = ("video_id", "clip_id", "media")


def checked_folder(folder: str | None) -> str | None:
    """The folder itself. Raises ValueError where it leads out of the corpus without being absolute."""
    if folder is not None and ".." in Path(folder).parts:
        raise ValueError(f"{folder!r} leads out of the corpus: give an absolute path")
    return folder


def fields_of(template: str, known: Sequence[str]) -> list[str]:
    """The {fields} in a template. Raises ValueError for one that is not known, and for a brace that belongs to none."""
    fields = re.findall(r"\{(\w*)\}", template)
    there = f"there are {', '.join(f'{{{name}}}' for name in known)}"
    if unknown := [name for name in fields if name not in known]:
        raise ValueError(f"{{{unknown[0]}}} is unknown; {there}")
    if brace := re.search(r"[{}]", re.sub(r"\{\w*\}", "", template)):
        raise ValueError(f"a {brace[0]} in {template!r} belongs to no field; {there}")
    return fields


def checked_pattern(pattern: str) -> str:
    """The pattern itself. Raises ValueError for a field that does not exist, and where it leads out of the folder."""
    fields_of(pattern, FIELDS)
    if ".." in Path(pattern).parts or Path(pattern).is_absolute():
        raise ValueError(f"{pattern!r} leads out of the folder")
    return pattern


def given_file(folder: str | None, pattern: str, clip: Clip) -> Path:
    """The file of a clip below `folder`, or without one beside its media file; absolute, and it may not exist.

    A folder that is not absolute lies in the corpus, or for a single file where the command runs. A clip's ids are
    each one component of a path (see `corpus`), so no clip leads out of it.
    """
    assert clip.path is not None
    values = {"video_id": clip.video_id, "clip_id": clip.clip_id, "media": clip.path.stem}
    name = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], pattern)
    base = (clip.root or Path()) / Path(folder).expanduser() if folder else clip.path.parent
    return (base / name).absolute()
