"""Questions to catalogs: those of docs/queries.md word for word against plain Python, and what no question may do."""

import re
from collections import Counter, defaultdict
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipelines.query import main
from tests.support.paths import ROOT
from tests.support.real_tiles import prepared
from tests.support.shard_folders import add_row
from wsi_prep.curation.audit.count import open_catalogs
from wsi_prep.errors import BadQuery
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.query import open_catalog
from wsi_prep.run.task import PrepareSettings
from wsi_prep.tiles.plan import PlanSettings
from wsi_prep.untrusted.sql import one_expression

DOCUMENT = (ROOT / "docs/queries.md").read_text()
MAGNIFICATIONS = {"5x": 2, "10x": 5, "20x": 12, "40x": 30}


def add_rows(out, number, rng):
    """A slide's rows without a store; every seventh is not ok, every ninth is a copy of the first."""
    slide_id = f"case{number}-{number:010x}"
    bad = [("failed", "DamagedSlide"), ("excluded", "MissingMpp"), ("empty", None)][number % 3]
    bad = bad if number % 7 == 6 else None
    slide = dict.fromkeys(SLIDE_SCHEMA.names) | {
        "slide_id": slide_id,
        "file": f"case {number}.svs",
        "fingerprint": "same" if number % 9 == 0 else f"{number:032x}",
        "vendor": "aperio",
        "scanner": ["", "AT2", "GT450"][number % 3],
        "mpp_x": None if bad and bad[1] == "MissingMpp" else [0.2527, 0.499][number % 2],
        "stain": ["HE", "HE", "IHC", "UNKNOWN"][number % 4],
        "stain_confidence": float(rng.random()),
        "stain_source": ["pixels", "manifest"][number % 2],
        "institution": ["north", "south", "west"][number % 3],
        "tissue": ["colon", "liver"][number // 4 % 2],
        "patient_key": f"patient{number // 2}",
        "tissue_mm2": float(rng.random() * 300),
        "status": bad[0] if bad else "ok",
        "error_type": bad[1] if bad else None,
        "error": "for a reason" if bad else None,
        "reader": "tiff",
        "seconds": 1.5,
    }
    counts = {name: 0 if bad else int(rng.integers(0, most)) for name, most in MAGNIFICATIONS.items()}
    slide |= {f"tiles_{name}": count for name, count in counts.items()}
    tiles = [
        dict.fromkeys(TILE_SCHEMA.names)
        | {"slide_id": slide_id, "magnification": name, "index": i, "row": i // 4, "col": i % 4, "nbytes": 40_000 + i}
        | {"focus": float(rng.random()), "pen": float(rng.random() < 0.1)}
        for name, count in counts.items()
        for i in range(count)
    ]
    Catalog(out).commit(slide, pa.Table.from_pylist(tiles, TILE_SCHEMA))


@pytest.fixture(scope="module")
def shards(tmp_path_factory, he_slide):
    """A real slide's shards, and rows of forty more, some merged and some not."""
    out = tmp_path_factory.mktemp("work") / "shards"
    prepared(he_slide, out, PrepareSettings(plan=PlanSettings(("20x", "5x"))))
    catalog, rng = Catalog(out), np.random.default_rng(0)
    for number in range(40):
        if number == 30:
            catalog.merge()
        add_rows(out, number, rng)
    return out


@pytest.fixture(scope="module")
def rows(shards):
    """Both tables as lists of dictionaries, and each tile with its slide's columns."""
    slides, tiles = (pq.read_table(shards / "catalog" / name).to_pylist() for name in ("slides", "tiles"))
    by_id = {slide["slide_id"]: slide for slide in slides}
    return slides, [by_id[tile["slide_id"]] | tile for tile in tiles]


def blocks(language):
    """Question and code of each block of docs/queries.md, in order."""
    parts = re.findall(r"^### (.+?)$(.*?)(?=^### |\Z)", DOCUMENT, re.S | re.M)
    return [(title, code) for title, text in parts for code in re.findall(rf"```{language}\n(.*?)```", text, re.S)]


def sql(word):
    (found,) = (code for title, code in blocks("sql") if word in title)
    return found


def ask(shards, question):
    with open_catalog([str(shards)]) as catalog:
        return catalog.ask(question).read_all().to_pylist()


def call(shards, question, *more):
    return main(["--shards", *([str(shards)] if isinstance(shards, Path) else shards), "--sql", question, *more])


def test_the_document_has_a_dozen_questions():
    assert len({title for title, _ in blocks("sql")}) >= 12
    assert len(blocks("python")) >= 4


@pytest.mark.parametrize(("title", "code"), blocks("sql"), ids=[title for title, _ in blocks("sql")])
def test_every_question_is_answered(shards, capsys, title, code):
    assert call(shards, code) == 0
    printed = capsys.readouterr()
    assert not printed.err
    assert not re.search(r"^0 rows", printed.out, re.M), title


@pytest.mark.parametrize(("title", "code"), blocks("python"), ids=[title for title, _ in blocks("python")])
def test_every_python_block_gives_what_its_sql_gives(shards, monkeypatch, title, code):
    monkeypatch.chdir(shards.parent)
    scope = {}
    exec(code, scope)  # noqa: S102 - our own document
    theirs, ours = scope["answer"].to_pylist(), ask(shards, sql(title))
    assert len(theirs) == len(ours)
    for row in theirs:  # its columns have other names, and sums no thousands or rounding
        assert any(all(value_in(value, of.values()) for value in row.values()) for of in ours), row


def value_in(value, row):
    if isinstance(value, list):
        return sorted(value) in [list(v) for v in row if isinstance(v, list)]
    scaled = [round(value / 100, 2), round(value / 1e9, 3)] if isinstance(value, (int, float)) else []
    return any(v in [value, *scaled] for v in row)


def test_answers_are_those_of_plain_python(shards, rows):
    slides, tiles = rows
    ok = [slide for slide in slides if slide["status"] == "ok"]
    assert len(ok) < len(slides)

    institutions = Counter()
    for slide in ok:
        institutions[slide["institution"]] += slide["tiles_20x"] if slide["stain"] == "HE" else 0
    found = {row["institution"]: int(row["tiles"]) for row in ask(shards, sql("H&E tiles at 20x"))}
    assert found == {name: count for name, count in institutions.items() if name in found}

    copies = defaultdict(list)
    for slide in slides:
        copies[slide["fingerprint"]].append(slide["slide_id"])
    (same,) = ask(shards, sql("duplicates"))
    assert same["slides"] == sorted(copies["same"])

    by_file = defaultdict(list)
    for tile in tiles:
        by_file[tile["file"]] += [tile["focus"]] * (tile["magnification"] == "20x")
    focus = {file: np.median(values) for file, values in by_file.items() if values}
    assert [row["file"] for row in ask(shards, sql("blurriest"))] == sorted(focus, key=focus.get)[:20]

    where = defaultdict(set)
    for slide in slides:
        where[slide["patient_key"]].add(slide["institution"])
    several = {key: sorted(names) for key, names in where.items() if key and len(names) > 1}
    assert {row["patient_key"]: row["institutions"] for row in ask(shards, sql("several institutions"))} == several

    sizes = Counter()
    for slide in ok:
        sizes[slide["stain"], slide["institution"], slide["tissue"]] += sum(slide[f"tiles_{m}"] for m in MAGNIFICATIONS)
    need, reached = 0, 0
    for size in sorted(sizes.values(), reverse=True):
        need += reached < 0.9 * sum(sizes.values())
        reached += size
    (share,) = ask(shards, sql("90 %"))
    assert (share["strata"], share["of"]) == (need, len(sizes))


def test_a_stratified_sample_takes_five_of_each_or_all(shards, rows):
    _, tiles = rows
    place, stratum = ("slide_id", "magnification", "index"), ("stain", "institution", "tissue", "magnification")
    of = {tuple(t[name] for name in place): tuple(t[name] for name in stratum) for t in tiles}
    there = Counter(of.values())
    drawn = Counter(of[tuple(row[name] for name in place)] for row in ask(shards, sql("stratified")))
    assert drawn == {name: min(5, count) for name, count in there.items()}
    assert max(there.values()) > 5


def test_several_folders_are_one_catalog(shards, tmp_path, capsys):
    Catalog(tmp_path).create()
    add_rows(tmp_path, 100, np.random.default_rng(1))
    assert call([str(shards), str(tmp_path)], "SELECT count(*), count(DISTINCT slide_id) FROM slides") == 0
    assert re.search(r"42\s+42", capsys.readouterr().out)


def test_a_folder_whose_name_looks_like_a_pattern_is_itself_alone(tmp_path):
    for name, slides in (("a[1]'", 2), ("a1'", 3)):
        Catalog(tmp_path / name).create()
        for number in range(slides):
            add_rows(tmp_path / name, number, np.random.default_rng(number))
    assert ask(tmp_path / "a[1]'", "SELECT count(*) AS n FROM slides") == [{"n": 2}]
    with open_catalogs([str(tmp_path / "a[1]'")]) as connection:
        assert connection.execute("SELECT count(*) FROM slides").fetchall() == [(2,)]


def test_columns_that_an_older_catalog_lacks_are_null(shards, tmp_path):
    for name in ("slides", "tiles"):
        table = pq.read_table(shards / "catalog" / name)
        (tmp_path / "catalog" / name).mkdir(parents=True)
        kept = [column for column in table.column_names if column not in ("tissue_source", "bounds_x0", "pen")]
        pq.write_table(table.select(kept), tmp_path / "catalog" / name / "part-00000.parquet")
    assert ask(tmp_path, "SELECT count(*) AS n, count(tissue_source) AS known, sum(bounds_x0) AS x FROM slides") == [
        {"n": 41, "known": 0, "x": None}
    ]
    assert ask(tmp_path, "SELECT count(pen) AS known FROM tiles WHERE magnification = '20x'") == [{"known": 0}]


def test_rows_are_cut_and_all_are_counted(shards, rows, capsys):
    assert call(shards, "SELECT * FROM tiles", "--rows", "3") == 0
    printed = capsys.readouterr().out
    assert f"the first 3 of {len(rows[1]):,} rows" in printed
    assert len(printed.splitlines()) < 12
    assert call(shards, "SELECT 1 AS one") == 0
    assert "1 row\n" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_all_rows_can_be_written(shards, rows, tmp_path, capsys, ending):
    file = tmp_path / "deep" / f"tiles.{ending}"
    assert call(shards, "SELECT slide_id, index, focus FROM tiles ORDER BY ALL", "--to", str(file)) == 0
    table = pyarrow.csv.read_csv(file) if ending == "csv" else pq.read_table(file)
    expected = sorted((t["slide_id"], t["index"], t["focus"]) for t in rows[1])
    assert [(row["slide_id"], row["index"]) for row in table.to_pylist()] == [key[:2] for key in expected]
    assert table["focus"].to_pylist() == pytest.approx([key[2] for key in expected], rel=1e-5)
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    assert f"{len(rows[1]):,} rows" in capsys.readouterr().out


def test_what_a_row_says_cannot_steer_the_terminal(tmp_path, capsys):
    Catalog(tmp_path).create()
    slide = dict.fromkeys(SLIDE_SCHEMA.names) | {"slide_id": "a", "file": "\x1b[2J[bold]x\n.svs", "status": "ok"}
    Catalog(tmp_path).commit(slide, TILE_SCHEMA.empty_table())
    assert call(tmp_path, "SELECT file, status FROM slides") == 0
    assert r"\x1b[2J[bold]x\x0a.svs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nosuch FROM tiles", "nosuch"),
        ("SELECT slide_id::INT FROM slides", "Could not convert"),
        ("", "one SELECT statement"),
        ("SELECT 1; SELECT 2", "one SELECT statement"),
        ("SET memory_limit = '900GB'", "one SELECT statement"),
        ("COPY tiles TO '{here}/stolen.csv'", "one SELECT statement"),
        ("CREATE TABLE x AS FROM tiles", "one SELECT statement"),
        ("DROP VIEW tiles", "one SELECT statement"),
        ("ATTACH '{here}/x.db'", "one SELECT statement"),
        ("INSTALL httpfs", "one SELECT statement"),
        ("SELECT * FROM read_text('{here}/secret.txt')", "disabled by configuration"),
        ("SELECT * FROM read_csv('{here}/secret.txt')", "disabled by configuration"),
        ("SELECT * FROM '{here}/secret.parquet'", "disabled by configuration"),
        ("SELECT * FROM glob('{here}/*')", "disabled by configuration"),
        ("SELECT * FROM read_parquet('https://example.org/x.parquet')", "disabled by configuration"),
        ("SELECT * FROM query('COPY tiles TO ''{here}/stolen.csv''')", "SELECT"),
        ("SELECT * FROM local_table", "does not exist"),
    ],
)
def test_a_question_is_refused_in_one_line(shards, tmp_path, capsys, question, said):
    local_table = pa.table({"a": [1]})  # DuckDB would find a caller's variables by name
    (tmp_path / "secret.txt").write_text("secret")
    pq.write_table(local_table, tmp_path / "secret.parquet")
    before = {p: p.stat().st_mtime_ns for p in [*tmp_path.rglob("*"), *shards.rglob("*")]}
    assert call(shards, question.format(here=tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert said in error
    assert "secret\n" not in error
    assert {p: p.stat().st_mtime_ns for p in [*tmp_path.rglob("*"), *shards.rglob("*")]} == before


def test_a_catalogs_own_files_cannot_be_overwritten(shards):
    """They are the only ones that the connection may open at all."""
    file = next((shards / "catalog/slides").glob("part-*.parquet"))
    with open_catalog([str(shards)]) as catalog, pytest.raises(ValueError, match="one SELECT"):
        catalog.ask(f"COPY (SELECT 1) TO '{file}'")


def test_wrong_calls_are_one_line(shards, tmp_path, capsys):
    for arguments, said in [
        ((tmp_path, "SELECT 1"), "make shards has filled"),
        ((["nosuch://bucket/x"], "SELECT 1"), "of no object store that is known"),
        ((shards, "SELECT 1 AS x", "--to", str(tmp_path / "x.xlsx")), "neither .csv nor .parquet"),
        ((shards, "SELECT [1] AS x", "--to", str(tmp_path / "x.csv")), "cannot be written as csv"),
        ((shards, "SELECT 1 AS x", "--to", str(shards / "run.json" / "x.csv")), "run.json"),
    ]:
        (shards / "run.json").write_text("{}")
        assert call(*arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert said in error
    assert list(tmp_path.iterdir()) == []


def test_a_catalog_that_is_no_parquet_is_one_line(tmp_path, capsys):
    (tmp_path / "catalog/slides").mkdir(parents=True)
    (tmp_path / "catalog/slides/part-00000.parquet").write_bytes(b"not parquet, but long enough to look")
    assert call(tmp_path, "SELECT * FROM slides") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cannot be read" in error


@pytest.mark.parametrize("tiles", ["tiles", '"Tiles"', "(SELECT focus FROM main.tiles)"])
def test_damaged_tiles_are_no_matter_until_a_question_reads_tiles(tmp_path, capsys, tiles):
    """A cohort's tiles are billions of rows: a question about its slides must not look at them all."""
    for number in range(3):
        add_row(tmp_path, f"s{number}-000000000{number}", tiles_20x=7)
    (tmp_path / "catalog/tiles").mkdir(exist_ok=True)
    (tmp_path / "catalog/tiles/s0-0000000000.parquet").write_bytes(b"not parquet, but long enough to look")
    with open_catalog(str(tmp_path)) as catalog:
        assert catalog.ask("SELECT sum(tiles_20x) AS tiles FROM slides").read_all()["tiles"].to_pylist() == [21]
    assert call(tmp_path, f"SELECT count(*) FROM {tiles}") == 2  # noqa: S608
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "catalog/tiles/s0-0000000000.parquet" in error


def test_this_duckdb_still_locks_as_documented():
    """Three settings stand between an untrusted question and the disk; a version that drops one must fail here."""
    connection = duckdb.connect(":memory:")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    for attempt in ("SET enable_external_access = true", "SET lock_configuration = false", "SET allowed_paths = ['/']"):
        with pytest.raises(duckdb.Error):
            connection.execute(attempt)


@pytest.mark.parametrize(
    "part", ["manifest->>'{}'", "slides.manifest ->> '{}'", "manifest->'{}'", "json_extract_string(manifest, '{}')"]
)
@pytest.mark.parametrize("name", ["Block", "GRÖSSE", "$.Block"])
def test_a_column_of_the_manifest_in_the_wrong_case_is_no_silent_nothing(tmp_path, part, name):
    add_row(tmp_path, "a-1", status="ok", manifest='{"block": "3", "grösse": "4"}')
    with open_catalog([str(tmp_path)]) as catalog:
        with pytest.raises(BadQuery, match="names of your own columns are in lower case there") as refusal:
            catalog.ask(f"SELECT file FROM slides WHERE {part.format(name)} = '3'")  # noqa: S608
        assert f"write manifest->>'{name.lower()}'" in str(refusal.value)
        answer = catalog.ask(f"SELECT {part.format(name.lower())} AS cell FROM slides WHERE slide_id <> 'B'")  # noqa: S608
        assert str(answer.read_all()["cell"][0]).strip('"') == {"grösse": "4"}.get(name.lower(), "3")
    with pytest.raises(BadQuery, match="in lower case there"):
        one_expression(f"{part.format(name)} = '3'")
