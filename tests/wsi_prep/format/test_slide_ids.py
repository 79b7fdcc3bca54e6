"""Slides' ids: safe everywhere whatever the file is called, and known again by all that read an output."""

import hashlib
import json
import shutil
import string
from functools import partial
from pathlib import PureWindowsPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.forget import main as forget
from pipelines.shards import main as shards
from pretrain.data.index import open_index
from sample_slides.make import make_synthetic, nompp_tiff
from tests.support.shard_folders import add_row
from wsi_prep.curation.audit.count import count, open_catalogs
from wsi_prep.curation.verify.store import verify
from wsi_prep.errors import BadCatalog
from wsi_prep.format.layout import former_slide_id, is_slide_id, make_slide_id, require_slide_id
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.query import open_catalog
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.slides.private import keyed_slide_id

ANY_NAME = st.text(st.characters(codec=None), max_size=300)
ENDINGS = st.sampled_from(["", ".svs", ".ome.tiff", ".dcm", ". ", "."])
PLAIN = st.sampled_from(string.ascii_letters + string.digits)
ODD = st.sampled_from(
    ["CON", "nul.svs", "COM1.2.svs", "..", ".", "", "-h", "_", "~", "a:b", "lpt9.", "\ud800", "p.q", "é"]
)


@given(st.one_of(ANY_NAME, st.builds("{}{}".format, ODD, ANY_NAME)), ENDINGS, ANY_NAME)
@example("NUL.tar", ".svs", "x")
@example("part-00000", ".svs", "x")
def test_whatever_a_file_is_called_its_id_is_safe(name, ending, identity):
    made = make_slide_id(name + ending, identity)
    assert is_slide_id(made)
    assert is_slide_id(former_slide_id(name + ending, identity))
    assert made.isascii()
    assert all(letter.isalnum() or letter in "._-" for letter in made)
    assert made[0].isalnum()
    assert made[-1].isalnum()
    assert len(made) <= 75
    for file in (made, f"{made}.zarr", f"{made}.parquet"):
        assert not PureWindowsPath(file).is_reserved()


@given(ANY_NAME, ANY_NAME, ANY_NAME)
def test_two_places_give_two_ids_in_any_case(name, one, other):
    ids = {make_slide_id(spelt, place).casefold() for place in (one, other) for spelt in (name, name.swapcase())}
    digests = {text[-10:] for text in ids}
    assert len(digests) == len({one, other})


@pytest.mark.slow
@given(
    st.builds("{}{}{}".format, PLAIN, st.text(string.ascii_letters + "0189._-", max_size=80), PLAIN),
    st.text(max_size=50),
)
def test_ordinary_names_keep_the_ids_that_earlier_versions_made(stem, path):
    digest = hashlib.blake2b(path.encode(), digest_size=5).hexdigest()
    name = stem if not stem.lower().endswith(".ome") else f"{stem}1"
    if not PureWindowsPath(name).is_reserved():
        assert make_slide_id(f"{name}.svs", path) == former_slide_id(f"{name}.svs", path) == f"{name[:64]}-{digest}"


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("_x.svs", "x"),
        (" x.svs", "x"),
        ("(1) biopsy.ome.tiff", "1__biopsy"),
        ("切片_1.svs", "1"),
        ("Größe 1 µm.svs", "Groe_1_m"),
        ("CON.2024.svs", "CON_2024"),
        ("_nul.a.b.svs", "nul_a.b"),
        ("CON.svs", "CON"),
        ("Console.1.svs", "Console.1"),
        ("---.svs", "slide"),
    ],
)
def test_names_that_begin_oddly_keep_what_is_safe_of_them(name, stem):
    assert make_slide_id(name, "x") == f"{stem}-{hashlib.blake2b(b'x', digest_size=5).hexdigest()}"


@pytest.mark.parametrize(
    "text",
    [
        "_x-0123456789",
        "-x-0123456789",
        "__-0123456789",
        "CON.2024-0123456789",
        "a..b-0123456789",
        "a" * 64 + "-0123456789",
    ]
    + ["slide-0123456789", "part-0123456789", keyed_slide_id(b"a secret of sixteen", "x")],
)
def test_what_earlier_versions_made_stays_an_id(text):
    assert is_slide_id(text)


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "../x", "a/b", "/a", "a\\b", "a\n", "a\0b", "a ", "a.", ".a", "a:b", "é", "a" * 81, "x\x7f", "a*"]
    + ["part-00000", "Part-00001", None, 7, b"a-0123456789"],
)
def test_what_no_version_made_is_no_id(text):
    assert not is_slide_id(text)
    with pytest.raises(BadCatalog, match="no slide id"):
        require_slide_id(text)


NAMES = ["_x", " y", "(1) biopsy", "-h", "CON.2024", "NUL", "__", "plain"]


@pytest.fixture(scope="module")
def cohort(shared_dask, tmp_path_factory):
    """Slides of all these names, and their shards: (slides folder, out folder)."""
    folder = tmp_path_factory.mktemp("cohort") / "slides"
    folder.mkdir()
    make_synthetic(folder.parent / "slide.tiff", partial(nompp_tiff, width=600, height=700))
    for name in NAMES:
        shutil.copy(folder.parent / "slide.tiff", folder / f"{name}.tiff")
    assert make(folder, folder.parent / "_out") == 0
    return folder, folder.parent / "_out"


