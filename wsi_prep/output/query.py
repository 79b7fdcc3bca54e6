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
import pyarrow.parquet as pq

from wsi_prep.errors import BadCatalog, BadOption, BadQuery, UsageError
from wsi_prep.output.catalog_files import TABLES, CatalogFiles, catalog_files, first_line
from wsi_prep.storage.atomic import aside
from wsi_prep.untrusted.sql import QUESTION_SECONDS, Deadline, check_limit, check_question, closed_connection, tables_of

_MEMORY = "4GB"
_BATCH = 65_536


class OpenCatalog:
    """The catalogs of some shard folders, open for questions; a context manager. `notes` are lines for the user.

    DuckDB may work at an answer for `seconds`.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, files: CatalogFiles, seconds: float) -> None:
        self._connection, self._seconds = connection, seconds
        self._files, self._viewed = files, set[str]()
        self._failures = files.failures
        self.notes = files.copies.notes

    def __enter__(self) -> OpenCatalog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, sql: str) -> pa.RecordBatchReader:
        """The answer to one SELECT statement, row by row as it is read.

        Raises BadQuery, BadCatalog where tiles are asked for and their files are damaged, or StoreFailed where an
        object store does not answer: then, or while reading.
        """
        late = f"the answer took longer than {self._seconds:g} s; ask for less, or give it more with TIME_LIMIT"
        deadline = Deadline(self._connection, self._seconds, late)
        try:
            question = check_question(self._connection, sql)
            for table in tables_of(question).difference(self._viewed):
                self._view(table)
            with deadline.running():
                reader = self._connection.sql(question).to_arrow_reader(_BATCH)
        except duckdb.Error as error:
            raise self._wrong(error, deadline) from error
        return pa.RecordBatchReader.from_batches(reader.schema, self._answers(reader, deadline))

    def _view(self, table: str) -> None:
        """Opens a table's files, which may be billions of rows: so a question about slides costs no look at tiles."""
        try:
            create_view(self._connection, table, table, self._files)
        except duckdb.Error as error:
            where = " ".join(self._files.shards)
            raise BadCatalog(f"the catalog of {where} cannot be read ({first_line(error)})") from error
        self._viewed.add(table)

    def _answers(self, reader: pa.RecordBatchReader, deadline: Deadline) -> Iterator[pa.RecordBatch]:
        """The reader's batches; what fails while the rows are computed is the question's fault too."""
        try:
            while True:
                with deadline.running():
                    batch = next(reader, None)
                if batch is None:
                    return
                yield batch
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise self._wrong(error, deadline) from error

    def _wrong(self, error: Exception, deadline: Deadline) -> UsageError:
        return self._failures.pop(0) if self._failures else deadline.late or _bad_query(error)

    def close(self) -> None:
        """Let go of the files."""
        self._connection.close()


def open_catalog(
    shards: str | Sequence[str], spill: Path | None = None, seconds: float = QUESTION_SECONDS
) -> OpenCatalog:
    """The catalogs of the OUT folders or object-store URLs `shards` as one, each slide once.

    Raises as catalog_files, and BadOption for a time limit that is none.

    Columns that an older catalog lacks are NULL. No question can read another file, write one, reach a network, or
    change these settings. What does not fit in memory goes to the folder `spill`; without one, such a question is
    refused.

    >>> with open_catalog("shards") as catalog:
    ...     answer = catalog.ask("SELECT file, stain, tiles_20x FROM slides WHERE status = 'ok'").read_all()
    >>> answer.column_names
    ['file', 'stain', 'tiles_20x']
    """
    check_limit(seconds)
    shards = [shards] if isinstance(shards, str) else shards
    files = catalog_files(shards)
    connection = closed_connection(_MEMORY, spill, allowed=local_names(files))
    return OpenCatalog(connection, files, seconds)


def local_names(files: CatalogFiles) -> list[str]:
    """The catalogs' files on disks, as they are and as patterns that mean them."""
    paths = [str(file.source) for of in files.tables.values() for file in of if isinstance(file.source, Path)]
    return [name for path in paths for name in {path, glob.escape(path)}]


def _listed(files: Sequence[Path]) -> str:
    """The files as SQL for read_parquet, which would take some of their characters for a pattern."""
    return "[" + ", ".join("'" + glob.escape(str(file)).replace("'", "''") + "'" for file in files) + "]"


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
            raise BadQuery(f"the answer cannot be written as {file.suffix[1:]} ({first_line(error)})") from error
    return count


def create_view(connection: duckdb.DuckDBPyConnection, view: str, table: str, files: CatalogFiles) -> None:
    """All rows of one of TABLES that count, with the format's columns and types whatever the files have; other columns
    are kept. Raises BadCatalog where the table's files are damaged.
    """
    if table != "slides":  # whose rows were read before
        files.require(table)
    sources = [f"no_{view}"]
    connection.register(sources[0], TABLES[table].empty_table())
    kinds = connection.execute(f"DESCRIBE {sources[0]}").fetchall()
    typed = ", ".join(f'CAST("{name}" AS {kind}) AS "{name}"' for name, kind, *_ in kinds)
    whole = [file.source for file in files.tables[table] if isinstance(file.source, Path) and not len(file.others)]
    if whole:  # DuckDB reads them ten times faster than through a dataset
        sources.append(f"read_parquet({_listed(whole)}, union_by_name = true)")
    for number, file in enumerate(files.tables[table]):
        if isinstance(file.source, Path) and not len(file.others):
            continue
        source = f"far_{view}_{number}"
        if isinstance(file.source, Path):
            source = f"read_parquet({_listed([file.source])})"
        else:
            connection.register(source, file.source)
        if len(file.others):
            connection.register(f"others_{view}_{number}", pa.table({"slide_id": file.others}))
            source = f"(FROM {source} ANTI JOIN others_{view}_{number} USING (slide_id))"
        sources.append(source)
    rows_of_all = " UNION ALL BY NAME ".join(f"FROM {source}" for source in sources)
    connection.execute(f"CREATE VIEW {view} AS SELECT * REPLACE ({typed}) FROM ({rows_of_all})")  # noqa: S608


def _bad_query(error: Exception) -> BadQuery:
    if isinstance(error, duckdb.OutOfMemoryException):
        return BadQuery(f"the answer needs more than {_MEMORY} of memory; ask for fewer rows or groups at once")
    hint = "; DESCRIBE slides, or tiles, lists the columns" if isinstance(error, duckdb.BinderException) else ""
    return BadQuery(first_line(error) + hint)
