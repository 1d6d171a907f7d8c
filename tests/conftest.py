"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
