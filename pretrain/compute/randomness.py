"""Random numbers as a pure function of what they are for: Philox (Salmon et al. 2011), counted, never advanced."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What random numbers are for: each has numbers of its own. Their values are part of what a run computes."""

    DRAW = 1
    REPLACE = 2
    GLOBAL_CROPS = 3
    LOCAL_CROPS = 4
    GLOBAL_COLOUR = 5
    LOCAL_COLOUR = 6
    MASK = 7
    DROP_PATH = 8
    MASK_OFFSET = 9
    TASK_LIMIT = 10
    TASK_GROUPS = 11
    PICTURE = 12
    BOOTSTRAP = 13
    EPISODE = 14
    CONFOUNDED = 15
    BAG = 16
    PATCHES = 17
    ANY_MPP = 18
    MPP_TOLD = 19


def uniforms(seed: int, purpose: Purpose, step: int, rows: range, width: int, attempt: int = 0) -> NDArray[np.float64]:
    """(len(rows), width) float64 in [0, 1): these rows, one after another, of an endless table.

    The table is that of (seed, purpose, step, attempt); any slice of it has the same numbers, however it is cut.
    """
    blocks = -(-width // 4)  # Philox gives four 64-bit words a count
    counter = np.array([rows.start * blocks, attempt, step, 0], np.uint64)
    bits = np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=counter)
    words = bits.random_raw(len(rows) * blocks * 4).reshape(len(rows), blocks * 4)[:, :width]
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class Places:
    """Where some tiles stand in a run with this seed: `position` (B,) int64, their places in the step's global batch.

    What is drawn for a tile is counted by its place, and so the same however the batch is shared out.
    """

    seed: int
    step: int
    position: NDArray[np.int64]

    def uniforms(self, purpose: Purpose, width: int) -> NDArray[np.float64]:
        """(B, width) float64 in [0, 1): a row for each tile."""
        first = int(self.position.min())
        table = uniforms(self.seed, purpose, self.step, range(first, int(self.position.max()) + 1), width)
        return table[self.position - first]
