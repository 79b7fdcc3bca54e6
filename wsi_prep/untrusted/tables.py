"""A catalog's Parquet files that somebody else may have written: opened only where they hold what their bytes can hold.

Parquet says "the same sixteen million times" in some bytes. What ours unpack to is in proportion to their size, since a
slide has an id, and a tile a checksum, that nothing compresses: 4 to 20 bytes in memory for one in the file.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wsi_prep.errors import BadCatalog, one_line

UNPACKED = 100
"""Most bytes in memory for one in the file."""

_LEAST = 2**20
"""What a file may unpack to, however small it is."""

_MOST_COLUMNS = 1000
_FOOTER_TEXT, _FOOTER_ITEMS = 2**24, 200_000  # of a footer: bytes of one text, entries of one list


class BadTable(ValueError):
    """A Parquet file that is no table of the catalog; the text says why, and not which."""


def open_table(source: Path | pa.BufferReader, schema: pa.Schema, **options: Any) -> pq.ParquetFile:
    """A file of the table with that `schema`, whose rows and texts are no more than its bytes can be.

    Raises BadTable, and what pyarrow raises for what is no Parquet. `options` are ParquetFile's.
    """
    file = _opened(source, **options)
    try:
        most = require_plausible(file.metadata, file.schema_arrow, schema, _size(source))
        _require_texts(source, file, schema, most)
    except BaseException:
        file.close()
        raise
    return file


def require_table(source: Path | pa.BufferReader, schema: pa.Schema, where: str) -> None:
    """Raise BadCatalog, which names the file `where`, unless it is one that `open_table` opens."""
    try:
        if isinstance(source, Path) and _is_small(pq.read_metadata(source)):
            return
        open_table(source, schema).close()
        if not isinstance(source, Path):
            source.seek(0)
    except FileNotFoundError:
        raise
    except (BadTable, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        why = one_line(error, 200)
        raise BadCatalog(f"{where} is damaged; make verify with REPAIR=1 drops it ({why})") from error


def require_columns(found: pa.Schema, schema: pa.Schema, needed: Collection[str]) -> None:
    """Raise BadTable unless these columns are there, of the types that the table's `schema` has."""
    if missing := set(needed) - set(found.names):
        raise BadTable(f"it has no column {', '.join(sorted(missing))}")
    for name in sorted(needed):
        if found.field(name).type != schema.field(name).type:
            raise BadTable(f"its column {name} is {found.field(name).type}, not {schema.field(name).type}")


def _is_small(metadata: pq.FileMetaData) -> bool:
    """Whether a file is small whatever it holds, as one slide's row is: most files are such, and known so at once."""
    if metadata.num_row_groups != 1 or metadata.num_columns > _MOST_COLUMNS:
        return False
    rows, group = int(metadata.num_rows), metadata.row_group(0)
    unpacked = rows * (int(group.total_byte_size) + 8 * int(metadata.num_columns))
    return bool(group.num_rows == rows >= 0) and 0 <= unpacked <= _LEAST


def of_today(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with all of the schema's columns; those that an older version did not write are null."""
    for field in schema:
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
    return rows.select(schema.names).cast(schema)


def require_plausible(metadata: pq.FileMetaData, found: pa.Schema, schema: pa.Schema, size: int) -> int:
    """What a footer says of a file of `size` bytes, against the table's `schema`: most bytes that it may unpack to.

    Raises BadTable for more rows, or other types, than such a file has.
    """
    most = max(UNPACKED * size, _LEAST)
    if metadata.num_columns > _MOST_COLUMNS:
        raise BadTable(f"it has {metadata.num_columns:,} columns")
    if len(set(found.names)) != len(found.names):
        raise BadTable("it has two columns of one name")
    for field in found:
        _require_kind(field, schema)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows = sum(group.num_rows for group in groups)
    if rows != metadata.num_rows or any(group.num_rows < 0 for group in groups):
        raise BadTable(f"it says that it has {metadata.num_rows:,} rows, and its parts {rows:,}")
    width = sum(_width(field.type) for field in found)
    unpacked = max(rows * width, sum(group.total_byte_size for group in groups))
    if unpacked > most:
        raise BadTable(f"its {size:,} bytes cannot hold {rows:,} rows, or unpack to {unpacked:,} bytes")
    return most


def _opened(source: Path | pa.BufferReader, **options: Any) -> pq.ParquetFile:
    if not isinstance(source, Path):
        source.seek(0)
    limits = {"thrift_string_size_limit": _FOOTER_TEXT, "thrift_container_size_limit": _FOOTER_ITEMS}
    return pq.ParquetFile(source, **limits, **options)


def _size(source: Path | pa.BufferReader) -> int:
    return source.stat().st_size if isinstance(source, Path) else int(source.size())


def _require_kind(field: pa.Field, schema: pa.Schema) -> None:
    """Raise BadTable for a column of lists or the like, or a text in place of a number."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_nested(kind):
        raise BadTable(f"its column {field.name[:40]!r} is {str(kind)[:60]!r}")
    at = schema.get_field_index(field.name)
    if at >= 0 and not pa.types.is_null(kind) and _is_text(kind) != _is_text(schema.field(at).type):
        raise BadTable(f"its column {field.name} is {kind}, not {schema.field(at).type}")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))


def _width(kind: pa.DataType) -> int:
    """Bytes of a value without its text."""
    try:
        return max(int(kind.bit_width) // 8, 1)
    except ValueError:
        return 4


def _require_texts(source: Path | pa.BufferReader, file: pq.ParquetFile, schema: pa.Schema, most: int) -> None:
    """Raise BadTable where the table's texts are longer in all than `most` bytes.

    A text that stands for many rows is in the file once: looked at there, as a dictionary, before any row gets its own.
    """
    metadata = file.metadata
    known = {field.name: field.type for field in file.schema_arrow}
    names = [name for name in schema.names if name in known and pa.types.is_string(known[name])]
    groups = range(metadata.num_row_groups)
    unsure = [(number, name) for number in groups for name in _unsure(metadata, number, names, most)]
    if not unsure:
        return
    total = 0
    with _opened(source, read_dictionary=sorted({name for _, name in unsure})) as packed:
        for number, name in unsure:
            (column,) = packed.read_row_group(number, columns=[name], use_threads=False).columns
            total += sum(map(_text_bytes, column.chunks))
            if total > most:
                raise BadTable(f"the texts of its column {name} are longer than its bytes can hold")


def _unsure(metadata: pq.FileMetaData, number: int, names: Collection[str], most: int) -> list[str]:
    """The columns of a row group whose texts could be more than a share of `most`, if each row had the longest."""
    group = metadata.row_group(number)
    share = most // max(1, metadata.num_row_groups * len(names))
    chunks = (group.column(at) for at in range(group.num_columns))
    longest = {chunk.path_in_schema: group.num_rows * chunk.total_uncompressed_size for chunk in chunks}
    return [name for name in names if longest.get(name, 0) > share]


def _text_bytes(texts: pa.DictionaryArray) -> int:
    lengths = pc.binary_length(texts.dictionary)
    return int(pc.sum(pc.take(lengths, texts.indices)).as_py() or 0)
