"""Random numbers as a pure function of what they are for: Philox (Salmon et al. 2011), counted, never advanced."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def uniforms(
    seed: int, purpose: int, step: int, start: int, count: int, width: int, attempt: int = 0
) -> NDArray[np.float64]:
    """(count, width) float64 in [0, 1): rows `start` to `start + count` of an endless table.

    The table is that of (seed, purpose, step, attempt); any slice of it has the same numbers, however it is cut.
    """
    blocks = -(-width // 4)  # Philox gives four 64-bit words a count
    counter = np.array([start * blocks, attempt, step, 0], np.uint64)
    bits = np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=counter)
    words = bits.random_raw(count * blocks * 4).reshape(count, blocks * 4)[:, :width]
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
