"""A catalog's Parquet files that somebody else may have written: opened only where they hold what their bytes can hold.

Parquet says "the same sixteen million times" in some bytes. What ours unpack to is in proportion to their size, since a
slide has an id, and a tile a checksum, that nothing compresses: 4 to 20 bytes in memory for one in the file. Sizes are
those that nothing can unpack more than, whatever a footer says: of pages by their headers (`pages`), of rows by their
number and type, and of texts that stand for many rows by their dictionary.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wsi_prep.errors import BadCatalog, UsageError, one_line
from wsi_prep.untrusted.pages import BadTable, Read, Unpacked, unpacked

UNPACKED = 100
"""Most bytes in memory for one in the file."""

_LEAST = 2**20
"""What a file may unpack to, however small it is."""

_MOST_COLUMNS = 1000
_PAGES, _LEAST_PAGE = 10_000, 1000  # of a small file, and bytes for each more: ours have some hundred, and 10 kB
_TAIL = 8  # length of the footer, and Parquet's mark
_TEXTS = frozenset((pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()))
_FOOTER_TEXT, _FOOTER_ITEMS = 2**24, 200_000  # of a footer: bytes of one text, entries of one list


def open_table(
    source: Path | pa.NativeFile, schema: pa.Schema, struct: str | None = None, **options: Any
) -> pq.ParquetFile:
    """A file of the table with that `schema`, whose rows and texts are no more than its bytes can be.

    Its column `struct` may be one; what that unpacks to is bounded, and the length of its texts is not. Raises
    BadTable, and what pyarrow raises for what is no Parquet. `options` are ParquetFile's.
    """
    file = _opened(source, **options)
    try:
        _require_bounded(source, file, schema, struct)
    except BaseException:
        file.close()
        raise
    return file


def require_table(source: Path | pa.NativeFile, schema: pa.Schema, where: str) -> None:
    """Raise BadCatalog, which names the file `where`, unless it is one that `open_table` opens."""
    with refusing(where):
        open_table(source, schema).close()
    if not isinstance(source, Path):
        source.seek(0)


@contextmanager
def refusing(where: str) -> Iterator[None]:
    """Around the reading of a table's file: what is wrong with it becomes BadCatalog, which names the file `where`."""
    try:
        yield
    except UsageError:
        raise
    except (ValueError, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # what pyarrow cannot decode has no number
            raise
        why = one_line(error)
        raise BadCatalog(f"{where} is damaged; make verify with REPAIR=1 drops it ({why})") from error


def require_columns(found: pa.Schema, schema: pa.Schema, needed: Collection[str]) -> None:
    """Raise BadTable unless these columns are there, of the types that the table's `schema` has."""
    if missing := set(needed) - set(found.names):
        raise BadTable(f"it has no column {', '.join(sorted(missing))}")
    for name in sorted(needed):
        if found.field(name).type != schema.field(name).type:
            raise BadTable(f"its column {name} is {found.field(name).type}, not {schema.field(name).type}")


def of_today(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with all of the schema's columns; those that an older version did not write are null."""
    for field in schema:
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
    return rows.select(schema.names).cast(schema)


def _require_bounded(source: Path | pa.NativeFile, file: pq.ParquetFile, schema: pa.Schema, struct: str | None) -> None:
    """Raise BadTable where the file has other types than the table, or unpacks to more than it can."""
    size = _size(source)
    most = _require_plausible(file, schema, size, struct)
    with _reading(source) as read:
        chunks = _chunks(read, file.metadata, size)
    total = sum(chunk.total for columns in chunks for chunk in columns.values())
    if total > most:
        raise BadTable(f"its {size:,} bytes cannot hold {total:,} bytes")
    _require_texts(source, file, chunks, most)


def _require_plausible(file: pq.ParquetFile, schema: pa.Schema, size: int, struct: str | None) -> int:
    """What a footer says of a file of `size` bytes, against the table's `schema`: most bytes that it may unpack to.

    Raises BadTable for more rows, or other types, than such a file has.
    """
    metadata, most = file.metadata, max(UNPACKED * size, _LEAST)
    if metadata.num_columns > _MOST_COLUMNS:
        raise BadTable(f"it has {metadata.num_columns:,} columns")
    width = _require_kinds([field for field in file.schema_arrow if field.name != struct], schema)
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    rows = sum(groups)
    if rows != metadata.num_rows or min(groups, default=0) < 0:
        raise BadTable(f"it says that it has {metadata.num_rows:,} rows, and its parts {rows:,}")
    if rows * width > most:
        raise BadTable(f"its {size:,} bytes cannot hold {rows:,} rows, or unpack to {rows * width:,} bytes")
    return most


def _chunks(read: Read, metadata: pq.FileMetaData, size: int) -> list[dict[str, Unpacked]]:
    """What each row group's columns unpack to, by name."""
    end = size - int.from_bytes(read(size - _TAIL, 4), "little") - _TAIL
    names = [metadata.schema.column(column).path for column in range(metadata.num_columns)]
    found, most = [], _PAGES + size // _LEAST_PAGE
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = {name: group.column(column) for column, name in enumerate(names)}
        if any(chunk.path_in_schema != name for name, chunk in chunks.items()):
            raise BadTable("its columns are others in one place than in another")
        columns = {}
        for name, chunk in chunks.items():
            columns[name] = unpacked(read, chunk, group.num_rows, end, most)
            most -= columns[name].pages
        found.append(columns)
    return found


@contextmanager
def _reading(source: Path | pa.NativeFile) -> Iterator[Read]:
    """The file's bytes by offset and count; a small file is read once."""
    if not isinstance(source, Path):
        yield lambda at, count: _at(source, at, count)
        return
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size <= _LEAST:
            data = os.pread(descriptor, _LEAST, 0)
            yield lambda at, count: data[at : at + count]
        else:
            yield lambda at, count: os.pread(descriptor, count, at)
    finally:
        os.close(descriptor)


def _at(source: pa.NativeFile, at: int, count: int) -> bytes:
    source.seek(at)
    return bytes(source.read(count))


def _opened(source: Path | pa.NativeFile, **options: Any) -> pq.ParquetFile:
    if not isinstance(source, Path):
        source.seek(0)
    limits = {"thrift_string_size_limit": _FOOTER_TEXT, "thrift_container_size_limit": _FOOTER_ITEMS}
    return pq.ParquetFile(source, **limits, **options)


def _size(source: Path | pa.NativeFile) -> int:
    return source.stat().st_size if isinstance(source, Path) else int(source.size())


def _require_kinds(found: Sequence[pa.Field], schema: pa.Schema) -> int:
    """Bytes of a row without its texts. Raises BadTable for two columns of one name, and as _require_kind."""
    if len({field.name for field in found}) != len(found):
        raise BadTable("it has two columns of one name")
    for field in found:
        _require_kind(field, schema)
    return sum(_width(field.type) for field in found)


def _require_kind(field: pa.Field, schema: pa.Schema) -> None:
    """Raise BadTable for a column of lists or the like, or a text in place of a number."""
    kind = _kind(field)
    if pa.types.is_nested(kind):
        raise BadTable(f"its column {field.name[:40]!r} is {str(kind)[:60]!r}")
    at = schema.get_field_index(field.name)
    if at >= 0 and not pa.types.is_null(kind) and _is_text(kind) != _is_text(schema.field(at).type):
        raise BadTable(f"its column {field.name} is {kind}, not {schema.field(at).type}")


def _kind(field: pa.Field) -> pa.DataType:
    return field.type.value_type if pa.types.is_dictionary(field.type) else field.type


def _is_text(kind: pa.DataType) -> bool:
    return kind in _TEXTS


def _width(kind: pa.DataType) -> int:
    """Bytes of a value without its text."""
    try:
        return max(int(kind.bit_width) // 8, 1)
    except ValueError:
        return 4


def _require_texts(
    source: Path | pa.NativeFile, file: pq.ParquetFile, chunks: list[dict[str, Unpacked]], most: int
) -> None:
    """Raise BadTable where the texts are longer in all than `most` bytes.

    A text that stands for many rows is in the file once: looked at there, as a dictionary, before any row gets its own.
    """
    names = [field.name for field in file.schema_arrow if _is_text(_kind(field))]
    unsure = list(_unsure(file.metadata, chunks, names, most))
    if not unsure:
        return
    total = 0
    with _opened(source, read_dictionary=sorted({name for _, name in unsure})) as packed:
        for number, name in unsure:
            (column,) = packed.read_row_group(number, columns=[name], use_threads=False).columns
            total += sum(map(_text_bytes, column.chunks))
            if total > most:
                raise BadTable(f"the texts of its column {name} are longer than its bytes can hold")


def _unsure(
    metadata: pq.FileMetaData, chunks: list[dict[str, Unpacked]], names: Collection[str], most: int
) -> Iterator[tuple[int, str]]:
    """Row groups and columns whose texts could be more than a share of `most`, if each row had all of a dictionary."""
    share = most // max(1, len(chunks) * len(names))
    for number, columns in enumerate(chunks):
        rows = metadata.row_group(number).num_rows
        for name in names:
            chunk = columns.get(name)  # by another name in Parquet's own schema: to be looked at
            if chunk is None or chunk.total + rows * chunk.dictionary > share:
                yield number, name


def _text_bytes(texts: pa.DictionaryArray) -> int:
    lengths = pc.binary_length(texts.dictionary)
    return int(pc.sum(pc.take(lengths, texts.indices)).as_py() or 0)
