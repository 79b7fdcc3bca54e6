"""What the pages of a Parquet file unpack to, by their own headers, which hold a decompressor to what they say.

A footer says such sizes too, and its reader believes them; nothing is ever unpacked by them. A page's header (Thrift's
compact protocol, parquet.thrift) is read here as readers do: what is given twice counts as it was given last, and what
has another type than it should is passed by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

Read = Callable[[int, int], bytes]
"""Bytes of a file by offset and count; fewer where it ends."""

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_VALUES_AT = {_DATA: (5, 1, 2), _DICTIONARY: (7, 1, 2), _DATA_V2: (8, 1, 4)}
"""By kind of page, the fields of its own header, and in that of the number of values and their encoding."""

_MULTIPLYING = 7
"""DELTA_BYTE_ARRAY: each value begins as the one before, and so may be long at no cost. No file of ours has it."""

_HEADER, _LONGEST_HEADER = 512, 2**17
_LEAST_START = 4  # behind Parquet's mark
_DEEPEST = 4
_I32, _STRUCT = 5, 12


class BadTable(ValueError):
    """A Parquet file that is no table of the catalog; the text says why, and not which."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Bytes in all of a column chunk's pages, and those of its dictionary, as its headers say; and how many pages."""

    total: int
    dictionary: int
    pages: int = 0


def unpacked(read: Read, chunk: pq.ColumnChunkMetaData, rows: int, end: int, most: int) -> Unpacked:
    """Of the chunk of a flat column, in a row group of `rows`, in a file whose footer begins at `end`.

    Raises BadTable unless its pages, `most` of them, lie one after another where the footer says, and have a value a
    row.
    """
    if rows == 0 and chunk.num_values == 0:
        return Unpacked(0, 0)
    at, until = _extent(chunk, rows, end)
    total = dictionary = seen = pages = 0
    while seen < rows:
        kind, here, packed, values, length = _header(read, at, until)
        at += length + packed
        if at > until:
            raise BadTable("a page is longer than its column")
        total += here
        if kind == _DICTIONARY:
            if pages or values > here:
                raise BadTable("a dictionary is not where it belongs, or has more values than bytes")
            dictionary = here
        elif not values:
            raise BadTable("a page has no values")
        else:
            seen += values
        pages += 1
        if pages > most:
            raise BadTable("it has more pages than its bytes can be cut into")
    if seen != rows:
        raise BadTable("its pages have other rows than its footer says")
    return Unpacked(total, dictionary, pages)


def one_plain_page(read: Read, chunk: pq.ColumnChunkMetaData, rows: int, end: int) -> bool:
    """Whether the chunk is one page, not packed, of `rows` texts that lie one after another, each behind its length.

    Then the last of them ends where the chunk does. BadTable as in `unpacked`.
    """
    if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page or rows == 0:
        return False
    at, until = _extent(chunk, rows, end)
    kind, here, packed, values, length = _header(read, at, until)
    plain = set(chunk.encodings) <= {"PLAIN", "RLE", "BIT_PACKED"}
    return plain and kind == _DATA and values == rows and here == packed == until - at - length


def _extent(chunk: pq.ColumnChunkMetaData, rows: int, end: int) -> tuple[int, int]:
    """Where the chunk's pages begin and end; some readers begin at its dictionary, some at what comes first."""
    start, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
    if dictionary is not None and dictionary >= _LEAST_START:
        if dictionary >= start:
            raise BadTable("a dictionary comes after the rows")
        start = dictionary
    until = start + chunk.total_compressed_size
    if chunk.num_values != rows or not _LEAST_START <= start <= until <= end:
        raise BadTable("a column is not within the file, or has other rows than the others")
    return start, until


def _header(read: Read, at: int, until: int) -> tuple[int, int, int, int, int]:
    """Of the page at that offset: kind, bytes unpacked and packed, values; and the bytes of the header itself."""
    most = _HEADER
    while True:
        data = read(at, min(most, until - at))
        try:
            fields, length = _struct(data, 0, 0)
            break
        except IndexError:  # it is longer, as with texts for the least and largest value
            if len(data) < most or most >= _LONGEST_HEADER:
                raise BadTable("a page's header does not end") from None
            most *= 16
    try:
        kind, here, packed = fields[1], fields[2], fields[3]
        place, values_at, encoding_at = _VALUES_AT[kind]
        values, encoding = fields[place][values_at], fields[place][encoding_at]
    except (KeyError, TypeError) as error:
        raise BadTable("a page's header is none") from error
    if min(here, packed, values) < 0 or encoding == _MULTIPLYING:
        raise BadTable("a page's header says a size below zero, or an encoding that is none of ours")
    return kind, here, packed, values, length


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """A struct's fields that are numbers of 32 bits or structs, by number, and where it ends. IndexError beyond it."""
    found: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, at = _varint(data, at)
            number = (number >> 1) ^ -(number & 1)
        if not 0 < number < 2**15:  # other readers cut off what is beyond, and take it for another field
            raise BadTable("a page's header has a field that no page has")
        if kind == _I32:
            value = data[at]
            at += 1
            if value > 127:
                value, at = _varint(data, at - 1)
            value = (value >> 1) ^ -(value & 1)
            if not -(2**31) <= value < 2**31:
                raise BadTable("a page's header has a number that is too large")
            found[number] = value
        elif kind == _STRUCT:
            if depth == _DEEPEST:
                raise BadTable("a page's header is nested too deeply")
            found[number], at = _struct(data, at, depth + 1)
        else:
            at = _behind(data, at, kind)
    return found, at + 1


def _behind(data: bytes, at: int, kind: int) -> int:
    """Where a value ends that is passed by: a truth, which is in its type, a byte, a number, or a text."""
    if kind in (1, 2):
        return at
    if kind == 3:
        return at + 1
    if kind in (4, 6):
        return _varint(data, at)[1]
    if kind == 7:
        return at + 8
    if kind == 8:
        length, at = _varint(data, at)
        return at + length
    raise BadTable("a page's header has what no page has")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise BadTable("a page's header has a number without end")
