"""Every bit that changes in an output is found, in its own file, and nothing writes it anew as if it were sound."""

import contextlib
import hashlib
import json
import random
import shutil

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.verify import main as verify
from tests.support.prepared import prepare
from wsi_prep.curation.verify.catalog import SLIDE_COLUMNS, check_catalog_file
from wsi_prep.curation.verify.metadata import check_metadata, same_settings
from wsi_prep.curation.verify.pictures import PICTURES, picture_faults
from wsi_prep.curation.verify.slide import SlideCheck, check_slide
from wsi_prep.errors import BadCatalog, BadOutput
from wsi_prep.format.jpeg import JpegSettings, encode_tile
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.folder import read_run, write_run
from wsi_prep.output.query import open_catalog, write
from wsi_prep.output.sealed_json import NotAsWritten, SealedFile, seal, unseal
from wsi_prep.output.sealed_parquet import KEY
from wsi_prep.output.tombstone import Tombstone, read_tombstone, write_tombstone
from wsi_prep.run.slide import output_places
from wsi_prep.storage.digests import from_column
from wsi_prep.storage.local import LocalStorage
from wsi_prep.storage.select import open_storage

pytestmark = pytest.mark.slow

PART = "part-00000.parquet"
FLIPS = 200


@pytest.fixture(scope="module")
def made(tmp_path_factory, nompp_slide):
    """One slide of one magnification, with all that an output can hold: (its folder, its row's columns to check by)."""
    out = tmp_path_factory.mktemp("flips") / "out"
    row = prepare(nompp_slide, out, "5x", assume_mpp=0.5).row
    Catalog(out).merge()
    write_run(open_storage(out), {"settings": {"jpeg": {"quality": 90}}, "slides": {"ok": 1}, "warnings": ["none"]})
    write_tombstone(open_storage(out), Tombstone(frozenset({"9f" * 16}), frozenset({"07" * 16})))
    return out, {name: row[name] for name in SLIDE_COLUMNS}


def of_slide(made):
    report = check_slide(SlideCheck(str(made[0]), made[1], PART))
    return [(fault.kind, fault.what) for fault in report.faults]


def of_metadata(made):
    store, digests = f"stores/{made[1]['slide_id']}.zarr", from_column(made[1]["digests"])
    return [("metadata", what) for what in check_metadata(open_storage(made[0]), store, made[1], digests).faults]


def of_pictures(made):
    place, paths, digests = open_storage(made[0]), output_places(made[1]["slide_id"]), from_column(made[1]["digests"])
    return [("pictures", what) for name in PICTURES for what in picture_faults(place, paths[name], name, digests)]


def of_catalog(made):
    return [(fault.kind, f"{fault.where}: {fault.what}") for fault in check_catalog_file((str(made[0]), PART)).faults]


def of_json(made):
    files = [SealedFile.look_at(open_storage(made[0]), name) for name in ("run.json", "forgotten.json")]
    return [("run", f"{path}: {what}") for file in files for path, what in file.wrong.items()]


