"""Files that name slides and their parts, as somebody else may have made them, wherever they lie."""

from __future__ import annotations

from wsi_prep.errors import BadManifest, StoreFailed
from wsi_prep.slides.fetch.ranges import read_whole
from wsi_prep.slides.urls import bare_url, without_secrets
from wsi_prep.untrusted.csv_lines import CsvLines, read_csv

_INDEX_BYTES = 2**20
_MOST_BYTES = 2**30
"""Of a list: three million slides take some hundred MB."""


def read_list(path: str, option: str) -> CsvLines:
    """The lines of a csv, as `read_csv` has them; raises BadManifest, naming the `option`."""
    try:
        data = read_whole(path, _MOST_BYTES)
    except StoreFailed:
        raise
    except (OSError, ValueError, ImportError) as error:
        why = without_secrets(" ".join(str(error).split()), path)[:160]
        raise BadManifest(f"{option} {bare_url(path)} cannot be read ({why})") from error
    return read_csv(bare_url(path), data)


def named_in(index: str) -> set[str]:
    """Names of the files that a VMS or VMU slide's index gives."""
    try:
        text = read_whole(index, _INDEX_BYTES).decode("latin-1")
    except OSError:  # its reader will say so
        return set()
    return {line.partition("=")[2].strip() for line in text.splitlines()}
