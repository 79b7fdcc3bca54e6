"""What an output gives away to whoever gets it: every text in it, every kind of file, times, and what does not belong.

Nothing is judged here but by its kind: whether a text names somebody is for a person to say.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from wsi_prep.errors import BadCatalog, BadOutput
from wsi_prep.format.layout import is_slide_id
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.storage.base import Storage
from wsi_prep.storage.select import local_folder, open_storage
from wsi_prep.untrusted.pages import BadTable
from wsi_prep.untrusted.tables import open_table, refusing, require_columns

_TABLES = {"slides": SLIDE_SCHEMA, "tiles": TILE_SCHEMA}
_KINDS = (
    ("tile stores: descriptions", re.compile(r"stores/([^/]+)\.zarr/(?:(?:5x|10x|20x|40x)/)?zarr\.json")),
    ("tile stores: tiles", re.compile(r"stores/([^/]+)\.zarr/(?:5x|10x|20x|40x)/c\.\d+\.0\.0\.0")),
    ("tissue outlines", re.compile(r"tissue/([^/]+)\.geojson")),
    ("overlays", re.compile(r"overlays/([^/]+)\.jpg")),
    ("catalog of slides", re.compile(r"catalog/slides/([^/.][^/]*)\.parquet")),
    ("catalog of tiles", re.compile(r"catalog/tiles/([^/.][^/]*)\.parquet")),
    ("run.json", re.compile(r"\.?run\.json")),
    ("call.sh", re.compile(r"call\.sh")),
    ("lock", re.compile(r"\.lock")),
    ("forgotten slides", re.compile(r"\.?forgotten\.json")),
)
_FOLDER = re.compile(
    r"\.staging|catalog(?:/slides|/tiles)?|tissue|overlays|stores(?:/([^/]+)\.zarr(?:/(?:5x|10x|20x|40x))?)?"
)
_DESCRIPTIONS, _TILES, _OUTLINES, _OVERLAYS, _OF_SLIDES, _OF_TILES, *_ALONE = (name for name, _ in _KINDS)
_CATALOG = (_OF_SLIDES, _OF_TILES)
_DIGEST = re.compile(r'"(sha256|crc32c):[0-9A-Za-z+/=]+"')
_PART = re.compile(r"part-\d{5}")
_MOST_BYTES = 64 * 2**20
"""Of a file of JSON, or a picture; what is larger is none of ours."""

_LOCK_BYTES = 64
_HEAD_BYTES = 2048
"""Of a tile, up to its scan."""

_PLAIN_SEGMENTS = frozenset((0xDB, 0xC4, 0xDD, *(set(range(0xC0, 0xD0)) - {0xC8, 0xCC})))
"""Tables, restart interval, frames (ITU-T T.81, table B.1)."""

_JFIF_BYTES = 14
_BATCH = 65_536
_OF_A_TILE = {"shard", "offset", "nbytes"}


@dataclass
class Disclosure:
    """What is in the output `where`.

    `texts`: by where they stand ("slides.institution", "run.json settings.private"), each text and how often it is
    there; ids are written as <slide_id> where a row's own id is part of a longer text. `kinds`: files and bytes of
    each kind. `strays`: what does not belong, each in one line. `slides`: how many have a row. `times`: the first and
    the last time of any file, seconds since 1970, where they lie on a disk. `is_private`: made with PRIVATE=1.
    """

    where: str
    texts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)
    slides: int = 0
    times: tuple[float, float] | None = None
    is_private: bool = False


def disclose(out: str) -> Disclosure:
    """Look through an output, on a disk or in an object store; raises BadCatalog where it is none."""
    place, found = open_storage(out), Disclosure(out)
    by_kind = _files(place, out, found)
    if not by_kind[_OF_SLIDES]:
        raise BadCatalog(f"{out} holds no catalog/slides; name a folder that make shards has filled")
    ids: set[str] = set()
    for table, kind in (("slides", _OF_SLIDES), ("tiles", _OF_TILES)):
        for path in by_kind[kind]:
            _table(place, path, table, found, ids)
    found.slides = len(ids)
    for kind, pattern in _KINDS[:6]:
        for path in by_kind[kind]:
            match = pattern.fullmatch(path)
            if match is not None and match[1] not in ids and not (kind in _CATALOG and _PART.fullmatch(match[1])):
                found.strays.append(f"{path} is of no slide in the catalog")
    filled = {path.split("/")[1] for kind in (_DESCRIPTIONS, _TILES) for path in by_kind[kind]}
    found.strays += [f"stores/{name} holds nothing" for name in place.names("stores") if name not in filled]
    for kind in (_DESCRIPTIONS, _OUTLINES, *_ALONE):
        for path in by_kind[kind]:
            _json(place, path, kind, found)
    for path in by_kind[_OVERLAYS]:
        data = _small(place, path, found)
        found.strays += [f"{path} {what}" for what in odd_parts(data, whole=True)] if data is not None else []
    found.is_private = any(where == "run.json settings.private" for where in found.texts)
    if found.is_private and by_kind["call.sh"]:
        found.strays.append("call.sh holds paths, and private output none")
    return found


def _files(storage: Storage, out: str, found: Disclosure) -> dict[str, list[str]]:
    """Paths by kind; those of no kind, links, and what is no file are strays."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    folder = local_folder(out)
    sizes = _listed(folder, found) if folder is not None else _below(storage)
    for path, size in sorted(sizes.items()):
        kind = next((name for name, pattern in _KINDS if pattern.fullmatch(path)), None)
        if kind is None:
            found.strays.append(f"{path} is no file of an output ({size:,} bytes)")
            continue
        by_kind[kind].append(path)
        count, total = found.kinds.get(kind, (0, 0))
        found.kinds[kind] = count + 1, total + size
    return by_kind


