"""Parquet files whose headers say one thing to us and another to who unpacks them, or never end."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.thrift import BINARY, I32, I64, LIST, STRUCT, footer_of, parquet, read_struct, write_struct
from wsi_prep.format.records import SLIDE_SCHEMA
from wsi_prep.untrusted.pages import BadTable
from wsi_prep.untrusted.tables import open_table

# Of a footer: rows 3, row groups 4. Of a group: columns 1, rows 3. Of a column: its metadata 3, and in that
# path 3, values 5, bytes unpacked 6 and packed 7, where its pages begin 9.


@pytest.fixture
def file(tmp_path):
    """One slide whose `error` is 64 MB of one letter, packed without a dictionary."""
    columns = {field.name: pa.nulls(1, field.type) for field in SLIDE_SCHEMA}
    columns |= {"slide_id": pa.array(["slide1-00000001"]), "error": pa.array(["x" * 2**26])}
    pq.write_table(pa.table(columns), tmp_path / "f.parquet", compression="zstd", use_dictionary=False)
    return tmp_path / "f.parquet"


def columns_of(footer, group=0):
    return footer[4][1][1][group][1][1][1]


def refused(file, reason):
    before = pa.total_allocated_bytes()
    with pytest.raises(BadTable, match=reason):
        open_table(file, SLIDE_SCHEMA)
    assert pa.total_allocated_bytes() - before < 2**24


@pytest.mark.slow
def test_the_trees_are_the_bytes(file):
    body, footer = footer_of(file.read_bytes())
    file.write_bytes(parquet(body, footer))
    assert pq.read_metadata(file).num_rows == 1
    refused(file, "cannot hold")


def test_a_field_that_others_take_for_another_is_none(file):
    """A number beyond 16 bits is cut off by who unpacks: 65538 is 2, the size unpacked."""
    body, footer = footer_of(file.read_bytes())
    metadata = columns_of(footer)[SLIDE_SCHEMA.names.index("error")][3][1]
    at = metadata[9][1]
    header, end = read_struct(body, at)
    lying = [*((field, (I32, 1000) if field == 2 else value) for field, value in header.items()), (65538, header[2])]
    page = write_struct(lying) + body[end : end + header[3][1]]
    metadata |= {6: (I64, 1000), 7: (I64, len(page)), 9: (I64, len(body))}
    file.write_bytes(parquet(body + page, footer))
    refused(file, "a field that no page has")


def test_columns_of_one_name_in_the_footer_alone_are_refused(file):
    body, footer = footer_of(file.read_bytes())
    for column in columns_of(footer):
        column[3][1][3] = LIST, (BINARY, [b"zz"])
    file.write_bytes(parquet(body, footer))
    refused(file, "others in one place")


def test_pages_without_values_are_not_walked_without_end(file):
    body, footer = footer_of(file.read_bytes())

    def page(values):
        return write_struct(
            {1: (I32, 0), 2: (I32, 0), 3: (I32, 0), 5: (STRUCT, dict(enumerate([(I32, values), (I32, 0)], 1)))}
        )

    pages = page(0) * 20_000 + page(1)
    for column in columns_of(footer):
        column[3][1].update({6: (I64, 0), 7: (I64, len(pages)), 9: (I64, len(body))})
    group = footer[4][1][1][0]
    footer[4] = LIST, (STRUCT, [group] * 200)
    footer[3] = I64, 200
    file.write_bytes(parquet(body + pages, footer))
    refused(file, "a page has no values")


@pytest.mark.slow
def test_pages_that_many_columns_share_are_counted_for_each(file):
    body, footer = footer_of(file.read_bytes())
    one = {1: (I32, 0), 2: (I32, 0), 3: (I32, 0), 5: (STRUCT, {1: (I32, 1), 2: (I32, 0)})}
    pages = write_struct(one) * 5000
    for column in columns_of(footer):
        column[3][1].update({5: (I64, 5000), 6: (I64, 0), 7: (I64, len(pages)), 9: (I64, len(body))})
    footer[4][1][1][0][3] = I64, 5000
    footer[3] = I64, 5000
    file.write_bytes(parquet(body + pages, footer))
    refused(file, "more pages|5,000 rows")


def test_a_row_group_without_rows_has_no_values(file):
    body, footer = footer_of(file.read_bytes())
    footer[4][1][1][0][3] = I64, 0
    footer[3] = I64, 0
    file.write_bytes(parquet(body, footer))
    refused(file, "other rows")


def test_an_empty_table_is_sound(tmp_path):
    pq.write_table(SLIDE_SCHEMA.empty_table(), tmp_path / "f.parquet")
    with open_table(tmp_path / "f.parquet", SLIDE_SCHEMA) as opened:
        assert opened.metadata.num_rows == 0
