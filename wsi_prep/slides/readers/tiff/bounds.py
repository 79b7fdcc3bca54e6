"""What a TIFF may ask for: a file that lies must cost neither memory nor time before it is found out."""

from __future__ import annotations

import struct
from typing import Any

from wsi_prep.errors import UnreadableSlide
from wsi_prep.format.jpeg import first_frame

MOST_DIRECTORIES = 300
"""TIFF directories that are followed."""

MOST_TILE_PX = 4096 * 4096
"""Of a tile as its slide stores it: memory for a tile is asked for before its data are looked at."""


def require_few_directories(tiff: Any) -> None:
    """Before anything walks through all of them; each costs memory and time, and a loop has no end."""
    try:
        tiff.pages[MOST_DIRECTORIES]
    except IndexError:
        return
    raise UnreadableSlide(f"it has more than {MOST_DIRECTORIES:,} TIFF directories, where a slide has some ten")


def require_small_tiles(page: Any) -> None:
    """Raise UnreadableSlide where a page's tiles are larger than those of any slide."""
    if page.tilewidth * page.tilelength > MOST_TILE_PX:
        raise UnreadableSlide(f"its tiles are {page.tilewidth} x {page.tilelength} px, which no slide's are")


def coded_size(data: bytes) -> tuple[int, int]:
    """Height and width in the head of a JPEG 2000 codestream (SIZ; ITU-T T.800, A.5.1) or a JPEG; 0, 0 of the rest."""
    at = data.find(b"\xff\x4f\xff\x51", 0, 256)
    if at >= 0 and len(data) >= at + 24:
        width, height, left, top = struct.unpack_from(">4I", data, at + 8)
        return max(0, height - top), max(0, width - left)
    frame = first_frame(data) if data[:2] == b"\xff\xd8" else None
    return frame[1:] if frame else (0, 0)
