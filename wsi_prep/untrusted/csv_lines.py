"""Tables of text that people keep: a header, and cells by line."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from wsi_prep.errors import BadManifest

_SAID = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
_SEPARATORS = "".join(_SAID)
_NAMED = re.compile(r'"?sep=(.)"?[,;\t]*', re.IGNORECASE)
"""The first line by which Excel is told the separator."""

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_BREAKS = re.compile(r"\s*[\r\n]\s*")

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
    and without a cell, as spreadsheets write them, are left out. A cell in quotation marks may have line breaks, which
    stay (`in_one_line` takes them out), and a row's number is that of its first line. Raises BadManifest for other
    text, for a cell of more than 131,072 letters, and where a cell may have swallowed rows: its quotation mark is never
    closed, or behind a line break it has a separator or another quotation mark.
    """
    text = _decoded(where, data)
    lines = (found[0] for found in _LINE.finditer(text))
    first = next(lines, "")
    named = _NAMED.fullmatch(first.rstrip("\r\n"))
    if named:
        first = next(lines, "")
    separator = named[1] if named and named[1] in _SEPARATORS else max(_SEPARATORS, key=first.count)
    every = _Rows(where, chain([first], lines), 1 if named else 0, separator)
    header = _without_last_blanks([in_one_line(cell).lower() for cell in next(every, (0, []))[1]])
    rows = ((line, _without_last_blanks(cells, len(header))) for line, cells in every)
    return CsvLines(header, (row for row in rows if any(row[1])), separator)


def in_one_line(cell: str) -> str:
    """The cell with one blank for each run of line breaks, and of blanks around them."""
    return _BREAKS.sub(" ", cell)


class _Rows(Iterator[tuple[int, list[str]]]):
    """The number of each row's first line, `before` of which are passed by, and its cells without blanks around them.

    They are taken once, from wherever the last one who took them stopped.
    """

    def __init__(self, where: str, lines: Iterator[str], before: int, separator: str) -> None:
        self._where, self._before, self._separator = where, before, separator
        self._ended = False
        self._reader = csv.reader(self._until_the_end(lines), delimiter=separator)

    def _until_the_end(self, lines: Iterator[str]) -> Iterator[str]:
        yield from lines
        self._ended = True

    def __next__(self) -> tuple[int, list[str]]:
        line = self._reader.line_num + 1 + self._before
        try:
            cells = next(self._reader)
        except csv.Error as error:
            raise BadManifest(
                f"{self._where}, line {line}: a cell is too long ({error}); is a quotation mark missing or too many?"
            ) from error
        last = self._reader.line_num + self._before
        if self._ended:  # the row asked for one line more than there is
            opened = last + 1 - max(1, len(_LINE.findall(cells[-1])))
            raise BadManifest(
                f"{self._where}, line {opened}: a quotation mark is never closed; close it, or take it out"
            )
        for cell in cells if last > line else ():
            self._require_alone(line, cell)
        return line, [cell.strip() for cell in cells]

    def _require_alone(self, line: int, cell: str) -> None:
        """Raise BadManifest for a cell of several lines that looks like several rows."""
        if ("\n" in cell or "\r" in cell) and (self._separator in cell or '"' in cell):
            inside = "a quotation mark" if '"' in cell else _SAID[self._separator]
            raise BadManifest(
                f"{self._where}, line {line}: a cell takes in the next line, with {inside} inside, so it may have "
                "swallowed rows; is a quotation mark missing? If not, write that cell in one line"
            )


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