KINDS = {
    "shard": (
        "stores/{}.zarr/5x/c.0.0.0.0",
        of_slide,
        {"tiles": "5x[0] has another checksum than its row (in 5x/c.0.0.0.0)", "index": "5x/c.0.0.0.0 "},
    ),
    "array": ("stores/{}.zarr/5x/zarr.json", of_metadata, {"metadata": "5x: zarr.json "}),
    "group": ("stores/{}.zarr/zarr.json", of_metadata, {"metadata": "group: zarr.json "}),
    "outline": ("tissue/{}.geojson", of_pictures, {"pictures": "tissue/"}),
    "overlay": ("overlays/{}.jpg", of_pictures, {"pictures": "overlays/"}),
    "slides": (f"catalog/slides/{PART}", of_catalog, {"catalog": f"catalog/slides/{PART}: "}),
    "tiles": (f"catalog/tiles/{PART}", of_catalog, {"catalog": f"catalog/tiles/{PART}: "}),
    "run": ("run.json", of_json, {"run": "run.json: "}),
    "its copy": (".run.json", of_json, {"run": ".run.json: "}),
    "tombstone": ("forgotten.json", of_json, {"run": "forgotten.json: "}),
}


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_that_changes_is_found_and_its_file_named(made, kind):
    path, look, known_by = KINDS[kind]
    file = made[0] / path.format(made[1]["slide_id"])
    data = file.read_bytes()
    assert look(made) == []
    bits = range(8 * len(data))
    try:
        for bit in random.Random(1).sample(bits, FLIPS) if len(bits) > FLIPS else bits:
            file.write_bytes(flipped(data, bit))
            found = look(made)
            assert len(found) == 1, (bit, found)
            assert found[0][1].startswith(known_by[found[0][0]]), (bit, found)
    finally:
        file.write_bytes(data)


@pytest.mark.parametrize("table", ["slides", "tiles"])
def test_no_bit_of_the_end_of_a_part_goes_unseen(made, table):
    """There is the digest itself, what it is called, and how long the footer is."""
    file = made[0] / "catalog" / table / PART
    data = file.read_bytes()
    first = data.rindex(KEY) - 4
    try:
        for at in [*range(first, first + 40), *range(len(data) - 8, len(data))]:
            file.write_bytes(flipped(data, 8 * at + at % 8))
            assert [kind for kind, _ in of_catalog(made)] == ["catalog"], at
    finally:
        file.write_bytes(data)


def test_pictures_of_a_slide_that_is_excluded_are_checked_too(tmp_path, nompp_slide):
    row = prepare(nompp_slide, tmp_path, "40x", assume_mpp=0.5).row
    assert (row["status"], row["error_type"]) == ("excluded", "TooCoarse")
    check = SlideCheck(str(tmp_path), {name: row[name] for name in SLIDE_COLUMNS}, f"{row['slide_id']}.parquet")
    assert check_slide(check).faults == ()
    for name in PICTURES:
        file = tmp_path / output_places(row["slide_id"])[name]
        data = file.read_bytes()
        file.write_bytes(flipped(data, 8 * 30))
        (fault,) = check_slide(check).faults
        assert fault.what.startswith(str(file.relative_to(tmp_path)))
        file.write_bytes(data)


@given(*[st.builds(JpegSettings, st.integers(1, 100), st.sampled_from(["420", "422", "444"]))] * 2)
@settings(max_examples=40, deadline=None)
def test_a_jpeg_tells_its_settings(settings, other):
    noise = np.random.default_rng(0).integers(0, 256, (392, 392, 3), np.uint8)
    assert same_settings(encode_tile(noise, settings), other) == (settings == other)


def test_the_digests_of_a_slide_are_those_of_its_files(made):
    out, row = made
    paths = output_places(row["slide_id"])
    store = out / paths.pop("store.zarr")
    files = {str(path.relative_to(store)): path for path in store.rglob("*") if path.is_file()}
    files |= {name: out / path for name, path in paths.items()}
    wanted = {name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for name, path in files.items()}
    wanted["5x/c.0.0.0.0"] = f"crc32c:{google_crc32c.value(files['5x/c.0.0.0.0'].read_bytes()):08x}"
    assert from_column(row["digests"]) == wanted


def test_digests_can_be_asked_for(made, tmp_path):
    with open_catalog([str(made[0])]) as catalog:
        answer = catalog.ask("SELECT digests::JSON->>'overlay.jpg' AS overlay FROM slides").read_all()
        assert write(catalog.ask("SELECT * FROM slides"), tmp_path / "slides.csv") == 1
    assert answer["overlay"].to_pylist() == [from_column(made[1]["digests"])["overlay.jpg"]]


