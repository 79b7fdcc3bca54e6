"""Fine texture, which tissue has at every density, pale, fatty or of single cells, and films on the glass have not."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.evidence.light import Light
from wsi_prep.tissue.picture import deviation, morphed, reduced, shrunk

_FINE_UM, _AROUND_UM = 24.0, 120.0
ENOUGH = 0.5
"""Of the surroundings of a pixel, how much has fine texture where there is tissue; at a straight edge it is half."""

_LEAST_TEXTURE, _SPREADS = 0.003, 6.0
"""Optical density that fine texture has at least, twice what JPEG makes of one level; and how far above the glass's."""

_RINGING, _RINGING_UM = 0.15, 200.0
"""Of the mean texture so far around, what JPEG leaves of it where there is none."""

_SOLID_UM, _RIM_UM = 48.0, 64.0
"""What JPEG rings around dense tissue is a rim thinner than twice this."""

_SMOOTH, _GREY, _GREY_SHARE = 0.2, 0.15, 0.35
"""Fine texture over density below which a part is smooth; and how grey it is at most then, of itself (the spread of the
channels over the strongest), and of how coloured the slide's tissue is."""

_GREYEST, _GREYEST_SHARE = 0.05, 0.15
"""The same of what may be textured: bubbles."""

_SEEN, _ALIKE_UM = 0.015, 32.0
_TEXTURED, _COLOURED_FROM = 0.25, 0.02


@dataclass(frozen=True)
class Texture:
    """Of each pixel's surroundings: the `share` that has fine texture, how strong that is `relative` to the density,
    how `coloured` (0 to 1) they are, and how `dense`.

    (h / step, w / step) float32 each; `mpp`: um of their pixels.
    """

    share: NDArray[np.float32]
    relative: NDArray[np.float32]
    coloured: NDArray[np.float32]
    dense: NDArray[np.float32]
    step: int
    mpp: float

    @classmethod
    def of(cls, light: Light, glass: BackgroundModel) -> Texture:
        """The texture of a picture that takes this light from this glass."""
        mpp, step = light.mpp, light.step
        fine = deviation(light.strongest, max(3, round(_FINE_UM / mpp) | 1))
        floor = max(_LEAST_TEXTURE, glass.noise_floor(fine, _SPREADS))
        around, wide = ((max(3, round(um / step / mpp) | 1),) * 2 for um in (_AROUND_UM, _RINGING_UM))
        mean_fine = reduced(fine, step)
        least = cv2.max(np.asarray(cv2.blur(mean_fine, wide)) * np.float32(_RINGING), floor)
        if step > 1:
            least = cv2.resize(least, fine.shape[::-1], interpolation=cv2.INTER_LINEAR)
        above = cv2.compare(fine, least, cv2.CMP_GT)
        del least, fine  # of a large slide each has tens of MB
        share = np.asarray(cv2.boxFilter(reduced(above, step), cv2.CV_32F, around), dtype=np.float32)
        del above
        share /= 255
        red, green, blue = (cv2.blur(channel, around) for channel in light.channels)
        dense, lowest = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
        del red, green, blue
        coloured = (dense - lowest) / np.maximum(dense, np.float32(1e-3))
        strength = cv2.blur(reduced(light.strongest, step), around)
        relative = np.asarray(cv2.blur(mean_fine, around), dtype=np.float32)
        relative /= np.maximum(strength, np.float32(1e-3))
        return cls(share, relative, coloured, np.asarray(dense, dtype=np.float32), step, step * mpp)

    def tissue(self, dense: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(h, w): where the surroundings are textured, without what is but a rim of `dense` (h, w) tissue."""
        textured = self.share > ENOUGH
        small = shrunk(dense, self.step)
        solid = morphed(small, cv2.MORPH_OPEN, _SOLID_UM / self.mpp)
        return enlarged(morphed(textured & ~solid, cv2.MORPH_OPEN, _RIM_UM / self.mpp), dense.shape)

    def films(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """(h, w) of that shape: what is grey where the slide's tissue is not: a coverslip's edge, bubbles, dirt.

        Thin and smooth films take little light, of all colours alike. Of a slide without colour nothing is.
        """
        tissue = (self.share > ENOUGH) & (self.relative > _TEXTURED) & (self.dense > _COLOURED_FROM)
        usual = float(np.median(self.coloured[tissue])) if tissue.any() else 0.0
        grey = self.coloured < min(_GREY, _GREY_SHARE * usual)
        greyest = self.coloured < min(_GREYEST, _GREYEST_SHARE * usual)
        film = (self.dense > _SEEN) & ((grey & (self.relative < _SMOOTH)) | greyest)
        return enlarged(morphed(film, cv2.MORPH_OPEN, _ALIKE_UM / self.mpp), shape)


def enlarged(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A reduced mask in the (h, w) that it was reduced from."""
    if not mask.any():
        return np.zeros(shape, bool)
    large = cv2.resize(mask.astype(np.uint8) * 255, shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(large > 127, dtype=np.bool_)
