"""Guided runs: exact when gone on with, the same however a batch is cut, refused where they cannot; what is erased."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import distributed as dist

from pipelines.command import EXIT_WRONG_CALL
from pipelines.export import main as export
from pretrain.compute.distributed import World, world
from pretrain.compute.randomness import Places
from pretrain.data.index import open_index
from pretrain.data.sampler import Sampler
from pretrain.errors import BadRun
from pretrain.learning.guide import supposed_fields
from pretrain.train.learner import Learner
from pretrain.train.loop import Trainer
from pretrain.train.metrics import read_metrics
from pretrain.train.planning.simulate import simulate
from pretrain.train.recipe.overrides import changed
from pretrain.train.recipe.recipe import load
from pretrain.train.recipe.recipes import recipe
from pretrain.train.runs import load_run
from tests.support.paths import ROOT
from tests.support.shard_folders import add_slide
from tests.support.training import TINY, command, in_processes, run, tensors
from wsi_prep.errors import BadOption

pytestmark = pytest.mark.slow

GUIDE = ("guide.institution=0.1", "guide.scanner=0.2", "guide.stain=0.1", "guide.focus=0.1", "schedule.steps=4")
ERASE = ("guide.institution=-1", "guide.focus=-1", "saving.erase_tiles=16", "saving.erase_px=60", "schedule.steps=2")
STILL = ("schedule.rate=0", "schedule.least_rate=0", "schedule.momentum=1,1", "schedule.decay=0,0")


def make_shards(out, institutions="ABB"):
    for number, institution in enumerate(institutions):
        more = {"scanner": ("S", None, "T")[number % 3], "stain": ("HE", "IHC")[number % 2]}
        add_slide(out, number + 1, {"20x": 12, "10x": 6}, institution=institution, **more)
    return out


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "out")


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    assert run(shards, folder, *GUIDE) == 0
    return folder


def figures(folder):
    kept = ("loss", "guide_", "gradient_norm", "tiles_seen")
    return [{k: v for k, v in row.items() if k.startswith(kept)} for row in read_metrics(folder)]


def test_a_guided_run_that_was_stopped_goes_on_to_the_bit(shards, unbroken, tmp_path):
    assert run(shards, tmp_path / "run", *GUIDE, stop_at=2) == 0
    assert run(shards, tmp_path / "run", *GUIDE) == 0
    assert figures(tmp_path / "run") == figures(unbroken)
    mine, theirs = tensors(tmp_path / "run", 4), tensors(unbroken, 4)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    heads = [name for name in theirs if ".guide." in name]
    assert {name.split(".")[2] for name in heads} == {"institution", "scanner", "stain", "focus"}
    assert {name.split(".")[0] for name in heads} == {"student", "optimizer"}
    last = figures(unbroken)[-1]
    assert {"loss_guide_focus", "guide_focus_r2", "guide_stain_balanced_accuracy"} < last.keys()
    assert 0 < last["guide_institution_gradient_ratio"] < 1


def test_an_exported_model_has_nothing_of_the_guide_but_its_settings(unbroken, tmp_path):
    assert export(["--folder", str(unbroken), "--to", str(tmp_path / "model")]) == 0
    with safe_open(tmp_path / "model/model.safetensors", "pt") as weights:
        assert not [name for name in weights.keys() if "guide" in name]  # noqa: SIM118 - no dictionary
    assert {file.name for file in (tmp_path / "model").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert "guide" not in (tmp_path / "model/config.json").read_text()
    assert "guide.institution=0.1" in (tmp_path / "model/README.md").read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            "guide.hospital=-0.1",
            "no field 'hospital' can guide a training; these fields of the catalog can: instit",
        ),
        ("guide.tissue=0.1", "guide.tissue has nothing to tell apart: of the tiles that can be drawn none has any;"),
        ("guide.magnification=a", "guide.magnification is a number, not 'a'"),
    ],
)
def test_what_cannot_guide_is_refused_in_a_line(shards, tmp_path, capsys, change, says):
    assert run(shards, tmp_path / "run", change) == EXIT_WRONG_CALL
    told = " ".join(capsys.readouterr().err.split())
    assert says in told
    assert "Traceback" not in told


def test_other_classes_than_the_heads_have_learnt_are_refused(unbroken, tmp_path, capsys):
    other = make_shards(tmp_path / "other", "ABC")
    assert run(other, unbroken, *GUIDE) == EXIT_WRONG_CALL
    told = " ".join(capsys.readouterr().err.split())
    assert "guide.institution had 'A', 'B' when this run began, and the tiles that can be drawn now have 'A'" in told


def test_a_run_that_continues_a_guided_one_begins_with_heads_of_its_own(unbroken, tmp_path):
    other = make_shards(tmp_path / "other", "ABC")
    assert run(other, tmp_path / "new", *STILL, "schedule.steps=1", begin_with=f"{unbroken}@4") == 0
    mine, theirs = tensors(tmp_path / "new", 1), tensors(unbroken, 4)
    assert mine["student.guide.institution.mlp.4.weight"].shape[0] == 3
    assert torch.equal(mine["student.backbone.vit.norm.weight"], theirs["student.backbone.vit.norm.weight"])
    assert (tmp_path / "new/recipe.json").is_file()
    assert run(other, tmp_path / "bare", *STILL, "schedule.steps=1", *_none(), begin_with=f"{unbroken}@4") == 0
    assert not [name for name in tensors(tmp_path / "bare", 1) if ".guide." in name]


def _none():
    return [f"{change.partition('=')[0]}=0" for change in GUIDE if change.startswith("guide.")]


def test_a_recipe_from_before_there_were_guides_is_one_without(unbroken, tmp_path):
    saved = json.loads((unbroken / "recipe.json").read_text())
    del saved["guide"], saved["schedule"]["guide_ramp"], saved["saving"]["erase_tiles"], saved["saving"]["erase_px"]
    (tmp_path / "recipe.json").write_text(json.dumps(saved))
    assert load(tmp_path / "recipe.json").guide.wanted == {}


def learnt(world, *changes):
    """The numbers of two steps of this process's share of a batch whose labels are made up, a third of them absent.

    But for a student of a teacher, which has no anchor, they are anchored.
    """
    anchor = [] if any(change.startswith("teacher=") for change in changes) else ["objective.gram_weight=5"]
    made = changed(recipe("debug"), [*TINY, *GUIDE, "schedule.guide_ramp=0", *anchor, *changes])
    learner = Learner(made, world, fields=supposed_fields(made.guide))
    learner.prepare()
    share = made.sampling.batch // world.size
    own = slice(world.rank * share, (world.rank + 1) * share)
    found = []
    for step in range(2):
        rng = np.random.default_rng(step)
        tiles = torch.from_numpy(rng.integers(0, 256, (made.sampling.batch, 3, 392, 392), np.uint8))
        labels = [rng.integers(0, 16, len(tiles)) * (rng.random(len(tiles)) < 0.7) - 1 for _ in range(3)]
        labels.append(np.where(rng.random(len(tiles)) < 0.7, rng.normal(size=len(tiles)), np.nan).astype(np.float32))
        seen = learner.learn(tiles[own], Places(0, step, np.arange(own.start, own.stop)), [one[own] for one in labels])
        found.append({name: value.item() for name, value in seen.items()})
    return found


WAYS = {"ddp": (), "fsdp": ("compute.parallel=fsdp",), "in parts": ("compute.accumulate=2",)}


def _one_of_two(rank, folder, teacher):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/meeting", 2), rank=rank, world_size=2)
    for name, changes in _with_distillation(teacher).items():
        seen = learnt(World(rank, 2, torch.device("cpu")), *changes)
        if not rank:
            (folder / f"{name}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


def _with_distillation(teacher):
    return {**WAYS, "distilled": (f"teacher={teacher}", "compute.parallel=fsdp")}


def test_figures_do_not_change_with_how_the_batch_is_cut(unbroken, tmp_path):
    in_processes(_one_of_two, tmp_path, str(unbroken))
    alone = World(0, 1, torch.device("cpu"))
    usual = learnt(alone)
    for name, changes in _with_distillation(unbroken).items():
        seen = json.loads((tmp_path / f"{name}.json").read_text())
        wanted = learnt(alone, *changes) if name == "distilled" else usual
        if name == "in parts":  # in which targets see each other only: what is sent for them differs, and the next step
            kept = [k for k in usual[0] if ("guide" in k and "ratio" not in k) or k == "loss_gram"]
            seen, wanted = ([{k: row[k] for k in kept} for row in rows[:1]] for rows in (seen, usual))
        for mine, theirs in zip(seen, wanted, strict=True):
            assert mine == pytest.approx(theirs, rel=5e-4, abs=1e-6), name
    assert usual[0]["loss_guide_institution"] > 0
    assert usual[0]["loss_gram"] > 1e-3


def test_a_guided_training_is_planned_by_the_loops_own_step():
    made = changed(
        recipe("debug"),
        ["sampling.batch=4", "backbone.depth=1", "guide.institution=0.1", "guide.focus=0.1", "guide.stain=-1"],
    )
    seen, width, hidden = simulate(made, 2), made.backbone.width, 256
    heads = sum((width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * outputs for outputs in (16, 1))
    assert seen.at_rest["parameters"] - seen.at_rest["EMA model"] == 4 * heads


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("guide.scanner=nan", r"guide.scanner is a number"),
        ("saving.erase_tiles=0", r"saving.erase_tiles must be at least 1"),
        ("saving.erase_px=393", r"saving.erase_px 393 is not between 1 and 392"),
        ("saving.erase_px=13", r"saving.erase_px 13 holds no patch of 14 px"),
    ],
)
def test_numbers_that_cannot_guide_are_refused(change, says):
    with pytest.raises(BadOption, match=says):
        changed(recipe("debug"), [change])


@pytest.fixture(scope="module")
def erased(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "erased"
    assert run(shards, folder, *ERASE) == 0
    return folder


def of_eraser(folder, step=2):
    return {name: value for name, value in tensors(folder, step).items() if "eraser" in name}


def test_what_erases_a_field_is_in_the_average_alone_and_nothing_learns_otherwise(shards, erased, tmp_path):
    assert run(shards, tmp_path / "plain", "schedule.steps=2") == 0
    mine, theirs = tensors(erased, 2), tensors(tmp_path / "plain", 2)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert mine.keys() - theirs.keys() == {f"average.backbone.eraser.{part}" for part in ("into", "out", "offset")}
    assert mine["average.backbone.eraser.into"].shape == (4, 2, 32, 2 + 1)  # two classes and a number
    with_it, without = load_run(erased)[0], load_run(tmp_path / "plain")[0]
    tiles = torch.rand(2, 3, 56, 56)
    with torch.no_grad():
        assert without.eraser is None
        assert not torch.allclose(with_it([tiles])[0].embedding, without([tiles])[0].embedding, atol=1e-3)
        with_it.eraser = None
        assert torch.equal(with_it([tiles])[0].embedding, without([tiles])[0].embedding)


def test_an_erased_run_goes_on_to_the_bit_with_other_hospitals_too(shards, erased, tmp_path):
    assert run(shards, tmp_path / "run", *ERASE, stop_at=1) == 0
    assert run(shards, tmp_path / "run", *ERASE) == 0
    mine, theirs = of_eraser(tmp_path / "run"), of_eraser(erased)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    other = make_shards(tmp_path / "other", "ABC")
    assert run(other, tmp_path / "more", *ERASE[:4], *STILL, "schedule.steps=1", begin_with=f"{erased}@2") == 0
    assert of_eraser(tmp_path / "more", 1)["average.backbone.eraser.into"].shape[-1] == 3 + 1


def test_means_of_hospitals_are_equal_in_what_an_erased_run_embeds(shards, erased):
    """Of the run's own tiles, cut as it cut them, with their labels."""
    made = load(erased / "recipe.json")
    with world("cpu") as alone:
        index = open_index((str(shards),), erased.parent / "index")
        batches, labels = Trainer(made, Sampler(index, made.sampling), erased, alone)._to_erase_over()
        crops = [batch for batch, _ in batches]
        z = labels()
    backbone = load_run(erased)[0].eval()
    sites = z[:, :1]  # the column of the first hospital

    def told(backbone):
        with torch.no_grad():
            found = torch.cat([backbone([batch])[0].embedding for batch in crops]).double()
        return ((found - found.mean(0)).T @ sites / len(found)).abs().max() / found.std()

    assert told(backbone) < 1e-4
    backbone.eraser = None
    assert told(backbone) > 1e-3


