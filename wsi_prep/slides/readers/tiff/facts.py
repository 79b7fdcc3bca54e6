"""What a tiled TIFF says of its slide: scale, scanner, objective, colour profile."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from wsi_prep.slides.base import WHITE, Level, SlideInfo, parse_colour
from wsi_prep.slides.readers.tags import parse_number, parse_objective, vendor_and_scanner
from wsi_prep.slides.readers.tiff.ome import read_microscope
from wsi_prep.slides.readers.tiff.slide import Pyramid
from wsi_prep.slides.scale import is_plausible

_UM_PER_UNIT = {2: 25400.0, 3: 10000.0, 4: 1000.0, 5: 1.0}
"""Of TIFF's resolution units, by their codes: inch, centimetre, and the later millimetre and micrometre."""

_UNIT_NAMES = {2: "inch", 3: "cm", 4: "mm", 5: "um"}
_APERIO_MPP = re.compile(r"\|\s*MPP\s*=\s*([^|\r\n]*)")
_PROFILE_DIGITS, _PROFILE_HEADER = 16, 128

OTHERS_SCALE = "the file's scale is another picture's"
DAMAGED_PROFILE = "the file's colour profile is damaged and was not used"


def describe(tiff: Any, properties: Mapping[str, Any], pyramid: Pyramid) -> SlideInfo:
    """The slide's facts; `properties` are tiffslide's, where it has some."""
    page = pyramid.levels[0].page
    scale = _scale(tiff, page, pyramid)
    mpp = scale.mpp
    mark, damaged = _icc_profile(tiff, page)
    width0 = pyramid.levels[0].width
    vendor, scanner = vendor_and_scanner(*_format_and_tags(tiff, properties, page))
    return SlideInfo(
        reader="tiff",
        vendor=vendor,
        scanner=scanner,
        mpp_x=mpp[0] if mpp else None,
        mpp_y=mpp[1] if mpp else None,
        mpp_source=scale.source,
        objective=parse_objective(properties.get("tiffslide.objective-power")),
        levels=tuple(Level(level.width, level.height, width0 / level.width) for level in pyramid.levels),
        background=parse_colour(properties.get("tiffslide.background-color")),
        mpp_stated=scale.stated,
        icc_profile=mark,
        tile_px=max(pyramid.levels[0].tile_width, pyramid.levels[0].tile_height),
        filling=WHITE if pyramid.levels[0].lacks_tiles else None,
        notes=(*pyramid.notes, *filter(None, (scale.note, damaged))),
    )


@dataclass(frozen=True)
class _Scale:
    """um/px in x and y and where it stands; what stands there but is not understood; and what the row says of it."""

    mpp: tuple[float, float] | None = None
    source: str | None = None
    stated: str = ""
    note: str = ""


def _scale(tiff: Any, page: Any, pyramid: Pyramid) -> _Scale:
    """The slide's scale. The vendor's own tags come before TIFF's resolution tags."""
    vendor = _Scale()
    if pyramid.image is not None:
        vendor = _Scale(pyramid.image.mpp, "vendor", pyramid.image.stated)
    elif tiff.is_svs:
        vendor = _aperio_scale(tiff, page, pyramid.finer)
    if vendor.mpp is not None:
        return replace(vendor, stated="")
    found = [_resolution(plane) for plane, _ in pyramid.levels[0].planes]  # writers may tag the first channel's alone
    mpp, resolution = next((one for one in found if one[0] is not None), found[0])
    own = _Scale(mpp, "tiff-resolution" if mpp else None, vendor.stated if mpp else vendor.stated or resolution)
    for finer in pyramid.finer:
        theirs, _ = _resolution(finer)
        if theirs is not None and mpp in (None, theirs) and all(map(is_plausible, theirs)):
            return _in_proportion(replace(own, mpp=theirs, source="tiff-resolution"), finer, page)
    return own


