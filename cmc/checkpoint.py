"""Weights by the published code's names, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from cmc.config import MODALITIES

_SHORT = {"text": "l", "audio": "a", "vision": "v"}
_LONG = {short: modality for modality, short in _SHORT.items()}
_EXPERTS = {str(k): modality for k, modality in enumerate(MODALITIES)}
_HEAD = ("proj1", "proj2", "out_layer")


def from_reference(weights: Mapping[str, Tensor], modality: str | None = None) -> dict[str, Tensor]:
    """A published state dict under our names.

    Args:
        weights: state dict of the published code.
        modality: of a unimodal model; None for the multimodal one.

    Raises KeyError for a name that the published code does not use.
    """
    return {_ours(name, modality): tensor for name, tensor in weights.items()}


def to_reference(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a Unimodal or Multimodal model under the published names."""
    return {_theirs(name, weights): tensor for name, tensor in weights.items()}


def _ours(name: str, modality: str | None) -> str:
    if name.startswith("router.linear."):
        return name
    first, _, rest = name.partition(".")
    if modality is not None and first in _HEAD:
        return f"head.{name}"
    if modality is None and first.endswith("s") and first[:-1] in _HEAD:
        expert, _, rest = rest.partition(".")
        if expert not in _EXPERTS:
            raise KeyError(f"{name!r} is of an expert that the published CMC models do not have: 0 to 2")
        return f"heads.{_EXPERTS[expert]}.{first[:-1]}.{rest}"
    if first == "text_model":
        return f"{_branch('text', modality)}.{name}"
    part, _, short = first.rpartition("_")
    if part not in ("norm", "proj", "encoder") or short not in _LONG:
        raise KeyError(f"{name!r} is not a weight of the published CMC models")
    return f"{_branch(_LONG[short], modality)}.{part}.{rest}"


def _branch(of: str, modality: str | None) -> str:
    return f"branches.{of}" if modality is None else "branch"


def _theirs(name: str, weights: Mapping[str, Tensor]) -> str:
    if name.startswith("router."):
        return name
    if name.startswith("head."):
        return name.removeprefix("head.")
    if match := re.match(r"heads\.(\w+)\.(\w+)\.(\w+)$", name):
        modality, part, rest = match.groups()
        return f"{part}s.{MODALITIES.index(modality)}.{rest}"
    if match := re.match(r"branches\.(\w+)\.(.+)$", name):
        return _branch_name(match[1], match[2])
    # A unimodal text model is the one without batch norm; audio and vision cannot be told apart by name alone.
    raise KeyError(f"{name!r}: name the modality of a unimodal model's weights")


def _branch_name(modality: str, rest: str) -> str:
    part, _, tail = rest.partition(".")
    return rest if part == "text_model" else f"{part}_{_SHORT[modality]}.{tail}"
