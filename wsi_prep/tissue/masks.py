"""Tissue masks that people give, in place of detection: an edited GeoJSON, or a picture; named after its slide."""

from __future__ import annotations

import hashlib
import os
import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import BadMask, BadOption, counted
from wsi_prep.format.layout import bare_name
from wsi_prep.slides.base import SlideInfo
from wsi_prep.slides.find.found import SlideSource
from wsi_prep.slides.find.naming import KnownNames, did_you_mean, one_form
from wsi_prep.slides.pyramid.thumbnail import Thumbnail
from wsi_prep.storage.local import LocalStorage
from wsi_prep.tissue.geojson import Polygon, bounded_bytes, read_outlines
from wsi_prep.tissue.polygons import filled

_ENDINGS = (".geojson", ".json", ".png")

_MOST_PIXELS = 128 * 2**20
_MOST_BYTES = 2**29
_CHANNELS = {0: 1, 2: 3, 3: 4, 4: 4, 6: 4}
"""Of a decoded PNG by its colour type (PNG, third edition, 11.2.1): grey, RGB, palette, grey and RGB with alpha."""

_ASPECT_TOLERANCE = 0.02
_GREY_TOLERANCE = 0.1
"""Of the full range: what the channels of a grey pixel may differ by, after it was a JPEG."""

_LOW_LABELS = 0.01
"""Of what is not 0: so much of a mask may be even and of a low value."""


@dataclass(frozen=True)
class MaskFile:
    """A slide's mask: an absolute path that workers see, the digest of what it holds, and what errors call it.

    Its text, which a cluster may log, is without the path.
    """

    path: str = field(repr=False)
    digest: str
    called: str


def find_masks(
    folder: str | None, out: Path | None, sources: Sequence[SlideSource], *, private: bool = False
) -> tuple[dict[str, MaskFile], list[str]]:
    """The masks in `folder` by slide_id, and what a user should know of them in lines; nothing without a folder.

    What a `private` run writes down of masks names no file.
    A mask is named by the slide's id, its file name, or its file name without the ending. Raises BadOption where the
    folder is missing or is part of OUT, where a name fits several slides, and where a slide has several masks.
    """
    if folder is None:
        return {}, []
    root = Path(folder).absolute()
    if not root.is_dir():
        raise BadOption(f"MASKS {folder} is no folder")
    if out is not None and root.resolve().is_relative_to(out.resolve()):
        raise BadOption(f"MASKS {folder} lies in OUT, where runs remove files; copy it to a folder of its own")
    files = {p.name: p for p in sorted(root.glob("[!.]*")) if p.suffix.lower() in _ENDINGS}
    slides: dict[str, list[str]] = defaultdict(list)
    wanted = {one_form(path.stem) for path in files.values()}
    for source in sources:
        names = {source.slide_id, source.former_id, *map(one_form, (source.name, bare_name(source.name)))}
        for name in names & wanted:
            slides[name].append(source.slide_id)
    masks: dict[str, MaskFile] = {}
    for path in files.values():
        found = slides.get(one_form(path.stem), [])
        if len(found) > 1:
            raise BadOption(f"MASKS {path.name} fits {len(found)} slides; name it after one's id, as in {found[0]}")
        for slide_id in found:
            if slide_id in masks:
                raise BadOption(f"MASKS {path.name} and {Path(masks[slide_id].path).name} are of one slide; keep one")
            masks[slide_id] = MaskFile(str(path), _digest(path), slide_id if private else path.name)
    strays = [path for path in files.values() if one_form(path.stem) not in slides]
    return masks, _notes(len(masks), sources, strays, private)


def _notes(masks: int, slides: Sequence[SlideSource], strays: list[Path], private: bool) -> list[str]:
    notes = [f"MASKS gives the tissue of {masks} of {counted(len(slides), 'slide')}"]
    if strays:
        shown = ""
        if not private:
            known = KnownNames(source.name for source in slides)
            names = [f"{path.name}{did_you_mean(known.meant(path.stem))}" for path in strays[:5]]
            shown = ": " + ", ".join(names) + (", ..." if len(strays) > 5 else "")
        notes.append(f"MASKS holds {counted(len(strays), 'file')} named after no slide{shown}")
    return notes