@pytest.mark.long
def test_processes_together_erase_as_one_alone(shards, tmp_path):
    still = (*ERASE, *STILL, "schedule.steps=1")
    assert run(shards, tmp_path / "one", *still) == 0
    words = command(shards, tmp_path / "two", *still, "compute.parallel=fsdp", "compute.accumulate=2", processes=2)
    subprocess.run(words, check=True, cwd=ROOT, timeout=120)
    mine, theirs = of_eraser(tmp_path / "two", 1), of_eraser(tmp_path / "one", 1)
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-4)
    assert load_run(tmp_path / "two")[0].eraser is not None


def test_a_student_of_a_teacher_is_erased_too(shards, unbroken, tmp_path):
    assert run(shards, tmp_path / "student", *ERASE, "schedule.steps=1", f"teacher={unbroken}") == 0
    assert load_run(tmp_path / "student")[0].eraser is not None


def test_a_run_that_erases_is_not_exported(erased, tmp_path, capsys):
    assert export(["--folder", str(erased), "--to", str(tmp_path / "model")]) == EXIT_WRONG_CALL
    told = " ".join(capsys.readouterr().err.split())
    assert f"use the run itself, as make embed MODEL={erased}" in told
    assert "Traceback" not in told
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        (lambda out: torch.full_like(out, float("nan")), "an eraser with NaN"),
        (lambda out: out[:1].clone(), r"cannot be read \(average.backbone.eraser.out is \(1, 2, 32, 3\) there"),
    ],
)
def test_an_eraser_is_checked_when_it_is_loaded(erased, tmp_path, spoilt, says):
    shutil.copytree(erased, tmp_path / "run")
    for file in (tmp_path / "run/checkpoints/step-00000002").glob("*.safetensors"):
        held = load_file(file)
        if (name := "average.backbone.eraser.out") in held:
            save_file(held | {name: spoilt(held[name])}, file)
    with pytest.raises(BadRun, match=says):
        load_run(tmp_path / "run")
