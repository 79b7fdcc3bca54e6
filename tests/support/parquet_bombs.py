"""Parquet files that unpack to far more than they are, and footers that deny it."""

import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def repeated(schema, rows, /, **texts):
    """A table of as many rows, empty but for these texts, each of them once in the file."""
    columns = {field.name: pa.nulls(rows, field.type) for field in schema}
    for name, text in texts.items():
        columns[name] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))
    return pa.table(columns)


def write_bomb(path, schema, rows, /, **texts):
    pq.write_table(
        repeated(schema, rows, **texts),
        path,
        store_schema=False,
        dictionary_pagesize_limit=2**26,
        compression="zstd",
    )


def deny_sizes(file):
    """Write 1 for every size that the footer says something unpacks to."""
    data = file.read_bytes()
    (length,) = struct.unpack("<I", data[-8:-4])
    body, footer = data[: -8 - length], data[-8 - length : -8]
    metadata = pq.read_metadata(file)
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    chunks = [group.column(n) for group in groups for n in range(group.num_columns)]
    sizes = {group.total_byte_size for group in groups} | {chunk.total_uncompressed_size for chunk in chunks}
    for size in sizes:
        if size > 10_000:  # short numbers may be something else
            footer = footer.replace(zigzag(size), zigzag(1, len(zigzag(size))))
    file.write_bytes(body + footer + data[-8:])
    said = pq.read_metadata(file)
    assert all(said.row_group(n).total_byte_size <= 10_000 for n in range(said.num_row_groups))


def zigzag(number, length=0):
    """Thrift's number, in at least so many bytes."""
    number *= 2
    data = bytearray()
    while number > 127 or len(data) < length - 1:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])