def read_mask(mask: MaskFile, info: SlideInfo, thumbnail: Thumbnail) -> NDArray[np.bool_]:
    """The tissue that the file draws, as (h, w) pixels of the thumbnail; raises BadMask, naming the file."""
    try:
        data = _bytes(mask)
        if mask.path.lower().endswith(".png"):
            return _picture(data, info, thumbnail.pixels.shape[:2])
        return _outlined(data, info, thumbnail)
    except BadMask as error:
        raise BadMask(f"mask {mask.called}: {error}") from error


def _outlined(data: bytes, info: SlideInfo, thumbnail: Thumbnail) -> NDArray[np.bool_]:
    outlines = read_outlines(data, info.bounds_x0, info.bounds_y0)
    _require_on_slide(outlines.kept, info)
    grid = thumbnail.pixels.shape[:2], thumbnail.step_x0, thumbnail.step_y0
    kept = filled(outlines.kept, *grid)
    if outlines.kept and not kept.any():
        (left, top), (right, bottom) = _extent(outlines.kept)
        raise BadMask(
            f"all that it draws, x {left:g} to {right:g}, y {top:g} to {bottom:g}, is smaller than a pixel of 8 um; "
            "its coordinates must be px of level 0"
        )
    tissue: NDArray[np.bool_] = kept & ~filled(outlines.cut, *grid)
    return tissue


def _digest(path: Path) -> str:
    if not path.is_file():
        raise BadOption(f"MASKS {path} is no file; remove it")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise BadOption(f"MASKS {path} cannot be read ({error.strerror})") from error


def _bytes(mask: MaskFile) -> bytes:
    """What the file held when the run began."""
    path = Path(os.path.realpath(mask.path))  # a user may link masks
    try:
        data = bounded_bytes(LocalStorage(path.parent), path.name)
    except FileNotFoundError as error:
        raise BadMask("it is missing; workers must see MASKS under the same path") from error
    if hashlib.blake2b(data, digest_size=16).hexdigest() != mask.digest:
        raise BadMask("it changed during the run; repeat the command")
    return data


def _require_on_slide(polygons: Sequence[Polygon], info: SlideInfo) -> None:
    """A mask of another slide, or in another frame, must not pass as a slide without tissue."""
    if not polygons:
        return
    corners = np.array([[ring.min(0), ring.max(0)] for ring, *_ in polygons])
    low, high = corners[:, 0], corners[:, 1]
    if not ((high > 0) & (low < (info.width0, info.height0))).all(axis=1).any():
        (left, top), (right, bottom) = _extent(polygons)
        raise BadMask(
            f"nothing of it lies on the slide: x is {left:.0f} to {right:.0f}, y is {top:.0f} to {bottom:.0f}, "
            f"the slide {info.width0} x {info.height0} px; is it another slide's?"
        )


def _extent(polygons: Sequence[Polygon]) -> tuple[list[float], list[float]]:
    """The least and the greatest x, y."""
    points = np.concatenate([polygon[0] for polygon in polygons])
    return points.min(0).tolist(), points.max(0).tolist()


