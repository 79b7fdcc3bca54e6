"""PanNuke (Gamper et al. 2020, arXiv 2003.10778): nuclei of five kinds in 19 tissues, three folds of npy files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.compute.plain_files import open_plain
from pretrain.data.labelled import Pixels
from pretrain.errors import BadTask
from pretrain.evaluation.segmentation.tasks import Segmentation
from pretrain.evaluation.tasks import numbered

Ints = NDArray[np.int64]
SOURCE = "https://warwick.ac.uk/fac/cross_fac/tia/data/pannuke"
CLASSES = ("background", "neoplastic", "inflammatory", "connective", "dead", "epithelial")
_FOLDS = ("train", "valid", "test")
_PX, _KINDS = 256, 5
_MOST_TISSUES = 100_000
_LONGEST_NAME = 400  # bytes


@dataclass(frozen=True)
class NpyTiles:
    """Rows of (n, 256, 256, 3) arrays that lie in files, numbered through all; 0 to 255, of whatever type."""

    arrays: tuple[NDArray[Any], ...]
    rows: Ints
    about: str

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, number: int) -> Pixels:
        """See labelled.Tiles."""
        levels = np.nan_to_num(_row(self.arrays, int(self.rows[number])))
        return np.ascontiguousarray(np.clip(levels, 0, 255).astype(np.uint8))

    def take(self, numbers: Ints) -> NpyTiles:
        """See labelled.Tiles."""
        return NpyTiles(self.arrays, self.rows[numbers], self.about)

    @property
    def stamp(self) -> str:
        """See labelled.Tiles."""
        return f"{self.about} {self.rows.tolist()}"


@dataclass(frozen=True)
class NpyMasks:
    """Rows of (n, 256, 256, 6) arrays: numbers of nuclei of five kinds, 0 where there is none."""

    arrays: tuple[NDArray[Any], ...]
    rows: Ints

    def read(self, number: int) -> Pixels:
        """See tasks.Masks."""
        kinds = np.asarray(_row(self.arrays, int(self.rows[number]))[..., :_KINDS]) > 0
        return np.where(kinds.any(2), kinds.argmax(2) + 1, 0).astype(np.uint8)

    def take(self, numbers: Ints) -> NpyMasks:
        """See tasks.Masks."""
        return NpyMasks(self.arrays, self.rows[numbers])


def read_pannuke(folder: Path, limit: int, seed: int) -> Segmentation:
    """Fold 1 to learn from, fold 2 for choices, fold 3 to judge on; slides are not named, and groups are tissues.

    `Fold 1/images/fold1/images.npy`, `types.npy` beside it, and `Fold 1/masks/fold1/masks.npy`, as they are unpacked.
    Raises BadTask.
    """
    images, masks, tissues, sides, about = [], [], [], [], []
    for number, side in enumerate(_FOLDS, 1):
        fold = folder / f"Fold {number}"
        of_images, of_masks = fold / "images" / f"fold{number}", fold / "masks" / f"fold{number}"
        images.append(_array(of_images / "images.npy", (_PX, _PX, 3)))
        masks.append(_array(of_masks / "masks.npy", (_PX, _PX, _KINDS + 1)))
        told = _texts(of_images / "types.npy")
        if not len(images[-1]) == len(masks[-1]) == len(told):
            raise BadTask(
                f"{fold}: has {len(images[-1])} images, {len(masks[-1])} masks and {len(told)} types; unpack it again"
            )
        tissues += told
        sides += [side] * len(told)
        file = (of_images / "images.npy").stat()
        about.append(f"{of_images} {file.st_size} {file.st_mtime_ns}")
    of_side, rows = np.array(sides), np.arange(len(sides))
    found = Segmentation(
        "pannuke",
        NpyTiles(tuple(images), rows, " ".join(about)),
        NpyMasks(tuple(masks), rows),
        CLASSES,
        numbered(tissues),
        of_side == "train",
        of_side == "valid",
        notes=("slides are not named: folds may share them, and intervals resample tissues",),
    )
    return found.limited(limit, seed)


def _array(file: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """Numbers (n, *shape) that stay in the file; nothing that runs is in them, and no more than the file holds."""
    found = _opened(file)
    if found.shape[1:] != shape or not len(found) or found.dtype.kind not in "uif":
        raise BadTask(f"{file}: holds {found.dtype} {found.shape}, not numbers (n, {', '.join(map(str, shape))})")
    return found


def _texts(file: Path) -> list[str]:
    found = _opened(file)
    if found.ndim != 1 or found.dtype.kind != "U" or found.itemsize > _LONGEST_NAME or len(found) > _MOST_TISSUES:
        raise BadTask(f"{file}: holds {found.dtype} {found.shape}, not the name of a tissue for each image")
    return list(map(str, found))


def _opened(file: Path) -> NDArray[Any]:
    try:
        open_plain(file).close()
        found: NDArray[Any] = np.lib.format.open_memmap(file, mode="r")
    except FileNotFoundError as error:
        raise BadTask(
            f"pannuke: {file} is missing; get the data from {SOURCE}, and unpack them as they come"
        ) from error
    except (OSError, ValueError, TypeError, EOFError, SyntaxError) as error:
        raise BadTask(f"{file}: is no array that can be read ({error}); unpack it again") from error
    return found


def _row(arrays: tuple[NDArray[Any], ...], row: int) -> NDArray[Any]:
    for array in arrays:
        if row < len(array):
            found: NDArray[Any] = array[row]
            return found
        row -= len(array)
    raise IndexError(row)
