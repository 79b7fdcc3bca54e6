"""Tiles from a local disk: the loader against pure decoding and against other formats, and how it grows with cores."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import litdata
import lmdb
import numpy as np
import pyarrow.parquet as pq
import torch
import torch.multiprocessing as mp
import webdataset
import zarr

from pretrain.data.index import open_index
from pretrain.data.loader import Loader, LoaderSettings
from pretrain.data.sampler import Sampler, SamplingSettings
from tests.benchmarks.cohort import Cohort, make_peers, sizes
from tests.benchmarks.measure import Figure, Run, compare, on_cores
from wsi_prep.curation.exchange.stored import Wanted
from wsi_prep.curation.exchange.tables import write_tables
from wsi_prep.format.jpeg import decode_tile
from wsi_prep.format.magnifications import TILE_PX


def run(cohort: Cohort, repeats: int) -> list[Figure]:
    """One core: every contestant hands over batches of the same tiles, decoded by the same function."""
    make_peers(cohort)
    figures = [Figure("formats", name, f"{mb:,.0f} MB") for name, mb in sizes(cohort).items()]
    with on_cores(0), Loader(cohort.sampler(), LoaderSettings(threads=1)) as loader:
        contestants = {
            "decoding alone": _decoding(cohort),
            "loader": _loading(loader, cohort),
            "webdataset, in sequence": _webdataset(cohort),
            "zarr-python, random": _zarr(cohort),
            "LMDB, random": _lmdb(cohort),
            "litdata, shuffled": _litdata(cohort),
        }
        rates = compare("one core", contestants, repeats)
    return [
        *figures,
        *rates.figures(),
        rates.ratio("loader", "decoding alone", 0.9),
        rates.ratio("loader", "webdataset, in sequence", 1.0),
        rates.ratio("loader", "zarr-python, random", 2.0),
        rates.ratio("loader", "LMDB, random"),
        rates.ratio("loader", "litdata, shuffled"),
    ]


def run_cores(cohort: Cohort, repeats: int) -> list[Figure]:
    """Two threads against one, and against two processes that send their halves of the batch."""
    with on_cores(0):
        one = Loader(cohort.sampler(), LoaderSettings(threads=1))
        next(one.batches(0, 1))  # its threads start here and stay on this core
    two = Loader(cohort.sampler(), LoaderSettings(threads=2))
    workers = _Workers(cohort, 2)
    decode = _decoding(cohort)

    def decode_on_one() -> int:
        with on_cores(0):
            return decode()

    contestants = {
        "decoding alone, 1 core": decode_on_one,
        "1 thread": _loading(one, cohort),
        "2 threads": _loading(two, cohort),
        "2 processes": workers.run,
    }
    with one, two, workers:
        rates = compare("two cores", contestants, repeats)
    return [*rates.figures(), rates.ratio("2 threads", "1 thread", 1.8), rates.ratio("2 threads", "2 processes")]


def run_any_mpp(cohort: Cohort, repeats: int) -> list[Figure]:
    """One core: any um/px, by how far a tile serves alone, against stored ones, which `continuous` reads as well."""
    index = open_index(cohort.shards, cohort.folder / "index")
    settings = {"stored um/px": SamplingSettings(batch=cohort.batch)}
    for alone in (1.0, 1.4, 1.53, 2.0):
        settings[f"any um/px, alone {alone:g}"] = SamplingSettings(batch=cohort.batch, any_mpp=True, alone=alone)
    figures = []
    with on_cores(0), ExitStack() as open_loaders:
        contestants = {}
        for name, chosen in settings.items():
            loader = open_loaders.enter_context(Loader(Sampler(index, chosen), LoaderSettings(threads=1)))
            contestants[name] = _loading(loader, cohort)
            contestants[name]()
            figures.append(Figure("any um/px", f"tiles read for one, {name}", f"{loader.bad.read / cohort.tiles:.2f}"))
        rates = compare("any um/px, processor time", contestants, repeats, time.process_time)
    return [*figures, *rates.figures(), *(rates.ratio(name, "stored um/px") for name in list(settings)[1:])]


def run_tables(cohort: Cohort, repeats: int) -> list[Figure]:
    """One core: the same slides as Parquet tables, ours by offset, and as others write them, by row group."""
    write_tables(Wanted(cohort.shards, "true", 0), cohort.folder / "tables", 1_000_000_000)
    ours = pq.read_table(cohort.folder / "tables").drop_columns(["nbytes", "crc32"])
    (cohort.folder / "hub").mkdir()
    pq.write_table(ours, cohort.folder / "hub/train-00000.parquet", row_group_size=100)
    with on_cores(0), ExitStack() as open_loaders:
        contestants = {"decoding alone": _decoding(cohort)}
        for name, folder in (("shards", "shards"), ("tables", "tables"), ("tables of others", "hub")):
            index = open_index(cohort.folder / folder, cohort.folder / "index")
            sampler = Sampler(index, SamplingSettings(batch=cohort.batch, seed=1))
            loader = open_loaders.enter_context(Loader(sampler, LoaderSettings(threads=1)))
            contestants[f"loader, {name}"] = _loading(loader, cohort)
        rates = compare("tables, one core", contestants, repeats)
    least = {"shards": None, "tables": 0.8, "tables of others": None}
    return [
        *rates.figures(),
        *(rates.ratio(f"loader, {name}", "decoding alone", target) for name, target in least.items()),
    ]


def _loading(loader: Loader, cohort: Cohort) -> Run:
    return lambda: sum(len(batch.pixels) for batch in loader.batches(0, cohort.steps))


def _decoding(cohort: Cohort) -> Run:
    return _batched(cohort, [at.source.read(at.path, at.offset, at.nbytes) for at in cohort.drawn()])


def _batched(cohort: Cohort, jpegs: Iterable[Any]) -> Run:
    """Decodes an epoch of JPEGs into the memory of one batch after another; `jpegs` is iterated anew each time."""
    batch = np.empty((cohort.batch, TILE_PX, TILE_PX, 3), np.uint8)

    def go() -> int:
        done = 0
        for jpeg, pixels in zip(jpegs, itertools.cycle(batch)):
            decode_tile(jpeg, pixels)
            done += 1
        assert done == cohort.tiles
        return done

    return go


def _webdataset(cohort: Cohort) -> Run:
    tars = webdataset.WebDataset(cohort.tars, shardshuffle=False)
    return _batched(cohort, _Again(lambda: (sample["jpg"] for sample in tars)))


def _litdata(cohort: Cohort) -> Run:
    return _batched(cohort, litdata.StreamingDataset(str(cohort.litdata), shuffle=True))


def _lmdb(cohort: Cohort) -> Run:
    database = lmdb.open(str(cohort.lmdb), readonly=True, lock=False, readahead=False)
    order = np.random.default_rng(0).permutation(cohort.tiles).tolist()

    def read() -> Iterable[bytes]:
        with database.begin(buffers=True) as transaction:
            for number in order:
                yield transaction.get(struct.pack(">Q", number))

    return _batched(cohort, _Again(read))


def _zarr(cohort: Cohort) -> Run:
    """The same tiles through zarr-python, its arrays open beforehand."""
    drawn = [(str(cohort.shards / Path(at.path).parent), at.index) for at in cohort.drawn()]
    arrays = {path: zarr.open_array(path, mode="r") for path in {path for path, _ in drawn}}
    batch = np.empty((cohort.batch, TILE_PX, TILE_PX, 3), np.uint8)

    def go() -> int:
        for row, (path, index) in enumerate(drawn):
            batch[row % cohort.batch] = arrays[path][index]
        return len(drawn)

    return go


class _Again:
    """Something that begins anew whenever it is iterated."""

    def __init__(self, begin: Any) -> None:
        self.__iter = begin

    def __iter__(self) -> Any:
        return iter(self.__iter())


class _Workers:
    """Processes that each load their share of every batch on one thread and send it through shared memory."""

    def __init__(self, cohort: Cohort, world: int) -> None:
        context = mp.get_context("spawn")
        self._cohort = cohort
        self._orders = [context.SimpleQueue() for _ in range(world)]
        self._batches = [context.Queue(3) for _ in range(world)]
        self._workers = [
            context.Process(target=_work, args=(cohort, rank, world, self._orders[rank], self._batches[rank]))
            for rank in range(world)
        ]
        for worker in self._workers:
            worker.start()

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for order, worker in zip(self._orders, self._workers, strict=True):
            order.put(None)
            worker.join()

    def run(self) -> int:
        """Every batch of an epoch, taken by this process."""
        for order in self._orders:
            order.put(self._cohort.steps)
        done = 0
        for _ in range(self._cohort.steps):
            done += sum(len(batches.get()) for batches in self._batches)
        return done


def _work(cohort: Cohort, rank: int, world: int, orders: Any, batches: Any) -> None:
    torch.set_num_threads(1)
    with Loader(cohort.sampler(), LoaderSettings(threads=1), rank, world) as loader:
        while steps := orders.get():
            for batch in loader.batches(0, steps):
                batches.put(batch.pixels.clone())
