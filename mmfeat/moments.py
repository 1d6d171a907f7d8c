"""Statistics of more rows than memory holds: each part is merged into them and forgotten (Chan et al. 1979)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class Moments:
    """Mean and standard deviation per column of rows that come in parts."""

    count: int = 0
    mean: NDArray[np.float64] | float = 0.0
    squares: NDArray[np.float64] | float = 0.0

    def add(self, rows: NDArray[np.float32]) -> None:
        """Rows of shape (any, D)."""
        if len(rows):
            values = rows.astype(np.float64)
            mean = values.mean(axis=0)
            values -= mean
            # In one pass, without an array of squares.
            self.merge(Moments(len(values), mean, np.einsum("ij,ij->j", values, values)))

    def merge(self, other: Moments) -> None:
        """Those of other rows."""
        if not other.count:
            return
        total = self.count + other.count
        shift = other.mean - self.mean
        self.squares = self.squares + other.squares + shift**2 * (self.count * other.count / total)
        self.mean = self.mean + shift * (other.count / total)
        self.count = total

    def result(self, columns: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Each of shape (D,); 0 and 1 where there were no rows."""
        if not self.count:
            return np.zeros(columns, np.float32), np.ones(columns, np.float32)
        return np.asarray(self.mean, np.float32), np.sqrt(self.squares / self.count).astype(np.float32)
