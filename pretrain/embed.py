"""Features of every tile of some shards: class token and mean patch token, slide by slide, as Parquet and as h5."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from pretrain.backbone import Backbone
from pretrain.colour import normalise
from pretrain.devices import send
from pretrain.errors import BadShards
from pretrain.index import TileAddress
from pretrain.loader import UNREADABLE, read_tile
from pretrain.parts import check_filter, matching_tiles
from pretrain.sources import ShardSource, copies_of, open_source
from wsi_prep.errors import BadOption
from wsi_prep.geometry import TILE_PX

Progress = Callable[[str, int], None]

_KEPT = ("slide_id", "magnification", "mpp", "x0", "y0", "span0", "row", "col")
_AHEAD = 3  # batches that are read while one is computed


@dataclass(frozen=True)
class EmbedSettings:
    """`px`: the middle of a tile that is embedded, 0 for all of it, cut to whole patches. `batch` tiles at once.
    `autocast`: the type of products, none for the weights' own. `threads` read and decode.
    """

    px: int = 0
    batch: int = 64
    autocast: torch.dtype | None = None
    threads: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.px <= TILE_PX:
            raise BadOption(f"px {self.px} is not between 1 and {TILE_PX}, or 0 for the whole tile")
        if self.batch < 1 or self.threads < 1:
            raise BadOption("batch and threads must be at least 1")


@dataclass
class Embedded:
    """What was done: slides and tiles, slides that were there before, tiles that cannot be read, by name, and `notes`,
    lines for the user.
    """

    slides: int = 0
    tiles: int = 0
    before: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def embed_shards(
    shards: Sequence[str],
    where: str | None,
    backbone: Backbone,
    out: Path,
    settings: EmbedSettings,
    device: torch.device,
    progress: Progress = lambda slide, tiles: None,
) -> Embedded:
    """Write `out`/parquet/<slide_id>.parquet and `out`/h5/<magnification>/<slide_id>.h5 of every slide not yet there.

    Parquet: the catalog's place of each tile, and `features`, a list of 2 D float32. h5: `features` (n, 2 D) float32,
    and `coords` (n, 2) int64, upper left corners in level-0 px, as tools for multiple-instance learning read them. A
    tile that cannot be read is left out. Raises BadShards and BadFilter.
    """
    if where:
        check_filter(where)
    sources = list(map(open_source, shards))
    counted, copies = copies_of(sources)
    done = Embedded(notes=copies.notes)
    backbone = backbone.to(device).eval()
    with ThreadPoolExecutor(settings.threads, "read") as readers:
        for source, counts in zip(sources, counted, strict=True):
            for slide_id, tiles in _slides(source, counts, where):
                file = out / "parquet" / f"{slide_id}.parquet"
                if file.exists():
                    done.before += 1
                    continue
                kept, features = _embed(source, tiles, backbone, settings, device, readers, done)
                _write(out, file, slide_id, tiles.take(pa.array(kept)), features)
                done.slides += 1
                done.tiles += len(kept)
                progress(slide_id, len(kept))
    return done


def _slides(
    source: ShardSource, counts: Mapping[str, pa.BooleanArray], where: str | None
) -> Iterator[tuple[str, pa.Table]]:
    """Tiles that pass the filter of each slide that counts; a catalog holds a slide's tiles one after another."""
    seen: set[str] = set()
    with_tiles = {file.name for file in source.files("tiles")}
    for name in (name for name in counts if name in with_tiles):
        slides = source.parquet("slides", name).read().filter(counts[name])
        for slide_id, table in _runs(source, name, slides, where):
            if slide_id in seen:
                raise BadShards(f"{source.where}/catalog: {slide_id} is in two places; run make shards on it again")
            seen.add(slide_id)
            yield slide_id, table