def _below(storage: Storage) -> dict[str, int]:
    return {path: size for name in storage.names("") for path, size in storage.sizes(name).items()}


def _listed(folder: Path, found: Disclosure) -> dict[str, int]:
    """Bytes of each file, no link followed; and the span of all times."""
    sizes, first, last = {}, float("inf"), float("-inf")
    for at, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(at, name)  # noqa: PTH118 - millions of them
            state, below = os.lstat(path), os.path.relpath(path, folder)
            first, last = min(first, state.st_mtime), max(last, state.st_mtime)
            if stat.S_ISREG(state.st_mode):
                sizes[below] = state.st_size
            elif not stat.S_ISDIR(state.st_mode):
                found.strays.append(f"{below} is a link, or no file")
                continue
            elif not _FOLDER.fullmatch(below):
                found.strays.append(f"{below} is no folder of an output")
            found.strays += [f"{below} has an attribute {name!r} on the disk" for name in _attributes(path)]
    found.times = (first, last) if sizes else None
    return sizes


def _attributes(path: str) -> list[str]:
    """Names of what people and programs have noted beside a file, where the system knows such a thing."""
    with contextlib.suppress(OSError, AttributeError):
        return [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")]
    return []


def _table(storage: Storage, path: str, table: str, found: Disclosure, ids: set[str]) -> None:
    """Every text of one file of the catalog, and of its metadata."""
    try:
        with refusing(path), open_table(next(iter(storage.sources([path]))), _TABLES[table]) as file:
            _metadata(file, path, table, found)
            places = {"slide_id"} | (_OF_A_TILE if table == "tiles" else set())
            try:
                require_columns(file.schema_arrow, _TABLES[table], places)
            except BadTable as error:
                found.strays.append(f"{path} is no table of ours: {error}")
                places = set()
            for batch in file.iter_batches(batch_size=_BATCH):
                _rows(pa.Table.from_batches([batch]), path, table, found, ids)
                if table == "tiles" and places:
                    _tiles(storage, batch, found)
    except (BadCatalog, BadOutput) as error:
        found.strays.append(str(error))


def _metadata(file: pq.ParquetFile, path: str, table: str, found: Disclosure) -> None:
    """What a file's columns, and its notes beside the rows, tell."""
    for name in set(file.schema_arrow.names) - set(_TABLES[table].names):
        found.strays.append(f"{path} has a column {name!r} that no table of ours has")
    found.texts[f"{table}, Parquet created by"][str(file.metadata.created_by)] += 1
    for key, value in (file.metadata.metadata or {}).items():
        if key != b"ARROW:schema":
            found.texts[f"{table}, Parquet metadata {_text(key)}"][_text(value)] += 1
    for field_ in file.schema_arrow:
        for key, value in (field_.metadata or {}).items():
            if key != b"PARQUET:field_id":
                found.texts[f"{table}.{field_.name}, metadata {_text(key)}"][_text(value)] += 1


def _rows(rows: pa.Table, path: str, table: str, found: Disclosure, ids: set[str]) -> None:
    """The texts in the rows; what is no text is told as one, where there is a way."""
    whose = pa.nulls(len(rows), pa.string())
    if "slide_id" in rows.column_names and pa.types.is_string(rows.schema.field("slide_id").type):
        whose = rows["slide_id"]
        ids.update(map(str, whose.to_pylist()) if table == "slides" else ())
    for column in rows.schema:
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
            continue
        try:
            values = rows[column.name].cast(pa.string())
        except pa.ArrowException:
            stray = f"{path} has a column {column.name!r} of {column.type} with values that cannot be told"
            found.strays += [stray] if stray not in found.strays[-1:] else []
            continue
        counts = found.texts[f"{table}.{column.name}"]
        groups = pa.table({"whose": whose, "text": values}).group_by(["whose", "text"]).aggregate([([], "count_all")])
        for group in groups.to_pylist():
            if group["text"] is not None:
                text = _without_id(group["text"], group["whose"] or "", column.name)
                counts[text] += group["count_all"]


def _without_id(text: str, slide_id: str, column: str) -> str:
    """A text that is longer than the id in it, with its place; digests by their kind."""
    if column == "digests":
        text = _DIGEST.sub(r'"\1:<digits>"', text)
    return text.replace(slide_id, "<slide_id>") if column != "slide_id" and slide_id and text != slide_id else text


def _tiles(storage: Storage, rows: pa.RecordBatch, found: Disclosure) -> None:
    """The heads of these tiles' JPEGs."""
    shards: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in rows.select(["slide_id", "shard", "offset", "nbytes"]).to_pylist():
        path = str(row["shard"])
        match = _KINDS[1][1].fullmatch(path)
        if match is None or match[1] != row["slide_id"] or not is_slide_id(row["slide_id"]):
            found.strays.append(f"the catalog names a shard {path[:80]!r} that is none of its slide's")
        elif row["offset"] is not None and row["nbytes"] is not None and min(row["offset"], row["nbytes"]) >= 0:
            shards[path].append((row["offset"], min(row["nbytes"], _HEAD_BYTES)))
    for path, spans in shards.items():
        if not _is_regular(storage, path):
            found.strays.append(f"{path} is missing, or no file")
            continue
        odd: Counter[str] = Counter(what for head in storage.spans(path, spans) for what in odd_parts(head))
        found.strays += [f"{path}: {count:,} tiles: {what}" for what, count in odd.items()]


def odd_parts(jpeg: bytes, *, whole: bool = False) -> Iterator[str]:
    """What a JPEG holds beside tables and pixels, up to its scan; with `whole`, behind its end too."""
    if jpeg[:2] != b"\xff\xd8":
        yield "is no JPEG"
        return
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != 0xDA:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        is_jfif = marker == 0xE0 and length == _JFIF_BYTES + 2 and jpeg[at + 4 : at + 9] == b"JFIF\0"
        if marker not in _PLAIN_SEGMENTS and not is_jfif:
            yield f"has a segment {marker:02X} of {length:,} bytes beside its pixels"
        at += 2 + length
    if jpeg[at : at + 2] != b"\xff\xda":
        yield "has no pixels where they belong"
    elif whole and not jpeg.endswith(b"\xff\xd9"):
        yield "has something behind its end"


def _json(storage: Storage, path: str, kind: str, found: Disclosure) -> None:
    """Every field of a file of JSON and the texts in it; of a slide's files the numbers too, but for coordinates."""
    data = _small(storage, path, found)
    if data is None:
        return
    if kind == "call.sh":
        found.texts["call.sh, its lines"].update(line.strip(" \\") for line in _text(data).splitlines())
        return
    if kind == "lock":
        found.texts["lock"][_text(data[:_LOCK_BYTES])] += 1
        found.strays += [f"{path} holds more than a run's token"] if len(data) > _LOCK_BYTES else []
        return
    slide = path.split("/")[1].removesuffix(".zarr").removesuffix(".geojson") if "/" in path else ""
    try:
        for where, value in _values_in(json.loads(data), ""):
            found.texts[f"{kind}, its fields"][where] += 1
            if isinstance(value, str) or (slide and isinstance(value, int | float) and not isinstance(value, bool)):
                found.texts[f"{kind} {where}"][_without_id(str(value), slide, "")] += 1
    except (ValueError, RecursionError):
        found.strays.append(f"{path} cannot be read as JSON")


def _values_in(value: object, where: str) -> Iterator[tuple[str, object]]:
    """Fields and what they hold; of lists what is no number, since coordinates and shapes are theirs."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _values_in(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for inner in value:
            if not isinstance(inner, int | float):
                yield from _values_in(inner, where)
    else:
        yield where, value


def _small(storage: Storage, path: str, found: Disclosure) -> bytes | None:
    """What a file holds, unless it is far too large to be what its name says."""
    if sum(storage.sizes(path).values()) > _MOST_BYTES:
        found.strays.append(f"{path} is too large to be what its name says")
        return None
    return storage.read(path)


def _is_regular(storage: Storage, path: str) -> bool:
    folder = local_folder(storage.where)
    if folder is None:
        return storage.exists(path)
    try:
        return stat.S_ISREG(os.lstat(folder / path).st_mode)
    except OSError:
        return False


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
