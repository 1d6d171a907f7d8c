"""torchvision where its compiled operators do not fit torch's build: CPU torch from one index, it from another.

It cannot even be imported then. Of its operators, the backends here call only non-maximum suppression.
"""

from __future__ import annotations

import sys
from typing import Any


def import_torchvision() -> None:
    """Import it; where its own operators cannot be loaded, with ours instead."""
    import torch

    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):  # the two that it declares more of when it is imported
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", signature)
        torch.library.impl("torchvision::nms", "CPU", nms)
        import torchvision
        import torchvision.extension

        torchvision.extension._has_ops = lambda: True


def nms(boxes: Any, scores: Any, threshold: float) -> Any:
    """Indices of the boxes (N, 4) that overlap none of higher score by more than `threshold`, best first."""
    import torch

    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    left = scores.argsort(descending=True, stable=True)
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low, high = torch.maximum(boxes[best, :2], boxes[left, :2]), torch.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        left = left[shared <= threshold * (areas[best] + areas[left] - shared)]
    return torch.stack(kept) if kept else left
