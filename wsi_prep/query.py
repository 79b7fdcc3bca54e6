"""Questions to the catalogs of shard folders, in SQL: DuckDB over two views, `slides` and `tiles`, and nothing else."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq

from wsi_prep.catalog import require_catalog
from wsi_prep.errors import BadCatalog, BadOption, BadQuery
from wsi_prep.place import aside
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
    """The catalogs of the OUT folders or object-store URLs `shards` as one. Raises BadCatalog.

    Columns that an older catalog lacks are NULL. No question can read another file, write one, reach a network, or
    change these settings. What does not fit in memory goes to the folder `spill`; without one, such a question is
    refused.
    """
    local = [where for where in shards if "://" not in where]
    files = {table: [str(file) for where in local for file in local_files(where, table)] for table in _TABLES}
    far = {table: [_far_rows(where, table) for where in shards if "://" in where] for table in _TABLES}
    connection = duckdb.connect(":memory:", config={**_CLOSED, "temp_directory": str(spill or "")})
    try:
        allowed = [name for file in (*files["slides"], *files["tiles"]) for name in {file, glob.escape(file)}]
        connection.execute("SET allowed_paths = $files", {"files": allowed})
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        for table in _TABLES:
            _create_view(connection, table, files[table], far[table])
    except duckdb.Error as error:
        connection.close()
        raise BadCatalog(f"the catalog of {' '.join(shards)} cannot be read ({_first_line(error)})") from error
    return OpenCatalog(connection)


def local_files(where: str, table: str) -> list[Path]:
    """The files of one table of a shards folder's catalog, sorted; BadCatalog where there is no catalog."""
    folder = Path(where).absolute() / "catalog"
    require_catalog(where, any((folder / "slides").glob("[!.]*.parquet")))
    return sorted((folder / table).glob("[!.]*.parquet"))


def listed(files: Sequence[str | Path]) -> str:
    """The files as SQL for read_parquet, which would take some of their characters for a pattern."""
    return "[" + ", ".join("'" + glob.escape(str(file)).replace("'", "''") + "'" for file in files) + "]"


def _far_rows(where: str, table: str) -> ds.Dataset:
    """A table in an object store; credentials and endpoint come from the environment (AWS_ENDPOINT_URL, ...)."""
    try:
        fs, root = pyarrow.fs.FileSystem.from_uri(where)
        folder = pyarrow.fs.FileSelector(f"{root}/catalog/{table}", allow_not_found=True)
        found = [file.path for file in fs.get_file_info(folder) if file.extension == "parquet"]
        files = [path for path in found if not path.rpartition("/")[2].startswith(".")]
        require_catalog(where, bool(files) or table != "slides")
        return ds.dataset(files, _TABLES[table], "parquet", fs) if files else ds.dataset(_TABLES[table].empty_table())
    except (pa.ArrowException, OSError) as error:
        raise BadCatalog(f"{where} cannot be listed ({_first_line(error)})") from error


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


def _create_view(
    connection: duckdb.DuckDBPyConnection, table: str, files: Sequence[str], far: Sequence[ds.Dataset]
) -> None:
    """All rows, with the format's columns and types whatever the files have; other columns are kept."""
    sources = [f"no_{table}"]
    connection.register(sources[0], _TABLES[table].empty_table())
    kinds = connection.execute(f"DESCRIBE {sources[0]}").fetchall()
    typed = ", ".join(f'CAST("{name}" AS {kind}) AS "{name}"' for name, kind, *_ in kinds)
    if files:  # DuckDB reads them ten times faster than through a dataset
        sources.append(f"read_parquet({listed(files)}, union_by_name = true)")
    for number, rows in enumerate(far):
        sources.append(f"far_{table}_{number}")
        connection.register(sources[-1], rows)
    rows_of_all = " UNION ALL BY NAME ".join(f"FROM {source}" for source in sources)
    connection.execute(f"CREATE VIEW {table} AS SELECT * REPLACE ({typed}) FROM ({rows_of_all})")  # noqa: S608


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