def _picture(data: bytes, info: SlideInfo, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A PNG over the slide's whole extent, 255 (of 16 bits 65535) where tissue is."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 26:
        raise BadMask("it is no PNG")
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    if not 0 < width * height <= _MOST_PIXELS or width * height * _CHANNELS.get(kind, 4) * depth > 8 * _MOST_BYTES:
        raise BadMask(f"it has {width} x {height} px, where a mask at 8 um/px is enough")
    off = width / height * info.height0 / info.width0 - 1
    if abs(off) > _ASPECT_TOLERANCE + 1 / min(width, height):
        raise BadMask(f"{width} x {height} px are not the proportions of the slide, {info.width0} x {info.height0}")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise BadMask("its PNG cannot be decoded")
    grey = _grey(np.asarray(pixels))
    smaller = width > shape[1] or height > shape[0]
    resized = cv2.resize(grey, shape[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    tissue: NDArray[np.bool_] = resized > 127
    if not tissue.any() and (grey > 127).any():
        raise BadMask("all that it draws is smaller than a pixel of 8 um, at which tissue is kept")
    return tissue


def _grey(pixels: NDArray[np.uint8 | np.uint16]) -> NDArray[np.uint8]:
    """(h, w) uint8 of a mask of 8 or 16 bits: grey, BGR, or either with an alpha channel that adds nothing."""
    alpha = _eight_bits(pixels[..., 3]) if pixels.ndim == 3 and pixels.shape[2] == 4 else None
    colour = pixels if pixels.ndim == 2 else pixels[..., :3]
    if alpha is not None and alpha.min() < alpha.max() and (colour == colour[:1, :1]).all():
        raise BadMask("its shape is in the alpha channel alone; save it as grey values, 255 where tissue is")
    plain = colour if colour.ndim == 2 else _of_colour(colour)
    _require_full_values(plain)
    grey = _eight_bits(plain)
    if alpha is not None and ((alpha < 128) & (grey > 127)).any():
        raise BadMask("some of its tissue is transparent; save it without an alpha channel")
    return grey


def _eight_bits(pixels: NDArray[np.uint8 | np.uint16]) -> NDArray[np.uint8]:
    return (pixels >> 8 if pixels.dtype == np.uint16 else pixels).astype(np.uint8, copy=False)


def _of_colour(colour: NDArray[np.uint8 | np.uint16]) -> NDArray[np.uint8 | np.uint16]:
    """The brightest channel of a mask that is grey, or black and one full colour; BadMask for other colours."""
    bright, dark = colour.max(axis=2), colour.min(axis=2)
    if (bright - dark > np.iinfo(colour.dtype).max * _GREY_TOLERANCE).any():
        first = colour[np.unravel_index(int((bright - dark).argmax()), bright.shape)]
        black = (colour == 0).all(axis=2)
        if not (black | (colour == first).all(axis=2)).all() or first.max() < np.iinfo(colour.dtype).max:
            said = ", ".join(str(value) for value in first[::-1])
            raise BadMask(f"it is in colours, as red, green, blue of {said}; save it in grey, 255 where tissue is")
    return np.asarray(bright)


def _require_full_values(grey: NDArray[np.uint8 | np.uint16]) -> None:
    """A mask of labels or of other bits than its values are of must not pass as one without tissue, or with less."""
    highest, most = int(grey.max()), int(np.iinfo(grey.dtype).max)
    if not highest or (highest > most // 2 and not _has_low_labels(grey)):
        return
    values = np.flatnonzero(np.bincount(grey.ravel(), minlength=highest + 1))
    said = " and ".join(map(str, values)) if len(values) <= 3 else f"{values[0]} to {values[-1]}"
    full = "255" if most == 255 else f"{most} (255 in 8 bits)"
    why = f"its highest value is {highest}" if highest <= most // 2 else "the low ones would be no tissue"
    raise BadMask(f"its {8 * grey.itemsize}-bit values are {said}: {why}, where tissue is {full}")


def _has_low_labels(grey: NDArray[np.uint8 | np.uint16]) -> bool:
    """Whether even parts of a mask are of a low value other than 0; along smooth edges, and of a JPEG, it is uneven."""
    square = np.ones((3, 3), np.uint8)
    even = cv2.erode(grey, square) == cv2.dilate(grey, square)
    low = (grey > np.iinfo(grey.dtype).max * _GREY_TOLERANCE) & (grey <= np.iinfo(grey.dtype).max // 2)
    return bool(np.count_nonzero(even & low) > _LOW_LABELS * np.count_nonzero(grey))
