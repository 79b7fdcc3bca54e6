"""Copies of tiles under other names are found among shards, in the trainer and in the audit, and can be left out."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.audit import main as audit
from pipelines.evaluate import main as evaluate
from pipelines.interchange import main as interchange
from pipelines.train import main as train
from pretrain.data.seen.near import SeenTiles, likenesses_of_tiles
from pretrain.evaluation.tasks import load_tasks
from tests.support.shard_folders import add_slide, flat
from tests.support.textures import texture
from tests.support.training import TINY
from wsi_prep.storage.overlap.shared import likenesses_of_table

SETTINGS = [*TINY, "sampling.mix.10x=0"]
IDS = [f"slide{number}-{number:08x}" for number in range(1, 5)]
pytestmark = pytest.mark.slow


def drawn(slide, _magnification, index):
    return texture(100 * slide + index)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three slides of unlike tiles, and one of plain ones."""
    out = tmp_path_factory.mktemp("near") / "out"
    for number in range(1, 5):
        add_slide(out, number, {"20x": 4}, picture=flat if number == 4 else drawn, file=f"s{number}.svs")
    return out


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Eight tiles of slides that no shards name: two are tiles of slide 2, encoded again, one is plain."""
    images = []
    for number in range(8):
        pixels = {0: np.rot90(texture(201)), 1: texture(203)[:, ::-1], 7: flat(1, "20x", 0)}.get(
            number, texture(5000 + number)
        )
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).resize((224, 224)).save(file, "JPEG", quality=80)
        images.append(file.getvalue())
    file = tmp_path_factory.mktemp("judged") / "t.parquet"
    split = ["train", "test"] * 4
    groups = [f"other {n // 2}" for n in range(8)]
    columns = {"label": ["a", "a", "b", "b"] * 2, "group": [f"{g} {s}" for g, s in zip(groups, split, strict=True)]}
    pq.write_table(pa.table({"image": images, "split": split, "patient": groups, **columns}), file)
    return file


def test_copies_are_found_and_the_hashes_are_kept(shards, judged, tmp_path):
    (task,) = load_tasks(str(judged))
    tiles = likenesses_of_tiles(task.tiles, 1)
    read = []
    found = SeenTiles(shards, tmp_path, threads=1, progress=lambda done, of: read.append((done, of))).alike(tiles)
    assert found.copies.near.tolist() == [0, 1]
    assert found.slides == (IDS[1],)
    assert (found.copies.others, found.copies.others_plain, found.copies.pairs) == (16, 4, 7 * 12)
    assert read[-1] == (16, 16)
    (kept,) = tmp_path.glob("likeness-*.npy")
    before = kept.stat().st_mtime_ns
    again = SeenTiles(shards, tmp_path, threads=1, progress=lambda done, of: pytest.fail("read again")).alike(tiles)
    assert (again.copies.near.tolist(), kept.stat().st_mtime_ns) == ([0, 1], before)
    only = SeenTiles(shards, tmp_path, f"slide_id != '{IDS[1]}'", threads=1).alike(tiles)
    assert (only.slides, only.copies.others) == ((), 12)


def test_tables_of_tiles_are_compared_as_shards_are(shards, judged, tmp_path):
    assert interchange(["--shards", str(shards), "--kind", "parquet", "--to", str(tmp_path / "tables")]) == 0
    found = SeenTiles(tmp_path / "tables", tmp_path, threads=1).alike(likenesses_of_table(judged, 1))
    assert (found.copies.near.tolist(), found.slides, found.copies.others) == ([0, 1], (IDS[1],), 16)


def test_tiles_that_cannot_be_read_are_counted_and_not_kept(shards, judged, tmp_path):
    import shutil

    shutil.copytree(shards, tmp_path / "out")
    (shard,) = (tmp_path / f"out/stores/{IDS[1]}.zarr/20x").glob("c*")
    shard.write_bytes(b"\0" * shard.stat().st_size)
    (task,) = load_tasks(str(judged))
    found = SeenTiles(tmp_path / "out", tmp_path, threads=1).alike(likenesses_of_tiles(task.tiles, 1))
    assert (found.copies.near.tolist(), found.copies.others_unreadable) == ([], 4)
    assert "0 unreadable of it, 4 in SHARDS" in found.copies.line
    assert not list(tmp_path.glob("*likeness*"))


def test_evaluate_says_how_many(shards, judged, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = tmp_path / "run"
    words = ["--run", str(run), "--index", str(tmp_path / "index"), "--stop-at", "1", "--shards", str(shards)]
    assert train([*words, "--set", *SETTINGS]) == 0
    words = ["--model", str(run), "--tasks", str(judged), "--to", str(tmp_path / "figures")]
    assert evaluate([*words, "--shards", str(shards), "--near"]) == 0
    assert "2 of 8 tiles look like tiles in SHARDS" in (tmp_path / "figures/figures.html").read_text()
    out = " ".join(capsys.readouterr().out.split())
    assert "note: t: 2 of 8 tiles look like tiles in SHARDS, of 1 slide (by chance, fewer than 0.01 would)" in out
    assert "not compared: 1 plain of it, 4 in SHARDS" in out
    assert evaluate([*words, "--near"]) == 2
    assert "NEAR needs SHARDS" in capsys.readouterr().err


def test_training_leaves_their_slides_out_and_goes_on_without_them(shards, judged, tmp_path, capsys):
    words = ["--run", str(tmp_path / "run"), "--index", str(tmp_path / "index"), "--stop-at"]
    more = ["--exclude", str(judged), "--near"]
    assert train([*words, "1", "--shards", str(shards), *more, "--set", *SETTINGS]) == 0
    assert "2 of 8 tiles look like tiles in SHARDS, of 1 slide" in " ".join(capsys.readouterr().out.split())
    told = json.loads((tmp_path / "run/run.json").read_text())
    assert (told["tiles"], told["where"]) == (12, f"slide_id NOT IN ('{IDS[1]}')")
    for again in (more, [*more, "--shards", str(shards)], []):
        assert train([*words, "2", *again]) == 0
        assert "other tiles than before" not in capsys.readouterr().out
        assert json.loads((tmp_path / "run/run.json").read_text())["where"] == told["where"]
    assert train([*words, "3", "--near"]) == 2
    assert "NEAR needs EXCLUDE" in capsys.readouterr().err


def test_the_audit_says_slides_patients_copies_and_owners_on_both_sides(shards, judged, tmp_path, capsys):
    table = pq.read_table(judged)
    named = table.append_column("slide_id", pa.array([IDS[0], "s3.svs", *["x"] * 6]))
    pq.write_table(named.append_column("patient_key", pa.array(["k"] * 8)), tmp_path / "named.parquet")
    page = tmp_path / "audit.html"
    words = ["--shards", str(shards), "--to", str(page), "--tasks", str(tmp_path / "named.parquet"), "--near"]
    assert audit(words) == 3  # there are no overlays
    out, html = " ".join(capsys.readouterr().out.split()), page.read_text()
    for line in (
        "2 of 8 tiles are of 2 slides in SHARDS; no tile is of a patient in SHARDS",
        "2 of 8 tiles look like tiles in SHARDS, of 1 slide",
        "4 patients or slides are on both sides of its split",
    ):
        assert line in out
        assert line in html
    assert audit([*words[:-3], "--near"]) == 2
    assert "NEAR needs TASKS" in capsys.readouterr().err


def test_a_table_without_images_is_refused_in_one_line(shards, tmp_path, capsys):
    pq.write_table(pa.table({"slide_id": [IDS[0]]}), tmp_path / "t.parquet")
    words = ["--shards", str(shards), "--to", str(tmp_path / "a.html"), "--tasks", str(tmp_path / "t.parquet")]
    assert audit([*words, "--near"]) == 2
    assert "t.parquet: has no column image" in capsys.readouterr().err
    (tmp_path / "t.parquet").write_text("none")
    assert audit(words) == 2
    assert "is no table of labelled tiles" in capsys.readouterr().err
