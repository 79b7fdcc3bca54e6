"""Rows of a catalog that somebody else made: they lead every reader to its tiles, or end it by one line."""

import os
import struct
import tarfile
import zlib
from functools import partial

import cv2
import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.index import open_index
from pretrain.data.loader import UNREADABLE, read_tile
from pretrain.errors import BadShards
from pretrain.features.embed import EmbedSettings, FeaturesTo, WantedTiles, embed_shards
from pretrain.features.embedder import Inference, of_backbone
from pretrain.model.backbone import Backbone, BackboneSettings
from tests.support.parquet_bombs import repeated, write_bomb
from tests.support.shard_folders import add_slide, grey
from wsi_prep.curation.audit.count import count, open_catalogs
from wsi_prep.curation.audit.pictures import tiles as tile_pictures
from wsi_prep.curation.estimate import read_sample
from wsi_prep.curation.exchange.stored import Wanted
from wsi_prep.curation.exchange.tars import write_tars
from wsi_prep.curation.verify.catalog import check_catalog_file
from wsi_prep.curation.verify.slide import SlideCheck, check_slide
from wsi_prep.errors import BadCatalog, UsageError
from wsi_prep.format.jpeg import JpegSettings, encode_tile
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.format.stored_tiles import LARGEST_JPEG, decode_stored, place_of, require_places
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.query import open_catalog
from wsi_prep.untrusted.pages import BadTable
from wsi_prep.untrusted.tables import open_table

pytestmark = pytest.mark.slow

SLIDE = "slide1-00000001"
SCHEMAS = {"slides": SLIDE_SCHEMA, "tiles": TILE_SCHEMA}
SHARD = f"stores/{SLIDE}.zarr/20x/c.0.0.0.0"


@pytest.fixture
def out(tmp_path):
    add_slide(tmp_path / "out", 1, {"20x": 3}, width=4000, height=4000)
    return tmp_path / "out"


def change(out, table, **values):
    """Other values in all rows of a table's one file."""
    (file,) = (out / "catalog" / table).glob("*.parquet")
    rows = pq.read_table(file)
    for name, value in values.items():
        field = rows.schema.field(name)
        rows = rows.set_column(rows.schema.get_field_index(name), field, pa.array([value] * len(rows), field.type))
    pq.write_table(rows, file)


def tiles_by_index(out, to):
    return [read_tile(open_index([str(out)], to / "index").address(n)) for n in range(3)]


def indexed(out, to):
    return len(tiles_by_index(out, to))


def embedded(out, to):
    backbone = Backbone(BackboneSettings(width=8, depth=1, heads=1, image_px=14))
    done = embed_shards(
        WantedTiles([str(out)]),
        of_backbone(backbone),
        FeaturesTo(to / "features"),
        EmbedSettings(Inference(torch.device("cpu")), 14),
    )
    if done.unreadable:
        raise OSError(next(iter(done.unreadable.values())))
    return done.tiles


def packed(out, to):
    written = write_tars(Wanted(out, "true", None), to / "tars", 10**6)
    if written.left_out:
        raise OSError(next(iter(written.left_out.values())))
    return written.tiles


def shown(out, to):
    with open_catalogs([str(out)]) as connection:
        found = tile_pictures(count(connection, [str(out)]), connection, 3, 0)
    if len(found.pictures) < 3:
        raise OSError("they are not found")
    if missing := [picture.missing for picture in found.pictures if picture.missing]:
        raise OSError(missing[0])
    return len(found.pictures)


def checked(out, to):
    name = f"{SLIDE}.parquet"
    counts = {"tiles_5x": 0, "tiles_10x": 0, "tiles_20x": 3, "tiles_40x": 0, "width": 4000, "height": 4000}
    report = check_slide(SlideCheck(str(out), {"slide_id": SLIDE, "status": "ok"} | counts, name))
    if faults := [fault.what for fault in report.faults if fault.kind != "pictures"]:
        raise OSError(faults[0])
    return report.tiles


# Each returns how many tiles it has read.
READERS = [indexed, embedded, packed, shown, checked]

WRONG = [
    *({"magnification": name} for name in ("../20x", "/etc", None)),
    *({"shard": name} for name in ("../secret", "/etc/hostname", f"{SHARD}/../c.0.0.0.0", None)),
    *({"offset": number} for number in (-1, 1 << 62, None)),
    *({"nbytes": number} for number in (2**31 - 1, LARGEST_JPEG + 1, 0, -1, None)),
    *({"index": number} for number in (-1, 2**31 - 1, 2048, None)),
    {"crc32": None},
]
PAIRS = [(read, wrong) for n, wrong in enumerate(WRONG) for read in READERS if read is not shown or n % 4 == 0]


@pytest.mark.parametrize("read", READERS)
def test_sound_rows_are_read(out, tmp_path, read):
    assert read(out, tmp_path / "to") == 3