def make(slides, out, *more):
    fast = ["--mags", "20x", "--assume-mpp", "0.5", "--workers", "1"]
    return shards(["--slides", str(slides), "--out", str(out), *fast, *more])


def counts(out, folder):
    """Slides and tiles as each reader has them, by reader: the trainer counts slides with tiles."""
    index = open_index([str(out)], folder)
    with open_catalogs([str(out)]) as connection:
        audited = count(connection, [str(out)])
    with open_catalog([str(out)]) as catalog:
        asked = catalog.ask("SELECT (SELECT count(*) FROM slides), (SELECT count(*) FROM tiles)").read_all()
    return {
        "catalog": (len(Catalog(out).slides()), sum(Catalog(out).count_tiles().values())),
        "trainer": (len(index.slides), index.tiles),
        "audit": (len(audited.slides), sum(audited.tiles.values())),
        "query": tuple(column[0].as_py() for column in asked.columns),
        "any reader of Parquet": tuple(len(pq.read_table(out / "catalog" / name)) for name in ("slides", "tiles")),
    }


def test_slides_of_all_names_are_there_for_every_reader(cohort, tmp_path, capsys):
    slides, out = cohort
    assert set(counts(out, tmp_path).values()) == {(len(NAMES), len(NAMES))}
    assert {name.stem for name in (out / "stores").iterdir()} == {row["slide_id"] for row in Catalog(out).slides()}
    found = verify(str(out), workers=1)
    assert (found.slides, found.faults) == (len(NAMES), [])
    assert make(slides, out) == 0
    assert f"nothing to do: {len(NAMES)} slides are already done" in capsys.readouterr().out


def renamed(out, ids):
    """`out` as an earlier version would have left it: its slides by their former ids, some in files of their own."""
    for folder, ending in (("stores", ".zarr"), ("tissue", ".geojson"), ("overlays", ".jpg")):
        for new, old in ids.items():
            (out / folder / f"{new}{ending}").rename(out / folder / f"{old}{ending}")
    for old in ids.values():
        for file in (out / f"stores/{old}.zarr").rglob("zarr.json"):
            new = next(new for new in ids if ids[new] == old)
            file.write_bytes(file.read_bytes().replace(json.dumps(new).encode(), json.dumps(old).encode()))
    for name, schema in (("slides", SLIDE_SCHEMA), ("tiles", TILE_SCHEMA)):
        rows = pq.read_table(out / "catalog" / name, schema=schema).to_pylist()
        for row in rows:
            old = ids.get(row["slide_id"], row["slide_id"])
            row.update({"digests": None} if "digests" in row else {})  # which none had
            row.update({k: row[k].replace(row["slide_id"], old) for k in ("array", "shard") if k in row}, slide_id=old)
        alone = set(sorted(ids.values())[:2])
        table = pa.Table.from_pylist(rows, schema)
        for slide_id in alone:
            of = table.filter(pc.equal(table["slide_id"], slide_id))
            pq.write_table(of, out / "catalog" / name / f"{slide_id}.parquet")
        rest = table.filter(pc.invert(pc.is_in(table["slide_id"], pa.array(sorted(alone)))))
        pq.write_table(rest, out / "catalog" / name / "part-00000.parquet")


def test_a_folder_of_an_earlier_version_is_read_checked_and_gone_on_with(cohort, tmp_path, capsys):
    slides, made = cohort
    out = tmp_path / "out"
    shutil.copytree(made, out)
    found = find_slides(str(slides))
    ids = {source.slide_id: source.former_id for source in found if source.former_id != source.slide_id}
    assert {old[:2] for old in ids.values()} == {"_x", "_y", "_1", "-h", "CO", "__"}
    renamed(out, ids)
    assert sorted(p.name[0] for p in (out / "catalog/slides").iterdir()) == ["-", "C", "p"]
    assert ds.dataset(out / "catalog/slides").count_rows() == len(NAMES)
    add_row(out, "no id", status="failed")
    repaired = verify(str(out), repair=True, workers=1)
    assert [fault.what for fault in repaired.faults] == ["the catalog names a slide 'no id', which is no slide id"]
    assert (repaired.slides, repaired.undone, repaired.removed) == (len(NAMES), 1, 0)
    assert make(slides, out) == 0
    assert f"nothing to do: {len(NAMES)} slides are already done" in capsys.readouterr().out
    readers = counts(out, tmp_path / "index")
    assert set(readers.values()) == {(len(NAMES), len(NAMES))}
    gone = next(old for old in ids.values() if old.startswith("-h"))
    assert forget(["--yes", "--shards", str(out), "--slide", gone, ids[found[0].slide_id]]) == 0
    assert len(Catalog(out).slides()) == len(NAMES) - 2
    assert make(slides, out) == 0  # they are found again, and known to be forgotten by their former ids
    assert len(Catalog(out).slides()) == len(NAMES) - 2