def _aperio_scale(tiff: Any, page: Any, finer: Sequence[Any]) -> _Scale:
    """The scale by Aperio's MPP, of the slide's own page, a finer one, or the file's first if that has its size."""
    text = _aperio_mpp(page)
    for other in finer:
        if (theirs := _aperio_mpp(other)) and text in ("", theirs):
            return _in_proportion(_aperio(theirs), other, page)
    first = tiff.pages[0]
    if text or not (theirs := _aperio_mpp(first)):
        return _aperio(text)
    return _aperio(theirs) if _sides(first) == _sides(page) else _Scale(stated=f"MPP = {theirs} of another picture")


def _aperio(text: str) -> _Scale:
    value = parse_number(text)
    return _Scale((value, value) if value is not None else None, "vendor", f"MPP = {text}" if text else "")


def _in_proportion(scale: _Scale, other: Any, page: Any) -> _Scale:
    """The scale of a page, by that of another one which has its proportions."""
    if scale.mpp is None or _sides(other) == _sides(page):
        return scale
    (width, height), sides = _sides(other), _sides(page)
    mpp = scale.mpp[0] * width / sides[0], scale.mpp[1] * width / sides[0]
    note = (
        f"{OTHERS_SCALE}: by {scale.mpp[0]:g} um/px for that of {width} x {height} px, "
        f"{mpp[0]:g} was used for this one of {sides[0]} x {sides[1]} px"
    )
    return replace(scale, mpp=mpp, note=note)


def _sides(page: Any) -> tuple[int, int]:
    return int(page.imagewidth), int(page.imagelength)


def _aperio_mpp(page: Any) -> str:
    """The text of Aperio's MPP, empty where there is none."""
    found = _APERIO_MPP.search(str(page.description))
    return found[1].strip() if found else ""


def _resolution(page: Any) -> tuple[tuple[float, float] | None, str]:
    """um/px by TIFF's resolution tags, and these tags as a person reads them."""
    tags = page.tags
    if not all(name in tags for name in ("XResolution", "YResolution")):
        return None, ""
    try:
        per_unit = [float(Fraction(*tags[name].value)) for name in ("XResolution", "YResolution")]
        unit = int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2  # the default of TIFF 6.0
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None, ""
    if unit not in _UM_PER_UNIT:  # a ratio of the sides, and 1 where nobody knew
        return None, "" if per_unit == [1.0, 1.0] else f"a TIFF resolution of {per_unit[0]:g} per no unit"
    if not all(value > 0 for value in per_unit):
        return None, f"a TIFF resolution of {per_unit[0]:g} per {_UNIT_NAMES[unit]}"
    x, y = (_UM_PER_UNIT[unit] / value for value in per_unit)
    return (x, y), ""


def _icc_profile(tiff: Any, page: Any) -> tuple[str | None, str]:
    """A mark of the ICC profile that the slide's page, or the file's first, carries; and what is wrong with it."""
    for one in (page, tiff.pages[0]):
        if "InterColorProfile" in one.tags:
            value = one.tags["InterColorProfile"].value
            profile = value if isinstance(value, bytes) else b""
            return (profile_mark(profile), "") if _is_profile(profile) else (None, DAMAGED_PROFILE)
    return None, ""


def _is_profile(data: bytes) -> bool:
    """Whether these bytes may be an ICC profile, none of it cut off (ICC.1:2022, 7.2: its length and signature)."""
    return data[36:40] == b"acsp" and _PROFILE_HEADER <= int.from_bytes(data[:4]) <= len(data)


def profile_mark(profile: bytes) -> str | None:
    """16 hex digits that are the same for the same ICC profile; its texts may name people and machines."""
    return hashlib.blake2b(profile).hexdigest()[:_PROFILE_DIGITS] if profile else None


def _format_and_tags(tiff: Any, properties: Mapping[str, object], page: Any) -> tuple[str, dict[str, str]]:
    """OpenSlide's word for the format, and the tags of which a scanner may be named, by OpenSlide's names."""
    tags = {f"tiff.{name}": str(page.tags[name].value) for name in ("Make", "Model") if name in page.tags}
    if properties.get("aperio.ScannerType"):
        tags["aperio.ScannerType"] = str(properties["aperio.ScannerType"])
    if tiff.is_ome:
        return "ome", tags | read_microscope(tiff.ome_metadata)
    return str(properties.get("tiffslide.vendor") or "generic-tiff"), tags
