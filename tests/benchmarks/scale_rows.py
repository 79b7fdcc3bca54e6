"""An output of very many slides that nobody processed: files, rows and seals as `make shards` leaves them, no stores.

Slides are files of eight bytes, a thousand a folder, named by barcodes: some fourteen slides a patient, 200 sites.
Parts of the catalog are written through the project's own schema and seal, with a few rows of tiles a slide.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wsi_prep.format.layout import make_slide_id
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.output.catalog import written_as
from wsi_prep.output.folder import begin, catalog_counts, read_run, write_run
from wsi_prep.output.sealed_parquet import sealed_writer
from wsi_prep.run.call import terms_of
from wsi_prep.run.request import RunRequest
from wsi_prep.slides.find.found import SlideSource, seen
from wsi_prep.slides.private import keyed_patient
from wsi_prep.storage.select import open_storage

KEY = b"a key of the benchmark, no secret"
TILES = 3
PART_SLIDES, PATIENT_SLIDES, FOLDER_SLIDES = 50_000, 14, 1_000
_SITES = 200
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def patient(number: int) -> str:
    """The patient of slide `number`, as a barcode tells it."""
    of = number // PATIENT_SLIDES
    site, left = of % _SITES, of // _SITES
    code = "".join(_LETTERS[left // 36**place % 36] for place in range(4))
    return f"TCGA-{_LETTERS[site // 36]}{_LETTERS[site % 36]}-{code}"


def make_slides(folder: Path, first: int, count: int) -> None:
    """The files of so many slides."""
    for number in range(first, first + count):
        place = folder / f"{number // FOLDER_SLIDES:05d}"
        if number in (first, number - number % FOLDER_SLIDES):
            place.mkdir(parents=True, exist_ok=True)
        with open(path_of(folder, number), "wb", buffering=0) as file:  # noqa: PTH123 - millions of them
            file.write(number.to_bytes(8, "little"))


def path_of(folder: Path, number: int) -> str:
    """Where slide `number` lies."""
    return f"{folder}/{number // FOLDER_SLIDES:05d}/{patient(number)}-01Z-00-DX{number % PATIENT_SLIDES + 1:02d}.svs"


def make_catalog(request: RunRequest, folder: Path, slides: int) -> None:
    """The output of `request`, with a row for each slide of `folder` and TILES tiles for each that is ok."""
    storage = open_storage(request.out)
    storage.create()
    catalog = begin(storage, terms_of(request), patients=True)
    mark = request.settings.config_hash(None)
    for part, first in enumerate(range(0, slides, PART_SLIDES)):
        rows = _slides(folder, first, min(PART_SLIDES, slides - first), mark)
        name = f"part-{part:05d}.parquet"
        _write(Path(request.out) / "catalog/slides" / name, rows)
        _write(Path(request.out) / "catalog/tiles" / name, _tiles(rows))
    write_run(storage, {**read_run(storage), **catalog_counts(catalog), "last_call": {}})


def _write(path: Path, rows: pa.Table) -> None:
    with path.open("w+b") as file, sealed_writer(file, rows.schema, **written_as(rows.schema)) as writer:
        writer.write_table(rows, row_group_size=100_000)


def _slides(folder: Path, first: int, count: int, mark: str) -> pa.Table:
    rng = np.random.default_rng(first)
    numbers = range(first, first + count)
    paths = [path_of(folder, number) for number in numbers]
    names = [path.rpartition("/")[2] for path in paths]
    share = rng.random(count)
    status = np.select([share < 0.025, share < 0.035], ["empty", "excluded"], "ok")
    ok = status == "ok"
    stain = np.where(rng.random(count) < 0.7, "HE", "IHC")
    sure = (0.6 + 0.4 * rng.random(count)).astype(np.float32)
    keys = {of: keyed_patient(KEY, of) for of in dict.fromkeys(map(patient, numbers))}
    given = {
        "slide_id": [make_slide_id(name, path) for name, path in zip(names, paths, strict=True)],
        "file": names,
        "fingerprint": [_fingerprint(number) for number in numbers],
        "vendor": ["aperio"] * count,
        "mpp_x": np.full(count, 0.25),
        "mpp_y": np.full(count, 0.25),
        "mpp_source": ["openslide"] * count,
        "width": rng.integers(20_000, 150_000, count),
        "height": rng.integers(20_000, 100_000, count),
        "stain": stain,
        "stain_confidence": sure,
        "stain_source": ["pixels"] * count,
        "stain_pixels": stain,
        "stain_pixels_confidence": sure,
        "institution": [patient(number)[:7] for number in numbers],
        "institution_source": ["barcode"] * count,
        "tissue": ["unknown"] * count,
        "patient_key": [keys[patient(number)] for number in numbers],
        "tissue_mm2": 300 * rng.random(count),
        "status": status,
        "error_type": np.where(status == "excluded", "NotBrightField", None),
        "error": np.where(ok, None, np.where(status == "empty", "no tissue was found", "fluorescence, or dark field")),
        "warning": np.where(rng.random(count) < 0.05, "the glass is tinted", None),
        "config_hash": [mark] * count,
        "seconds": 60 * rng.random(count),
        "bytes": rng.integers(10_000_000, 90_000_000, count),
        "files": np.full(count, 9),
        "digests": [f'{{"overlay.jpg":"sha256:{rng.bytes(32).hex()}"}}' for _ in numbers],
        "source_bytes": np.full(count, 8),
        "source_seen": [seen(SlideSource("", path, "", (path,))) for path in paths],
        "tissue_certainty": (0.8 + 0.2 * rng.random(count)).astype(np.float32),
    }
    for name, tiles in (("tiles_5x", 0), ("tiles_10x", 0), ("tiles_20x", 1), ("tiles_40x", TILES - 1)):
        given[name] = np.where(ok, tiles, 0)
    columns = [_column(given.get(field.name), field, count) for field in SLIDE_SCHEMA]
    return pa.table(columns, SLIDE_SCHEMA)


def _column(values: object, field: pa.Field, count: int) -> pa.Array:
    return pa.nulls(count, field.type) if values is None else pa.array(values, field.type)


def _fingerprint(number: int) -> str:
    """What `fingerprint` says of a file of these eight bytes: the size, both ends, and sixteen samples."""
    data = number.to_bytes(8, "little")
    samples = b"".join(data[8 * sample // 16 :] for sample in range(16))
    return hashlib.blake2b(b"8\0" + data + data + samples, digest_size=16).hexdigest()


def _tiles(slides: pa.Table) -> pa.Table:
    ids = slides.filter(pc.equal(slides["status"], "ok"))["slide_id"].combine_chunks()
    count = TILES * len(ids)
    rng = np.random.default_rng(count)
    number = np.arange(count)
    slide_id = ids.take(pa.array(number // TILES))
    magnification = pa.array(["40x", "40x", "20x"]).take(pa.array(number % TILES))
    store = pc.binary_join_element_wise("stores/", slide_id, ".zarr/", magnification, "")
    given = {
        "slide_id": slide_id,
        "magnification": magnification,
        "array": store,
        "shard": pc.binary_join_element_wise(store, "/c.0.0.0.0", ""),
        "index": number % TILES % 2,
        "crc32": rng.integers(0, 1 << 32, count, dtype=np.uint32),
        "nbytes": rng.integers(20_000, 80_000, count),
        "row": number % 97,
        "col": number % 89,
    }
    columns = [
        pa.array(given[f.name] if f.name in given else rng.random(count), f.type, safe=False) for f in TILE_SCHEMA
    ]
    return pa.table(columns, TILE_SCHEMA)
