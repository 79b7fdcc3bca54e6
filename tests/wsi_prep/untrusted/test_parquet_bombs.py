"""A Parquet file is judged by what cannot lie: the headers of its pages, its rows, its dictionaries."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.audit import main as audit
from pipelines.forget import main as forget
from pipelines.interchange import main as interchange
from pipelines.peek import main as peek
from pipelines.plan import main as plan
from pipelines.privacy import main as privacy
from pipelines.query import main as query
from pipelines.verify import main as verify
from tests.support.parquet_bombs import deny_sizes, repeated, write_bomb
from tests.support.shard_folders import add_slide
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.untrusted.pages import BadTable, unpacked
from wsi_prep.untrusted.tables import open_table

SLIDE = "slide1-00000001"
SCHEMAS = {"slides": SLIDE_SCHEMA, "tiles": TILE_SCHEMA}
TEXTS = {
    "slides": (20_000, {"status": "ok", "file": "x" * 50_000}),
    "tiles": (30_000, {"magnification": "20x", "shard": "stores/" + "x" * 50_000}),
}


@pytest.fixture
def out(tmp_path):
    add_slide(tmp_path / "out", 1, {"20x": 3}, width=4000, height=4000)
    return tmp_path / "out"


COMMANDS = {
    "query": lambda out, to: query(["--shards", str(out), "--sql", "SELECT * FROM slides JOIN tiles USING (slide_id)"]),
    "plan": lambda out, to: plan(["--slides", "100", "--sample", str(out)]),
    "audit": lambda out, to: audit(["--shards", str(out), "--to", str(to / "a.html")]),
    "interchange": lambda out, to: interchange(["--shards", str(out), "--kind", "webdataset", "--to", str(to / "w")]),
    "peek": lambda out, to: peek(["--shards", str(out), "--index", str(to / "i"), "--out", str(to / "p.png")]),
    "privacy": lambda out, to: privacy(["--shards", str(out)]),
    "forget": lambda out, to: forget(["--shards", str(out), "--slide", SLIDE, "--yes"]),
    "verify": lambda out, to: verify(["--shards", str(out), "--workers", "1"]),
}


@pytest.mark.parametrize("table", SCHEMAS)
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "verify"])
def test_every_command_refuses_a_bomb_whose_footer_denies_it(out, tmp_path, capfd, name, table):
    file = out / f"catalog/{table}/{SLIDE}.parquet"
    rows, texts = TEXTS[table]
    write_bomb(file, SCHEMAS[table], rows, slide_id=SLIDE, **texts)
    deny_sizes(file)
    before = pa.total_allocated_bytes()
    code = COMMANDS[name](out, tmp_path)
    said = capfd.readouterr()
    if name == "privacy":
        assert f"catalog/{table}/{SLIDE}.parquet" in said.out
        assert "cannot hold" in said.out or "longer than its bytes" in said.out
    elif (name, table) == ("forget", "tiles"):  # a file of the slide's own is deleted as it is
        assert code == 0
        assert not file.exists()
    else:
        assert code == 2
        assert said.err.count("\n") == 1
        assert "cannot hold" in said.err or "longer than its bytes" in said.err
    assert pa.total_allocated_bytes() - before < 2**26


def a_text_that_repeats_itself(file):
    """One letter over and over: a hundred thousandth when it is packed."""
    pq.write_table(repeated(SLIDE_SCHEMA, 1, slide_id=SLIDE, error="x" * 2**25), file, compression="zstd")


def texts_that_begin_alike(file):
    """Each value is as long as it likes, and in the file by what is new in it."""
    rows = pa.table({"slide_id": [SLIDE] * 2000, "error": ["x" * 50_000] * 2000})
    how = {"use_dictionary": False, "column_encoding": {"slide_id": "PLAIN", "error": "DELTA_BYTE_ARRAY"}}
    pq.write_table(rows, file, compression="zstd", **how)


def another_column(file):
    rows = repeated(SLIDE_SCHEMA, 5000, slide_id=SLIDE)
    more = pa.DictionaryArray.from_arrays(pa.array(np.zeros(5000, np.int32)), pa.array([b"x" * 50_000]))
    pq.write_table(rows.append_column("more", more), file, store_schema=False, compression="zstd")


def nothing_but_nulls(file):
    write_bomb(file, SLIDE_SCHEMA, 300_000)


@pytest.mark.parametrize("deny", [False, True])
@pytest.mark.parametrize(
    "write", [a_text_that_repeats_itself, texts_that_begin_alike, another_column, nothing_but_nulls]
)
def test_other_ways_to_be_small_are_refused(tmp_path, write, deny):
    write(tmp_path / "f.parquet")
    assert (tmp_path / "f.parquet").stat().st_size < 150_000
    if deny:
        deny_sizes(tmp_path / "f.parquet")
    with pytest.raises(BadTable):
        open_table(tmp_path / "f.parquet", SLIDE_SCHEMA)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_pages_are_as_large_as_an_honest_footer_says(tmp_path, version, compression, dictionary):
    rng = np.random.default_rng(0)
    texts = [rng.bytes(rng.integers(0, 900)).hex() for _ in range(40)]
    rows = pa.table(
        {
            "text": [texts[n] for n in rng.integers(0, 40, 5000)],
            "number": pa.array(rng.integers(0, 2**40, 5000), mask=rng.random(5000) < 0.3),
            "bool": rng.random(5000) < 0.5,
            "null": pa.nulls(5000),
        }
    )
    file = tmp_path / "f.parquet"
    how = {"use_dictionary": dictionary, "data_page_version": version, "compression": compression}
    pq.write_table(rows, file, row_group_size=2000, data_page_size=4000, write_page_checksum=True, **how)
    data, metadata = file.read_bytes(), pq.read_metadata(file)
    for number in range(3):
        group = metadata.row_group(number)
        for at in range(4):
            chunk = group.column(at)
            found = unpacked(lambda at, count: data[at : at + count], chunk, group.num_rows, len(data), 1000)
            assert 0 < found.total < chunk.total_uncompressed_size  # which has the headers too
            if chunk.path_in_schema == "number" and compression == "none":
                assert found.total >= 8 * (group.num_rows - chunk.statistics.null_count) or dictionary
            if chunk.dictionary_page_offset is None:
                assert found.dictionary == 0
            elif chunk.path_in_schema == "text":
                assert found.dictionary == sum(4 + len(text) for text in set(texts))
            with pytest.raises(BadTable):
                unpacked(lambda at, count: data[at : at + count], chunk, group.num_rows + 1, len(data), 1000)
            with pytest.raises(BadTable):
                unpacked(lambda at, count: data[at : at + count], chunk, group.num_rows, chunk.data_page_offset, 1000)
