"""Features of every tile of some shards by any model, slide by slide, as Parquet and as h5."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.compute.devices import send
from pretrain.data.index import TileAddress
from pretrain.data.labelled import resized
from pretrain.data.loader import UNREADABLE
from pretrain.data.parts import checked_tiles, read_filter
from pretrain.data.regions import addresses_of, decode_read, read_span, spans_of
from pretrain.data.sources import ShardSource, copies_of, folders_of, open_source
from pretrain.errors import BadFilter, BadShards, BadWeights
from pretrain.features.embedder import Embedder, Inference, each_seen, width_at
from pretrain.features.kept_features import FeatureFolder, FeatureRecord, counts, tiles_stamp
from pretrain.features.regions import regions_are_of, write_regions
from wsi_prep.compute.ahead import ahead
from wsi_prep.errors import BadOption
from wsi_prep.format.magnifications import TILE_PX
from wsi_prep.format.records import SLIDE_SCHEMA
from wsi_prep.storage.atomic import aside
from wsi_prep.untrusted.sql import CONDITION_SECONDS, Condition
from wsi_prep.untrusted.tables import of_today

Progress = Callable[[str, int], None]

_KEPT = ("slide_id", "magnification", "mpp", "x0", "y0", "span0", "row", "col")
_AHEAD = 3  # batches that are read while one is computed


@dataclass(frozen=True)
class EmbedSettings:
    """`px`: the middle of a tile that is embedded, 0 for all of it. `inference`: how.

    It is cut to whole patches, or resized for a model that takes one size alone.

    >>> EmbedSettings(Inference(batch=256), px=224).side(load_embedder("model"))
    224
    """

    inference: Inference = field(default_factory=Inference)
    px: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.px <= TILE_PX:
            raise BadOption(f"px {self.px} is not between 1 and {TILE_PX}, or 0 for the whole tile")

    def side(self, embedder: Embedder) -> int:
        """How many px of a tile's middle are embedded. Raises BadOption where they hold no patch of the model's."""
        side = self.px or TILE_PX
        if embedder.px:
            return side
        if side < embedder.patch_px:
            raise BadOption(f"px {side} holds no patch of {embedder.patch_px} px")
        return side // embedder.patch_px * embedder.patch_px


@dataclass(frozen=True)
class WantedTiles:
    """Which tiles: those of some shard folders that pass the filter `where`; `seconds` as in parts.read_filter.

    >>> WantedTiles("shards", where="magnification = '20x'").shards
    'shards'
    """

    shards: str | Path | Sequence[str | Path]
    where: str | None = None
    seconds: float = CONDITION_SECONDS


@dataclass(frozen=True)
class FeaturesTo:
    """The folder that features go to, which says that they are of a model that people call `named`.

    `redo`: delete the features that it holds first. `regions`: write them by region, too (see regions.write_regions).

    >>> FeaturesTo("features", named="UNI").redo
    False
    """

    folder: str | Path
    named: str = "the model"
    redo: bool = False
    regions: bool = False


@dataclass
class Embedded:
    """What was done: slides, tiles and regions; slides that were there before, and of these shards or not; tiles that
    cannot be read, by name; and `notes`, lines for the user.
    """

    slides: int = 0
    regions: int = 0
    tiles: int = 0
    before: int = 0
    elsewhere: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def embed_shards(
    wanted: WantedTiles,
    embedder: Embedder,
    to: FeaturesTo,
    settings: EmbedSettings | None = None,
    progress: Progress = lambda slide, tiles: None,
) -> Embedded:
    """Write parquet/<slide_id>.parquet and h5/<magnification>/<slide_id>.h5 of every slide not yet in the folder.

    Parquet: the catalog's place of each tile, and `features`, a list of F float32. h5: `features` (n, F) float32,
    and `coords` (n, 2) int64, upper left corners in level-0 px, as tools for multiple-instance learning read them. A
    tile that cannot be read is left out. Raises BadShards, BadFilter, BadWeights, and OtherFeatures where the folder
    holds what is not of this call.

    >>> tiles = WantedTiles("shards", where="magnification = '10x'")
    >>> done = embed_shards(tiles, load_embedder("model"), FeaturesTo("features"), EmbedSettings(px=56))
    >>> done.slides, done.tiles, done.unreadable
    (3, 18, {})
    >>> import pyarrow.dataset
    >>> pyarrow.dataset.dataset("features/parquet").to_table(columns=["slide_id", "features"]).num_rows
    18
    """
    settings = settings or EmbedSettings()
    condition = read_filter(wanted.where, wanted.seconds)
    where = condition.text if condition else None
    side, inference = settings.side(embedder), settings.inference
    precision = str(inference.autocast or torch.float32).removeprefix("torch.")
    folder = FeatureFolder(Path(to.folder), FeatureRecord(embedder.digest, side, where, precision, embedder.what))
    sources = list(map(open_source, folders_of(wanted.shards)))
    counted, copies = copies_of(sources)
    found = _all_slides(sources, counted, condition)
    if (first := next(found, None)) is None:
        left = f"the filter {where!r} leaves no tile" if where else "the shards hold no tile"
        raise BadFilter(f"{left}; see status and error in their catalog/slides")
    embedder.module.to(inference.device)
    width = width_at(embedder, embedder.px or side, inference)
    folder.claim(to.named, to.redo)
    done = Embedded(notes=copies.notes)
    seen: set[str] = set()
    for source, slide_id, tiles, stamp in itertools.chain([first], found):
        seen.add(slide_id)
        if folder.is_done(slide_id, stamp, counts(tiles)):
            done.before += 1
            done.regions += _by_region(folder, slide_id) if to.regions else 0
            continue
        tile = partial(_tile, side=side, px=embedder.px)
        with contextlib.closing(_read(source, tiles, tile, inference, done.unreadable)) as batches:
            mpp = tiles["mpp"].to_numpy().astype(np.float32)
            kept, features = _embed(embedder, width, batches, mpp, inference)
        said = folder.stamp(stamp, len(tiles) - len(kept))
        _write(folder, slide_id, tiles.take(pa.array(kept)), features, said)
        done.regions += _by_region(folder, slide_id) if to.regions else 0
        done.slides += 1
        done.tiles += len(kept)
        progress(slide_id, len(kept))
    done.elsewhere = len(folder.slides() - seen)
    return done


def _all_slides(
    sources: Sequence[ShardSource], counted: Sequence[Mapping[str, pa.BooleanArray]], where: Condition | None
) -> Iterator[tuple[ShardSource, str, pa.Table, str]]:
    for source, rows in zip(sources, counted, strict=True):
        for slide_id, tiles, stamp in _slides(source, rows, where):
            yield source, slide_id, tiles, stamp


def _slides(
    source: ShardSource, counted: Mapping[str, pa.BooleanArray], where: Condition | None
) -> Iterator[tuple[str, pa.Table, str]]:
    """Tiles that pass the filter of each slide that counts, and their stamp; a slide's tiles lie one after another."""
    seen: set[str] = set()
    with_tiles = {file.name for file in source.files("tiles")}
    for name in (name for name in counted if name in with_tiles):
        slides = of_today(source.parquet("slides", name).read(), SLIDE_SCHEMA).filter(counted[name])
        for slide_id, table in _runs(source, name, slides, where):
            if slide_id in seen:
                raise BadShards(f"{source.where}/catalog: {slide_id} is in two places; run make shards on it again")
            seen.add(slide_id)
            yield slide_id, table, tiles_stamp(table, slides.slice(table["slide"][0].as_py(), 1).to_pylist()[0])


