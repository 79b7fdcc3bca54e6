"""A slide that is in several folders, or in several files of a catalog: all that read shards count the same copy."""

import shutil

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.audit import main as audit
from pipelines.command import EXIT_NOT_ALL
from pipelines.query import main as query
from pretrain.data.index import open_index
from pretrain.features.embed import EmbedSettings, FeaturesTo, WantedTiles, embed_shards
from pretrain.features.embedder import Inference, of_backbone
from pretrain.model.backbone import Backbone, BackboneSettings
from tests.support.shard_folders import add_slide
from wsi_prep.curation.audit.count import count, open_catalogs
from wsi_prep.format.copies import which_count
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.query import open_catalog


@given(st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.booleans())), max_size=40))
def test_the_first_that_is_ok_counts_or_else_the_first(rows):
    slides = pa.array([f"s{slide}" for slide, _ in rows], pa.string())
    found = which_count(slides, pa.array([ok for _, ok in rows], pa.bool_()))
    best = {}
    for number, (slide, ok) in enumerate(rows):
        if slide not in best or (ok and not rows[best[slide]][1]):
            best[slide] = number
    assert found.counts.to_pylist() == [best[slide] == number for number, (slide, _) in enumerate(rows)]
    assert found.doubled == sum(sum(s == slide and bool(ok) for s, ok in rows) > 1 for slide in best)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders: slide 1 in both with other tiles, 2 and 4 in one, 3 failed in the first, 5 twice in the first."""
    first, second = (tmp_path_factory.mktemp("folders") / name for name in ("first", "second"))
    for number, tiles in ((1, {"20x": 5, "10x": 1}), (2, {"20x": 2}), (5, {"10x": 4})):
        add_slide(first, number, tiles)
    add_slide(first, 3, {}, status="failed")
    singles = [(first / f"catalog/{table}/slide5-00000005.parquet") for table in ("slides", "tiles")]
    for file in singles:
        shutil.copy(file, first / file.parent.name)
    Catalog(first).merge()
    for file in singles:  # as a worker that left its cluster commits a slide once more
        shutil.move(first / file.parent.name, file)
    for number, tiles in ((1, {"20x": 3}), (4, {"10x": 6}), (3, {"20x": 7})):
        add_slide(second, number, tiles)
    Catalog(second).merge()
    add_slide(second, 6, {"20x": 1})
    tiles = second / "catalog/tiles"  # as a worker leaves them that is killed before it commits the slide's row
    shutil.copy(tiles / "slide6-00000006.parquet", tiles / "slide9-00000009.parquet")
    return first, second


BOTH_WAYS = [((0, 1), {1: 6, 2: 2, 3: 7, 4: 6, 5: 4, 6: 1}), ((1, 0), {1: 3, 2: 2, 3: 7, 4: 6, 5: 4, 6: 1})]


@pytest.mark.parametrize(("order", "expected"), BOTH_WAYS, ids=["first, second", "second, first"])
@pytest.mark.slow
def test_all_who_read_count_the_same_copy(folders, tmp_path, capsys, order, expected):
    shards = [str(folders[number]) for number in order]
    tiles = {f"slide{number}-{number:08x}": n for number, n in expected.items()}
    index = open_index(shards, tmp_path / "index")
    trained = dict.fromkeys(tiles, 0)
    for cell in index.cells:
        trained[index.slide_id(int(cell["slide"]))] += int(cell["count"])
    with open_catalogs(shards) as connection:
        audited = count(connection, shards)
    with open_catalog(shards) as catalog:
        asked = catalog.ask("SELECT slide_id, count(*) AS n FROM tiles GROUP BY ALL").read_all().to_pylist()
        slides = catalog.ask("SELECT slide_id, status, tiles_20x + tiles_10x AS n FROM slides").read_all().to_pylist()
    torch.manual_seed(0)
    backbone = Backbone(BackboneSettings(width=32, depth=1, heads=2, image_px=56))
    done = embed_shards(
        WantedTiles(shards),
        of_backbone(backbone),
        FeaturesTo(tmp_path / "to"),
        EmbedSettings(Inference(torch.device("cpu")), 56),
    )
    embedded = ds.dataset(tmp_path / "to/parquet").to_table()["slide_id"].value_counts().to_pylist()
    assert trained == tiles
    assert {slide.slide_id: sum(slide.tiles) for slide in audited.slides} == tiles
    assert {row["slide_id"]: row["n"] for row in asked} == tiles
    assert {row["slide_id"]: row["n"] for row in slides} == tiles
    assert len(slides) == len(tiles)
    assert {row["status"] for row in slides} == {"ok"}
    assert {row["values"]: row["counts"] for row in embedded} == tiles
    assert (done.slides, done.tiles, done.unreadable) == (6, sum(tiles.values()), {})
    said = (
        "2 slides are "
        "ok in several folders, or files of a catalog: the first copy of each counts, in the order of SHARDS"
    )
    assert audited.notes[0] == index.warnings[0] == said
    assert done.notes == [said]
    assert query(["--shards", *shards, "--sql", "SELECT 1 AS one"]) == 0
    assert capsys.readouterr().err == f"query: {said}\n"
    assert audit(["--shards", *shards, "--to", str(tmp_path / "audit.html")]) == EXIT_NOT_ALL
    assert f"audit: {said}\n" in capsys.readouterr().err


@pytest.mark.slow
def test_a_filter_that_the_counted_copy_does_not_pass_brings_no_other_in(folders, tmp_path):
    shards, where = list(map(str, folders)), "magnification = '10x'"
    index = open_index(shards, tmp_path / "index", where)
    backbone = Backbone(BackboneSettings(width=32, depth=1, heads=2, image_px=56))
    reverse = embed_shards(
        WantedTiles(shards[::-1], where),
        of_backbone(backbone),
        FeaturesTo(tmp_path / "to"),
        EmbedSettings(Inference(torch.device("cpu")), 56),
    )
    assert index.tiles == 1 + 4 + 6
    assert reverse.tiles == 4 + 6


def test_folders_without_copies_say_nothing_of_them(folders, tmp_path, capsys):
    assert query(["--shards", str(folders[1]), "--sql", "SELECT count(*) AS n FROM tiles"]) == 0
    assert capsys.readouterr().err == ""
    assert not any("several folders" in line for line in open_index([str(folders[1])], tmp_path / "index").warnings)
