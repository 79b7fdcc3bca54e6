"""Labelled tiles by number, wherever their pixels are: in a table, in files, in HDF5, or inside larger images."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import h5py
import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pretrain.compute.plain_files import open_plain
from pretrain.errors import BadTask
from wsi_prep.compute.ahead import ahead

Pixels = NDArray[np.uint8]
_AHEAD = 3  # batches that are read while one is computed
_OPEN = 4  # larger images that are kept decoded
_MOST_PX = 1 << 28  # of one, which Pillow refuses beyond twice that
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr")  # Pillow's, that tell colours
_BITS, _PHOTOMETRIC = 258, 262  # TIFF tags


class Tiles(Protocol):
    """Tiles by number. Reading is safe from several threads."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> Pixels:
        """(h, w, 3) uint8 RGB. Raises BadTask."""

    def take(self, numbers: NDArray[np.int64]) -> Tiles:
        """These alone, in this order."""

    @property
    def stamp(self) -> str:
        """Another one where the tiles are others."""


@dataclass(frozen=True)
class EncodedTiles:
    """Files in memory, each a JPEG or PNG; where they are from a table, its name `of` and their `rows` (n,) in it."""

    images: Sequence[bytes]
    of: str = ""
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def read(self, number: int) -> Pixels:
        """See Tiles."""
        name = f"tile {number}" if self.rows is None else f"{self.of}: column image, row {self.rows[number]},"
        return decode(self.images[number], name)

    def take(self, numbers: NDArray[np.int64]) -> EncodedTiles:
        """See Tiles."""
        rows = None if self.rows is None else self.rows[numbers]
        return EncodedTiles([self.images[n] for n in numbers], self.of, rows)

    @property
    def stamp(self) -> str:
        """See Tiles."""
        digest = hashlib.blake2b(digest_size=16)
        for image in self.images:
            digest.update(len(image).to_bytes(8, "little") + image)
        return digest.hexdigest()


@dataclass(frozen=True)
class TileFiles:
    """A file each."""

    files: Sequence[Path]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, number: int) -> Pixels:
        """See Tiles."""
        file = self.files[number]
        try:
            with open_plain(file) as opened:
                data = opened.read()
        except OSError as error:
            raise BadTask(f"{file}: cannot be read ({error.strerror}); download it again") from error
        except ValueError as error:
            raise BadTask(f"{file}: {error}; remove it") from error
        return decode(data, str(file))

    def take(self, numbers: NDArray[np.int64]) -> TileFiles:
        """See Tiles."""
        return TileFiles([self.files[n] for n in numbers])

    @property
    def stamp(self) -> str:
        """See Tiles."""
        return _stamp_of(self.files)


@dataclass(frozen=True)
class H5Tiles:
    """Rows of a (n, h, w, 3) uint8 data set in each of some HDF5 files; `rows` are numbered through all of them."""

    files: Sequence[Path]
    key: str
    rows: NDArray[np.int64]
    begins: NDArray[np.int64]
    _opened: dict[Path, h5py.File] = field(default_factory=dict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @staticmethod
    def of(files: Sequence[Path], key: str) -> H5Tiles:
        """All rows of all files; BadTask where one has none."""
        counts = []
        for file in files:
            with open_h5(file, key) as opened:
                shape, kind = opened[key].shape, opened[key].dtype
            if len(shape) != 4 or shape[3] != 3 or kind != np.uint8:
                raise BadTask(f"{file}: {key} is {kind} {shape}, not uint8 (n, h, w, 3); download it again")
            counts.append(shape[0])
        begins = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        return H5Tiles(files, key, np.arange(begins[-1]), begins)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, number: int) -> Pixels:
        """See Tiles."""
        row = self.rows[number]
        file = int(np.searchsorted(self.begins, row, side="right")) - 1
        path = self.files[file]
        with self._lock:
            try:
                if path not in self._opened:
                    self._opened[path] = h5py.File(path, "r")
                pixels: Pixels = self._opened[path][self.key][row - self.begins[file]]
            except OSError as error:
                raise BadTask(f"{path}: row {row - self.begins[file]} cannot be read; download it again") from error
        return pixels

    def take(self, numbers: NDArray[np.int64]) -> H5Tiles:
        """See Tiles."""
        return H5Tiles(self.files, self.key, self.rows[numbers], self.begins)

    @property
    def stamp(self) -> str:
        """See Tiles."""
        return f"{_stamp_of(self.files)} {hashlib.blake2b(self.rows.tobytes(), digest_size=16).hexdigest()}"