def _runs(source: ShardSource, name: str, slides: pa.Table, where: Condition | None) -> Iterator[tuple[str, pa.Table]]:
    held: list[pa.Table] = []
    for batch in source.parquet("tiles", name).iter_batches(batch_size=1 << 16):
        table = checked_tiles(source, batch, slides, where)
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
    embedder: Embedder,
    width: int,
    batches: Iterable[tuple[NDArray[np.int64], NDArray[np.uint8]]],
    mpp: NDArray[np.float32],
    inference: Inference,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of the tiles that could be read, and (n, width) float32; `mpp`: um/px of all rows."""
    kept, features = [np.empty(0, np.int64)], [np.empty((0, width), np.float32)]

    def crops() -> Iterator[Tensor]:
        for rows, pixels in batches:
            kept.append(rows)
            yield send(pixels, inference.device).permute(0, 3, 1, 2).float() / 255  # as bytes, a quarter to send

    def see(pixels: Tensor) -> Tensor:
        if embedder.at is None:
            return embedder.features(pixels)
        return embedder.at(pixels, send(mpp[kept[-1]], inference.device))

    for found in each_seen(embedder.module, see, crops(), inference.autocast):
        features.append(found.float().cpu().numpy())
        if not np.isfinite(features[-1]).all():
            raise BadWeights("the model's features are not finite numbers; its weights, or PRECISION, are no good")
    return np.concatenate(kept), np.concatenate(features)


def _read(
    source: ShardSource,
    tiles: pa.Table,
    tile: Callable[[tuple[TileAddress, memoryview | Exception]], NDArray[np.uint8] | Exception],
    inference: Inference,
    unreadable: dict[str, str],
) -> Generator[tuple[NDArray[np.int64], NDArray[np.uint8]], None, None]:
    """Rows of the table and their pixels, a batch at a time; what cannot be read goes to `unreadable`, by name."""
    addresses = addresses_of(source, tiles)
    with (
        contextlib.closing(ahead(read_span, spans_of(addresses), inference.threads)) as spans,
        contextlib.closing(
            ahead(
                tile,
                zip(addresses, itertools.chain.from_iterable(spans), strict=True),
                inference.threads,
                most=_AHEAD * inference.batch,
            )
        ) as read,
    ):
        for first in range(0, len(addresses), inference.batch):
            found = list(itertools.islice(read, inference.batch))
            good = {n: pixels for n, pixels in enumerate(found, first) if isinstance(pixels, np.ndarray)}
            unreadable.update((addresses[n].name, str(error)) for n, error in enumerate(found, first) if n not in good)
            if good:
                yield np.array(list(good)), np.stack(list(good.values()))


def _tile(read: tuple[TileAddress, memoryview | Exception], side: int, px: int) -> NDArray[np.uint8] | Exception:
    """The middle of a tile, `side` px of it, at `px` a side, 0 for as it is."""
    begin = (TILE_PX - side) // 2
    try:
        return resized(decode_read(*read)[begin : begin + side, begin : begin + side], px)
    except UNREADABLE as error:
        return error


def _by_region(folder: FeatureFolder, slide_id: str) -> int:
    """Write a slide's features by region, unless they are there; returns how many regions are new."""
    file, parquet = folder.regions(slide_id), folder.parquet(slide_id)
    return 0 if regions_are_of(file, parquet) else write_regions(file, parquet)


