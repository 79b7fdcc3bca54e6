"""SQL that somebody else wrote: conditions of the trainer, questions to the catalog, and what neither may do."""

import ast
import operator
import resource
import subprocess
import sys

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.query import main
from pretrain.data.index import open_index
from pretrain.errors import BadFilter
from tests.support.paths import ROOT
from tests.support.shard_folders import add_slide
from wsi_prep.curation.exchange.coordinates import write_clam
from wsi_prep.errors import BadOption, BadQuery
from wsi_prep.untrusted import sql
from wsi_prep.untrusted.sql import Condition, check_expression


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("hostile") / "out"
    for number in (1, 2, 3):
        add_slide(out, number, {"20x": 6}, stain="HE" if number < 3 else "IHC")
    return out


def call(shards, question, *more):
    return main(["--shards", str(shards), "--sql", question, *more])


REFUSED = [
    "true); CALL enable_logging(); SELECT (true",
    "true); SET memory_limit = '900GB'; SELECT (true",
    "true); COPY (SELECT 1) TO '/tmp/stolen'; SELECT (true",
    "true); ATTACH '/tmp/x.db'; SELECT (true",
    "true); INSTALL httpfs; SELECT (true",
    "true; DROP TABLE tiles",
    "true) OR (true",
    "true) UNION SELECT 1 WHERE (true",
    "true) ORDER BY (1",
    "true ORDER BY 1",
    "true GROUP BY ALL",
    "true LIMIT 1",
    "true USING SAMPLE 1",
    "true WINDOW w AS (ORDER BY 1)",
    "true;",
    "/* true",
    "focus > (SELECT avg(focus) FROM tiles)",
    "EXISTS (FROM read_csv('/etc/passwd'))",
    "stain IN (SELECT content FROM read_text('/etc/passwd'))",
    "index IN (WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT n FROM t)",
    "getenv('HOME') = ''",
    "current_setting('memory_limit') = ''",
    "getvariable('x') = ''",
    "sleep_ms(1) IS NULL",
    "write_log('x') IS NULL",
    "error('x')",
    "length(repeat('a', 2000000000)) > 1",
    "length(rpad('a', 2000000000, 'b')) > 1",
    "length(format('{:>2000000000}', stain)) > 1",
    "length(replace(replace(stain, 'H', 'HHHHHHHHHH'), 'H', 'HHHHHHHHHH')) > 1",
    "len(range(2000000000)) > 1",
    "list_reduce(['ab'], lambda x, y: x || y) = ''",
    "stain::BLOB::BIT::VARCHAR = ''",
    "stain::VARCHAR[] IS NULL",
    "random() < 0.5",
    "now() > '2020-01-01'",
    "nextval('s') > 1",
    "row_number() OVER () > 1",
    "count(*) > 1",
    "COLUMNS('focus') > 1",
    "index = $1",
    "index = ?",
    "(" * 5000 + "true" + ")" * 5000,
    "NOT " * 5000 + "true",
    "index" + " + index" * 5000 + " > 1",
    "true ORDER BY " + "-(" * 400 + "1" + ")" * 400,
    "true OR true" * 30_000,
    "stain = '\0",
]


@pytest.mark.parametrize("where", REFUSED, ids=range(len(REFUSED)))
def test_a_condition_is_one_harmless_expression_or_one_line(shards, tmp_path, where):
    with pytest.raises(BadFilter) as caught:
        open_index([str(shards)], tmp_path / "index", where)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert not (tmp_path / "index").exists()


ROWS = pa.table({"a": [-2, 0, 1, 7, None], "b": [0.5, -1.0, 3.5, None, 2.0], "s": ["HE", "he", "", "IHC", None]})
NUMBERS = st.integers(-9, 9).map(str)
TERMS = st.recursive(
    st.sampled_from(["a", "b"]) | NUMBERS,
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=5,
)
COMPARED = st.tuples(TERMS, st.sampled_from(["<", "<=", "=", "<>", ">", ">="]), TERMS).map(" ".join)
CONDITIONS = st.recursive(
    COMPARED,
    lambda inner: (
        st.tuples(inner, st.sampled_from([" AND ", " OR "]), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})")
        | inner.map(lambda c: f"NOT ({c})")
    ),
    max_leaves=5,
)


