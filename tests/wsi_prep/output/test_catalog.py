"""The catalog stays true whenever a process is killed: here at every single step that changes a file."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.catalog_rows import slide, tiles
from wsi_prep.errors import BadCatalog
from wsi_prep.format.records import SLIDE_SCHEMA
from wsi_prep.output import catalog as catalog_module
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.merging import Merger
from wsi_prep.output.sealed_parquet import check_seal
from wsi_prep.storage.atomic import put_in_place
from wsi_prep.untrusted.tables import open_table


@pytest.fixture
def catalog(tmp_path):
    catalog = Catalog(tmp_path)
    catalog.create()
    for number in range(6):
        catalog.commit(slide(number), tiles(number))
    return catalog


def content(out):
    """Both tables as any Parquet reader sees them, in one order."""
    slides = pq.read_table(out / "catalog/slides").to_pylist()
    found = pq.read_table(out / "catalog/tiles").to_pylist()
    return sorted(r["slide_id"] for r in slides), sorted((t["slide_id"], t["index"]) for t in found)


WHOLE = ([f"s{n}" for n in range(6)], [(f"s{n}", i) for n in range(6) for i in range(3)])
WITHOUT_2 = ([s for s in WHOLE[0] if s != "s2"], [t for t in WHOLE[1] if t[0] != "s2"])


def test_merging_changes_no_row_and_leaves_one_file_a_table(catalog, tmp_path):
    assert content(tmp_path) == WHOLE
    catalog.merge()
    assert content(tmp_path) == WHOLE
    assert [p.name for p in sorted((tmp_path / "catalog").rglob("*.parquet"))] == ["part-00000.parquet"] * 2
    catalog.commit(slide(9), tiles(9))
    catalog.merge()
    assert len(list((tmp_path / "catalog/slides").iterdir())) == 2
    assert catalog.count_tiles()["20x"] == 21


def test_the_length_of_all_texts_is_known_without_reading_rows(catalog, tmp_path, monkeypatch):
    """Else each start of a call on millions of slides reads their ids and digests once more."""
    catalog.merge()
    monkeypatch.delattr(pq.ParquetFile, "read_row_group")
    with open_table(tmp_path / "catalog/slides/part-00000.parquet", SLIDE_SCHEMA) as file:
        assert file.metadata.num_rows == 6


@pytest.mark.parametrize("merged", [False, True])
def test_dropping_takes_a_slide_out_of_both_tables(catalog, tmp_path, merged):
    if merged:
        catalog.merge()
    catalog.drop({"s2", "unknown"})
    assert content(tmp_path) == WITHOUT_2


def test_slides_are_dropped_from_a_catalog_whose_columns_are_fewer(catalog, tmp_path):
    catalog.merge()
    for table, column in (("slides", "tiles_filtered"), ("tiles", "saturation")):
        part = tmp_path / "catalog" / table / "part-00000.parquet"
        pq.write_table(pq.read_table(part).drop_columns(column), part)
    catalog.drop({"s2"})
    assert content(tmp_path) == WITHOUT_2
    catalog.commit(slide(2), tiles(2))
    catalog.merge()
    assert content(tmp_path) == WHOLE


def test_a_row_can_be_described_anew(catalog, tmp_path):
    catalog.merge()
    catalog.replace_slides([{"slide_id": slide(3)["slide_id"], "tissue": "lung"}])
    assert [row["tissue"] for row in catalog.slides()] == [None, None, None, "lung", None, None]
    assert check_seal(tmp_path / "catalog/slides/part-00000.parquet") == "sound"


def test_tiles_without_their_slide_do_not_survive_a_start(catalog, tmp_path):
    catalog.commit(slide(7), tiles(7))
    (tmp_path / "catalog/slides/s7.parquet").unlink()
    catalog.recover()
    assert content(tmp_path) == WHOLE


def test_a_slide_without_tiles_has_only_its_row(tmp_path):
    catalog = Catalog(tmp_path)
    catalog.create()
    catalog.commit(slide(1, "failed", 0), catalog.no_tiles())
    catalog.merge()
    assert [row["status"] for row in catalog.slides()] == ["failed"]
    assert pq.read_table(tmp_path / "catalog/tiles").num_rows == 0


def test_a_failure_takes_back_the_tiles_of_the_try_before(catalog, tmp_path):
    catalog.commit(slide(8), tiles(8))
    (tmp_path / "catalog/slides/s8.parquet").unlink()  # as if the disk had been full for the slide's own row
    catalog.commit(slide(8, "failed", 0), catalog.no_tiles())
    assert content(tmp_path) == ([*WHOLE[0], "s8"], WHOLE[1])


class Killed(BaseException):
    """In place of SIGKILL: nothing catches it."""


def killed_at(step, monkeypatch):
    """Let `step` renames and deletions happen, then die at the next."""
    left = [step]

    def limited(original):
        def call(self, *arguments, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return original(self, *arguments, **options)

        return call

    for name in ("rename", "unlink"):
        monkeypatch.setattr(Path, name, limited(getattr(Path, name)))


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        (lambda c: c.merge(), WHOLE, WHOLE),
        (lambda c: (c.merge(), c.drop({"s2"})), WHOLE, WITHOUT_2),
        (lambda c: c.drop({"s2"}), WHOLE, WITHOUT_2),
    ],
    ids=["merge", "drop from a part", "drop a single"],
)
@pytest.mark.slow
def test_killed_at_any_step_the_next_start_finds_before_or_after(tmp_path, change, before, after):
    for step in range(40):
        out = tmp_path / str(step)
        catalog = Catalog(out)
        catalog.create()
        for number in range(6):
            catalog.commit(slide(number), tiles(number))
        finished = True
        with pytest.MonkeyPatch.context() as patch:
            killed_at(step, patch)
            try:
                change(catalog)
            except Killed:
                finished = False
        Catalog(out).recover()
        assert content(out) in (before, after)
        assert {check_seal(path) for path in (out / "catalog").rglob("*.parquet")} == {"sound"}
        assert not list((out / "catalog").rglob(".*"))
        if finished:
            assert content(out) == after
            break
    assert finished
    assert step > 1


@pytest.mark.parametrize("step", range(4))
def test_killed_while_committing_a_slide_is_there_whole_or_not_at_all(catalog, tmp_path, step):
    with pytest.MonkeyPatch.context() as patch:
        killed_at(step, patch)
        with contextlib.suppress(Killed):
            catalog.commit(slide(8), tiles(8))
    catalog.recover()
    with_8 = (sorted([*WHOLE[0], "s8"]), sorted([*WHOLE[1], *[("s8", i) for i in range(3)]]))
    assert content(tmp_path) == (with_8 if step >= 2 else WHOLE)


def test_parts_stay_bounded(catalog, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog_module, "_PART_SLIDES", 2)
    catalog.merge()
    assert len(list((tmp_path / "catalog/slides").glob("part-*"))) == 3
    assert content(tmp_path) == WHOLE


@pytest.mark.parametrize("slide_id", ["part-0123456789", "part-00000-0123456789", "part-x-00000abcde"])
def test_a_slide_named_like_a_part_is_none(catalog, tmp_path, slide_id):
    catalog.merge()
    catalog.commit(slide(9) | {"slide_id": slide_id}, tiles(9))
    catalog.merge()
    catalog.commit(slide(10), tiles(10))
    catalog.merge()
    catalog.drop({"s9", "s10"})
    names = [file.name for file in sorted((tmp_path / "catalog/slides").glob("*.parquet"))]
    assert names == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert [row["slide_id"] for row in catalog.slides()] == sorted([f"s{n}" for n in range(6)] + [slide_id])


def test_a_slide_that_is_committed_again_after_its_merge_counts_once(catalog, tmp_path):
    catalog.merge()
    catalog.commit(slide(2), tiles(2))  # by a worker that had left the cluster
    catalog.commit(slide(9), tiles(9))
    catalog.commit(slide(3), tiles(3))
    (tmp_path / "catalog/slides/s3.parquet").unlink()  # and one that was killed in the middle of it
    catalog.merge()
    assert content(tmp_path) == (sorted([*WHOLE[0], "s9"]), sorted([*WHOLE[1], *[("s9", i) for i in range(3)]]))


def test_merging_while_the_run_lasts_takes_only_slides_that_are_through(catalog, tmp_path):
    with Merger(catalog, every=2) as merger:
        for name in ("s4", "s1", "s3"):
            merger.add(name)
    names = sorted(file.name for file in (tmp_path / "catalog/slides").glob("*.parquet"))
    assert names == ["part-00000.parquet", *[f"s{n}.parquet" for n in (0, 2, 3, 5)]]
    assert content(tmp_path) == WHOLE
    catalog.merge()
    assert content(tmp_path) == WHOLE
    assert len(list((tmp_path / "catalog/tiles").iterdir())) == 2


@pytest.mark.parametrize("at", [None, 40])
def test_what_a_merge_meets_is_said(catalog, tmp_path, at):
    file = tmp_path / "catalog/tiles/s1.parquet"
    data = bytearray(file.read_bytes())
    if at is not None:
        data[at] ^= 1  # in a page: found by its checksum
    file.write_bytes(data if at is not None else b"no table")
    with (
        pytest.raises(BadCatalog, match=r"catalog/tiles.* is damaged; make verify with REPAIR=1"),
        Merger(catalog, every=1) as merger,
    ):
        merger.add("s1")
    assert [row["slide_id"] for row in catalog.slides()] == WHOLE[0]
    assert file.exists()


def test_a_merged_part_has_few_row_groups(catalog, tmp_path):
    catalog.merge()
    for table in ("slides", "tiles"):
        assert pq.read_metadata(tmp_path / "catalog" / table / "part-00000.parquet").num_row_groups == 1


def test_dropping_from_a_part_of_an_older_version_fills_new_columns(catalog, tmp_path):
    catalog.merge()
    part = tmp_path / "catalog/slides/part-00000.parquet"
    pq.write_table(pq.read_table(part).drop_columns(["tissue_source", "files"]), part)
    catalog.drop({"s2"})
    assert content(tmp_path) == WITHOUT_2
    assert pq.read_schema(part).names == SLIDE_SCHEMA.names


def test_two_workers_may_put_the_same_thing_in_place_at_once(tmp_path):
    place = tmp_path / "stores" / "s.zarr"
    place.parent.mkdir()

    def put(worker):
        for number in range(200):
            made = tmp_path / f"made-{worker}-{number}"
            (made / "20x").mkdir(parents=True)
            (made / "20x" / "c.0").write_text("the same bytes")
            put_in_place(made, place)

    with ThreadPoolExecutor(2) as workers:
        list(workers.map(put, range(2)))
    assert [(p.name, p.read_text()) for p in place.rglob("c.0")] == [("c.0", "the same bytes")]
    assert list(tmp_path.iterdir()) == [place.parent]
