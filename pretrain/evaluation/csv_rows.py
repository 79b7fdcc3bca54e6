"""Tables in CSV that come with a data set, and the paths in them."""

from __future__ import annotations

import csv
from pathlib import Path

from pretrain.errors import BadTask


def csv_rows(file: Path, *columns: str, delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a CSV file that has these columns; BadTask where it has not."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, delimiter=delimiter)
            rows = list(reader)
            has = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadTask(f"{file}: is no CSV file ({error}); download it again") from error
    if missing := set(columns) - set(has):
        raise BadTask(f"{file}: has no column {sorted(missing)[0]}, only {', '.join(has)}; download it again")
    return rows


def inside(folder: Path, name: str, of: Path) -> Path:
    """A path that a file of the data set names, which may not lead out of its folder."""
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BadTask(f"{of}: names {name}, which is outside {folder}; download it again")
    return path