@dataclass(frozen=True)
class Regions:
    """Windows of `px` a side around `centres` (n, 2), x and y in px of `files[image]`; white beyond the edges.

    Windows of one image should follow one another: few images are kept decoded.
    """

    files: Sequence[Path]
    image: NDArray[np.int64]
    centres: NDArray[np.float64]
    px: int
    _held: OrderedDict[int, Pixels] = field(default_factory=OrderedDict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.image)

    def read(self, number: int) -> Pixels:
        """See Tiles."""
        whole = self._decoded(int(self.image[number]))
        left, top = (int(np.floor(c - self.px / 2 + 0.5)) for c in self.centres[number])
        window = np.full((self.px, self.px, 3), 255, np.uint8)
        x0, y0 = max(left, 0), max(top, 0)
        inside = whole[y0 : max(top + self.px, 0), x0 : max(left + self.px, 0)]
        window[y0 - top : y0 - top + inside.shape[0], x0 - left : x0 - left + inside.shape[1]] = inside
        return window

    def _decoded(self, image: int) -> Pixels:
        with self._lock:
            if image in self._held:
                self._held.move_to_end(image)
            else:
                file = self.files[image]
                try:
                    with _large_images():
                        self._held[image] = as_rgb(Image.open(file), str(file))
                except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                    raise BadTask(f"{file}: cannot be read as an image ({error}); download it again") from error
                while len(self._held) > _OPEN:
                    self._held.popitem(last=False)
            return self._held[image]

    def take(self, numbers: NDArray[np.int64]) -> Regions:
        """See Tiles."""
        return Regions(self.files, self.image[numbers], self.centres[numbers], self.px)

    @property
    def stamp(self) -> str:
        """See Tiles."""
        where = self.image.tobytes() + self.centres.tobytes()
        return f"{_stamp_of(self.files)} {self.px} {hashlib.blake2b(where, digest_size=16).hexdigest()}"


@contextlib.contextmanager
def open_h5(file: Path, *keys: str) -> Iterator[h5py.File]:
    """An HDF5 file that has these keys; BadTask where it is none, or where part of it lies elsewhere."""
    try:
        open_plain(file).close()
        opened = h5py.File(file, "r")
    except (OSError, ValueError) as error:
        todo = "unpack it by gunzip" if file.suffix == ".gz" else "download it again"
        raise BadTask(f"{file}: is no HDF5 file; {todo}") from error
    with opened:
        if (elsewhere := opened.visititems_links(functools.partial(_elsewhere, opened))) is not None:
            raise BadTask(f"{file}: its {elsewhere} is a link, or lies in another file; write it again as one file")
        if missing := [key for key in keys if key not in opened]:
            raise BadTask(f"{file}: has no {missing[0]}, only {', '.join(opened)}; download it again")
        yield opened


def _elsewhere(opened: h5py.File, name: str, link: object) -> str | None:
    """The name of what a file does not hold itself: it would be read from wherever the file says."""
    found = opened[name] if isinstance(link, h5py.HardLink) else None
    outside = found is None or (isinstance(found, h5py.Dataset) and (found.is_virtual or bool(found.external)))
    return name if outside else None


