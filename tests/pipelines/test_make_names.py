"""Every target does its work in folders whose names a shell or make could trip over, and runs no word of them."""

import importlib
import json
import shlex
import shutil

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipelines.make import check, plan
from pipelines.variables import Call
from tests.support.labelled_tiles import table
from tests.support.made_calls import ROOT, WORST, done, executed, refusal
from tests.support.shard_folders import add_slide
from tests.support.training import TINY

pytestmark = pytest.mark.slow

KEY = "a secret that is long enough"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of that name, in which everything lies."""
    folder = tmp_path_factory.mktemp("names") / WORST
    folder.mkdir()
    yield folder
    assert executed(folder, folder.parent) == []


@pytest.fixture(scope="module")
def out(folder, nompp_slide):
    """Shards of two slides of two patients, as make shards makes them."""
    slides = folder / "its & slides;"
    slides.mkdir()
    for name in ("p'7 $HOME", "kept"):
        shutil.copy(nompp_slide, slides / f"{name}.tiff")
    (folder / "key").write_text(KEY)
    (folder / "m.csv").write_text("slide,mpp,patient\np'7 $HOME.tiff,0.5,p'7 $HOME;\nkept.tiff,0.5,p8\n")
    given = f"SLIDES={slides}", f"OUT={folder / 'out'}", f"MANIFEST={folder / 'm.csv'}", "WORKERS=1"
    more = f"PATIENT_KEY={folder / 'key'}", f"LOG={folder / 'log $HOME'}", "MAGS=5x 10x", "REDO=0"
    assert "2 slides: 2 ok" in done("shards", *given, *more, f"ARGS=--id-root {shlex.quote(str(slides))}")
    assert "run_ended" in (folder / "log $HOME").read_text()
    return folder / "out"


def test_what_looks_at_shards(folder, out):
    where = f"SHARDS={out}"
    answer = folder / "it's $HOME.csv"
    done("query", where, f"TO={answer}", "SQL=SELECT file FROM slides WHERE file LIKE 'p%$HOME%' OR file = '`$(x)'")
    assert answer.read_text().splitlines()[1:] == ['"p\'7 $HOME.tiff"']
    assert "sound" in done("verify", where, "WORKERS=1")
    done("plan", "SLIDES=1000", f"SAMPLE={out}", f"TO={folder / 'plan $HOME.json'}")
    assert json.loads((folder / "plan $HOME.json").read_text())["slides"] == 1000
    assert "2 slides: 2 ok" in done("audit", where, f"TO={folder / 'audit $HOME.html'}")
    assert (folder / "audit $HOME.html").read_text().startswith("<!doctype html>")
    done("interchange", "KIND=qupath", where, f"TO={folder / 'to $HOME'}", "WHERE=file = 'kept.tiff'")
    assert len(list((folder / "to $HOME").rglob("*.geojson"))) == 1


def test_forgetting_takes_the_right_patient_and_asks(folder, out):
    copy = shutil.copytree(out, folder / "copy $HOME")
    who = f"SHARDS={copy}", "PATIENT=p'7 $HOME;", f"PATIENT_KEY={folder / 'key'}"
    files = pq.read_table(copy / "catalog/slides", columns=["file"]).column(0).to_pylist()
    assert "where there is no terminal" in refusal("forget", *who, "YES=no", "DRY=0")
    assert pq.read_table(copy / "catalog/slides", columns=["file"]).column(0).to_pylist() == files
    assert "forgotten in" in done("forget", *who, "YES=1")
    assert pq.read_table(copy / "catalog/slides", columns=["file"]).column(0).to_pylist() == ["kept.tiff"]


def run(goal, **given):
    """A target's command here, where torch is already: how make passes values on is seen above and in test_make.py."""
    call = Call((goal,), given, {})
    check(call)
    [[_python, _m, module, *words]] = plan(call, goal)
    assert importlib.import_module(module).main(words) == 0


def test_training_and_what_comes_after_it(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for number in (1, 2):
        add_slide(folder / "shards $HOME", number, {"20x": 8, "10x": 4}, stain="HE")
    shards, index, changes = "shards $HOME", "--index 'an index'", "\n".join([*TINY, "schedule.steps=2"])
    words = f"SHARDS={shards}", f"SET={changes}", "RUN=a $HOME", "WHERE=stain = 'HE'", f"ARGS={index}"
    assert "step 2 of 2: done" in done("-C", ROOT, "pretrain", *words, cwd=folder)
    run(
        "distill",
        TEACHER="a $HOME",
        SHARDS=shards,
        SET=changes + "\nschedule.steps=1",
        RECIPE="debug",
        RUN="b",
        ARGS=index,
    )
    assert "teacher" in json.loads((folder / "b/recipe.json").read_text())
    run("peek", SHARDS=shards, WHERE="magnification = '10x'", PNG="peek $HOME.png", ARGS=index)
    assert (folder / "peek $HOME.png").stat().st_size > 1000
    run("curves", MODEL="a $HOME\nb", PNG="curves `.png")
    assert (folder / "curves `.png").stat().st_size > 1000
    run("export", RUN="a $HOME", TO="exported (it's)", LICENCE="it's `mine`")
    assert "it's `mine`" in (folder / "exported (it's)" / "README.md").read_text()
    run("embed", MODEL="a $HOME", SHARDS=shards, TO="features $HOME", WHERE="magnification = '10x'")
    assert ds.dataset(folder / "features $HOME" / "parquet").count_rows() == 8
    table(folder / "labelled $HOME.parquet", label=[str(n % 2) for n in range(24)], group=[str(n) for n in range(24)])
    run("evaluate", MODEL="a $HOME", TASKS="labelled $HOME.parquet:label", TO="figures '", ARGS="--cache c --threads 1")
    assert "a $HOME, step 2" in pq.read_table(folder / "figures '" / "figures.parquet")["features"].to_pylist()
    capsys.readouterr()
    run("recipe", RECIPE="debug", SET="teacher=it's $HOME\nschedule.steps=7")
    assert "schedule.steps=7" in [line.split()[0] for line in capsys.readouterr().out.splitlines()]
