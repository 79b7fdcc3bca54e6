"""Tables of text that people keep: a header, and cells by line."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from wsi_prep.errors import BadManifest

_SEPARATORS = ",;\t|"
_NAMED = re.compile(r'"?sep=(.)"?[,;\t]*\r?', re.IGNORECASE)
"""The first line by which Excel is told the separator."""

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SAVE = "in Excel, save it as 'CSV UTF-8'"


class CsvLines(NamedTuple):
    """Header (lower case), (line number, cells) of each line that is not blank, and what separates cells.

    The rows are made while they are taken, once, since there may be millions; then BadManifest may come, too.
    """

    header: list[str]
    rows: Iterator[tuple[int, list[str]]]
    separator: str


def read_csv(where: str, data: bytes) -> CsvLines:
    """A csv's bytes: UTF-8, or UTF-16 with its byte order mark, as spreadsheets write it.

    Commas, semicolons, tabs and bars are understood, and a first line such as `sep=;`. Columns at the end without name
    and without a cell, as spreadsheets write them, are left out. Raises BadManifest for other text, and for a cell of
    more than 131,072 letters.
    """
    lines = _decoded(where, data).splitlines()
    named = _NAMED.fullmatch(lines[0]) if lines else None
    before = 1 if named else 0
    first = lines[before] if len(lines) > before else ""
    separator = named[1] if named and named[1] in _SEPARATORS else max(_SEPARATORS, key=first.count)
    every = _cells(where, lines, before, separator)
    header = _without_last_blanks([cell.lower() for cell in next(every, (0, []))[1]])
    rows = ((line, _without_last_blanks(cells, len(header))) for line, cells in every)
    return CsvLines(header, (row for row in rows if any(row[1])), separator)


def _cells(where: str, lines: list[str], before: int, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The number of each line, `before` of which are passed by, and its cells without blanks around them."""
    reader = csv.reader(islice(lines, before, None), delimiter=separator)
    try:
        for cells in reader:
            yield reader.line_num + before, [cell.strip() for cell in cells]
    except csv.Error as error:
        line = reader.line_num + before
        raise BadManifest(
            f"{where}, line {line}: a cell is too long ({error}); is a quotation mark missing or too many?"
        ) from error


def _without_last_blanks(cells: list[str], least: int = 0) -> list[str]:
    """The cells without the empty ones at their end, but `least` where there are as many."""
    end = len(cells)
    while end > least and not cells[end - 1]:
        end -= 1
    return cells[:end]


def _decoded(where: str, data: bytes) -> str:
    wide = data.startswith(_UTF_16)
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadManifest(f"{where} is not {'UTF-16' if wide else 'UTF-8'} text; {_SAVE}") from error
    if "\0" in text[:1000]:
        raise BadManifest(f"{where} is not UTF-8 text, and as UTF-16 it lacks its byte order mark; {_SAVE}")
    return text
