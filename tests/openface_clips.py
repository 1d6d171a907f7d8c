"""Clips, corpora and recipes for the tests of openface2."""

from __future__ import annotations

import json
from pathlib import Path

from mmfeat.corpus import Clip
from mmfeat.layout import FeatureFile
from mmfeat.recipe import Recipe, load_recipe
from tests.media_files import tone, write_media
from tests.stand_in_openface import pictures

SMALL = ("pose", "au_intensity")


def recipe(**vision) -> Recipe:
    return load_recipe("default").changed(
        vision={"extractor": "openface2", "columns": list(SMALL), **vision},
        audio={"extractor": "librosa", "features": ["zero_crossing_rate"]},
        words=None,
    )


def clip_of(path: Path, **more) -> Clip:
    return Clip("v", path.stem, "test", path, "", 0.0, **more)


def film(path: Path, width: int = 64, count: int = 6, **more) -> Path:
    return write_media(path, pictures(count, width), **more)


def corpus(root: Path, sizes: dict[str, int]) -> Path:
    lines = ["video_id,clip_id,text,label,mode"]
    for number, (clip_id, width) in enumerate(sizes.items()):
        film(root / "Raw" / "v" / f"{clip_id}.mp4", width, sound=tone(0.24))
        lines.append(f"v,{clip_id},so good,{number % 2},{'test' if number == 1 else 'train'}")
    (root / "label.csv").write_text("\n".join(lines))
    return root


def write_recipe(path: Path, **vision) -> str:
    path.write_text(json.dumps(recipe(**vision).model_dump()))
    return str(path)


def statuses(out: Path) -> dict[str, tuple[str, str]]:
    with FeatureFile(out) as file:
        return {clip.id.removeprefix("v$_$"): (clip.status, clip.reason) for clip in file.clips()}
