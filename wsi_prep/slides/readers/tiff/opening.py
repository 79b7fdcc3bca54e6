"""Opening a TIFF: whose it is, its facts and levels, or why it is left to OpenSlide."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Mapping
from typing import Any

from tiffslide import TiffSlide

from wsi_prep.errors import SlideError, StoreFailed, UnreadableSlide
from wsi_prep.slides.base import SlideInfo
from wsi_prep.slides.fetch.ranges import Ranges, open_ranges, require_served, seekable
from wsi_prep.slides.private import reason
from wsi_prep.slides.readers.tiff.bounds import require_few_directories
from wsi_prep.slides.readers.tiff.facts import describe
from wsi_prep.slides.readers.tiff.ome import read_images
from wsi_prep.slides.readers.tiff.pictures import Picture, UnsupportedLayout
from wsi_prep.slides.readers.tiff.slide import Read, find_pyramid
from wsi_prep.slides.urls import name_of

_TRESTLE = "MedScan"
"""How the software tag of Trestle's slides begins, whose tiles overlap."""


def open_tiffslide(path: str, ranges: Ranges) -> Any:
    """The file as tiffslide opens it; raises UnsupportedLayout where it is no TIFF."""
    options: dict[str, Any] = {"name": name_of(path), "_multifile": False}  # an OME-TIFF may name anybody's files
    try:
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters becomes an error here
        with contextlib.ExitStack() as if_refused:
            slide = TiffSlide(seekable(ranges), tifffile_options=options)
            if_refused.callback(slide.close)
            require_few_directories(slide.ts_tifffile)
            if_refused.pop_all()
    except (StoreFailed, UnreadableSlide):
        raise
    except Exception as error:  # tiffslide and tifffile raise a dozen kinds for a file that is not theirs
        require_served(ranges)
        raise UnsupportedLayout(f"not a TIFF slide ({reason(error, path)})") from error
    return slide


def is_ome_tiff(path: str) -> bool:
    """Whether a local file says of itself that it is an OME-TIFF."""
    try:
        with (
            contextlib.closing(open_ranges(path)) as ranges,
            contextlib.closing(open_tiffslide(path, ranges)) as slide,
        ):
            return bool(slide.ts_tifffile.is_ome)
    except UnsupportedLayout:
        return False


def understand(slide: Any, read: Read) -> tuple[SlideInfo, tuple[Picture, ...]]:
    """The slide's facts and levels; UnreadableSlide for an OME-TIFF that cannot be read: nobody else knows them."""
    tiff = slide.ts_tifffile
    if not (tiff.is_svs or tiff.is_ome or _is_generic(tiff)):
        raise UnsupportedLayout("a vendor's TIFF that is left to OpenSlide")
    try:
        pyramid = find_pyramid(tiff, read_images(tiff.ome_metadata) if tiff.is_ome else None, read)
        return describe(tiff, _properties(slide), pyramid), pyramid.levels
    except StoreFailed:
        raise
    except Exception as error:
        if tiff.is_ome:
            why = error if isinstance(error, SlideError) else f"its TIFF directory is damaged ({type(error).__name__})"
            raise UnreadableSlide(f"an OME-TIFF that cannot be read as a slide: {why}") from error
        raise


def _properties(slide: Any) -> Mapping[str, object]:
    """What tiffslide reads of the vendor's tags; nothing of formats that it does not understand."""
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")  # tiffslide warns of metadata it reads only in part; we take few fields
        properties: Mapping[str, object] = slide.properties
        return properties
    return {}


def _is_generic(tiff: Any) -> bool:
    if str(tiff.pages[0].software).startswith(_TRESTLE):
        return False
    return not any((tiff.is_ndpi, tiff.is_scn, tiff.is_bif, tiff.is_philips, tiff.is_qpi, tiff.is_stk, tiff.is_lsm))
