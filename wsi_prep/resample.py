"""Area-mean resampling: each output pixel is the mean of exactly the source area that it covers."""

from __future__ import annotations

import cv2
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

_STRIP = 64
"""Output rows made at a time: their float copies fit the processor's cache."""


def halve(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 to (h / 2, w / 2, 3) uint8: the mean of each 2 x 2 block, rounded. h and w must be even."""
    return reduce_by(image, 2)


def reduce_by(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 to (h / factor, w / factor, 3): the mean of each block, rounded. Sides must be multiples."""
    height, width = image.shape[:2]
    if height % factor or width % factor:
        raise ValueError(f"{height} x {width} px is no multiple of {factor}")
    if factor == 1:
        return image
    size = (width // factor, height // factor)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def area_resample(
    source: NDArray[np.uint8],
    start_x: NDArray[np.float64],
    start_y: NDArray[np.float64],
    step_x: float,
    step_y: float,
) -> NDArray[np.uint8]:
    """Area mean on a grid that need not meet the source's pixels, (len(start_y), len(start_x), 3) uint8.

    Output pixel (i, j) covers source rows `start_y[i]` to `start_y[i] + step_y`, and columns likewise, in source pixels
    from the corner of `source`, which must hold all of it. Steps are >= 1; starts ascend.
    """
    rows = _weights(start_y, step_y, source.shape[0])
    cols = _weights(start_x, step_x, source.shape[1])
    out = np.empty((len(start_y), len(start_x), 3), np.uint8)
    for top in range(0, len(start_y), _STRIP):
        strip = rows[top : top + _STRIP]
        used = slice(int(strip.indices.min()), int(strip.indices.max()) + 1)
        pixels = source[used].reshape(used.stop - used.start, -1).astype(np.float32)
        tall = (strip[:, used] @ pixels).reshape(strip.shape[0], source.shape[1], 3)
        turned = cv2.transpose(tall).reshape(source.shape[1], -1)
        wide = (cols @ turned).reshape(len(start_x), strip.shape[0], 3)
        out[top : top + _STRIP] = cv2.transpose(cv2.convertScaleAbs(wide))  # rounded; nothing is below 0
    return out


def _weights(start: NDArray[np.float64], step: float, length: int) -> scipy.sparse.csr_array:
    """(len(start), length) matrix: row i holds the share of each source pixel in output pixel i; rows sum to 1."""
    first = np.floor(start + 1e-9).astype(np.int64)
    taps = int(np.ceil(step)) + 1
    pixels = first[:, None] + np.arange(taps)
    share = np.minimum(start[:, None] + step, pixels + 1) - np.maximum(start[:, None], pixels)
    share = np.where(share > 1e-9, share, 0.0) / step
    rows = np.repeat(np.arange(len(start)), taps)
    pixels = np.minimum(pixels, length - 1).ravel()
    matrix = scipy.sparse.csr_array((share.ravel().astype(np.float32), (rows, pixels)), shape=(len(start), length))
    matrix.eliminate_zeros()
    return matrix
