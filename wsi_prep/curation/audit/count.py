"""The audit's numbers, counted by DuckDB from the catalogs' Parquet files; no slide and no tile is opened."""

from __future__ import annotations

import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from wsi_prep.curation.audit.numbers import (
    BINS,
    MPP_BINS_AN_OCTAVE,
    NOT_STATED,
    Audit,
    Distribution,
    Stratum,
    diversity,
    merged,
    with_shares,
)
from wsi_prep.curation.audit.slides import NAMES, Slides
from wsi_prep.errors import BadCatalog, BadOption, counted
from wsi_prep.format.strata import STRATUM_LEVELS
from wsi_prep.output.catalog_files import catalog_files, first_line
from wsi_prep.output.query import create_view, local_names
from wsi_prep.slides.readers.tags import NO_MAKERS
from wsi_prep.untrusted.sql import closed_connection

_QUALITY = ("tissue_fraction", "focus", "pen", "dark", "white", "saturation", "fat")
_MEMORY, _BATCH = "4GB", 65_536
_FINE = 100  # bins that a shown one is made of: quantiles are true to a 2400th of the range


@contextlib.contextmanager
def open_catalogs(folders: Sequence[str]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with `slides` (one row a slide), `tiles` (a view; of slides that are ok), `cells` (their counts) and
    `notes` (a line each).

    `folder` is the number of a row's shards folder, or object-store URL. Raises BadCatalog, which names the folder, and
    StoreFailed; BadOption where memory and the temporary folder do not hold what is counted.
    """
    files = catalog_files(folders)
    with (
        tempfile.TemporaryDirectory(prefix="wsi-prep-") as spill,
        closed_connection(_MEMORY, Path(spill), allowed=local_names(files)) as connection,
    ):
        connection.register("folders", files.folders)
        connection.register("notes", pa.table({"note": pa.array(files.copies.notes, pa.string())}))
        try:
            create_view(connection, "found", "slides", files)
            create_view(connection, "found_tiles", "tiles", files)
            for sql in (_SLIDES, _TILES, _CELLS):
                connection.execute(sql)
            yield connection
        except duckdb.Error as error:
            if files.failures:
                raise files.failures.pop(0) from error  # else it would hold itself, by way of the connection
            where = " ".join(folders)
            if isinstance(error, duckdb.OutOfMemoryException):
                raise BadOption(
                    f"the catalog of {where} does not fit into {_MEMORY} of memory and what is free in "
                    f"{tempfile.gettempdir()}; free some there, or set TMPDIR to a folder with room"
                ) from error
            raise BadCatalog(
                f"the catalog of {where} cannot be read ({first_line(error)}); run make shards on it again"
            ) from error


_COLUMNS = (
    *("slide_id", "file", "file_folder", "fingerprint", "patient_key", "status", "error_type", "error", "warning"),
    *("stain", "stain_confidence", "institution", "tissue", "tissue_mm2", "tissue_certainty"),
    *("width", "height", "mpp_x", "mpp_y", "mpp_source", "vendor", "scanner", "tiles_filtered"),
    *(f"tiles_{name}" for name in NAMES),
)
"""What is asked of slides; of millions, all columns would not fit."""

_SLIDES = f"CREATE TABLE slides AS SELECT {', '.join(_COLUMNS)}, folder FROM found JOIN folders USING (slide_id)"  # noqa: S608
_TILES = """
CREATE VIEW tiles AS SELECT t.* FROM found_tiles t SEMI JOIN (FROM slides WHERE status = 'ok') USING (slide_id)
"""
_MPP_BIN = f"greatest(-24, least(64, round({MPP_BINS_AN_OCTAVE} * log2(mpp_x / 0.25))))::INTEGER"
_CELLS = "CREATE TABLE cells AS SELECT slide_id, magnification, count(*) AS tiles FROM tiles GROUP BY ALL"


def count(connection: duckdb.DuckDBPyConnection, folders: Sequence[str], alpha: float = 0.5) -> Audit:
    """All numbers of the catalogs that open_catalogs has opened."""
    slides = _slides(connection)
    if not len(slides):
        raise BadCatalog(f"{' '.join(folders)} lists no slide; see what make shards says of its SLIDES")
    strata = with_shares(_strata(connection), alpha)
    return Audit(
        folders=tuple(folders),
        alpha=alpha,
        slides=slides,
        strata=strata,
        diversity=diversity(strata, merged(slides, strata)),
        mpp=_counts(connection, _MPP_BIN, "isfinite(mpp_x) AND mpp_x > 0"),
        mpp_sources=_counts(connection, f"coalesce(mpp_source, '{NOT_STATED}')"),
        scanners=_counts(connection, _SCANNER),
        distributions=_distributions(connection),
        notes=tuple(_notes(connection)),
    )


_SHOWN_NAME = "concat_ws('/', nullif(file_folder, ''), coalesce(file, ''))"
_SCANNER = f"""
CASE WHEN trim(scanner) != '' THEN trim(concat_ws(' ', CASE WHEN vendor NOT IN {NO_MAKERS} THEN vendor END, scanner))
WHEN coalesce(vendor, '') IN {("", *NO_MAKERS)} THEN 'unknown'
ELSE concat(vendor, ', model unknown') END
"""


def _slides(connection: duckdb.DuckDBPyConnection) -> Slides:
    texts = ", ".join(f"coalesce(nullif({n}, ''), '{NOT_STATED}') AS {n}" for n in STRATUM_LEVELS)
    words = ", ".join(f"coalesce({n}, '') AS {n}" for n in ("status", "error_type", "error", "warning"))
    counts = ", ".join(f"coalesce(sum(tiles) FILTER (magnification = '{n}'), 0)::BIGINT AS \"{n}\"" for n in NAMES)
    here = ", ".join(f'coalesce("{n}", 0) AS "{n}"' for n in NAMES)
    asked = connection.sql(
        f"""
        SELECT slide_id, folder, {_SHOWN_NAME} AS file, {words}, {texts},
          {_finite("stain_confidence")} AS stain_confidence, {_finite("mpp_x")} AS mpp, {_SCANNER} AS scanner,
          {_finite("tissue_mm2")} AS tissue_mm2, {here}
        FROM slides LEFT JOIN (SELECT slide_id, {counts} FROM cells GROUP BY ALL) c USING (slide_id)
        ORDER BY slides.file, slide_id
        """  # noqa: S608 - from names of columns alone
    )
    reader = asked.to_arrow_reader(_BATCH)
    return Slides(reader, reader.schema)


def _finite(column: str) -> str:
    return f"CASE WHEN isfinite({column}) THEN {column}::DOUBLE END"


def _strata(connection: duckdb.DuckDBPyConnection) -> list[Stratum]:
    names = ", ".join(f"coalesce(nullif({n}, ''), '{NOT_STATED}') AS {n}" for n in STRATUM_LEVELS)
    rows = connection.execute(
        f"""
        SELECT magnification, {names}, count(*), sum(tiles)::BIGINT,
          coalesce(sum({_finite("tissue_mm2")}), 0), 0.0::DOUBLE
        FROM cells JOIN slides USING (slide_id) WHERE magnification IN {NAMES}
        GROUP BY 1, 2, 3, 4 ORDER BY list_position({list(NAMES)}, magnification), 2, 3, 4
        """  # noqa: S608
    ).fetchall()
    return [Stratum(*row) for row in rows]


def _counts(connection: duckdb.DuckDBPyConnection, expression: str, where: str = "true") -> dict[Any, int]:
    sql = f"SELECT {expression}, count(*) FROM slides WHERE {where} GROUP BY 1 ORDER BY 2 DESC, 1"  # noqa: S608
    return dict(connection.execute(sql).fetchall())


def _distributions(connection: duckdb.DuckDBPyConnection) -> tuple[Distribution, ...]:
    """Two passes over the tiles: the ranges, then fine bins, of which the shown ones and the quantiles are made."""
    cast = ", ".join(f"{name}::DOUBLE AS {name}" for name in _QUALITY)
    connection.execute(
        f"""
        CREATE OR REPLACE VIEW quantities AS SELECT magnification, quantity, value FROM (
          UNPIVOT (SELECT magnification, {cast} FROM tiles) ON {", ".join(_QUALITY)} INTO NAME quantity VALUE value
          UNION ALL
          SELECT magnification, 'stain_confidence', stain_confidence::DOUBLE FROM cells JOIN slides USING (slide_id)
        ) WHERE isfinite(value) AND magnification IN {NAMES};
        CREATE OR REPLACE TABLE ranges AS SELECT magnification, quantity, CASE WHEN quantity = 'focus' THEN most
          WHEN quantity IN ('pen', 'dark') THEN max(most) OVER (PARTITION BY quantity) ELSE 1 END AS top
        FROM (SELECT magnification, quantity, max(value) AS most FROM quantities GROUP BY ALL)
        """  # noqa: S608 - from names of columns alone
    )
    last = BINS * _FINE - 1
    rows = connection.execute(
        f"""
        SELECT quantity, magnification, top, bin, count(*), max(value) FROM (
          SELECT *, coalesce(greatest(0, least({last}, floor(value * {last + 1} / nullif(top, 0)))), 0)::INTEGER AS bin
          FROM quantities JOIN ranges USING (magnification, quantity)
        ) GROUP BY ALL ORDER BY bin
        """  # noqa: S608
    ).fetchall()
    found = defaultdict(list)
    for quantity, magnification, top, *fine in rows:
        found[quantity, magnification, top].append(fine)
    order = ("stain_confidence", *_QUALITY)
    keys = sorted(found, key=lambda key: (order.index(key[0]), NAMES.index(key[1])))
    return tuple(_distribution(*key, found[key]) for key in keys)


def _distribution(quantity: str, magnification: str, top: float, fine: Sequence[Sequence[Any]]) -> Distribution:
    """From (bin, count, largest value) of fine bins; a quantile is the largest value of the bin that it falls in."""
    counts = [0] * BINS
    for at, count, _ in fine:
        counts[at // _FINE] += count
    upto = np.cumsum([count for _, count, _ in fine])
    median, upper = (fine[int(np.searchsorted(upto, share * upto[-1]))][2] for share in (0.5, 0.95))
    return Distribution(quantity, magnification, top, tuple(counts), median, upper, fine[-1][2])


_STATED = " + ".join(f"coalesce(tiles_{name}, 0)" for name in NAMES)
_NOTES = {
    ("slide has", "slides have", "another number of tiles in the catalog than in its row; make its shards again"): f"""
        SELECT count(*) FROM slides LEFT JOIN (SELECT slide_id, sum(tiles) AS n FROM cells GROUP BY ALL)
        USING (slide_id) WHERE status = 'ok' AND coalesce(n, 0) != {_STATED}""",  # noqa: S608
    ("tile", "tiles", "with tissue skipped by the FILTER that the shards were made with"): """
        SELECT coalesce(sum(tiles_filtered), 0)::BIGINT FROM slides""",
    ("slide that is ok has", "slides that are ok have", "the content of another slide_id: each counts as a slide"): """
        SELECT (count(*) - count(DISTINCT fingerprint))::BIGINT FROM slides
        WHERE status = 'ok' AND coalesce(fingerprint, '') != ''""",
    ("slide that is ok has", "slides that are ok have", "no patient_key: each is split as a patient of its own"): """
        SELECT count(*) FROM slides WHERE status = 'ok' AND coalesce(patient_key, '') = ''""",
}


def _notes(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """What contradicts itself or is worth a look."""
    counts = {note: connection.execute(sql).fetchall() for note, sql in _NOTES.items()}
    copies = [note for (note,) in connection.execute("FROM notes").fetchall()]
    return [*copies, *(f"{counted(n, one, several)} {note}" for (one, several, note), [(n,)] in counts.items() if n)]
