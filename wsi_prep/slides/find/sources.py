"""Finding slides: what in a folder, a glob or a list is one, and which files belong together."""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from wsi_prep.errors import BadManifest, BadOption, FileServerFailed, NoSlides, UsageError, counted
from wsi_prep.format.layout import slide_ids
from wsi_prep.slides.dicom import DicomHeader, DicomSeries, dicom_header, series_beside, without_scan
from wsi_prep.slides.fetch.remote import files_in, is_elsewhere
from wsi_prep.slides.find.endings import SLIDE_ENDINGS, ending, is_left_out, is_list, only_left_out, without_masks
from wsi_prep.slides.find.folders import Folders, looks_like_slide, matching, unseen_note
from wsi_prep.slides.find.found import Found, SlideSource, Sources, kind_of, place_of, printed
from wsi_prep.slides.find.lists import named_in, read_list
from wsi_prep.slides.find.naming import KnownNames, as_stored, did_you_mean, one_form
from wsi_prep.slides.private import keyed_slide_id
from wsi_prep.slides.urls import bare_url, name_of
from wsi_prep.storage.patience import patiently
from wsi_prep.storage.select import OBJECT_STORES

_INDEXES = (".vms", ".vmu")
_ALONE = frozenset(SLIDE_ENDINGS) - {".dcm", ".mrxs", *_INDEXES}
"""Of files that are a slide each."""

_DICOM_INDEX = "DICOMDIR"
_PARTS = "a part of a DICOM series whose scan lies in another folder: put all of it into one"
_LOOK_AT_ONCE = 16
_AT_ONCE = 10_000

Listed = TypeVar("Listed")


def find_slides(slides: str, *, id_root: str | None = None, id_key: bytes | None = None) -> list[SlideSource]:
    """The slides that `look_for_slides` finds."""
    return list(look_for_slides(slides, id_root=id_root, id_key=id_key).sources)


def look_for_slides(slides: str, *, id_root: str | None = None, id_key: bytes | None = None) -> Found:
    """What `slides` names: a folder, a file, a glob, a .csv list, or any of these as a URL.

    Ids hash the absolute path, or with `id_root` the path relative to that folder; with `id_key` they are keyed hashes
    and hold nothing of the name. Raises NoSlides where nothing is found and BadManifest for a list that cannot be used.
    """
    fs, inner = place_of(slides)
    where = bare_url(slides)
    pictures: list[str] = []
    unseen: list[tuple[str, str]] = []
    nothing = ""
    if where.lower().endswith(".csv"):
        found = _grouped(_listed(slides, fs, inner), named=True)
    elif glob.has_magic(bare_url(slides)) and not _exists(fs, inner):
        matches, unseen = _matches(fs, inner, where)
        pictures = [_full(fs, p) for p in matches if is_left_out(p)]
        found = _grouped([_full(fs, p) for p in matches if looks_like_slide(p, fs)], named=False)
        nothing = f"{where} matches {counted(len(matches), 'file')}, none of them a slide"
    elif not _is_web_file(slides) and fs.isdir(inner):
        paths, pictures, unseen, seen = _listing(lambda: _walk(fs, inner), where)
        found = _grouped(paths, named=False)
        nothing = f"{where} holds no slide among {counted(seen, 'file')}; known endings are {' '.join(SLIDE_ENDINGS)}"
    elif _exists(fs, inner):
        _require_slide(fs, inner, where)
        found = _grouped([_full(fs, inner)], named=True)
    else:
        raise NoSlides(f"SLIDES {where} does not exist; name a folder, a slide, a glob or a .csv list")
    pictures, unseen = [*pictures, *found.others], [*unseen, *found.apart]
    if not found.paths:
        said = "".join(f"; {note}" for note in unseen_note(unseen))
        raise NoSlides(f"{nothing}{only_left_out(pictures)}{said}")
    sources = _sources(found.paths, found.groups, id_root, id_key)
    return Found(sources, without_masks(pictures, found.paths), tuple(unseen))


def paths_below(paths: Iterable[str], slides: str, id_root: str | None = None) -> Iterator[str]:
    """Each path below `id_root`, or below the folder that `slides` names or lies in; whole where it is not."""
    fs, inner = place_of(id_root or slides)
    if id_root is None and not fs.isdir(inner):
        inner = re.split(r"[*?[]", inner, maxsplit=1)[0].rpartition("/")[0]
    root = bare_url(_full(fs, inner))
    return (_below(bare_url(path), root) or str(PurePosixPath(bare_url(path))) for path in paths)


