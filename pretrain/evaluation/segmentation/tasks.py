"""Tiles with a class for each pixel, as files or as PanNuke has them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.compute.plain_files import open_plain, size_of
from pretrain.compute.randomness import Purpose, uniforms
from pretrain.data.labelled import Pixels, TileFiles, Tiles
from pretrain.errors import BadTask
from pretrain.evaluation.class_folders import IMAGES, SIDES, image_files
from pretrain.evaluation.tasks import hold_out, numbered
from wsi_prep.errors import counted

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
IGNORED = 255
"""In a mask, for pixels that count for nothing."""

_MOST_NAMES = 1 << 16  # bytes of classes.txt
_MODES = ("1", "L", "P")
SOURCE = "your own tiles (docs/evaluation.md, Pixels)"


class Masks(Protocol):
    """Masks by number. Reading is safe from several threads."""

    def read(self, number: int) -> Pixels:
        """(h, w) uint8: numbers of classes, or IGNORED. Raises BadTask."""

    def take(self, numbers: Ints) -> Masks:
        """These alone, in this order."""


@dataclass(frozen=True)
class Segmentation:
    """n tiles with masks of `classes`.

    `groups`: (n,) int64, the slide, case or organ of each, a tile for itself where that is not known (`grouped`).
    `train`: (n,) bool; `valid`: (n,) bool, what choices are made on, None for groups that the judge holds out of
    `train`. The rest is judged on. `px`: 0, tiles are of their own size. `notes`: what a user should know.
    """

    name: str
    tiles: Tiles
    masks: Masks
    classes: tuple[str, ...]
    groups: Ints
    train: Bools
    valid: Bools | None = None
    grouped: bool = True
    px: int = 0
    notes: tuple[str, ...] = ()

    @property
    def test(self) -> Bools:
        """(n,) bool: what is judged on."""
        return ~self.train if self.valid is None else ~(self.train | self.valid)

    def limited(self, limit: int, seed: int) -> Segmentation:
        """At most `limit` tiles a side, drawn by `seed`; all for 0."""
        if not limit:
            return self
        side = np.where(self.train, 0, np.where(self.test, 1, 2))
        order = np.argsort(uniforms(seed, Purpose.TASK_LIMIT, 0, range(len(side)), 1)[:, 0], kind="stable")
        rows = np.sort(np.concatenate([order[side[order] == one][:limit] for one in np.unique(side)]))
        valid = None if self.valid is None else self.valid[rows]
        note = f"{len(rows):,} of {len(side):,} tiles, by the limit of {limit} a side"
        notes = (*self.notes, note) if len(rows) < len(side) else self.notes
        return Segmentation(
            self.name, self.tiles.take(rows), self.masks.take(rows), self.classes, self.groups[rows], self.train[rows],
            valid, self.grouped, self.px, notes,
        )  # fmt: skip


@dataclass(frozen=True)
class MaskFiles:
    """A PNG or TIFF each, of 8-bit numbers. `binary`: 255 is class 1."""

    files: Sequence[Path]
    binary: bool = False

    def read(self, number: int) -> Pixels:
        """See Masks."""
        file = self.files[number]
        try:
            with open_plain(file) as opened:
                image = Image.open(io.BytesIO(opened.read()))
                if image.mode not in _MODES:
                    raise BadTask(f"{file}: is a {image.mode} image; write masks as 8-bit numbers of classes")
                mask = np.array(image).astype(np.uint8)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if isinstance(error, BadTask):
                raise
            raise BadTask(f"{file}: cannot be read as a mask ({error}); write it again") from error
        return np.minimum(mask, 1) if self.binary else mask

    def take(self, numbers: Ints) -> MaskFiles:
        """See Masks."""
        return MaskFiles([self.files[number] for number in numbers], self.binary)


def read_masks(folder: Path, limit: int, seed: int) -> Segmentation:
    """`images/NAME.png` and `masks/NAME.png`, or both with SLIDE/ between, perhaps below `train/`, `valid/`, `test/`.

    Pixels of masks are numbers of classes, whose names are the lines of `classes.txt`; 255 counts for nothing, except
    where masks hold 0 and 255 alone: then it is class 1. Raises BadTask.
    """
    parts = {SIDES[part.name]: part for part in sorted(folder.iterdir()) if part.is_dir() and part.name in SIDES}
    places = parts or {"": folder}
    pairs = [(side, *pair) for side, place in places.items() for pair in _pairs(place)]
    sides, tiles, masks, slides = (list(column) for column in zip(*pairs, strict=True))
    most, binary = _values(folder, MaskFiles(masks))
    classes = _class_names(folder, most, binary)
    known = all(slides)
    groups = numbered(slides if known else range(len(slides)))
    side = np.array(sides)
    if parts:
        train, valid = side == "train", side == "valid"
        if not (train.any() and (side == "test").any()):
            raise BadTask(f"{folder}: has {', '.join(sorted(parts))}; both train and test are needed")
        _require_apart(folder, side, groups, known)
    else:
        train, valid = ~hold_out(groups, np.zeros(len(groups), np.int64)), np.zeros(len(side), bool)
        if train.all():
            raise BadTask(f"{folder}: all tiles are of one slide; nothing is left to judge on")
    notes = []
    if not known:
        notes.append(
            "slides are not known: figures may be too high, and have no interval; put tiles into images/SLIDE/"
        )
    if binary:
        notes.append("masks hold 0 and 255 alone: 255 is class 1")
    found = Segmentation(
        folder.resolve().name,
        TileFiles(tiles),
        MaskFiles(masks, binary),
        classes,
        groups,
        train,
        valid if valid.any() else None,
        known,
        notes=tuple(notes),
    )
    return found.limited(limit, seed)


def _pairs(place: Path) -> list[tuple[Path, Path, str]]:
    """Tiles with their masks and slides, "" where there are none."""
    images, masks = place / "images", place / "masks"
    if not (images.is_dir() and masks.is_dir()):
        raise BadTask(f"{place}: holds no folders images/ and masks/ of {SOURCE}")
    folders = sorted(part for part in images.iterdir() if part.is_dir() and not part.name.startswith("."))
    found, loose = [], image_files(images)
    if loose and folders:
        raise BadTask(f"{images}: has tiles beside folders of tiles; put all into folders of slides, or none")
    for slide, files in [("", loose), *((part.name, image_files(part)) for part in folders)]:
        for file in files:
            beside = [masks / slide / f"{file.stem}{ending}" for ending in IMAGES]
            mask = next((each for each in beside if each.is_file() and not each.is_symlink()), None)
            if mask is None:
                raise BadTask(f"{file}: has no mask {masks / slide / file.stem}.png; add it")
            found.append((file, mask, slide))
    if not found:
        raise BadTask(f"{images}: holds no tile; see docs/evaluation.md")
    return found


def _values(folder: Path, masks: MaskFiles) -> tuple[int, bool]:
    """The largest class of all masks, which are of one size, and whether they hold 0 and 255 alone."""
    seen, sizes = np.zeros(256, bool), set()
    for number in range(len(masks.files)):
        mask = masks.read(number)
        seen[np.unique(mask)] = True
        sizes.add(mask.shape[::-1])
    if len(sizes) > 1:
        raise BadTask(f"{folder}: masks are of several sizes, {sorted(sizes)[:4]} px; cut tiles and masks to one size")
    values = np.flatnonzero(seen)
    if values.tolist() == [0, IGNORED]:
        return 1, True
    return int(values[values < IGNORED].max(initial=0)), False


def _class_names(folder: Path, most: int, binary: bool) -> tuple[str, ...]:
    file = folder / "classes.txt"
    if not most:
        raise BadTask(f"{folder}/masks: hold one class alone; nothing is to be told apart")
    if not file.exists():
        return ("background", "foreground") if binary else tuple(map(str, range(most + 1)))
    try:
        if size_of(file) > _MOST_NAMES:
            raise ValueError("it is too long")  # noqa: TRY301
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise BadTask(f"{file}: cannot be read ({error}); write a name in each line") from error
    if len(names) <= most or len(set(names)) < len(names):
        raise BadTask(f"{file}: names {counted(len(set(names)), 'class', 'classes')}, and masks hold class {most}")
    return tuple(names)


def _require_apart(folder: Path, side: NDArray[np.str_], groups: Ints, known: bool) -> None:
    """Raise BadTask where a slide is on two sides."""
    names = np.unique(side)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            if known and (shared := len(np.intersect1d(groups[side == one], groups[side == other]))):
                raise BadTask(f"{folder}: {counted(shared, 'slide is', 'slides are')} in {one} and {other}; put in one")
