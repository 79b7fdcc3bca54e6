"""Tables of text that people keep: a header, and cells by line."""

from __future__ import annotations

import csv

from wsi_prep.errors import BadManifest


def read_csv(where: str, data: bytes) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header (lower case) and (line number, cells) of a csv's bytes; blank lines are passed by.

    Commas, semicolons and tabs are understood, and a byte order mark. Raises BadManifest for what is no UTF-8 text, and
    for a cell of more than 131,072 letters.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadManifest(f"{where} is not UTF-8 text; save it as UTF-8") from error
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        rows = ((reader.line_num, [cell.strip() for cell in cells]) for cells in reader)
        return header, [(line, cells) for line, cells in rows if any(cells)]
    except csv.Error as error:
        raise BadManifest(
            f"{where}, line {reader.line_num}: a cell is too long ({error}); is a quotation mark missing or too many?"
        ) from error