@dataclass(frozen=True)
class _Group:
    """Files that make one slide; `identity` is what its id is made from."""

    path: str
    name: str
    identity: str
    files: tuple[str, ...]


def _require_slide(fs: AbstractFileSystem, inner: str, where: str) -> None:
    """Raise NoSlides for one file that cannot be a slide, and may be a list of them."""
    if isinstance(fs, LocalFileSystem) and (kind := kind_of(os.stat(inner).st_mode)):  # noqa: PTH116 - from fsspec
        raise NoSlides(f"SLIDES {where} is no file but a {kind}")
    if is_list(where):
        raise NoSlides(
            f"SLIDES {where} is no slide; if it lists slides, save it as .csv with a column 'slide' (docs/format.md)"
        )


def _exists(fs: AbstractFileSystem, inner: str) -> bool:
    """As fs.exists, but what a file server does not tell is not taken for missing: FileServerFailed."""
    if not isinstance(fs, LocalFileSystem):
        return bool(fs.exists(inner))
    try:
        patiently(lambda: os.stat(inner))  # noqa: PTH116 - a path from fsspec
    except FileServerFailed:
        raise
    except PermissionError as error:
        raise _barred(inner) from error
    except (OSError, ValueError):
        return False
    return True


def _is_web_file(path: str) -> bool:
    """A page of the web has no folders, and asking for them would fetch the file."""
    return path.lower().startswith(("http://", "https://")) and ending(path) in SLIDE_ENDINGS


def _full(fs: AbstractFileSystem, inner: str) -> str:
    return os.path.abspath(inner) if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(inner))  # noqa: PTH100


