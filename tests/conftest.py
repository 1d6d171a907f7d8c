"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from mmfeat.demo.face import Face
    from mmfeat.extractors.face_nets import FaceNets

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips, recordings and reference values beside the checkout; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real test material is not at {SHARED}")
    return SHARED


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of torch: the last digits of weights depend on their number."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def nets() -> FaceNets:
    """The face models, pulled where they are not there."""
    from mmfeat import models, voice
    from mmfeat.extractors.face_nets import NETS, FaceNets

    models.pull((*NETS, voice.MODEL))
    return FaceNets()


@pytest.fixture(scope="module")
def cast() -> list[Face]:
    """A man and two women, drawn."""
    from mmfeat.demo.face import Face, random_identity

    return [Face(random_identity(np.random.default_rng(seed), female=seed > 1)) for seed in (1, 2, 5)]
