"""Features of shards: the backbone's own, of the right tiles at the right places, once; for Parquet and h5 readers."""

import json
import os

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.command import EXIT_NOT_ALL
from pipelines.embed import main
from pipelines.export import main as export
from pretrain.model.normalise import normalise
from pretrain.train.runs import load_run
from tests.support.shard_folders import add_slide, grey
from tests.support.training import make_shards, run
from wsi_prep.format.jpeg import JpegSettings, encode_tile

pytestmark = pytest.mark.slow


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
    assert "2 tiles of 1 slide (3 slides done before)" in capsys.readouterr().out
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())


def test_a_tile_that_cannot_be_read_is_left_out_and_named(model, tmp_path, capsys):
    shards = make_shards(tmp_path / "out")
    tile = ds.dataset(shards / "catalog/tiles").to_table().to_pylist()[3]
    with (shards / tile["shard"]).open("r+b") as file:
        file.seek(tile["offset"] + tile["nbytes"] // 2)
        file.write(b"\0" * 8)
    for _ in range(2):  # nor is such a slide taken for done
        assert call(shards, model, tmp_path / "to") == EXIT_NOT_ALL
        assert tile["slide_id"] in capsys.readouterr().err
        assert len(table(tmp_path / "to")) == 53
    jpeg = encode_tile(np.full((392, 392, 3), grey(1, tile["magnification"], 3), np.uint8), JpegSettings())
    with (shards / tile["shard"]).open("r+b") as file:
        file.seek(tile["offset"])
        file.write(jpeg)
    assert call(shards, model, tmp_path / "to") == 0
    assert "(2 slides done before)" in capsys.readouterr().out
    assert len(table(tmp_path / "to")) == 54


@pytest.mark.parametrize("more", [["--where", "nonsense >"], ["--px", "500"], ["--batch", "0"]])
def test_a_wrong_call_is_one_clear_line(shards, model, tmp_path, capsys, more):
    assert call(shards, model, tmp_path / "to", *more) == 2
    assert "\n" not in capsys.readouterr().err.strip()
    assert not (tmp_path / "to").exists()


# the folder holds features of one model, size and filter


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert export(["--folder", str(model), "--to", str(folder)]) == 0
    return folder


@pytest.fixture
def other(exported, tmp_path):
    """The same network but for one bias."""
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text((exported / "config.json").read_text())
    weights = load_file(exported / "model.safetensors")
    weights["norm.bias"] += 1
    save_file(weights, folder / "model.safetensors")
    return folder


def contents(to):
    return {path: path.read_bytes() for path in to.rglob("*") if path.is_file()}


def refused(capsys, *arguments):
    capsys.readouterr()
    assert call(*arguments) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert "name another TO, or give REDO=1" in line
    return line


ONE = ("--where", "magnification = '10x'")


def test_features_of_another_call_are_refused_by_what_differs(shards, model, other, tmp_path, capsys):
    to = tmp_path / "to"
    assert call(shards, model, to, *ONE, "--px", "112") == 0
    before = contents(to)
    assert "model: run (weights " in refused(capsys, shards, other, to, *ONE, "--px", "112")
    assert "(px: 112 -> 392)" in refused(capsys, shards, model, to, *ONE)
    assert "(where: magnification = '10x' -> all tiles)" in refused(capsys, shards, model, to, "--px", "112")
    line = refused(capsys, shards, model, to, *ONE, "--px", "112", "--precision", "bf16")
    assert "(precision: float32 -> bfloat16)" in line
    assert contents(to) == before


def test_the_same_call_does_nothing_and_says_so_whatever_the_model_lies_in(shards, model, exported, tmp_path, capsys):
    to = tmp_path / "to"
    assert call(shards, model, to, *ONE, "--px", "112") == 0
    before = contents(to)
    for same, px in ((model, "112"), (exported, "117")):  # of 117 px, 16 patches of 7
        assert call(shards, same, to, *ONE, "--px", px) == 0
        assert f"nothing to do: {to} has the features of 3 slides" in capsys.readouterr().out
    assert contents(to) == before


def test_redo_leaves_nothing_of_the_model_before(shards, model, other, tmp_path):
    to, fresh = tmp_path / "to", tmp_path / "fresh"
    assert call(shards, model, to) == 0
    assert call(shards, other, to, *ONE, "--redo") == 0
    assert call(shards, other, fresh, *ONE) == 0
    found, wanted = ({path.relative_to(at) for path in contents(at)} for at in (to, fresh))
    assert found == wanted
    assert table(to).equals(table(fresh))


def test_features_that_nobody_knows_the_model_of_are_refused(shards, model, tmp_path, capsys):
    to = tmp_path / "to"
    assert call(shards, model, to, *ONE) == 0
    record = (to / "features.json").read_text()
    (to / "features.json").unlink()
    assert "no features.json" in refused(capsys, shards, model, to, *ONE)
    (to / "features.json").write_text(record[:20])
    assert "features.json cannot be read" in refused(capsys, shards, model, to, *ONE)
    assert call(shards, model, to, *ONE, "--redo") == 0
    assert json.loads((to / "features.json").read_text()) == json.loads(record)
    assert len(table(to)) == 18


def test_redo_deletes_nothing_but_features(shards, model, tmp_path, capsys):
    to = tmp_path / "to"
    (to / "parquet").mkdir(parents=True)
    pq.write_table(pa.table({"patient": [1]}), to / "parquet/patients.parquet")
    before = contents(to)
    assert "no features.json" in refused(capsys, shards, model, to, *ONE)
    assert call(shards, model, to, *ONE, "--redo") == 2
    assert "patients.parquet holds no features, and is not deleted" in capsys.readouterr().err
    assert contents(to) == before


def change_slide(shards, slide_id, **values):
    for file in (shards / "catalog/slides").glob("*.parquet"):
        rows = pq.read_table(file)
        changed = [row | (values if row["slide_id"] == slide_id else {}) for row in rows.to_pylist()]
        pq.write_table(pa.Table.from_pylist(changed, rows.schema), file)


@pytest.mark.parametrize("what", ["config_hash", "fingerprint"])
def test_a_slide_that_was_made_anew_is_embedded_anew(model, tmp_path, capsys, what):
    shards = make_shards(tmp_path / "out")
    assert call(shards, model, tmp_path / "to", *ONE) == 0
    change_slide(shards, "slide2-00000002", **{what: "other"})
    assert call(shards, model, tmp_path / "to", *ONE) == 0
    assert "6 tiles of 1 slide (2 slides done before)" in capsys.readouterr().out


def test_what_is_half_there_is_made_anew(shards, model, tmp_path, capsys):
    to = tmp_path / "to"
    assert call(shards, model, to, *ONE) == 0
    whole = table(to)
    parquet, h5 = sorted((to / "parquet").iterdir()), sorted((to / "h5/10x").iterdir())
    for spoil in (
        lambda: parquet[0].write_bytes(parquet[0].read_bytes()[:-9]),
        lambda: parquet[0].write_bytes(parquet[1].read_bytes()),
        lambda: h5[0].write_bytes(h5[0].read_bytes()[:-9]),
        h5[0].unlink,
    ):
        spoil()
        capsys.readouterr()
        assert call(shards, model, to, *ONE) == 0
        assert "6 tiles of 1 slide (2 slides done before)" in capsys.readouterr().out
        assert table(to).equals(whole)


def test_features_of_other_slides_are_said(shards, model, tmp_path, capsys):
    more = make_shards(tmp_path / "more", first=5)
    assert call(more, model, tmp_path / "to", *ONE) == 0
    assert "note" not in capsys.readouterr().out
    assert call(shards, model, tmp_path / "to", *ONE) == 0
    assert "also holds features of 3 slides not among these tiles" in capsys.readouterr().out


def test_a_filter_that_leaves_nothing_is_one_clear_line(shards, model, tmp_path, capsys):
    assert call(shards, model, tmp_path / "to", "--where", "stain = 'GOLD'") == 2
    assert "leaves no tile" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_of_a_file_that_is_cut_off_only_the_tiles_behind_are_lost(model, tmp_path, capsys):
    """Neighbours are read together; where that fails, each by itself."""
    shards = make_shards(tmp_path / "out")
    tiles = [t for t in ds.dataset(shards / "catalog/tiles").to_table().to_pylist() if t["magnification"] == "20x"]
    cut = next(tile for tile in tiles if tile["index"] == 8)
    os.truncate(shards / cut["shard"], cut["offset"] + 10)
    assert call(shards, model, tmp_path / "to") == EXIT_NOT_ALL
    assert len(table(tmp_path / "to")) == 54 - 4
    assert capsys.readouterr().err.count("cannot be read") == 4
