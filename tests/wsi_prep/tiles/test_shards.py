import json
import zlib
from collections import defaultdict

import numpy as np
import pytest
import zarr

from wsi_prep.format import zarr_metadata
from wsi_prep.format.jpeg import JpegSettings, decode_tile, encode_tile
from wsi_prep.tiles import store as shards
from wsi_prep.tiles.store import StoreWriter


def tile(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((28, 28, 1), np.uint8))


def write(folder, counts, jpeg=None):
    jpeg = jpeg or JpegSettings()
    places = {}
    with StoreWriter(folder, defaultdict(lambda: jpeg), {"slide_id": "s"}) as store:
        for name, count in counts.items():
            places[name] = [store.append(name, encode_tile(tile(i), jpeg)) for i in range(count)]
    return places


@pytest.mark.slow
def test_zarr_reads_what_the_offset_holds(tmp_path, monkeypatch):
    for module in (zarr_metadata, shards):  # several shards, the last one partly filled
        monkeypatch.setattr(module, "SHARD_TILES", 4)
    places = write(tmp_path / "s.zarr", {"40x": 10, "20x": 3, "5x": 0})
    group = zarr.open(tmp_path / "s.zarr", mode="r")
    assert sorted(group.array_keys()) == ["20x", "40x"]
    assert len(list((tmp_path / "s.zarr/40x").glob("c.*"))) == 3
    for name, count in (("40x", 10), ("20x", 3)):
        array = group[name]
        assert array.shape == (count, 392, 392, 3)
        assert array.dtype == np.uint8
        for place in places[name]:
            data = (tmp_path / "s.zarr" / place.shard).read_bytes()[place.offset : place.offset + place.nbytes]
            assert zlib.crc32(data) == place.crc32
            assert np.array_equal(array[place.index], decode_tile(data))
            assert np.abs(array[place.index].astype(int) - tile(place.index)).mean() < 4


def test_zarr_itself_writes_the_same_bytes(tmp_path):
    """The format by an independent writer: zarr-python with the same codec gives the same shard file."""
    write(tmp_path / "ours.zarr", {"20x": 5})
    metadata = json.loads((tmp_path / "ours.zarr/20x/zarr.json").read_text())
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "zarr.json").write_text(json.dumps(metadata))
    zarr.open(theirs, mode="r+")[:] = np.stack([tile(i) for i in range(5)])
    assert (theirs / "c.0.0.0.0").read_bytes() == (tmp_path / "ours.zarr/20x/c.0.0.0.0").read_bytes()


def test_a_damaged_index_is_noticed(tmp_path):
    write(tmp_path / "s.zarr", {"20x": 5})
    shard = tmp_path / "s.zarr/20x/c.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[-10] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open(tmp_path / "s.zarr", mode="r")["20x"][0]


def test_a_store_that_got_no_tile_leaves_nothing(tmp_path):
    write(tmp_path / "s.zarr", {"20x": 0})
    assert not (tmp_path / "s.zarr").exists()


def test_a_store_that_was_not_finished_cannot_be_opened(tmp_path):
    def cut_short():
        with StoreWriter(tmp_path / "s.zarr", defaultdict(JpegSettings), {}) as store:
            store.append("20x", encode_tile(tile(0), JpegSettings()))
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        cut_short()
    with pytest.raises(FileNotFoundError):
        zarr.open(tmp_path / "s.zarr", mode="r")


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_shards_are_whole_but_for_an_only_one(tmp_path, monkeypatch, count):
    for module in (zarr_metadata, shards):
        monkeypatch.setattr(module, "SHARD_TILES", 4)
    write(tmp_path / "s.zarr", {"20x": count})
    array = zarr.open(tmp_path / "s.zarr/20x", mode="r")
    assert array.shards[0] == min(count, 4)
    assert len(list((tmp_path / "s.zarr/20x").glob("c.*"))) == -(-count // 4)
    assert np.abs(array[count - 1].astype(int) - tile(count - 1)).mean() < 4


def test_chroma_can_be_kept(tmp_path):
    write(tmp_path / "s.zarr", {"20x": 1}, JpegSettings(95, "444"))
    codec = json.loads((tmp_path / "s.zarr/20x/zarr.json").read_text())["codecs"][0]["configuration"]["codecs"][0]
    assert codec["name"] == "imagecodecs_jpeg"
    assert codec["configuration"] == {
        "level": 95,
        "colorspace_data": "RGB",
        "colorspace_jpeg": "YCbCr",
        "subsampling": "444",
    }