KNOWN = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Gt: operator.gt}
KNOWN |= {ast.GtE: operator.ge, ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def truth(condition, row):
    """What a condition is in one row, by Python's own eval: True, False, or None where it is not known."""
    python = condition.replace("<>", "!=").replace(" = ", " == ").replace("AND", "and").replace("OR", "or")
    return value(ast.parse(python.replace("NOT", "not"), mode="eval").body, row)


def value(node, row):
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return row[node.id]
        case ast.UnaryOp():
            inner = value(node.operand, row)
            return None if inner is None else (not inner if isinstance(node.op, ast.Not) else -inner)
        case ast.BoolOp():
            parts = [value(part, row) for part in node.values]
            decides = isinstance(node.op, ast.Or)
            return decides if decides in parts else (None if None in parts else not decides)
        case ast.Compare(left=left, ops=[op], comparators=[right]) | ast.BinOp(left=left, op=op, right=right):
            both = value(left, row), value(right, row)
            return None if None in both else KNOWN[type(op)](*both)


@settings(max_examples=20, deadline=None)
@given(CONDITIONS)
@pytest.mark.slow
def test_a_condition_holds_where_sql_says_so(condition):
    expected = [n for n, row in enumerate(ROWS.to_pylist()) if truth(condition, row) is True]
    assert Condition(condition).rows(ROWS) == expected


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("s ILIKE 'h_' -- a remark", [0, 1]),
        ("lower(s) IN ('he', 'ihc') /* both */", [0, 1, 3]),
        ("regexp_matches(s, '^I')", [3]),
        ("s IS NULL OR length(s) = 0", [2, 4]),
        ("coalesce(a, 0)::DOUBLE BETWEEN 0 AND 1", [1, 2, 4]),
        ("CASE WHEN a > 0 THEN b > 1 END", [2]),
        ("hash(s) % 2 >= 0 AND s[1] = 'H' AND substring(s FROM 1 FOR 1) = 'H'", [0]),
        ("abs(a) ** 2 > 3 AND greatest(a, 1) < 7", [0]),
        (" OR ".join(f"s = 'name {n}'" for n in range(2000)) + " OR s = 'HE'", [0]),
    ],
)
def test_what_people_write_is_understood(text, rows):
    assert Condition(text).rows(ROWS) == rows


def test_no_function_of_a_condition_changes_from_call_to_call():
    found = duckdb.execute(
        "SELECT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT' OR has_side_effects "
        "OR function_type NOT IN ('scalar', 'macro')"
    ).fetchall()
    plain = {name for (name,) in duckdb.execute("SELECT function_name FROM duckdb_functions()").fetchall()}
    known = set(sql._FUNCTIONS.split())
    assert known & {name for (name,) in found} - {"date_trunc", "datetrunc", "length", "len"} == set()
    assert len(known & plain) > 60