@pytest.mark.parametrize(("read", "wrong"), PAIRS)
def test_a_row_that_leads_elsewhere_ends_in_a_line_that_names_it(out, tmp_path, read, wrong):
    (tmp_path / "secret").write_bytes(b"a secret")
    before = sorted(tmp_path.rglob("*"))
    change(out, "tiles", **wrong)
    if read is packed and "shard" in wrong:  # the row's own shard is never asked
        return
    with pytest.raises((UsageError, OSError)) as error:
        read(out, tmp_path / "to")
    assert "\n" not in str(error.value)
    if read in (indexed, embedded) and "magnification" not in wrong:
        assert f"the tile '{SLIDE}' 20x" in str(error.value)
    made = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path not in before}
    assert made <= {"to"}


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def link(path):
    path.rename(path.with_name("kept"))
    path.symlink_to("kept")


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("make", [pipe, link, lambda path: path.write_bytes(b""), lambda path: os.truncate(path, 9)])
def test_a_shard_that_is_no_file_or_too_short_ends_in_a_line(out, tmp_path, read, make):
    make(out / SHARD)
    with pytest.raises(OSError, match=r"link|no file|bytes|cannot be read|fewer") as error:
        read(out, tmp_path / "to")
    assert "\n" not in str(error.value)


NUMBERS = st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1), st.integers(0, 5000))
ROWS = st.fixed_dictionaries(
    {
        "magnification": st.sampled_from(["5x", "20x", "80x", "../5x", None]),
        "index": NUMBERS,
        "offset": st.one_of(NUMBERS, st.integers(-(2**63), 2**63 - 1)),
        "nbytes": NUMBERS,
        "crc32": st.one_of(st.none(), st.integers(0, 2**32 - 1)),
        "shard": st.sampled_from([SHARD, f"stores/{SLIDE}.zarr/5x/c.1.0.0.0", "../secret", None]),
    }
)


@given(ROWS)
def test_a_row_by_itself_and_among_many_is_judged_alike(row):
    row |= {"slide_id": SLIDE, "mpp": 0.5}
    table = pa.Table.from_pylist([row], TILE_SCHEMA)
    try:
        sound = place_of(row).shard == row["shard"]
    except BadCatalog:
        sound = False
    try:
        require_places(table)
    except BadCatalog:
        assert not sound
    else:
        assert sound


def jpeg_of(height, width):
    """A tile whose header says another size."""
    data = bytearray(encode_tile(np.full((392, 392, 3), 200, np.uint8), JpegSettings()))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


PIXELS = np.random.default_rng(0).integers(0, 255, (392, 392, 3), np.uint8)
JPEGS = {
    "as large as JPEG can be": jpeg_of(65500, 65500),
    "smaller": jpeg_of(8, 8),
    "grey": imagecodecs.jpeg8_encode(PIXELS[..., 0].copy()),
    "progressive": cv2.imencode(".jpg", PIXELS, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes(),
    "no JPEG": b"no JPEG",
    "nothing": b"",
    "header without end": b"\xff\xd8" + b"\xff\xe0\x00\x02" * 1000,
}


@pytest.mark.parametrize("jpeg", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("decode", [decode_stored, partial(decode_stored, out=np.empty((392, 392, 3), np.uint8))])
def test_what_is_no_tile_is_not_decoded(jpeg, decode):
    with pytest.raises(UNREADABLE):
        decode(jpeg, zlib.crc32(jpeg))


def test_a_tile_of_the_best_quality_is_within_the_bound(out, tmp_path):
    best = encode_tile(PIXELS, JpegSettings(100, "444"))
    assert len(best) < LARGEST_JPEG / 2
    np.testing.assert_array_equal(decode_stored(best, zlib.crc32(best)).shape, PIXELS.shape)
    assert [int(tile[0, 0, 0]) for tile in tiles_by_index(out, tmp_path)] == [grey(1, "20x", n) for n in range(3)]
    packed(out, tmp_path)
    with tarfile.open(tmp_path / "tars/tiles-00000.tar") as tar:
        assert len(tar.getnames()) == 6


def looked_up(out, to):
    with open_catalog([str(out)]) as catalog:
        catalog.ask("SELECT count(*) FROM tiles").read_all()


def audited(out, to):
    with open_catalogs([str(out)]) as connection:
        count(connection, [str(out)])


def verified(out, to):
    found = check_catalog_file((str(out), f"{SLIDE}.parquet"))
    if found.damaged:
        raise BadCatalog(found.faults[0].what)


def gone_on_with(out, to):
    catalog = Catalog(out)
    catalog.slides()
    catalog.merge()


BOMBS = {
    "many slides": ("slides", 400_000, {"status": "ok"}),
    "many tiles": ("tiles", 1_500_000, {"shard": SHARD}),
    "long texts of slides": ("slides", 2_000, {"status": "ok", "error": "x" * 1_000_000}),
    "long texts of tiles": ("tiles", 5_000, {"magnification": "20x" * 100_000}),
}
OF_CATALOG = [indexed, embedded, looked_up, audited, verified, gone_on_with, lambda out, to: read_sample(out)]


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("read", OF_CATALOG)
def test_a_file_that_unpacks_without_end_is_refused(out, tmp_path, read, bomb):
    table, rows, texts = bomb
    write_bomb(out / f"catalog/{table}/{SLIDE}.parquet", SCHEMAS[table], rows, slide_id=SLIDE, **texts)
    with pytest.raises((BadCatalog, BadShards), match=r"cannot hold|longer than its bytes") as error:
        read(out, tmp_path)
    assert "\n" not in str(error.value)


def other_kinds():
    tiles = pa.Table.from_pylist([{"slide_id": SLIDE, "magnification": "20x"}], TILE_SCHEMA)

    def put(name, values):
        return tiles.set_column(tiles.schema.get_field_index(name), name, values)

    yield "lists", put("row", pa.array([[[1]]]))
    yield "texts for numbers", put("offset", pa.array(["12"]))
    yield "numbers for texts", put("slide_id", pa.array([1]))
    yield "another width", put("offset", pa.array([1.5]))
    yield "no offset", tiles.drop_columns(["offset"])
    yield "two of a name", tiles.append_column("offset", pa.array([1], pa.int64()))
    yield "many columns", pa.table({f"c{n}": [1] for n in range(1100)} | {"slide_id": [SLIDE]})
    yield "no column", pa.table({})


OTHER = dict(other_kinds())


@pytest.mark.parametrize("table", OTHER.values(), ids=OTHER)
@pytest.mark.parametrize("read", [indexed, embedded, verified])
def test_a_table_of_other_columns_is_refused(out, tmp_path, read, table):
    pq.write_table(table, out / f"catalog/tiles/{SLIDE}.parquet")
    with pytest.raises((BadCatalog, BadShards)) as error:
        read(out, tmp_path)
    assert "\n" not in str(error.value)


def footer(rows, depth):
    """A Parquet file of a footer alone (Thrift's compact protocol), with no row group."""

    def varint(number):
        return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])

    group = b"\x35\x00\x18\x01a\x15\x02\x00"  # required, named a, of one child
    leaf = b"\x15\x02\x25\x00\x18\x01x\x00"
    elements = [b"\x48\x01r\x15\x02\x00", *[group] * depth, leaf]
    count = varint(len(elements)) if len(elements) > 14 else b""
    listed = bytes([min(len(elements), 15) << 4 | 12]) + count + b"".join(elements)
    body = b"\x15\x02\x19" + listed + b"\x16" + varint(2 * rows) + b"\x19\x0c\x00"
    return b"PAR1" + body + struct.pack("<I", len(body)) + b"PAR1"


