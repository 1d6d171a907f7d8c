"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips, recordings and reference values beside the checkout; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real test material is not at {SHARED}")
    return SHARED
