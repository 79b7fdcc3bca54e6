"""Tiles as Parquet tables with image bytes, as teams share them on hubs and as the trainer reads them again.

One row a tile: `image`, a struct of the stored JPEG and a name for it, which Hugging Face's `datasets` shows as a
picture, and the columns of the catalog. JPEGs are not compressed again and lie in one page for each row group, so that
a reader finds each by its offset.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wsi_prep.curation.exchange.coordinates import Written
from wsi_prep.curation.exchange.stored import STRATUM, Wanted, pack_tiles, tile_key
from wsi_prep.errors import BadOption
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA, TileRow
from wsi_prep.storage.atomic import aside

ROWS_PER_GROUP = 64
_LEAST_BYTES = 1 << 20
_OF_SLIDE = (*STRATUM, "scanner")
_PLACES = ("shard", "array", "offset")  # in the folder of shards, which a table is without
_PAGE_BYTES = 1 << 30  # above any row group's JPEGs: 64 of 2 MiB
_FEATURES = {"info": {"features": {"image": {"_type": "Image"}}}}
TABLE_SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        *(field for field in TILE_SCHEMA if field.name not in _PLACES),
        *(SLIDE_SCHEMA.field(name) for name in _OF_SLIDE),
    ],
    metadata={"huggingface": json.dumps(_FEATURES)},
)
"""A row of such a table."""


def write_tables(wanted: Wanted, to: Path, most_bytes: int) -> Written:
    """`to`/tiles-00000.parquet, ... of the tiles, none with more than `most_bytes` of JPEGs, in row groups of 64.

    Raises BadOption where `to` holds tables already. A tile whose bytes are not what the catalog says is left out.
    """
    if most_bytes < _LEAST_BYTES:
        raise BadOption(f"tables of {most_bytes} bytes hold nothing; file-mb 1000 is usual")
    if any(to.glob("tiles-*.parquet")):
        raise BadOption(f"TO {to} holds tables already; remove them, or name another folder")
    to.mkdir(parents=True, exist_ok=True)
    with _Tables(to, most_bytes) as tables:
        written = pack_tiles(wanted, to, tables.add, _OF_SLIDE)
        tables.flush()
    written.files = tables.count
    return written


class _Tables(ExitStack):
    """Tables of bounded size, one after another, each made aside and renamed when it is whole."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        super().__init__()
        self._folder = folder
        self._most_bytes = most_bytes
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self.count = 0

    def add(self, row: TileRow, jpeg: bytes) -> None:
        """Add a tile and its row."""
        told = {name: row[name] for name in TABLE_SCHEMA.names if name != "image"}  # type: ignore[literal-required]
        self._rows.append({"image": {"bytes": jpeg, "path": f"{tile_key(row)}.jpg"}, **told})
        if len(self._rows) == ROWS_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write the row group that is begun."""
        if not self._rows:
            return
        size = sum(row["nbytes"] for row in self._rows)
        if self._writer is not None and self._bytes + size > self._most_bytes:
            self.close()
            self._writer = None
        if self._writer is None:
            self._writer, self._bytes = self._begun(), 0
        self._writer.write_table(pa.Table.from_pylist(self._rows, TABLE_SCHEMA))
        self._bytes += size
        self._rows = []

    def _begun(self) -> pq.ParquetWriter:
        columns = [name for name in TABLE_SCHEMA.names if name != "image"]
        kinds = {"image.bytes": "NONE", "image.path": "ZSTD"} | dict.fromkeys(columns, "ZSTD")
        file = self.enter_context(aside(self._folder / f"tiles-{self.count:05d}.parquet"))
        self.count += 1
        return self.enter_context(
            pq.ParquetWriter(
                file,
                TABLE_SCHEMA,
                compression=kinds,
                use_dictionary=columns,
                write_statistics=columns,
                data_page_size=_PAGE_BYTES,
            )
        )
