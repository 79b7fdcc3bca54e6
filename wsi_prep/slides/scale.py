"""How many micrometres a level-0 pixel covers, and who says so."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from wsi_prep.errors import BadOption, ImplausibleMpp, MissingMpp, TooCoarse
from wsi_prep.slides.base import SlideInfo

MPP_LIMITS = (0.05, 40.0)
"""Plausible um/px of a level-0 pixel: beyond them a value is a mistake (72 dpi, a zero, a unit mixed up)."""

_UM_PER_INCH = 25400.0
_SCALE_TEXT = re.compile(r"[\w .,=+/\N{MICRO SIGN}-]{1,80}")

_POWERS = frozenset({10, 20, 40, 60, 63, 100})
"""Of objectives that scan slides. As um/px they are no slide's, and the lower ones are coarser than any magnification:
such a number was written where the power should stand.
"""

_UM_PER_PIXEL = "write um per pixel, as in 0.25"

DISAGREEMENT = 0.05
"""Relative difference between manifest and file above which the row carries a warning."""


@dataclass(frozen=True)
class Scale:
    """um per level-0 px; `source` is "manifest", "openslide", "vendor", "tiff-resolution" or "assumed"."""

    mpp_x: float
    mpp_y: float
    source: str
    warning: str = ""


def resolve_scale(info: SlideInfo, manifest_mpp: float | None, assumed_mpp: float | None) -> Scale:
    """The scale of a slide: the manifest's value, else the file's, else what the user chose to assume.

    Objective power is never taken for it. Raises ImplausibleMpp for a value outside `MPP_LIMITS`, TooCoarse for one
    within them that can only be an objective's power, and MissingMpp where nothing states one, or what does is not
    understood.
    """
    if manifest_mpp is not None:
        _require_plausible(manifest_mpp, "the manifest's mpp", "correct the manifest")
        return Scale(manifest_mpp, manifest_mpp, "manifest", _disagreement(info, manifest_mpp))
    if info.mpp_x is not None and info.mpp_y is not None and info.mpp_source is not None:
        guess = info.mpp_source == "tiff-resolution" and not (is_plausible(info.mpp_x) and is_plausible(info.mpp_y))
        if not guess:  # a resolution meant for printers says nothing; a scanner's own wrong value is an error
            for value in (info.mpp_x, info.mpp_y):
                _require_plausible(value, "the file's mpp", "give the right mpp in the manifest")
            return Scale(info.mpp_x, info.mpp_y, info.mpp_source, _passed_over(info))
    if assumed_mpp is not None:
        return Scale(assumed_mpp, assumed_mpp, "assumed")
    remedy = "give the slide's mpp in the manifest, or ASSUME_MPP"
    if info.mpp_stated:
        raise MissingMpp(f"the file's scale, {quoted(info.mpp_stated)}, is not understood; {remedy}")
    if info.mpp_x is not None and info.mpp_y is not None:  # a resolution meant for printers
        dpi = _UM_PER_INCH / info.mpp_x if info.mpp_x else math.inf
        raise ImplausibleMpp(
            f"the file's only scale is a TIFF resolution of {info.mpp_x:g} um/px ({dpi:.0f} dpi), "
            f"not between {MPP_LIMITS[0]} and {MPP_LIMITS[1]:g}; {remedy}"
        )
    raise MissingMpp(f"no micron-per-pixel value in the file; {remedy}")


def quoted(stated: str) -> str:
    """What a file says of its scale, as it may stand in the output: short, and nothing but what scales are made of."""
    return f"'{stated}'" if _SCALE_TEXT.fullmatch(stated) else "a text"


def _passed_over(info: SlideInfo) -> str:
    if not info.mpp_stated:
        return ""
    return f"the file's scale {quoted(info.mpp_stated)} is not understood, {info.mpp_x:g} of {info.mpp_source} was used"


def check_assumed_mpp(value: float) -> float:
    """`value`, or BadOption where it is no plausible um/px."""
    if value in _POWERS:
        raise BadOption(f"assumed mpp {value:g} looks like an objective's power; {_UM_PER_PIXEL}")
    if not is_plausible(value):
        raise BadOption(f"assumed mpp {value:g} is not between {MPP_LIMITS[0]} and {MPP_LIMITS[1]:g} um/px")
    return value


def is_plausible(mpp: float) -> bool:
    """Whether it may be the um/px of a slide."""
    return math.isfinite(mpp) and MPP_LIMITS[0] <= mpp <= MPP_LIMITS[1]


def _require_plausible(mpp: float, what: str, remedy: str) -> None:
    if mpp in _POWERS:
        error = TooCoarse if is_plausible(mpp) else ImplausibleMpp
        raise error(f"{what} {mpp:g} looks like an objective's power; {remedy}: {_UM_PER_PIXEL}")
    if not is_plausible(mpp):
        low, high = MPP_LIMITS
        raise ImplausibleMpp(f"{what} is {mpp:g}, not between {low} and {high:g} um/px; {remedy}")


def _disagreement(info: SlideInfo, manifest_mpp: float) -> str:
    stated = info.mpp_x, info.mpp_y
    off = [
        mpp is not None and is_plausible(mpp) and abs(mpp - manifest_mpp) > DISAGREEMENT * manifest_mpp
        for mpp in stated
    ]
    if not any(off):
        return ""
    said = " x ".join(dict.fromkeys(f"{mpp:g}" for mpp in stated if mpp is not None))
    both = " both across and down" if " x " in said else ""
    return f"the manifest's mpp {manifest_mpp:g} was used{both}, the file says {said} ({info.mpp_source})"
