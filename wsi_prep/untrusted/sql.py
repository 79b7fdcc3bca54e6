"""SQL that others wrote: read by DuckDB's own parser before it runs, closed in, and ended when it takes too long."""

from __future__ import annotations

import functools
import json
import math
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from wsi_prep.errors import BadOption, BadQuery

CONDITION_SECONDS = 60.0
"""What a condition may take for one batch of rows, and `make query` ten times of."""
QUESTION_SECONDS = 600.0

_LONGEST = 200_000
_LARGEST_LIMIT_S = 1e7
GRACE_S = 2.0
"""After its time, until a question that does not hear that it is to end is ended with its process."""

_TRIES = 20
_CLOSED = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}
_TABLES = ("slides", "tiles")
_ROWS_OF_NOTHING = ("range", "generate_series", "unnest")
_OF_JSON = ("->>", "->", "json_extract_string", "json_extract", "json_extract_path_text", "json_extract_path")
_READING = ("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE")
_VALUES = ("COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "CAST", "CASE", "BETWEEN", "COLLATE")
_TYPES = """
bool boolean tinyint smallint int integer bigint hugeint utinyint usmallint uinteger ubigint float real double decimal
numeric varchar text string date timestamp
"""
# Of none, however deep in itself, is the result far longer than the text that asks for it and its row; none has an
# effect, changes from call to call, or takes more time than a pass over its arguments.
_FUNCTIONS = """
+ - * / // % ** ^ & | ~ << >> ! || ^@ ~~ !~~ ~~* !~~* ~~~ like_escape not_like_escape ilike_escape not_ilike_escape
regexp_full_match regexp_matches regexp_extract prefix suffix starts_with ends_with contains lower lcase upper ucase
trim ltrim rtrim length len strlen substr substring left right split_part reverse concat concat_ws instr position
strpos array_extract array_slice ascii md5 sha256 hash abs sign ceil ceiling floor round trunc sqrt cbrt exp ln log
log2 log10 pow power mod add subtract multiply divide sin cos tan atan atan2 pi least greatest isnan isinf isfinite
even ->> json_extract_string coalesce ifnull nullif if year month day date_part datepart date_trunc datetrunc
"""


def closed_connection(
    memory: str = "", spill: Path | None = None, threads: int = 0, allowed: Sequence[str] = ()
) -> duckdb.DuckDBPyConnection:
    """A database in memory that reaches no network, extension or variable of the caller, and of files only those
    `allowed`; nothing that runs in it can change that.

    What does not fit into `memory` ("4GB"; else most of the machine's) goes to the folder `spill`; without one, it is
    refused. `threads`: 0 for all cores.
    """
    told = {**_CLOSED, "temp_directory": str(spill or "")}
    told |= ({"memory_limit": memory} if memory else {}) | ({"threads": str(threads)} if threads else {})
    connection = duckdb.connect(":memory:", config=told)
    connection.execute("SET allowed_paths = $files", {"files": list(allowed)})
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def check_question(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """The one SELECT, DESCRIBE or SUMMARIZE of the text. Raises BadQuery for anything else."""
    statements = connection.extract_statements(_not_too_long(sql))
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise BadQuery("write one SELECT statement, and nothing else")
    nodes = list(_nodes(_parsed(statements[0].query)))
    known = {*_TABLES, *(str(node["key"]).lower() for node in nodes if {"key", "value"} <= node.keys())}
    _check_manifest(nodes)
    for node in nodes:
        kind = str(node.get("type"))
        if kind.endswith("_NODE") and kind not in _READING:  # WITH x AS (COPY ...) writes
            raise BadQuery("one SELECT statement is answered, and WITH is for SELECT alone")
        if kind == "TABLE_FUNCTION":
            _check_rows_of(node)
        if kind == "BASE_TABLE" and (
            str(node["table_name"]).lower() not in known or str(node.get("schema_name", "")).lower() not in ("", "main")
        ):  # DuckDB's own tables tell the files' places
            name = str(node["table_name"])[:60]
            raise BadQuery(
                f"table {name} does not exist: a SELECT reads slides and tiles; other tables and files are disabled by "
                "configuration"
            )
        if node.get("class") == "FUNCTION" and str(node["function_name"]).lower() == "current_setting":
            raise BadQuery("current_setting() is disabled by configuration")
    question: str = statements[0].query
    return question


def tables_of(question: str) -> set[str]:
    """Which of slides and tiles a question that check_question passed reads."""
    names = (str(node.get("table_name")).lower() for node in _nodes(_parsed(question)))
    return {name for name in names if name in _TABLES}


def _check_rows_of(node: dict[str, Any]) -> None:
    """Raise BadQuery for a function that makes a table of something else than the catalog."""
    name = node["function"]["function_name"].lower()
    if name not in _ROWS_OF_NOTHING:
        raise BadQuery(
            f"{name}() is disabled by configuration: a SELECT reads slides and tiles, and as tables of its own VALUES "
            f"and {', '.join(_ROWS_OF_NOTHING)}"
        )


def check_expression(text: str) -> list[dict[str, Any]]:
    """The parts of one expression, as DuckDB's parser has it. Raises BadQuery for anything less, more or else."""
    said = "a condition is one expression, and not one SELECT, several statements, or parts of one"
    before = "SELECT 1 FROM tiles WHERE "
    bare = dict(_parsed(f"{before}true"))
    try:
        found = dict(_parsed(f"{before}{_not_too_long(text)}\n"))
    except BadQuery as error:
        raise BadQuery(f"{error}; {said}") from error
    condition = found.pop("where_clause", None)
    bare.pop("where_clause")
    if condition is None or not _alike(found, bare):
        raise BadQuery(said)
    nodes = list(_nodes(condition))
    _check_manifest(nodes)
    return nodes


def _check_manifest(nodes: Sequence[dict[str, Any]]) -> None:
    """Raise BadQuery for a name in the column manifest that no row can have: they are in lower case there."""
    for node in nodes:
        if node.get("class") != "LAMBDA" and str(node.get("function_name")).lower() not in _OF_JSON:
            continue
        told = node.get("arguments") or node.get("children") or [node.get("lhs"), node.get("expr")]
        column, *names = (list(_nodes(each)) for each in told)
        if not any(str(each["column_names"][-1]).lower() == "manifest" for each in column if each.get("column_names")):
            continue
        texts = (each.get(key) for name in names for each in name for key in ("text", "value"))
        for name in (text for text in texts if isinstance(text, str) and text != text.lower()):
            raise BadQuery(
                f"the column manifest has no {name[:60]!r}: names of your own columns are in lower case there; write "
                f"manifest->>'{name[:60].lower()}'"
            )


def one_expression(text: str) -> str:
    """The text, which is one expression and nothing else. Raises BadQuery."""
    check_expression(text)
    return text


@dataclass(frozen=True)
class Condition:
    """One expression over a table's columns, by functions that are known to be harmless, and the `seconds` that it may
    take for a table. Raises BadQuery where it is something else, BadOption for a limit that is none.
    """

    text: str
    seconds: float = CONDITION_SECONDS

    def __post_init__(self) -> None:
        check_limit(self.seconds)
        for node in check_expression(self.text):
            _check_value(node)

    def rows(self, table: pa.Table) -> list[int]:
        """Numbers of the rows that it holds for, in order. Raises BadQuery."""
        found = self._asked(table, f"SELECT _row FROM tiles WHERE ({self.text}\n) ORDER BY _row")  # noqa: S608
        return [row for (row,) in found]

    def values(self, table: pa.Table) -> list[object]:
        """What it is in each row. Raises BadQuery."""
        return [value for (value,) in self._asked(table, f"SELECT ({self.text}\n) FROM tiles ORDER BY _row")]  # noqa: S608

    def _asked(self, table: pa.Table, sql: str) -> list[tuple[Any, ...]]:
        late = (
            f"the condition took longer than {self.seconds:g} s for {len(table):,} rows; make it simpler, or raise "
            "TIME_LIMIT"
        )
        with closed_connection("4GB", threads=2) as connection:
            connection.register("tiles", table.append_column("_row", pa.array(range(len(table)), pa.int64())))
            deadline = Deadline(connection, self.seconds, late)
            try:
                with deadline.running():
                    found: list[tuple[Any, ...]] = connection.execute(sql).fetchall()
            except duckdb.Error as error:
                raise deadline.late or BadQuery(next(iter(str(error).splitlines()), "no reason")) from error
        if deadline.late:  # an interrupt can be lost, and the work then ends by itself
            raise deadline.late
        return found


class Deadline:
    """An end to what a connection does after `seconds` of work, which is what is done within `running`.

    The work is interrupted, and `late` says so. Where DuckDB does not hear it, in one long call of a function, this
    process ends 2 s later, with that line and exit code 2.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, seconds: float, line: str) -> None:
        self._connection, self._left, self._line = connection, seconds, line
        self.late: BadQuery | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """The time goes by."""
        began, done = time.monotonic(), threading.Event()
        threading.Thread(target=self._watch, args=(done, max(self._left, 0.0)), daemon=True).start()
        try:
            yield
        finally:
            done.set()
            self._left -= time.monotonic() - began
            if self._left < 0:
                self.late = BadQuery(self._line)

    def _watch(self, done: threading.Event, left: float) -> None:
        if done.wait(left):
            return
        self.late = BadQuery(self._line)
        for _ in range(_TRIES):
            try:
                self._connection.interrupt()  # lost where it comes between two pieces of work
            except duckdb.ConnectionException:  # the work ended at this moment, and the connection is closed
                return
            if done.wait(GRACE_S / _TRIES):
                return
        sys.stderr.write(f"{self._line}\n")
        sys.stderr.flush()
        os._exit(2)


def check_limit(seconds: float) -> None:
    """Raise BadOption for a time limit that is none."""
    if not (math.isfinite(seconds) and 0 < seconds <= _LARGEST_LIMIT_S):
        raise BadOption(f"a time limit of {seconds:g} s is not above 0 and at most {_LARGEST_LIMIT_S:g} s")


@contextmanager
def bounded_memory(more: int) -> Iterator[None]:
    """Within, this process can take at most `more` bytes than it has; what wants more gets MemoryError, or DuckDB's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):  # another system than Linux
        yield
        return
    wanted = pages * os.sysconf("SC_PAGE_SIZE") + more
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([wanted, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _not_too_long(text: str) -> str:
    if len(text) > _LONGEST:
        raise BadQuery(f"SQL of {len(text):,} characters is longer than {_LONGEST:,}")
    return text


@functools.lru_cache(maxsize=4)
def _parsed(sql: str) -> dict[str, Any]:
    """The one SELECT of the text as DuckDB's parser has it. Raises BadQuery."""
    with closed_connection("500MB", threads=1) as connection:
        (text,) = connection.execute(
            "SELECT json_serialize_sql($1, skip_null := true, skip_empty := true, skip_default := true)", [sql]
        ).fetchall()[0]
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise BadQuery("it is nested too deeply") from error
    if found["error"] and found["error_type"] == "parser":
        raise BadQuery(" ".join(str(found["error_message"]).split()))
    if found["error"]:
        raise BadQuery("it is no SELECT")
    if len(found["statements"]) != 1 or found["statements"][0].get("named_param_map"):
        raise BadQuery("one SELECT statement without parameters is taken")
    node: dict[str, Any] = found["statements"][0]["node"]
    return node


def _nodes(of: object) -> Iterator[dict[str, Any]]:
    """Every record in a parsed statement."""
    waiting = [of]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def _alike(one: object, other: object) -> bool:
    """Whether two parsed statements say the same, wherever their words stand; the second is not deep."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = {name for name in {**one, **other} if not name.startswith("query_location")}
        return all(name in one and name in other and _alike(one[name], other[name]) for name in names)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)


def _check_value(node: dict[str, Any]) -> None:
    """Raise BadQuery for a part of a condition that is not made of this row's columns by a harmless function."""
    kind = node.get("class")
    if kind == "FUNCTION":
        name = node["function_name"].lower()
        if name not in _FUNCTIONS.split():
            raise BadQuery(
                f"{name}() is none of the functions of a condition; it compares and computes with columns of one row, "
                "as in lower(stain) = 'he', regexp_matches(file, '^A') or abs(mpp - 0.5) < 0.01"
            )
    elif kind == "SUBQUERY":
        raise BadQuery("a condition is about one row, and holds no SELECT of its own")
    elif kind == "TYPE":
        if node["type_name"].lower() not in _TYPES.split():
            raise BadQuery(f"{node['type_name']} is no type of a condition; it knows {' '.join(_TYPES.split())}")
    elif kind is not None and kind not in _VALUES:
        raise BadQuery(f"a condition holds no {kind.lower()}: it compares and computes with columns of one row")
