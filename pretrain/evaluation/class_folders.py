"""Labelled tiles in folders: a class each, perhaps in splits, and which slide or case each tile is of."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors import BadTask
from wsi_prep.errors import BadOption, counted
from wsi_prep.untrusted.pattern import TimedPattern

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SIDES = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
LAYOUTS = "CLASS/*.png, CLASS/SLIDE/*.png, SPLIT/CLASS/..., or 20x/..."
_LIKE_SPLIT = re.compile(r"train|test|val|dev|eval|fold|split", re.IGNORECASE)
_NOT_MEANT = ("__MACOSX", "Thumbs.db")


class GroupPattern:
    """A user's regular expression with a group `group`, which finds the slide or case of a tile in its path.

    Raises BadOption for one that cannot be used, and when it takes longer than a second on one path.
    """

    def __init__(self, text: str) -> None:
        self._pattern = TimedPattern(text, "group pattern")
        if set(self._pattern.groups) != {"group"}:
            named = ", ".join(self._pattern.groups) or "none"
            raise BadOption(f"group pattern {text!r} names the groups {named}; it needs (?P<group>...), and no other")

    def search(self, path: str) -> str | None:
        """What the pattern finds in a path, None where it finds nothing or the path is longer than 1,000."""
        found = self._pattern.search(path)
        return (found["group"] or None) if found else None


@dataclass(frozen=True)
class ClassFolder:
    """Files with a label each; `groups`, slides or cases, None where nothing tells them; `split`, None for one side.

    `notes`: what a user should know of how they were read.
    """

    files: list[Path]
    labels: list[str]
    groups: list[str] | None
    split: list[str] | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Tile:
    """`depth`: 1 where it lies in its class's folder itself."""

    file: Path
    side: str
    label: str
    depth: int


def read_classes(folder: Path, pattern: GroupPattern | None = None) -> ClassFolder:
    """The tiles of `CLASS/*.png`, or of `CLASS/SLIDE/*.png`, each perhaps below `train/`, `valid/`, `test/`.

    `pattern`: finds slides in the paths below `folder` instead, however deep tiles lie. Raises BadTask where the folder
    can be read in two ways.
    """
    sides = _sides(folder)
    kinds = [(side, kind) for side, parent in sides for kind in _folders(parent)]
    tiles = [
        _Tile(file, side, kind.name, len(file.relative_to(kind).parts))
        for side, kind in kinds
        for file in _images_below(kind)
    ]
    left_out = _left_out([folder, *(parent for _, parent in sides)], [kind for _, kind in kinds])
    if not tiles:
        why = f" ({'; '.join(left_out)})" if left_out else ""
        raise BadTask(f"{folder}: holds no {LAYOUTS}{why}; see docs/evaluation.md")
    groups, note = _groups(folder, tiles, pattern)
    return ClassFolder(
        [tile.file for tile in tiles],
        [tile.label for tile in tiles],
        groups,
        [tile.side for tile in tiles] if tiles[0].side else None,
        tuple(text for text in (note, *left_out) if text),
    )


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, in order of their names, without links that lead elsewhere."""
    return sorted(file for file in folder.iterdir() if _is_image(file) and _is_meant(file.name))


def holds_images(folder: Path) -> bool:
    """Whether there are any in it or below."""
    return next(_images_below(folder), None) is not None


def _sides(folder: Path) -> list[tuple[str, Path]]:
    """The splits with their folders; one without a name where the folder holds classes."""
    parts = [part for part in _folders(folder) if holds_images(part)]
    named = [part for part in parts if part.name.lower() in SIDES]
    if not named:
        return [("", folder)]
    if others := [part.name for part in parts if part not in named]:
        raise BadTask(
            f"{folder}: holds {', '.join(p.name for p in named)} beside {', '.join(others[:3])}: splits or classes? "
            "Put classes into train, valid and test, or rename the folders"
        )
    return [(SIDES[part.name.lower()], part) for part in named]


def _groups(folder: Path, tiles: Sequence[_Tile], pattern: GroupPattern | None) -> tuple[list[str] | None, str]:
    """The slide of each tile, and how it is known; None and nothing where it is not."""
    paths = [tile.file.relative_to(folder).as_posix() for tile in tiles]
    if pattern is not None:
        found = [pattern.search(path) for path in paths]
        if missed := [path for path, group in zip(paths, found, strict=True) if group is None]:
            raise BadTask(
                f"{folder}: the group pattern finds nothing in {len(missed)} of {len(paths)} paths, as in {missed[0]}; "
                "every tile needs a slide or case"
            )
        groups = [str(group) for group in found]
        return groups, f"slides are what the group pattern finds: {len(set(groups))}, as {groups[0]} in {paths[0]}"
    deepest = max(tiles, key=lambda tile: tile.depth)
    if deepest.depth == 1:
        return None, ""
    if {tile.depth for tile in tiles} != {2}:
        raise BadTask(
            f"{folder}: tiles lie at several depths, or deeper than CLASS/SLIDE/, as "
            f"{deepest.file.relative_to(folder)}; arrange them as CLASS/*.png or CLASS/SLIDE/*.png, or give a group "
            "pattern"
        )
    labels = sorted({tile.label for tile in tiles})
    said = ", ".join(labels[:3]) + (", ..." if len(labels) > 3 else "")
    if not deepest.side and all(_LIKE_SPLIT.match(label) for label in labels):
        raise BadTask(
            f"{folder}: are {said} splits or classes? Name splits train, valid and test, and classes otherwise"
        )
    groups = [tile.file.parent.name for tile in tiles]
    return groups, f"classes are {said}; slides are the folders below them: {len(set(groups))}, as {groups[0]}"


def _left_out(parents: Sequence[Path], kinds: Sequence[Path]) -> list[str]:
    """What lies in the folder and is not read."""
    found = []
    loose = [file for parent in dict.fromkeys(parents) for file in image_files(parent)]
    if loose:
        found.append(f"{counted(len(loose), 'image')} in no class's folder skipped, as {loose[0].name}")
    others = [file for kind in kinds for file in _files(kind) if not _is_image(file)]
    if links := [file for file in others if file.is_symlink()]:
        found.append(f"{counted(len(links), 'link')} skipped, as {links[0].name}; copy what they lead to")
    if strange := [file for file in others if not file.is_symlink()]:
        found.append(f"{counted(len(strange), 'file')} skipped, not .png, .jpg or .tif, as {strange[0].name}")
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(part for part in folder.iterdir() if part.is_dir() and _is_meant(part.name))


def _files(folder: Path) -> Iterator[Path]:
    """All in it and below, in order, but for what systems leave there."""
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if _is_meant(name))
        yield from (Path(at, name) for name in sorted(names) if _is_meant(name))


def _images_below(folder: Path) -> Iterator[Path]:
    return filter(_is_image, _files(folder))


def _is_image(file: Path) -> bool:
    """A link is none: it may lead anywhere."""
    return file.suffix.lower() in IMAGES and not file.is_symlink()


def _is_meant(name: str) -> bool:
    return not name.startswith(".") and name not in _NOT_MEANT
