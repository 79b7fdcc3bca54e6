"""Features of shards: the backbone's own, of the right tiles at the right places, once; for Parquet and h5 readers."""

import h5py
import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from shard_folders import add_slide, grey
from test_train import run
from training import make_shards

from pipelines.embed import EXIT_BAD_TILES, main
from pipelines.export import main as export
from pretrain.colour import normalise
from pretrain.evaluate import load_run


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "out")


@pytest.fixture(scope="module")
def model(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    assert run(shards, folder / "run", "schedule.steps=2", "backbone.layer_scale=0") == 0
    return folder / "run"


def call(shards, model, to, *more):
    return main(["--shards", str(shards), "--model", str(model), "--to", str(to), "--threads", "1", *more])


def expected(model, slide, magnification, index, px=392):
    backbone, _ = load_run(model)
    tile = torch.full((1, 3, px, px), grey(slide, magnification, index) / 255)
    with torch.no_grad():
        return backbone.eval()([normalise(tile)])[0].embedding[0].numpy()


def table(to):
    return ds.dataset(to / "parquet").to_table()


def test_every_tile_has_its_own_features(shards, model, tmp_path):
    assert call(shards, model, tmp_path / "to", "--batch", "5") == 0
    found = table(tmp_path / "to")
    assert len(found) == 54
    for row in found.to_pylist()[::7]:
        slide = int(row["slide_id"].split("-")[0].removeprefix("slide"))
        wanted = expected(model, slide, row["magnification"], row["row"] * 4 + row["col"])
        np.testing.assert_allclose(row["features"], wanted, atol=0.03)  # a JPEG of flat grey is off by a level at most


def test_h5_files_hold_the_same_with_coordinates(shards, model, tmp_path):
    assert call(shards, model, tmp_path / "to") == 0
    for file in sorted((tmp_path / "to/h5").glob("*/*.h5")):
        of = pq.read_table(tmp_path / "to/parquet" / f"{file.stem}.parquet").to_pylist()
        of = [row for row in of if row["magnification"] == file.parent.name]
        with h5py.File(file) as opened:
            np.testing.assert_array_equal(opened["features"][:], [row["features"] for row in of])
            np.testing.assert_array_equal(opened["coords"][:], [(row["x0"], row["y0"]) for row in of])
            assert opened["coords"].dtype == np.int64
            assert opened["coords"].attrs["patch_size_level0"] == {"20x": 784, "10x": 1568}[file.parent.name]
    assert len(list((tmp_path / "to/h5").glob("*/*.h5"))) == 6


def test_an_exported_folder_gives_the_same(shards, model, tmp_path):
    assert export(["--folder", str(model), "--to", str(tmp_path / "model")]) == 0
    for name, of in (("run", model), ("model", tmp_path / "model")):
        assert call(shards, of, tmp_path / f"to_{name}", "--where", "magnification = '10x'", "--px", "112") == 0
    ours, theirs = table(tmp_path / "to_run"), table(tmp_path / "to_model")
    assert len(ours) == 18
    np.testing.assert_allclose(ours["features"].to_pylist(), theirs["features"].to_pylist(), atol=1e-5)


def test_slides_that_are_there_are_not_done_again(model, tmp_path, capsys):
    shards = make_shards(tmp_path / "out")
    assert call(shards, model, tmp_path / "to") == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "to").rglob("*.*")}
    add_slide(shards, 9, {"20x": 2})
    assert call(shards, model, tmp_path / "to") == 0
    assert "2 tiles of 1 slides (3 slides were there before)" in capsys.readouterr().out
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())


def test_a_tile_that_cannot_be_read_is_left_out_and_named(model, tmp_path, capsys):
    shards = make_shards(tmp_path / "out")
    tile = ds.dataset(shards / "catalog/tiles").to_table().to_pylist()[3]
    with (shards / tile["shard"]).open("r+b") as file:
        file.seek(tile["offset"] + tile["nbytes"] // 2)
        file.write(b"\0" * 8)
    assert call(shards, model, tmp_path / "to") == EXIT_BAD_TILES
    assert tile["slide_id"] in capsys.readouterr().err
    assert len(table(tmp_path / "to")) == 53


@pytest.mark.parametrize("more", [["--where", "nonsense >"], ["--px", "500"], ["--batch", "0"]])
def test_a_wrong_call_is_one_clear_line(shards, model, tmp_path, capsys, more):
    assert call(shards, model, tmp_path / "to", *more) == 2
    assert "\n" not in capsys.readouterr().err.strip()
    assert not (tmp_path / "to").exists()
