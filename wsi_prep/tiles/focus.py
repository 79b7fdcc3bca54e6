"""How sharp a tile is, whatever its magnification and contrast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_prep.compute.compiled import compile_loop

ROW_STEP = 13
"""Every 13th row is looked at, which falls on each row of a JPEG's 8 px blocks in turn; all rows differ by 3 %."""

_REACH = 4


def focus(luma: NDArray[np.uint8]) -> float:
    """Sharpness of a tile by its brightness, (h, w) uint8, 0 to 1, no unit; higher is sharper.

    The energy of second differences between pixels 2 apart over that of pixels 4 apart, along and across: contrast
    cancels out, and so does a pale stain. What blur or enlarging takes away is mostly detail of 2 px, so the
    share falls; 1/16 is the end, where both differences see a parabola. White noise adds the same to both, and
    Immerkaer's mask (Comput Vis Image Underst 64, 1996), which sees hardly anything but noise, says how much to take
    off. The same tissue has less detail a pixel at 40x than at 5x: compare within one magnification.
    """
    sums = np.zeros(3)
    _loop()(luma, ROW_STEP, sums)
    pixels = len(range(_REACH, luma.shape[0] - _REACH, ROW_STEP)) * (luma.shape[1] - 2 * _REACH)
    fine, coarse, mask = sums.tolist()
    noise = mask / 3  # of a variance v, each mask has 36 v, and a pair of second differences 12 v
    fine = max(fine - noise, 0.0)
    return float(fine / (max(coarse - noise, fine) + pixels))


@functools.cache
def _loop() -> Callable[..., None]:
    """The loop over every `step`-th row: adds up squared differences 2 apart, 4 apart, and of the noise mask."""

    def loop(pixels: Any, step: int, sums: Any) -> None:  # pragma: no cover - compiled
        height, width = pixels.shape
        count = width - 8
        curved = np.empty(count + 2, np.float32)
        # each view begins at its own offset, so that all run along together
        for i in range(4, height - 4, step):
            row = pixels[i]
            above, below = pixels[i - 1][3:], pixels[i + 1][3:]
            above2, below2 = pixels[i - 2][4:], pixels[i + 2][4:]
            above4, below4 = pixels[i - 4][4:], pixels[i + 4][4:]
            left2, left1, centre, right2, right4 = row[2:], row[3:], row[4:], row[6:], row[8:]
            for j in range(count + 2):
                curved[j] = np.float32(2) * np.float32(left1[j]) - np.float32(above[j]) - np.float32(below[j])
            curved1, curved2 = curved[1:], curved[2:]
            fine = coarse = mask = np.float32(0)
            for j in range(count):
                twice = np.float32(2) * np.float32(centre[j])
                along = twice - np.float32(left2[j]) - np.float32(right2[j])
                across = twice - np.float32(above2[j]) - np.float32(below2[j])
                fine += along * along + across * across
                along = twice - np.float32(row[j]) - np.float32(right4[j])
                across = twice - np.float32(above4[j]) - np.float32(below4[j])
                coarse += along * along + across * across
                noise = np.float32(2) * curved1[j] - curved[j] - curved2[j]
                mask += noise * noise
            sums[0] += fine
            sums[1] += coarse
            sums[2] += mask

    return compile_loop(loop, reorder=True)