def _matches(fs: AbstractFileSystem, pattern: str, where: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The files that fit a pattern, sorted, and folders that could not be looked into; elsewhere than here the listing
    has said which are files.
    """
    if isinstance(fs, LocalFileSystem):
        return _listing(lambda: matching(pattern), where)
    return sorted(str(p) for p, info in fs.glob(pattern, detail=True).items() if info["type"] == "file"), []


def _listing(look: Callable[[], Listed], where: str) -> Listed:
    """What looking into folders gives; raises NoSlides where this is not allowed of the first."""
    try:
        return patiently(look)
    except PermissionError as error:
        raise _barred(where) from error


def _barred(where: str) -> NoSlides:
    said = "may not be looked into (permission denied); have its owner allow you to read it"
    return NoSlides(f"SLIDES {printed(where)} {said}")


def _walk(fs: AbstractFileSystem, root: str) -> tuple[list[str], list[str], list[tuple[str, str]], int]:
    """Slide files under `root`, other pictures, folders that could not be looked into, and how many files were seen;
    our outputs, companions are passed by.
    """
    paths: list[str] = []
    pictures: list[str] = []
    seen = 0
    here = Folders(root) if isinstance(fs, LocalFileSystem) else None
    for folder, folders, files in here or fs.walk(root):
        at = str(folder).rstrip("/")
        names = sorted(files)
        seen += len(names)
        if "run.json" in names and "catalog" in folders:
            folders[:] = []
            continue
        whole = _full(fs, at or "/").rstrip("/") if here else ""
        companions = {PurePosixPath(n).stem for n in names if n.lower().endswith(".mrxs")}
        keep = [d for d in folders if not d.startswith(".") and d not in companions and not d.endswith(".zarr")]
        pictures += [_full(fs, f"{at}/{d}") for d in folders if is_left_out(d) and d.endswith(".zarr")]
        if isinstance(folders, list):
            folders[:] = sorted(keep)
        parts = set().union(*(named_in(_full(fs, f"{at}/{n}")) for n in names if n.lower().endswith(_INDEXES)))
        for name in names:
            path = f"{at}/{name}"
            if looks_like_slide(path, fs):
                paths.append(f"{whole}/{name}" if here else _full(fs, path))
            elif is_left_out(name) and name not in parts:
                pictures.append(_full(fs, path))
    return paths, pictures, here.unseen if here else [], seen


def _listed(slides: str, fs: AbstractFileSystem, inner: str) -> list[str]:
    """Paths of a .csv list's column `slide`, each checked."""
    where = bare_url(slides)
    if not _exists(fs, inner):
        raise NoSlides(f"SLIDES {where} does not exist")
    base = PurePosixPath(inner).parent
    lines: dict[str, int] = {}
    written: list[tuple[int, str, str]] = []
    header, rows, _ = read_list(slides, "SLIDES")
    if "slide" not in header:
        raise BadManifest(f"{where} has no column 'slide'; its columns are {', '.join(header) or 'none'}")
    column = header.index("slide")
    for line, cell in ((line, cells[column]) for line, cells in rows if len(cells) > column and cells[column]):
        if "\n" in cell or "\r" in cell:
            raise BadManifest(f"{where}, line {line}: the cell of column slide has a line break; write it in one line")
        written.append((line, cell, _resolved(where, line, cell, base, fs)))
    with ThreadPoolExecutor(_LOOK_AT_ONCE) as pool:
        stored = list(pool.map(_stored, (path for _, _, path in written)))
    missing = [(line, cell, path) for (line, cell, path), there in zip(written, stored, strict=True) if there is None]
    if missing:
        said = "; ".join(
            f"line {line}: {bare_url(cell)}{did_you_mean(_near(path))}" for line, cell, path in missing[:3]
        )
        raise BadManifest(
            f"{where} names {counted(len(missing), 'slide that does', 'slides that do')} not exist ({said})"
        )
    found = list(filter(None, stored))
    for (line, cell, _), path in zip(written, map(bare_url, found), strict=True):
        if path in lines:
            raise BadManifest(f"{where} names {bare_url(cell)} twice, in lines {lines[path]} and {line}; keep one")
        lines[path] = line
    _require_any(lines, where)
    return found


def _stored(path: str) -> str | None:
    """The path as it is there, its name perhaps in another Unicode form; None where it is not."""
    for form in dict.fromkeys((path, one_form(path), unicodedata.normalize("NFD", path))):
        fs, inner = place_of(form)
        if _exists(fs, inner):
            return form
    return as_stored(inner) if isinstance(fs, LocalFileSystem) else None


def _near(path: str) -> str | None:
    """The name of a file in its folder that a path may mean."""
    if is_elsewhere(path) and not path.startswith(OBJECT_STORES):
        return None
    names = (PurePosixPath(file).name for file in files_in(path.rpartition("/")[0]))
    return KnownNames(names).meant(name_of(path))


def _require_any(lines: dict[str, int], slides: str) -> None:
    if not lines:
        raise NoSlides(f"{slides} lists no slide")


def _resolved(slides: str, line: int, cell: str, base: PurePosixPath, fs: AbstractFileSystem) -> str:
    """A cell as a path. A relative one stays in the list's folder; an absolute one may be anywhere, since a cohort's
    list names file servers.
    """
    if "://" in cell or cell.startswith("/"):
        return cell if "://" in cell else os.path.normpath(cell)
    path = os.path.normpath(base / cell)
    if not PurePosixPath(path).is_relative_to(os.path.normpath(base)):
        raise BadManifest(f"{slides}, line {line}: {cell} leaves the list's own folder; give its absolute path")
    return _full(fs, path)


class _Grouped(NamedTuple):
    """Slides' `paths`, sorted; `groups`: those of several files by path, as a DICOM series, or an MRXS and its folder;
    `others`: DICOM files that are no slide's; `apart`: folders that hold but a part of a series, each with why it is
    no slide.
    """

    paths: list[str]
    groups: dict[str, _Group]
    others: list[str]
    apart: list[tuple[str, str]]


def _grouped(paths: Iterable[str], *, named: bool) -> _Grouped:
    """The slides among these files.

    `named`: each path was named by itself, so a DICOM file stands for its whole series, and what is no slide's is for
    its reader to refuse.
    """
    slides: list[str] = []
    groups: dict[str, _Group] = {}
    others: list[str] = []
    dicom: DicomSeries = defaultdict(list)
    per_folder: dict[str, set[str]] = defaultdict(set)
    rest: list[str] = []
    for path in paths:
        (slides if ending(path) in _ALONE else rest).append(path)
    with ThreadPoolExecutor(_LOOK_AT_ONCE) as pool:
        may_be = [p for p in rest if (end := ending(p)) == ".dcm" or end not in SLIDE_ENDINGS]  # came in as DICOM
        headers = dict(zip(may_be, pool.map(dicom_header, may_be), strict=True))
    for path in rest:
        header = headers.get(path)
        if header is None or (named and not header.is_slide):
            slides.append(path)
            if (files := _companions(path)) != (path,):
                groups[path] = _Group(path, name_of(path), bare_url(path), files)
        elif header.is_slide:
            folder, series = bare_url(path).rpartition("/")[0] or "/", header.series
            per_folder[folder].add(series)
            members = dicom[(folder, series)]
            if named:
                members += [m for m in series_beside(folder, series) if m[0] not in {p for p, _ in members}]
            else:
                members.append((path, header))
        elif name_of(path) != _DICOM_INDEX:
            others.append(path)
    parts = set() if named else without_scan(dicom)
    apart = [(folder, _PARTS) for folder, _ in sorted(parts)]
    dicom = {key: members for key, members in dicom.items() if key not in parts}
    series_found = [_dicom_group(key, members, len(per_folder[key[0]])) for key, members in dicom.items()]
    groups.update({group.path: group for group in series_found})
    return _Grouped(sorted([*slides, *(group.path for group in series_found)]), groups, others, apart)


def _dicom_group(key: tuple[str, str], members: list[tuple[str, DicomHeader]], series_here: int) -> _Group:
    folder, series = key

    def rank(member: tuple[str, DicomHeader]) -> tuple[bool, int, str]:
        path, header = member
        return not header.is_volume, -header.width, path

    chosen = min(members, key=rank)[0]
    files = tuple(sorted(path for path, _ in members))
    alone = len(files) > 1 and series_here == 1
    name = PurePosixPath(folder).name if alone else name_of(chosen)
    return _Group(chosen, name, f"{folder}/{series}" if len(files) > 1 else bare_url(chosen), files)


def _companions(path: str) -> tuple[str, ...]:
    """The file itself; for MRXS what its folder of the same name holds, for VMS elsewhere the files that it names."""
    end = ending(path)
    if end == ".mrxs":
        return (path, *files_in(path[: -len(".mrxs")]))
    if end in _INDEXES and is_elsewhere(path):
        named = named_in(path)
        return (path, *(f for f in files_in(path.rpartition("/")[0]) if PurePosixPath(f).name in named))
    return (path,)


def _sources(paths: list[str], groups: Mapping[str, _Group], id_root: str | None, id_key: bytes | None) -> Sources:
    root = None if id_root is None else bare_url(id_root) if "://" in id_root else os.path.abspath(id_root)  # noqa: PTH100
    ids, some = [pa.array([], pa.string())], list[str]()
    former: dict[int, str] = {}
    alike = array("q")
    for number, path in enumerate(paths):
        group = groups.get(path)
        name, identity = (group.name, group.identity) if group else (name_of(path), bare_url(path))
        slide_id, was = _ids(name, identity if root is None else _relative(identity, root), id_key)
        some.append(slide_id)
        alike.append(hash(slide_id.lower()))
        if was != slide_id:
            former[number] = was
        if len(some) == _AT_ONCE:
            ids.append(pa.array(some))
            some = []
    grouped = {number: (groups[path].name, groups[path].files) for number, path in enumerate(paths) if path in groups}
    sources = Sources(paths, pa.concat_arrays([*ids, pa.array(some, pa.string())]), former, grouped)
    ordered = np.sort(np.frombuffer(alike, np.int64))
    if (ordered[1:] == ordered[:-1]).any():
        _require_apart(sources)
    return sources


def _require_apart(sources: Sources) -> None:
    """Raise UsageError where two slides have one id: many a disk takes two cases of a name for one file."""
    by_id: dict[str, str] = {}
    for slide_id, _, path in sources.named():
        before = by_id.setdefault(slide_id.lower(), path)
        if before is not path:
            raise UsageError(f"{bare_url(before)} and {bare_url(path)} get the same id; rename one of them")


def _ids(name: str, identity: str, id_key: bytes | None) -> tuple[str, str]:
    """A slide's id, and the one of earlier versions."""
    if id_key is not None:
        keyed = keyed_slide_id(id_key, identity)
        return keyed, keyed
    return slide_ids(name, identity)


def _relative(path: str, root: str) -> str:
    below = _below(path, root)
    if below is None:
        raise BadOption(f"{path} is not inside the id root {root}")
    return below


def _below(path: str, root: str) -> str | None:
    """A path relative to a folder; None where it is not in it."""
    if path.startswith(f"{root}/") and "//" not in path and "/." not in path:
        return path[len(root) + 1 :]
    whole = PurePosixPath(path)
    return str(whole.relative_to(root)) if whole.is_relative_to(root) else None
