"""What a tiled TIFF says of its slide: scale, scanner, objective, colour profile."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from wsi_prep.slides.base import WHITE, Level, SlideInfo, parse_colour
from wsi_prep.slides.readers.tags import parse_number, parse_objective, vendor_and_scanner
from wsi_prep.slides.readers.tiff.ome import read_microscope
from wsi_prep.slides.readers.tiff.slide import Pyramid

_UM_PER_UNIT = {2: 25400.0, 3: 10000.0, 4: 1000.0, 5: 1.0}
"""Of TIFF's resolution units, by their codes: inch, centimetre, and the later millimetre and micrometre."""

_UNIT_NAMES = {2: "inch", 3: "cm", 4: "mm", 5: "um"}
_APERIO_MPP = re.compile(r"\|\s*MPP\s*=\s*([^|\r\n]*)")
_PROFILE_DIGITS = 16


def describe(tiff: Any, properties: Mapping[str, Any], pyramid: Pyramid) -> SlideInfo:
    """The slide's facts; `properties` are tiffslide's, where it has some."""
    page = pyramid.levels[0].page
    mpp, source, stated = _scale(tiff, page, pyramid)
    width0 = pyramid.levels[0].width
    vendor, scanner = vendor_and_scanner(*_format_and_tags(tiff, properties, page))
    return SlideInfo(
        reader="tiff",
        vendor=vendor,
        scanner=scanner,
        mpp_x=mpp[0] if mpp else None,
        mpp_y=mpp[1] if mpp else None,
        mpp_source=source,
        objective=parse_objective(properties.get("tiffslide.objective-power")),
        levels=tuple(Level(level.width, level.height, width0 / level.width) for level in pyramid.levels),
        background=parse_colour(properties.get("tiffslide.background-color")),
        mpp_stated=stated,
        icc_profile=_icc_profile(tiff, page),
        tile_px=max(pyramid.levels[0].tile_width, pyramid.levels[0].tile_height),
        filling=WHITE if pyramid.levels[0].lacks_tiles else None,
        notes=pyramid.notes,
    )


def _scale(tiff: Any, page: Any, pyramid: Pyramid) -> tuple[tuple[float, float] | None, str | None, str]:
    """um/px in x and y, where it stands, and what stands there but is not understood.

    The vendor's own tags come before TIFF's resolution tags.
    """
    stated = ""
    if pyramid.image is not None:
        if pyramid.image.mpp is not None:
            return pyramid.image.mpp, "vendor", ""
        stated = pyramid.image.stated
    elif tiff.is_svs:
        text = _aperio_mpp(tiff, page)
        value = parse_number(text)
        if value is not None:
            return (value, value), "vendor", ""
        stated = f"MPP = {text}" if text else ""
    found = [_resolution(plane) for plane, _ in pyramid.levels[0].planes]  # writers may tag the first channel's alone
    mpp, resolution = next((one for one in found if one[0] is not None), found[0])
    if mpp is None:
        return None, None, stated or resolution
    return mpp, "vendor" if tiff.is_svs else "tiff-resolution", stated


def _aperio_mpp(tiff: Any, page: Any) -> str:
    """The text of Aperio's MPP, of the slide's own page or of the file's first; empty where there is none."""
    for one in (page, tiff.pages[0]):
        found = _APERIO_MPP.search(str(one.description))
        if found:
            return found[1].strip()
    return ""


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


def _icc_profile(tiff: Any, page: Any) -> str | None:
    """A mark of the ICC profile that the slide's page, or the file's first, carries."""
    for one in (page, tiff.pages[0]):
        if "InterColorProfile" in one.tags:
            return profile_mark(bytes(one.tags["InterColorProfile"].value))
    return None


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
