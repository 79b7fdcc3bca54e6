"""A cohort of many slides made of real JPEG tiles, as shard folders, and the same bytes in the formats of others."""

from __future__ import annotations

import random
import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import litdata
import lmdb
import pyarrow as pa
import webdataset

from pretrain.data.index import TileAddress, open_index
from pretrain.data.sampler import Sampler, SamplingSettings
from wsi_prep.format.jpeg import JpegSettings
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.output.catalog import Catalog
from wsi_prep.tiles.store import StoreWriter

_MPP = {"40x": 0.25, "20x": 0.5, "10x": 1.0, "5x": 2.0}
_ACROSS = 8  # tiles of a slide
_STAINS, _INSTITUTIONS = ("HE", "HE", "HE", "IHC"), 5


@dataclass(frozen=True)
class Cohort:
    """Where each format lies; `steps` batches of `batch` tiles are drawn, and the others hold just those tiles."""

    folder: Path
    batch: int
    steps: int

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def tars(self) -> list[str]:
        return [str(path) for path in sorted((self.folder / "webdataset").glob("*.tar"))]

    @property
    def lmdb(self) -> Path:
        return self.folder / "lmdb"

    @property
    def litdata(self) -> Path:
        return self.folder / "litdata"

    @property
    def tiles(self) -> int:
        return self.batch * self.steps

    def sampler(self) -> Sampler:
        index = open_index([str(self.shards)], self.folder / "index")
        return Sampler(index, SamplingSettings(batch=self.batch))

    def drawn(self) -> list[TileAddress]:
        """Every tile that is drawn, in its order."""
        sampler = self.sampler()
        return [sampler.index.address(int(tile)) for step in range(self.steps) for tile in sampler.draw(step).tile]


def make(folder: Path, shards: str, slides: int, batch: int, steps: int) -> Cohort:
    """Slides of 24 to 72 tiles a magnification, of JPEG tiles that the OUT folder `shards` holds; bytes as they are."""
    source = open_index([shards], folder / "source_index")
    pool: dict[str, list[bytes]] = {m.name: [] for m in MAGNIFICATIONS}
    for cell in source.cells:
        for tile in range(int(cell["start"]), int(cell["start"]) + int(cell["count"])):
            at = source.address(tile)
            pool[MAGNIFICATIONS[cell["magnification"]].name].append(at.source.read(at.path, at.offset, at.nbytes))
    names = [name for name in pool if pool[name]]
    choose = random.Random(0)
    catalog = Catalog(folder / "shards")
    catalog.create()
    (folder / "shards/stores").mkdir(exist_ok=True)
    for number in range(slides):
        some = choose.sample(names, choose.randint(1, len(names)))
        tiles = {name: choose.choices(pool[name], k=choose.randint(24, 72)) for name in some}
        _add_slide(catalog, folder / "shards", number, tiles)
    return Cohort(folder, batch, steps)


def _add_slide(catalog: Catalog, out: Path, number: int, jpegs: dict[str, list[bytes]]) -> None:
    slide_id = f"bench{number:05d}-{number:010x}"
    store = f"stores/{slide_id}.zarr"
    counts = {name: len(tiles) for name, tiles in jpegs.items()}
    writer = StoreWriter(out / store, defaultdict(JpegSettings), attributes={})
    rows = []
    for name, tiles in jpegs.items():
        for jpeg in tiles:
            at = writer.append(name, jpeg)
            place = {field: getattr(at, field) for field in ("index", "offset", "nbytes", "crc32")}
            place |= dict(zip(("row", "col"), divmod(at.index, _ACROSS), strict=True))
            where = {"array": f"{store}/{name}", "shard": f"{store}/{at.shard}"}
            rows.append({"slide_id": slide_id, "magnification": name, "mpp": _MPP[name]} | where | place)
    writer.close()
    strata = {
        "stain": _STAINS[number % len(_STAINS)],
        "institution": f"institution {number % _INSTITUTIONS}",
        "tissue": "unknown",
    }
    row = dict.fromkeys(SLIDE_SCHEMA.names) | {"slide_id": slide_id, "status": "ok", "patient_key": slide_id} | strata
    row |= {f"tiles_{name}": counts.get(name, 0) for name in _MPP}
    catalog.commit(row, pa.Table.from_pylist(rows, TILE_SCHEMA))


def make_peers(cohort: Cohort) -> None:
    """The drawn tiles, in their order, as tar shards, LMDB and litdata chunks."""
    places = [(str(cohort.shards / at.path), at.offset, at.nbytes) for at in cohort.drawn()]
    (cohort.folder / "webdataset").mkdir()
    with webdataset.ShardWriter(str(cohort.folder / "webdataset/%04d.tar"), maxcount=512, verbose=0) as tar:
        for number, place in enumerate(places):
            tar.write({"__key__": f"{number:08d}", "jpg": _read(place)})
    with lmdb.open(str(cohort.lmdb), map_size=1 << 36) as database, database.begin(write=True) as transaction:
        for number, place in enumerate(places):
            transaction.put(struct.pack(">Q", number), _read(place))
    litdata.optimize(_read, places, str(cohort.litdata), chunk_bytes="32MB", num_workers=1, verbose=False)


def _read(place: tuple[str, int, int]) -> bytes:
    path, offset, nbytes = place
    with Path(path).open("rb") as file:
        file.seek(offset)
        return file.read(nbytes)


def sizes(cohort: Cohort) -> dict[str, float]:
    """MB on the disk by format."""
    found = {}
    for name in ("shards", "webdataset", "lmdb", "litdata"):
        blocks = sum(path.stat().st_blocks for path in (cohort.folder / name).rglob("*") if path.is_file())
        found[name] = blocks * 512 / 1e6
    return found
