"""Questions to the catalogs of shard folders, in SQL: DuckDB over two views, `slides` and `tiles`, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from wsi_prep.catalog import aside
from wsi_prep.errors import BadCatalog, BadOption, BadQuery
from wsi_prep.records import SLIDE_SCHEMA, TILE_SCHEMA

_MEMORY = "4GB"
_BATCH = 65_536
_CLOSED = {
    "memory_limit": _MEMORY,
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
_TABLES = {"slides": SLIDE_SCHEMA, "tiles": TILE_SCHEMA}


class OpenCatalog:
    """The catalogs of some shard folders, open for questions; a context manager."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def __enter__(self) -> OpenCatalog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, sql: str) -> pa.RecordBatchReader:
        """The answer to one SELECT statement, row by row as it is read; raises BadQuery, then or while reading."""
        try:
            statements = self._connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise BadQuery("one SELECT statement is answered at a time, and nothing else")
            reader = self._connection.sql(statements[0].query).to_arrow_reader(_BATCH)
        except duckdb.Error as error:
            raise _bad_query(error) from error
        return pa.RecordBatchReader.from_batches(reader.schema, _answers(reader))

    def close(self) -> None:
        """Let go of the files."""
        self._connection.close()


def open_catalog(shards: Sequence[str], spill: Path | None = None) -> OpenCatalog:
    """The catalogs of the OUT folders `shards` as one; columns that an older one lacks are NULL. Raises BadCatalog.

    No question can read another file, write one, reach a network, or change these settings. What does not fit in memory
    goes to the folder `spill`; without one, such a question is refused.
    """
    files = {table: [str(file) for where in shards for file in catalog_files(where, table)] for table in _TABLES}
    connection = duckdb.connect(":memory:", config={**_CLOSED, "temp_directory": str(spill or "")})
    try:
        connection.execute("SET allowed_paths = $files", {"files": [*files["slides"], *files["tiles"]]})
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        for table, schema in _TABLES.items():
            _create_view(connection, table, schema, files[table])
    except duckdb.Error as error:
        connection.close()
        raise BadCatalog(f"the catalog of {' '.join(shards)} cannot be read ({_first_line(error)})") from error
    return OpenCatalog(connection)


def catalog_files(where: str, table: str) -> list[Path]:
    """The Parquet files of catalog/<table> of the OUT folder `where`; raises BadCatalog where it has no catalog."""
    folder = Path(where).absolute() / "catalog"
    if "://" in where:
        raise BadCatalog(f"{where} is no local folder; copy its catalog/ to one")
    if not any((folder / "slides").glob("[!.]*.parquet")):
        raise BadCatalog(f"{where} holds no catalog/slides; name a folder that make shards has filled")
    return sorted((folder / table).glob("[!.]*.parquet"))


def head(answer: pa.RecordBatchReader, most: int) -> tuple[pa.Table, int]:
    """The first `most` rows, and how many there are."""
    kept: list[pa.RecordBatch] = []
    count = 0
    for batch in answer:
        if count < most:
            kept.append(batch.slice(0, most - count))
        count += batch.num_rows
    return pa.Table.from_batches(kept, answer.schema), count


def write(answer: pa.RecordBatchReader, file: Path) -> int:
    """Write all rows as `file`'s ending says, aside first and then renamed; returns how many there are."""
    kinds: dict[str, Any] = {".parquet": pq.ParquetWriter, ".csv": pyarrow.csv.CSVWriter}
    if file.suffix.lower() not in kinds:
        raise BadOption(f"TO {file} is neither .csv nor .parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with aside(file) as unfinished:
        try:
            with kinds[file.suffix.lower()](unfinished, answer.schema) as writer:
                for batch in answer:
                    writer.write_batch(batch)
                    count += batch.num_rows
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BadQuery(f"the answer cannot be written as {file.suffix[1:]} ({_first_line(error)})") from error
    return count


def _create_view(connection: duckdb.DuckDBPyConnection, table: str, schema: pa.Schema, files: list[str]) -> None:
    """The files' rows, with the format's columns and types whatever the files have; other columns are kept."""
    connection.register(f"no_{table}", schema.empty_table())
    kinds = connection.execute(f"DESCRIBE no_{table}").fetchall()
    typed = ", ".join(f'CAST("{name}" AS {kind}) AS "{name}"' for name, kind, *_ in kinds)
    names = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
    rows = f" UNION ALL BY NAME FROM read_parquet([{names}], union_by_name = true)" if files else ""
    connection.execute(f"CREATE VIEW {table} AS SELECT * REPLACE ({typed}) FROM (FROM no_{table}{rows})")  # noqa: S608


def _answers(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """The reader's batches; what fails while the rows are computed is the question's fault too."""
    try:
        yield from reader
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise _bad_query(error) from error


def _bad_query(error: Exception) -> BadQuery:
    if isinstance(error, duckdb.OutOfMemoryException):
        return BadQuery(f"the answer needs more than {_MEMORY} of memory; ask for fewer rows or groups at once")
    hint = "; DESCRIBE slides, or tiles, lists the columns" if isinstance(error, duckdb.BinderException) else ""
    return BadQuery(_first_line(error) + hint)


def _first_line(error: Exception) -> str:
    """What DuckDB or Arrow says before it shows where, in one line."""
    return " ".join(str(error).split("\n\n", 1)[0].split())
