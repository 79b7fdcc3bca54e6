"""The loader hands over the tiles that were drawn, the same on every resume and world, and replaces what is broken."""

import numpy as np
import pytest
import torch

from pretrain.data.index import open_index
from pretrain.data.loader import Loader, LoaderSettings, magnification_names
from pretrain.data.sampler import Sampler, SamplingSettings
from pretrain.errors import TooManyBadTiles
from tests.support.shard_folders import add_slide, grey

MIX = {"20x": 0.5, "10x": 0.5}


@pytest.fixture
def out(tmp_path):
    for number in (1, 2, 3):
        add_slide(tmp_path / "out", number, {"20x": 12, "10x": 6}, stain="HE" if number < 3 else "IHC")
    return tmp_path / "out"


def sampler(out, batch=8):
    return Sampler(open_index([str(out)], out.parent / "index"), SamplingSettings(batch=batch, mix=MIX))


def batches(draws, start=0, stop=6, threads=2, **settings):
    with Loader(draws, LoaderSettings(threads=threads), **settings) as loader:
        return [b.pixels.clone() for b in loader.batches(start, stop)], loader


def test_pixels_are_those_of_the_drawn_tiles(out):
    draws = sampler(out)
    with Loader(draws) as loader:
        for batch in loader.batches(0, 5):
            assert batch.pixels.shape == (8, 3, 392, 392)
            names = magnification_names(batch.magnification)
            for row, tile in enumerate(batch.draw.tile):
                slide = int(draws.index.slide_id(int(batch.draw.slide[row])).split("-")[0].removeprefix("slide"))
                expected = grey(slide, names[row], draws.index.address(int(tile)).index)
                assert (batch.pixels[row].int() - expected).abs().max() <= 1
                assert batch.mpp[row] == {"20x": 0.5, "10x": 1.0}[names[row]]
        assert sum(row["drawn"] for row in loader.drawn.table()) == 40


def test_resume_threads_and_ranks_change_nothing(out):
    draws = sampler(out)
    whole, _ = batches(draws)
    assert all(torch.equal(a, b) for a, b in zip(batches(draws, start=3)[0], whole[3:], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(batches(draws, threads=1)[0], whole, strict=True))
    for world in (2, 4):
        shares = [batches(draws, rank=rank, world=world)[0] for rank in range(world)]
        assert all(torch.equal(torch.cat(parts), b) for parts, b in zip(zip(*shares, strict=True), whole, strict=True))


def test_a_broken_tile_is_replaced_counted_and_named(out):
    draws = sampler(out)
    bad = int(draws.draw(0).tile[0])
    address = draws.index.address(bad)
    with (out / address.path).open("r+b") as file:
        file.seek(address.offset + address.nbytes // 2)
        file.write(b"\0\0\0\0\0\0")
    stratum = int(draws.draw(0).stratum[0])
    with Loader(draws) as loader:
        batch = next(loader.batches(0, 1))
        assert bad not in batch.draw.tile
        assert len(np.unique(batch.draw.tile)) == 8
        assert int(batch.draw.stratum[0]) == stratum
        assert loader.bad.bad == 1
        assert list(loader.bad.named) == [address.name]
        assert "CRC-32" in loader.bad.named[address.name]


def test_a_cohort_of_broken_tiles_stops_the_run(out):
    draws = sampler(out)
    for shard in (out / "stores").glob("*/*/c.*"):
        shard.write_bytes(b"")
    with Loader(draws) as loader, pytest.raises(TooManyBadTiles, match=r"slide\d"):
        next(loader.batches())


def test_memory_is_used_again(out):
    with Loader(sampler(out), LoaderSettings(ahead=2)) as loader:
        assert len({batch.pixels.data_ptr() for batch in loader.batches(0, 20)}) <= 3
