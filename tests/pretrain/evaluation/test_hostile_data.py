"""Data sets that somebody else made: nothing outside their files is read, and nonsense is one line."""

import json
import os

import h5py
import numpy as np
import pytest

from pretrain.data.labelled import H5Tiles, open_h5
from pretrain.errors import BadTask
from pretrain.evaluation.datasets import read_tasks

SHAPE = (2, 96, 96, 3)


def stored_outside(file, other, raw):
    file.create_dataset("x", SHAPE, np.uint8, external=[(str(raw), 0, int(np.prod(SHAPE)))])


def virtual(file, other, raw):
    layout = h5py.VirtualLayout(SHAPE, np.uint8)
    layout[:] = h5py.VirtualSource(str(other), "s", SHAPE)
    file.create_virtual_dataset("x", layout)


def linked(file, other, raw):
    file["x"] = h5py.ExternalLink(str(other), "s")


def linked_twice(file, other, raw):
    file["there"] = h5py.ExternalLink(str(other), "/")
    file["x"] = h5py.SoftLink("/there/s")


def linked_below(file, other, raw):
    file["x"] = np.zeros(SHAPE, np.uint8)
    file.create_group("obs")["_index"] = h5py.ExternalLink(str(other), "s")


@pytest.mark.parametrize("write", [stored_outside, virtual, linked, linked_twice, linked_below])
def test_pixels_of_another_file_are_not_read(tmp_path, write):
    raw, other, file = tmp_path / "raw", tmp_path / "other.h5", tmp_path / "tiles.h5"
    raw.write_bytes(b"secret" * 10_000)
    with h5py.File(other, "w") as opened:
        opened["s"] = np.full(SHAPE, 77, np.uint8)
    with h5py.File(file, "w") as opened:
        write(opened, other, raw)
    with pytest.raises(BadTask, match=r"tiles\.h5: its \S+ is a link, or lies in another file; write it again"):
        H5Tiles.of([file], "x")


def test_pixels_of_the_file_itself_are_read_compressed_or_in_groups_too(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    with h5py.File(tmp_path / "tiles.h5", "w") as opened:
        opened.create_dataset("x", data=pixels, compression="gzip", chunks=(1, 96, 96, 3))
        opened.create_group("a")["same"] = opened["x"]
    assert np.array_equal(H5Tiles.of([tmp_path / "tiles.h5"], "x").read(1), pixels[1])


def test_a_pipe_is_no_hdf5_file_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "tiles.h5")
    with pytest.raises(BadTask, match="is no HDF5 file"), open_h5(tmp_path / "tiles.h5", "x"):
        pass


def midog(**changes):
    mark = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50]}
    whole = {"images": [{"id": 1, "file_name": "1.tiff"}], "categories": [{"id": 1, "name": "mitosis"}]}
    return json.dumps({**whole, "annotations": [mark | changes]})


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        midog(bbox=[0, 0, float("nan"), 1]),
        midog(bbox=[0, 0, 1e300, 1]),
        midog(bbox=[0, 0, 10**400, 1]),
        midog(image_id=2),
        midog(bbox=5),
    ],
    ids=["deep", "NaN", "far", "endless", "of no image", "no box"],
)
def test_a_database_of_nonsense_is_one_line(tmp_path, text):
    (tmp_path / "MIDOG++.json").write_text(text)
    (tmp_path / "1.tiff").write_bytes(b"")
    with pytest.raises(BadTask, match=r"MIDOG\+\+\.json: is no MIDOG database") as refusal:
        read_tasks(f"midog:{tmp_path}")
    assert "\n" not in str(refusal.value)
