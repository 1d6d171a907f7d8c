"""mmfeat: videos in, aligned multimodal features out.

>>> import mmfeat
>>> features = mmfeat.extract("clip.mp4", text="what a lovely day")
>>> features.vision.names, features.vision.times, features.vision.values

Imports are lazy, so that importing the package, and every command's `--help`, takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "extract": "mmfeat.clip",
    "ClipFeatures": "mmfeat.clip",
    "load_corpus": "mmfeat.corpus",
    "load_recipe": "mmfeat.recipe",
    "Recipe": "mmfeat.recipe",
    "FeatureFile": "mmfeat.layout",
    "Track": "mmfeat.track",
}
__all__ = ["ClipFeatures", "FeatureFile", "Recipe", "Track", "__version__", "extract", "load_corpus", "load_recipe"]

if TYPE_CHECKING:
    from mmfeat.clip import ClipFeatures, extract
    from mmfeat.corpus import load as load_corpus
    from mmfeat.layout import FeatureFile
    from mmfeat.recipe import Recipe, load_recipe
    from mmfeat.track import Track


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'mmfeat' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), "load" if name == "load_corpus" else name)