def _runs(source: ShardSource, name: str, slides: pa.Table, where: str | None) -> Iterator[tuple[str, pa.Table]]:
    held: list[pa.Table] = []
    for batch in source.parquet("tiles", name).iter_batches(batch_size=1 << 16):
        table = matching_tiles(batch, slides, where)
        ids = table["slide_id"].to_pylist()
        begin = 0
        for at in [n for n in range(1, len(ids)) if ids[n] != ids[n - 1]] + [len(ids)]:
            part = table.slice(begin, at - begin)
            if held and len(part) and held[0]["slide_id"][0].as_py() != ids[begin]:
                yield held[0]["slide_id"][0].as_py(), pa.concat_tables(held)
                held = []
            held += [part] if len(part) else []
            begin = at
    if held:
        yield held[0]["slide_id"][0].as_py(), pa.concat_tables(held)


def _embed(
    source: ShardSource,
    tiles: pa.Table,
    backbone: Backbone,
    settings: EmbedSettings,
    device: torch.device,
    readers: ThreadPoolExecutor,
    done: Embedded,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of the tiles that could be read, and (n, 2 D) float32."""
    kept, features = [np.empty(0, np.int64)], [np.empty((0, 2 * backbone.settings.width), np.float32)]
    side = (settings.px or TILE_PX) // backbone.settings.patch_px * backbone.settings.patch_px
    begin = (TILE_PX - side) // 2
    cast = torch.autocast(device.type, settings.autocast, enabled=settings.autocast is not None)
    for rows, pixels in _read(source, tiles, settings, readers, done):
        crops = send(np.ascontiguousarray(pixels[:, begin : begin + side, begin : begin + side]), device)
        with torch.no_grad(), cast:
            (tokens,) = backbone([normalise(crops.permute(0, 3, 1, 2).float() / 255)])
        kept.append(rows)
        features.append(tokens.embedding.float().cpu().numpy())
    return np.concatenate(kept), np.concatenate(features)


def _read(
    source: ShardSource, tiles: pa.Table, settings: EmbedSettings, readers: ThreadPoolExecutor, done: Embedded
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Batches of rows and their pixels, read ahead."""
    columns = (tiles[name].to_pylist() for name in ("shard", "offset", "nbytes", "crc32", "index"))
    addresses = [TileAddress(source, *at) for at in zip(*columns, strict=True)]
    waiting: deque[list[Future[Any]]] = deque()
    begins = iter(range(0, len(addresses), settings.batch))
    first = 0
    while True:
        while len(waiting) <= _AHEAD and (begin := next(begins, None)) is not None:
            waiting.append([readers.submit(_tile, at) for at in addresses[begin : begin + settings.batch]])
        if not waiting:
            return
        found = [future.result() for future in waiting.popleft()]
        good = [n for n, tile in enumerate(found) if isinstance(tile, np.ndarray)]
        for n in set(range(len(found))) - set(good):
            done.unreadable[addresses[first + n].name] = str(found[n])
        if good:
            yield first + np.array(good), np.stack([found[n] for n in good])
        first += len(found)


def _tile(address: TileAddress) -> NDArray[np.uint8] | Exception:
    try:
        return read_tile(address)
    except UNREADABLE as error:
        return error


def _write(out: Path, file: Path, slide_id: str, tiles: pa.Table, features: NDArray[np.float32]) -> None:
    """The h5 files first, the Parquet file last, each aside and renamed: a slide with a Parquet file is done."""
    for magnification in sorted(set(tiles["magnification"].to_pylist())):
        rows = np.flatnonzero(pc.equal(tiles["magnification"], magnification).to_numpy())
        of = tiles.take(pa.array(rows))
        h5 = out / "h5" / magnification / f"{slide_id}.h5"
        h5.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(_aside(h5), "w") as opened:
            opened["features"] = features[rows]
            opened["coords"] = np.stack([of["x0"].to_numpy(), of["y0"].to_numpy()], axis=1)
            opened["coords"].attrs["patch_size_level0"] = float(of["span0"][0].as_py())
            opened["coords"].attrs["patch_size"] = TILE_PX
            opened["coords"].attrs["mpp"] = float(of["mpp"][0].as_py())
        _aside(h5).replace(h5)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(tiles.select(_KEPT).append_column("features", lists), _aside(file))
    _aside(file).replace(file)


def _aside(file: Path) -> Path:
    return file.with_name(f".{file.name}.partial")