def decode(image: bytes, name: str) -> Pixels:
    """(h, w, 3) uint8 RGB of an encoded image; BadTask, with this name for it, where it is none."""
    try:
        return _of_jpeg(image, name) if image[:2] == b"\xff\xd8" else as_rgb(Image.open(io.BytesIO(image)), name)
    except BadTask:
        raise
    except (OSError, ValueError, RuntimeError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadTask(f"{name} is no readable image; write it again, or remove it") from error


def _of_jpeg(image: bytes, name: str) -> Pixels:
    if image.rfind(b"\xff\xd9") < image.rfind(b"\xff\xda"):  # libjpeg would make the rest grey
        raise BadTask(f"{name} is a JPEG whose end is missing; write it again, or remove it")
    if (mode := Image.open(io.BytesIO(image)).mode) not in _MODES:
        raise _no_colours(name, mode)
    return imagecodecs.jpeg8_decode(image, outcolorspace="RGB")


def as_rgb(image: Image.Image, name: str) -> Pixels:
    """(h, w, 3) uint8 RGB; what is transparent is white, 16 bits become 8. BadTask where pixels are no colours."""
    if image.mode.startswith("I;16"):
        return _grey16(image)
    if image.mode not in _MODES:
        raise _no_colours(name, image.mode)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _grey16(image: Image.Image) -> Pixels:
    """Pillow cuts 16 bits off at 255. Of a TIFF's tags, that it has fewer of them, and that its 0 is white."""
    tags = getattr(image, "tag_v2", {})
    most = (1 << tags.get(_BITS, (16,))[0]) - 1
    grey = (np.asarray(image).astype(np.uint32) * 255 + most // 2) // most
    grey = 255 - grey if tags.get(_PHOTOMETRIC) == 0 else grey
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def _no_colours(name: str, mode: str) -> BadTask:
    kind = {"I": "a grey image of 32 bits", "F": "an image of floating-point numbers"}.get(mode, f"a {mode} image")
    return BadTask(f"{name} is {kind}, whose numbers do not tell which colours are meant; write it as 8-bit RGB")


def resized(pixels: Pixels, px: int) -> Pixels:
    """The tile at `px` a side, by Pillow's antialiased bicubic; as it is for 0."""
    if not px or pixels.shape[:2] == (px, px):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((px, px), Image.Resampling.BICUBIC))


def whole_patches(tiles: Sequence[Pixels], patch_px: int) -> Tensor:
    """Tiles of one size (else BadTask) -> (b, 3, h, w) float32 in [0, 1], their middle in whole patches."""
    sizes = sorted({tile.shape[1::-1] for tile in tiles})
    if len(sizes) > 1:
        raise BadTask(f"tiles are of several sizes, {sizes} px; make them one size, or ask for one by --px")
    width, height = sizes[0]
    h, w = height // patch_px * patch_px, width // patch_px * patch_px
    if not (h and w):
        raise BadTask(f"tiles of {width} x {height} px are smaller than a patch of {patch_px} px; use larger tiles")
    top, left = (height - h) // 2, (width - w) // 2
    pixels = np.stack([tile[top : top + h, left : left + w] for tile in tiles])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)


def read_batches(
    tiles: Tiles, batch: int, threads: int = 2, change: Callable[[Pixels], Pixels] = lambda p: p
) -> Iterator[list[Pixels]]:
    """All tiles in order, each changed, a batch at a time; threads are some batches ahead. Raises BadTask."""
    with contextlib.closing(
        ahead(lambda n: change(tiles.read(n)), range(len(tiles)), threads, most=_AHEAD * batch)
    ) as read:
        while some := list(itertools.islice(read, batch)):
            yield some


def _stamp_of(files: Sequence[Path]) -> str:
    """Of names, sizes and times, so that nothing has to be read."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            about = file.stat()
        except OSError as error:
            raise BadTask(f"{file}: is missing ({error.strerror}); download it again") from error
        digest.update(f"{file}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


_LIMIT = threading.Lock()


@contextlib.contextmanager
def _large_images() -> Iterator[None]:
    """Pillow with a limit of pixels that whole regions of slides stay below."""
    with _LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, _MOST_PX
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