@pytest.mark.parametrize(("rows", "depth"), [(1 << 60, 0), (0, 50_000)])
@pytest.mark.parametrize("read", OF_CATALOG)
def test_a_footer_that_lies_is_refused(out, tmp_path, read, rows, depth):
    (out / f"catalog/slides/{SLIDE}.parquet").write_bytes(footer(rows, depth))
    with pytest.raises((BadCatalog, BadShards)) as error:
        read(out, tmp_path)
    assert "\n" not in str(error.value)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@settings(max_examples=25)
@given(st.lists(st.tuples(TEXT, TEXT, st.integers(0, 2**31 - 1)), max_size=30), st.integers(1, 40))
def test_what_a_run_can_write_is_read(rows, times):
    table = pa.Table.from_pylist(
        [{"slide_id": a, "error": b, "tiles_20x": n} for a, b, n in rows] * times, SLIDE_SCHEMA
    )
    file = pa.BufferOutputStream()
    pq.write_table(table, file, compression="zstd")
    with open_table(pa.BufferReader(file.getvalue()), SLIDE_SCHEMA) as opened:
        assert opened.read().equals(table)


def test_tiles_that_are_all_alike_are_no_bomb(tmp_path):
    """The least that a file of tiles can be: all of them the same picture, at the same sharpness."""
    alike = dict.fromkeys(TILE_SCHEMA.names, 1) | {"slide_id": SLIDE, "magnification": "20x", "array": "a"}
    rows = repeated(TILE_SCHEMA, 100_000, **{name: value for name, value in alike.items() if isinstance(value, str)})
    n = np.arange(len(rows))
    for name, values in {"index": n, "offset": n * 700, "row": n // 300, "col": n % 300, "shard": None}.items():
        at = rows.schema.get_field_index(name)
        kind = TILE_SCHEMA.field(name).type
        column = pa.array(values, pa.int64()).cast(kind) if values is not None else pa.array([SHARD] * len(n))
        rows = rows.set_column(at, name, column)
    pq.write_table(rows, tmp_path / "t.parquet", compression="zstd")
    with open_table(tmp_path / "t.parquet", TILE_SCHEMA) as opened:
        assert opened.metadata.num_rows == 100_000
    assert (tmp_path / "t.parquet").stat().st_size < 2_000_000
    write_bomb(tmp_path / "bomb.parquet", TILE_SCHEMA, 1_000_000, slide_id=SLIDE)
    with pytest.raises(BadTable, match="cannot hold"):
        open_table(tmp_path / "bomb.parquet", TILE_SCHEMA)