def _write(
    folder: FeatureFolder, slide_id: str, tiles: pa.Table, features: NDArray[np.float32], said: dict[bytes, bytes]
) -> None:
    """The h5 files first, the Parquet file last, each aside and renamed: a slide with a Parquet file is done."""
    made = counts(tiles)
    for magnification in sorted(made):
        rows = np.flatnonzero(pc.equal(tiles["magnification"], magnification).to_numpy())
        of = tiles.take(pa.array(rows))
        h5 = folder.h5(magnification, slide_id)
        h5.parent.mkdir(parents=True, exist_ok=True)
        with aside(h5) as unfinished, h5py.File(unfinished, "w") as opened:
            opened["features"] = features[rows]
            opened["coords"] = np.stack([of["x0"].to_numpy(), of["y0"].to_numpy()], axis=1)
            opened["coords"].attrs["patch_size_level0"] = float(of["span0"][0].as_py())
            opened["coords"].attrs["patch_size"] = TILE_PX
            opened["coords"].attrs["mpp"] = float(of["mpp"][0].as_py())
    folder.remove_h5(slide_id, made)
    folder.regions(slide_id).unlink(missing_ok=True)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    file = folder.parquet(slide_id)
    file.parent.mkdir(parents=True, exist_ok=True)
    table = tiles.select(_KEPT).append_column("features", lists)
    with aside(file) as unfinished:
        pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **said}), unfinished)
