"""Whether an output is what the slides say: by Parquet and JPEG alone, without the code that made it."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.honest.judge import MOST_COLOUR, MOST_SPREAD
from tests.fuzz.honest.painting import Picture
from tests.soak.slides import Slide, painted, under
from tests.soak.worlds import World

_OWN_FILES = {"run.json", ".run.json", "call.sh", ".lock"}
_PART = re.compile(r"catalog/(slides|tiles)/part-\d{5}\.parquet")
_OF_SLIDE = re.compile(r"(?:stores/([^/]+)\.zarr/.+|tissue/([^/]+)\.geojson|overlays/([^/]+)\.jpg)")


def judge(world: World, out: Path, *, poisoned: bool) -> list[str]:
    """What is wrong with an output after a call that ended by itself, in words; nothing where all is as it must be."""
    rows, tiles = _table(out, "slides"), _table(out, "tiles")
    of_slide: dict[str, list[dict]] = defaultdict(list)
    for tile in tiles:
        of_slide[tile["slide_id"]].append(tile)
    found = [
        f"doubled: {count} rows of {name}" for name, count in Counter(r["file"] for r in rows).items() if count > 1
    ]
    by_name = {row["file"]: row for row in rows}
    found += [f"unknown: a row of {name}, which is no slide" for name in by_name if name not in world.by_name]
    known = {row["slide_id"] for row in rows}
    found += [f"orphan: tiles of {slide_id} without a row" for slide_id in of_slide if slide_id not in known]
    for slide in world.cohort:
        row = by_name.get(slide.name)
        if row is None:
            found.append(f"lost: {slide.name} has no row")
            continue
        found += [f"{what}: {slide.name}: {why}" for what, why in _of_row(world, slide, row, poisoned=poisoned)]
        if row["status"] == "ok":
            mine = of_slide[row["slide_id"]]
            found += [f"{what}: {slide.name}: {why}" for what, why in _of_tiles(world, slide, row, mine, out)]
        elif of_slide[row["slide_id"]]:
            found.append(f"orphan: {slide.name} is {row['status']} and has {len(of_slide[row['slide_id']])} tiles")
    return found + _patients(world, by_name) + leftovers(out, rows)


def _table(out: Path, name: str) -> list[dict]:
    files = [path for path in sorted((out / "catalog" / name).glob("*.parquet")) if not path.name.startswith(".")]
    return pa.concat_tables([pq.read_table(path) for path in files]).to_pylist() if files else []


def _of_row(world: World, slide: Slide, row: dict, *, poisoned: bool) -> list[tuple[str, str]]:
    status, errors = slide.verdict(poisoned=poisoned)
    found = []
    if row["status"] != status or (row["error_type"] or "") not in errors:
        said = " ".join(filter(None, (row["status"], row["error_type"], row["error"])))
        silent = "silent" if row["status"] == "ok" else "untrue"
        found.append((silent, f"it says {said!r}, true is {status} {' or '.join(errors)}".rstrip()))
    if row["status"] != "ok" and not row["error"]:
        found.append(("silent", f"{row['status']} without a reason"))
    told = world.described(slide)
    found += [
        ("described", f"{column} is {row[column]!r}, the manifest says {told[column]!r}")
        for column in ("institution", "tissue")
        if row[column] != told[column]
    ]
    if json.loads(row["manifest"] or "{}") != {"batch": told["batch"]}:
        found.append(("described", f"further columns are {row['manifest']}, the manifest says batch {told['batch']}"))
    return found


def _of_tiles(world: World, slide: Slide, row: dict, tiles: list[dict], out: Path) -> list[tuple[str, str]]:
    places = Counter((tile["magnification"], tile["row"], tile["col"]) for tile in tiles)
    stored = Counter((tile["array"], tile["index"]) for tile in tiles)
    true = slide.tiles()
    found = [
        ("doubled", f"the tile {' '.join(map(str, place))} is there twice") for place, n in places.items() if n > 1
    ]
    found += [("doubled", f"two tiles are {' '.join(map(str, at))}") for at, n in stored.items() if n > 1]
    found += [("lost", f"the tile {' '.join(map(str, place))} is missing") for place in sorted(true - places.keys())]
    found += [("unknown", f"the tile {' '.join(map(str, place))} is none") for place in sorted(places.keys() - true)]
    for name in ("20x", "10x"):
        if row[f"tiles_{name}"] != sum(place[0] == name for place in true):
            found.append(("untrue", f"its row counts {row[f'tiles_{name}']} tiles at {name}"))
    if found:
        return found
    version = world.versions[slide.name]
    wrong = _wrong_pixels(painted(slide, version), tiles, out)
    if wrong:
        older = [v for v in range(1, version) if not _wrong_pixels(painted(slide, v), tiles, out)]
        whose = f"; they are those of version {older[-1]}" if older else ""
        found.append(("wrong", f"{len(wrong)} of {len(tiles)} tiles are not version {version}: {wrong[0]}{whose}"))
    return found


def _wrong_pixels(picture: Picture, tiles: list[dict], out: Path) -> list[str]:
    """The tiles that do not show what is painted under them, or are not the bytes that their rows say."""
    wrong = []
    for tile in tiles:
        data = _bytes_of(out / tile["shard"], tile["offset"], tile["nbytes"])
        where = f"{tile['magnification']} at row {tile['row']}, column {tile['col']}"
        if zlib.crc32(data) != tile["crc32"]:
            wrong.append(f"{where} has another checksum")
            continue
        got = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        want = under(picture, tile["magnification"], tile["row"], tile["col"])
        if got is None or got.shape != want.shape:
            wrong.append(f"{where} is no picture of {want.shape[0]} px")
            continue
        got = got[..., ::-1].astype(np.float32)
        colour = float(np.abs(got.mean((0, 1)) - want.mean((0, 1))).max())
        small = [cv2.resize(t, (98, 98), interpolation=cv2.INTER_AREA) for t in (got, want)]
        spread = float(np.sqrt(np.square(small[0] - small[1]).mean()))
        if colour > MOST_COLOUR or spread > MOST_SPREAD:
            wrong.append(f"{where} is off by {colour:.1f} levels in the mean, {spread:.1f} in pixels")
    return wrong


def _bytes_of(shard: Path, offset: int, count: int) -> bytes:
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(count)


def _patients(world: World, by_name: dict[str, dict]) -> list[str]:
    """One key for all slides of a patient, and another for each other patient."""
    keys = defaultdict(set)
    for slide in world.cohort:
        if slide.name in by_name:
            keys[world.described(slide)["patient"]].add(by_name[slide.name]["patient_key"])
    mixed = [patient for patient, found in keys.items() if len(found) != 1 or None in found]
    shared = len(set.union(*keys.values())) < len(keys) if keys else False
    found = [f"described: slides of {patient} have the keys {sorted(map(str, keys[patient]))}" for patient in mixed]
    return found + (["described: two patients have one key"] if shared else [])


def leftovers(out: Path, rows: list[dict]) -> list[str]:
    """Files that belong to no row, and rows that lack files."""
    counts = {row["slide_id"]: row["files"] for row in rows if row["status"] != "failed"}
    there: Counter[str] = Counter()
    found = []
    for path in sorted(p for p in out.rglob("*") if not p.is_dir()):
        name = str(path.relative_to(out))
        of_slide = _OF_SLIDE.fullmatch(name)
        slide_id = next(filter(None, of_slide.groups()), None) if of_slide else None
        if slide_id in counts:
            there[slide_id] += 1
        elif name not in _OWN_FILES and not _PART.fullmatch(name):
            found.append(f"left over: {name}")
    wrong = {slide_id: (count, there[slide_id]) for slide_id, count in counts.items() if there[slide_id] != count}
    return found + [f"files: {i} has {has} files, its row says {says}" for i, (says, has) in wrong.items()]
