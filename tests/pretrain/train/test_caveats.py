"""What a run cannot do with its tiles is said before it begins, and is so."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pretrain.data.fields import fields
from pretrain.data.sampler import Sampler
from pretrain.train.metrics import read_metrics
from pretrain.train.recipe.caveats import caveats
from pretrain.train.recipe.overrides import changed
from pretrain.train.recipe.recipes import debug, virchow2g_mini
from tests.support.indexes import make_index
from tests.support.training import make_shards, run

pytestmark = pytest.mark.slow

MANY = [("HE", "A", {"20x": 400}), ("HE", "B", {"20x": 400})]
MIX = ("sampling.mix.40x=0", "sampling.mix.10x=0", "sampling.mix.5x=0")


def sampler_of(tmp_path, cohort, *changes):
    recipe = changed(debug(), [*MIX, *changes])
    return recipe, Sampler(make_index(tmp_path, cohort), recipe.sampling)


def said(tmp_path, cohort, *changes):
    return caveats(*sampler_of(tmp_path, cohort, *changes))


def test_nothing_is_said_where_all_is_well(tmp_path):
    assert said(tmp_path, MANY) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["sampling.batch=1"], "KDE term will be 0"),
        (["sampling.batch=1", "objective.spread=koleo"], "KoLeo term will be 0"),
        (["sampling.batch=4", "compute.accumulate=4"], "a batch of 4 in 4 parts has one at a time"),
        (["views.masking.share=0"], "iBOT term will be 0"),
        (["views.masking.least=0", "views.masking.most=0"], "iBOT term will be 0"),
        (["sampling.held_out=0.01"], "holds out none of the 2 slides"),
        (["backbone.mpp_token=true", "guide.mpp=0.1"], "guide.mpp asks for what backbone.mpp_token tells"),
        (["guide.mpp=0.1"], None),
        (["backbone.mpp_token=true", "guide.focus=0.1"], None),
        (["sampling.batch=1", "objective.spread=none"], None),
        (["sampling.batch=1", "objective.spread_weight=0"], None),
        (["sampling.batch=4", "compute.accumulate=2"], None),
        (["views.masking.share=0", "objective.ibot_weight=0"], None),
        (["sampling.held_out=0.3"], "of one slide"),
        ([f"objective.{name}_weight=0" for name in ("dino", "ibot", "spread")], "every weight of objective is 0"),
        (["objective.dino_weight=0", "objective.ibot_weight=0"], None),
    ],
)
def test_a_term_or_a_share_that_is_nothing_is_said(tmp_path, changes, words):
    lines = said(tmp_path, MANY, *changes)
    assert len(lines) == (words is not None)
    assert all(words in line for line in lines)


def test_a_student_without_a_teacher_is_said(tmp_path):
    _, sampler = sampler_of(tmp_path, MANY)
    alone, taught = virchow2g_mini(), replace(virchow2g_mini(), teacher="runs/a")
    for recipe, lines in ((alone, 1), (taught, 0)):
        assert sum("there is no teacher" in line for line in caveats(recipe, sampler)) == lines


def test_one_slide_alone_is_said(tmp_path):
    (line,) = said(tmp_path, [("HE", "A", {"20x": 400, "10x": 100})])
    assert line.startswith("all 400 tiles that can be drawn are of one slide")


def test_strata_of_few_tiles_are_said_with_how_often_they_are_drawn(tmp_path):
    cohort = [*MANY, ("IHC", "A", {"20x": 1}), ("SPECIAL", "A", {"20x": 9, "5x": 1})]
    recipe, sampler = sampler_of(tmp_path, cohort, "sampling.alpha=0.25", "schedule.steps=4000")
    (line,) = caveats(recipe, sampler)
    assert line.startswith("2 of 4 strata have fewer than 32 tiles")
    counts = np.zeros(len(sampler.strata))
    for step in range(4000):
        counts += np.bincount(sampler.draw(step).stratum, minlength=len(counts))
    for stain, tiles, words in (("IHC", 1, "1 tile, drawn "), ("SPECIAL", 9, "9 tiles, each drawn ")):
        times = int(line.split(f"20x / {stain} / A / unknown: {words}")[1].split(" times")[0].replace(",", ""))
        (number,) = [
            n for n, row in enumerate(sampler.strata) if (row["stain"], row["magnification"]) == (stain, "20x")
        ]
        assert times == pytest.approx(counts[number] / tiles, rel=0.05)


def test_a_run_says_it_once_at_the_start_and_keeps_it(tmp_path, capsys):
    shards = make_shards(tmp_path / "out")
    assert run(shards, tmp_path / "run", "sampling.batch=1", "schedule.steps=3") == 0
    out = capsys.readouterr().out
    assert out.count("the KDE term will be 0") == 1
    assert out.index("the KDE term will be 0") < out.index("step      0")
    assert [row["loss_kde"] for row in read_metrics(tmp_path / "run")] == [0, 0, 0]
    notes = json.loads((tmp_path / "run/run.json").read_text())["notes"]
    assert [line for line in notes if "KDE" in line or "strata have" in line] == [
        line.removeprefix("note: ") for line in out.splitlines() if "KDE" in line or "strata have" in line
    ]


def test_tiles_that_others_stood_in_for_are_said_at_the_end(tmp_path, capsys):
    shards = make_shards(tmp_path / "out")
    store = shards / "stores/slide1-00000001.zarr/10x/c.0.0.0.0"
    store.write_bytes(bytes(store.stat().st_size))
    assert run(shards, tmp_path / "run", "schedule.steps=3") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "replaced them" in line]
    bad = read_metrics(tmp_path / "run")[-1]["bad_tiles"]
    assert line.startswith(f"note: {bad} of {24 + bad} tiles cannot be read, as ")
    assert "slide1-00000001.zarr/10x[" in line


TOGETHER = [("HE", "A", {"20x": 400}), ("IHC", "B", {"20x": 400}), ("HE", "A", {"20x": 100})]
APART = [*TOGETHER, ("IHC", "A", {"20x": 500}), ("HE", "B", {"20x": 400})]
UNKNOWN = [("HE", "unknown", {"20x": 4000}), ("HE", "A", {"20x": 300}), ("HE", "B", {"20x": 300})]


@pytest.mark.parametrize(
    ("cohort", "change", "words"),
    [
        (TOGETHER, "guide.institution=-0.1", ["guide.institution and stain go together", "Cramer's V 1.00", "too"]),
        (APART, "guide.institution=-0.1", []),
        (TOGETHER, "guide.institution=0.1", []),
        (UNKNOWN, "guide.institution=0.1", ["guide.institution is known of 35% of the tiles that are drawn"]),
    ],
)
def test_a_guide_whose_field_tells_the_biology_or_is_hardly_known_is_named(tmp_path, cohort, change, words):
    recipe, sampler = sampler_of(tmp_path, cohort, change)
    lines = caveats(recipe, sampler, fields(sampler, recipe.guide.wanted))
    assert len(lines) == bool(words)
    assert all(word in line for line in lines for word in words)