def test_a_condition_that_takes_too_long_is_one_line():
    many = pa.table({"s": ["a" * 200] * 50_000})
    slow = " AND ".join(f"NOT regexp_matches(s, '(a?){{{n}}}b')" for n in range(20, 30))
    with pytest.raises(BadQuery, match=r"longer than 0\.001 s for 50,000 rows.*TIME_LIMIT"):
        Condition(slow, 0.001).rows(many)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_time_limit_is_a_time(shards, capsys, seconds):
    with pytest.raises(BadOption, match="time limit"):
        Condition("true", seconds)
    assert call(shards, "SELECT 1", "--time-limit", str(seconds)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_interchange_asks_the_whole_catalog_by_one_expression_alone(shards, tmp_path):
    check_expression("index IN (SELECT max(index) FROM tiles)")
    for where in ("false) OR (true", "true) GROUP BY ALL; CALL enable_logging(); SELECT (1"):
        with pytest.raises(BadQuery, match="one expression"):
            write_clam(str(shards), where, tmp_path / "to")


@pytest.mark.parametrize(
    "question",
    [
        "SELECT * FROM enable_logging()",
        "SELECT * FROM query('SELECT 1')",
        "SELECT * FROM query_table('slides')",
        "SELECT * FROM arrow_scan(1, 2, 3)",
        "SELECT * FROM pragma_database_list()",
        "SELECT * FROM duckdb_settings()",
        "SELECT * FROM truncate_duckdb_logs()",
        "SELECT sql FROM information_schema.views",
        "SELECT sql FROM pg_views",
        "SELECT sql FROM sqlite_master",
        "SELECT (SELECT max(sql) FROM duckdb_views) FROM slides",
        "DESCRIBE information_schema.views",
        "SELECT current_setting('allowed_paths')",
        "SELECT (SELECT count(*) FROM read_blob('/etc/passwd'))",
        "WITH x AS MATERIALIZED (FROM sniff_csv('/etc/passwd')) SELECT 1",
        "SELECT * FROM slides, LATERAL (FROM glob('/*'))",
        "FROM parquet_metadata('/etc/passwd')",
        "CALL enable_logging()",
        "PRAGMA database_list",
        "WITH x AS (INSERT INTO slides VALUES (1) RETURNING 1) SELECT 1",
        "WITH x AS (DELETE FROM slides RETURNING 1) SELECT 1",
        "SELECT 1 WHERE EXISTS (WITH x AS (COPY (SELECT 1) TO '/tmp/stolen.csv') FROM x)",
        "SELECT 1 WHERE 1 = $1",
        "EXPLAIN ANALYZE SELECT 1",
        "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    ],
)
def test_a_question_makes_tables_of_the_catalog_alone(shards, capsys, question):
    assert call(shards, question) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "question",
    [
        "WITH x AS (SELECT slide_id FROM slides) SELECT count(*) FROM x JOIN tiles USING (slide_id)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT * FROM n",
        "SELECT * FROM main.slides",
        "DESCRIBE slides",
        "SUMMARIZE SELECT stain FROM Slides",
    ],
)
def test_tables_of_the_question_are_its_own(shards, question):
    assert call(shards, question) == 0


def test_the_catalogs_own_file_is_not_written_by_what_stands_in_a_with(shards, tmp_path, capsys):
    """Of all files it is the one that DuckDB may open."""
    file = next((shards / "catalog/slides").glob("*.parquet"))
    before = file.read_bytes()
    writes = f"WITH x AS (COPY (SELECT 1 AS a) TO '{file}' (FORMAT parquet, USE_TMP_FILE false)) SELECT * FROM x"  # noqa: S608 - what an attacker would write
    assert call(shards, writes) == 2
    assert "WITH is for SELECT alone" in capsys.readouterr().err
    with pytest.raises(BadQuery):
        write_clam(str(shards), f"EXISTS ({writes})", tmp_path / "to")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("DESCRIBE tiles", "slide_id"),
        ("SUMMARIZE slides", "slide_id"),
        ("SELECT sum(i)::INT AS n FROM range(10) r(i)", "45"),
        ("SELECT count(*) AS n FROM (VALUES (1), (2)) v", "2"),
        ("SELECT unnest([41, 42]) AS n", "42"),
        ("SELECT * FROM (PIVOT slides ON stain IN ('HE') USING count(*) GROUP BY status)", "2"),
        ("WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 77) SELECT max(n) FROM t", "77"),
    ],
)
def test_what_a_question_may_do_is_done(shards, capsys, question, said):
    assert call(shards, question) == 0
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "question",
    [
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
        "SELECT count(*) FROM range(10000000000000) r(i) WHERE i % 7 = 3",
    ],
)
def test_a_question_without_end_is_ended(shards, capsys, question):
    assert call(shards, question, "--time-limit", "0.2") == 2
    error = capsys.readouterr().err
    assert "took longer than 0.2 s" in error
    assert "TIME_LIMIT" in error
    assert error.count("\n") == 1


def in_child(shards, question, *more, settings=""):
    """The command in a process of its own; its exit code, its standard error, and the most memory it held (bytes)."""
    script = f"import pipelines.query as q, wsi_prep.untrusted.sql as sql, sys\n{settings}\n"
    script += "code = q.main(sys.argv[1:])\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    script += "sys.exit(code)"  # getrusage counts what the parent held when it forked
    words = [sys.executable, "-c", script, "--shards", str(shards), "--sql", question, *more]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=ROOT, timeout=120)
    return done.returncode, done.stderr, int(done.stdout.split()[-1]) * 1024 if done.stdout else 0


@pytest.mark.slow
def test_one_long_call_of_a_function_is_ended_with_its_process(shards):
    deaf = "SELECT length(rpad(slide_id, 400000000, 'b')) FROM slides"
    code, error, _ = in_child(shards, deaf, "--time-limit", "0.05", settings="sql.GRACE_S = 0.1")
    assert code == 2
    assert error.count("\n") == 1
    assert "took longer than 0.05 s" in error


@pytest.mark.slow
def test_an_answer_that_is_too_large_is_one_line_in_bounded_memory(shards):
    large = "SELECT length(format('{:>2000000000}', slide_id)) FROM slides"
    code, error, peak = in_child(shards, large, settings="q._MEMORY_BYTES = 1 << 30")
    assert code == 2
    assert error.count("\n") == 1
    assert "memory" in error
    assert peak < 1.5 * 2**30


def test_the_bound_on_memory_is_taken_away_again():
    before = resource.getrlimit(resource.RLIMIT_AS)
    with sql.bounded_memory(1 << 30), pytest.raises(MemoryError):
        bytearray(2 << 30)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