def test_the_digest_of_a_part_is_what_the_document_says(made):
    for table in ("slides", "tiles"):
        data = (made[0] / "catalog" / table / PART).read_bytes()
        said = pq.read_metadata(pa.BufferReader(data)).metadata[KEY].removeprefix(b"file-sha256:")
        assert hashlib.sha256(data.replace(said, b"0" * 64)).hexdigest().encode() == said


@given(
    st.dictionaries(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists), max_size=4),
    st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=50, deadline=None)
def test_no_bit_of_sealed_json_changes_unseen(document, share):
    document.pop("digest", None)
    data = seal(document)
    assert unseal(data) == document
    with pytest.raises(NotAsWritten):
        unseal(flipped(data, int(share * 8 * len(data))))


@pytest.mark.parametrize("writes", range(3))
def test_a_write_that_is_killed_leaves_nothing_that_looks_damaged(tmp_path, writes):
    class Dying(LocalStorage):
        left = writes

        def write(self, path, data):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            super().write(path, data)

    storage = LocalStorage(tmp_path)
    write_run(storage, {"slides": 1})
    with contextlib.suppress(KeyboardInterrupt):
        write_run(Dying(tmp_path), {"slides": 2})
    assert SealedFile.look_at(storage, "run.json").wrong == {}
    assert read_run(storage) == {"slides": 2 if writes == 2 else 1}


def test_what_is_damaged_is_not_written_anew_as_if_it_were_sound(made, tmp_path):
    out = shutil.copytree(made[0], tmp_path / "out")
    tiles = out / "catalog/tiles" / PART
    tiles.write_bytes(flipped(tiles.read_bytes(), 8 * 100))
    with pytest.raises(BadCatalog, match=f"catalog/tiles: {PART} is damaged; make verify with REPAIR=1"):
        Catalog(out).drop({made[1]["slide_id"]})
    for name, read in (("run.json", read_run), ("forgotten.json", read_tombstone)):
        data = (out / name).read_bytes()
        (out / name).write_bytes(flipped(data, 8 * 25))
        with pytest.raises(BadOutput, match=rf"{name} .*make verify with REPAIR=1"):
            read(open_storage(out))
        (out / name).unlink()
        assert read(open_storage(out)) == read(open_storage(made[0]))  # of the copy


def without_digests(out):
    """The output as an earlier version left it."""
    for table in ("slides", "tiles"):
        path = out / "catalog" / table / PART
        rows = pq.read_table(path)
        pq.write_table(rows.drop_columns("digests" if table == "slides" else []).replace_schema_metadata(), path)
    for name in ("run.json", "forgotten.json"):
        document = unseal((out / name).read_bytes())
        (out / name).write_text(json.dumps(document, indent=2))
        (out / f".{name}").unlink()


@pytest.mark.usefixtures("shared_dask")
def test_output_of_earlier_versions_is_checked_by_the_rest_and_said_to_be(made, tmp_path, capsys):
    out = shutil.copytree(made[0], tmp_path / "out")
    without_digests(out)
    assert verify(["--shards", str(out), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "1 slide and 2 files of the catalog have no digests" in printed
    assert printed.endswith("sound\n")
    older = out, {**made[1], "digests": None}
    document = out / "stores" / f"{made[1]['slide_id']}.zarr/5x/zarr.json"
    text = document.read_text()
    for was, now in (("crc32c", "crc32b"), ('"level": 75', '"level": 76'), ("{", "{ "), ("420", "444"), ("2.0", "2.1")):
        document.write_text(text.replace(was, now, 1))
        assert document.read_text() != text
        assert [kind for kind, _ in of_slide(older)] in (["metadata"], ["tiles"]), was
    (out / "run.json").write_text("{")
    assert verify(["--shards", str(out), "--workers", "1", "--repair", "--yes"]) == 3
    printed = capsys.readouterr().out
    assert "not repaired: run.json: no sound copy is left, so restore it from a backup of yours" in printed
    assert (out / "run.json").read_text() == "{"
