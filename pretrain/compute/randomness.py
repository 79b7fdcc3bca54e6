"""Random numbers as a pure function of what they are for: Philox (Salmon et al. 2011), counted, never advanced."""

from __future__ import annotations

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


def uniforms(
    seed: int, purpose: Purpose, step: int, start: int, count: int, width: int, attempt: int = 0
) -> NDArray[np.float64]:
    """(count, width) float64 in [0, 1): rows `start` to `start + count` of an endless table.

    The table is that of (seed, purpose, step, attempt); any slice of it has the same numbers, however it is cut.
    """
    blocks = -(-width // 4)  # Philox gives four 64-bit words a count
    counter = np.array([start * blocks, attempt, step, 0], np.uint64)
    bits = np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=counter)
    words = bits.random_raw(count * blocks * 4).reshape(count, blocks * 4)[:, :width]
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
