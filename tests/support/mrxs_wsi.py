"""A MIRAX slide as 3DHISTECH's scanners lay it out: X.mrxs beside a folder X; what was not scanned is left out."""

import struct
from pathlib import Path

import imagecodecs
import numpy as np

SLIDE_ID = "ABCDEF0123456789"
TILE = 256

_SLIDEDAT = """[GENERAL]
SLIDE_VERSION = 01.02
SLIDE_ID = {slide_id}
SLIDE_NAME = DOE JANE
SLIDE_CREATIONDATETIME = 23/08/2019 14:15:33
PROJECT_NAME = S19-0044721
IMAGENUMBER_X = {across}
IMAGENUMBER_Y = {down}
OBJECTIVE_MAGNIFICATION = 40
CameraImageDivisionsPerSide = 1
[HIERARCHICAL]
HIER_COUNT = 1
NONHIER_COUNT = 0
INDEXFILE = Index.dat
HIER_0_NAME = Slide zoom level
HIER_0_COUNT = 1
HIER_0_VAL_0_SECTION = LAYER_0
[DATAFILE]
FILE_COUNT = 1
FILE_0 = Data0000.dat
[LAYER_0]
OVERLAP_X = 0
OVERLAP_Y = 0
MICROMETER_PER_PIXEL_X = {mpp}
MICROMETER_PER_PIXEL_Y = {mpp}
IMAGE_FILL_COLOR_BGR = 16777215
DIGITIZER_WIDTH = {tile}
DIGITIZER_HEIGHT = {tile}
IMAGE_FORMAT = JPEG
IMAGE_CONCAT_FACTOR = 0
"""


def write_mrxs(path: Path, pixels: np.ndarray, mpp: float, left: int, top: int, across: int, down: int) -> Path:
    """Write (h, w, 3) uint8 pixels, whole tiles of 256, at tile (`left`, `top`) of a grid `across` x `down`."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    path.write_bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels[::32, ::32])))
    data, entries = bytearray(f"01.02{SLIDE_ID}".encode()), []
    for row in range(pixels.shape[0] // TILE):
        for col in range(pixels.shape[1] // TILE):
            piece = np.ascontiguousarray(pixels[row * TILE : (row + 1) * TILE, col * TILE : (col + 1) * TILE])
            jpeg = imagecodecs.jpeg8_encode(piece, level=95, subsampling="444")
            entries.append(((top + row) * across + left + col, len(data), len(jpeg), 0))
            data += jpeg
    (folder / "Data0000.dat").write_bytes(data)
    (folder / "Index.dat").write_bytes(_index(entries))
    text = _SLIDEDAT.format(slide_id=SLIDE_ID, across=across, down=down, mpp=mpp, tile=TILE)
    (folder / "Slidedat.ini").write_text(text)
    return path


def _index(entries: list[tuple[int, int, int, int]]) -> bytes:
    """Version and id, the roots, the one level's list head, and one page of (image, offset, length, file)."""
    head = f"01.02{SLIDE_ID}".encode()
    levels = len(head) + 8
    first = levels + 4
    page = first + 8
    pages = struct.pack("<ii", len(entries), 0) + b"".join(struct.pack("<iiii", *entry) for entry in entries)
    return head + struct.pack("<ii", levels, 0) + struct.pack("<i", first) + struct.pack("<ii", 0, page) + pages
