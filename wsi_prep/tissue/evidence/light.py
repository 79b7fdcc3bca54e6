"""How much light a slide's picture takes from its glass, as far as the finding of tissue wants to know."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.picture import bands, reduced

_COARSE_MPP = 12.0


@dataclass(frozen=True)
class Light:
    """Optical density of a picture of `mpp` um a pixel: the `strongest` of the three channels, (h, w) float32, and all
    `channels`, three of (h / step, w / step): the means of `step` x `step` pixels, 1 where the picture is coarse.
    """

    strongest: NDArray[np.float32]
    channels: tuple[NDArray[np.float32], ...]
    step: int
    mpp: float

    @classmethod
    def of(cls, picture: NDArray[np.uint8], glass: BackgroundModel, hidden: NDArray[np.bool_], mpp: float) -> Light:
        """The light that an (h, w, 3) picture takes from `glass`, none where it is `hidden`; some rows at a time."""
        height, width = picture.shape[:2]
        step = 2 if mpp < _COARSE_MPP else 1
        strongest = np.empty((height, width), np.float32)
        small = [np.empty((max(1, height // step), max(1, width // step)), np.float32) for _ in range(3)]
        covered = bool(hidden.any())
        for rows in bands(height):
            channels = glass.channels(picture, rows)
            for channel, whole in zip(channels, small, strict=True):
                if covered:
                    channel[hidden[rows]] = 0.0
                part = reduced(channel, step)
                into = whole[rows.start // step :][: len(part)]
                into[:] = part[: len(into)]
            cv2.max(cv2.max(channels[0], channels[1]), channels[2], dst=strongest[rows])
        return cls(strongest, tuple(small), step, mpp)
