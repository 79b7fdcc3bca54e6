"""Stages as part of a recipe: set, shown, saved and taken out; what no stage may change, each with its reason."""

import dataclasses
import json

import pytest
import torch

from pipelines.recipe import main
from pretrain.train.branch import prolonged
from pretrain.train.recipe.overrides import at_step, changed
from pretrain.train.recipe.pieces import pieces, tiles_drawn
from pretrain.train.recipe.recipe import differences, flat, load, save
from pretrain.train.recipe.recipes import RECIPES, debug, recipe
from tests.support.labelled_tiles import small_backbone
from wsi_prep.errors import BadOption

LATE = [
    *("stages.150.schedule.rate=1e-3", "stages.100.views.crops.global_px=168", "stages.100.sampling.batch=8"),
    *(
        "stages.100.sampling.mix.40x=0.5",
        "stages.100.views.crops.scale=0.95, 1.05",
        "stages.100.objective.gram_weight=2",
    ),
]


def test_each_piece_is_the_recipe_with_all_that_has_changed_before():
    made = changed(debug(), LATE)
    by_hand = [change.removeprefix("stages.100.") for change in LATE[1:]]
    expected = [debug(), changed(debug(), by_hand), changed(debug(), [*by_hand, "schedule.rate=0.001"])]
    assert [piece.recipe for piece in pieces(made)] == expected
    assert [(piece.start, piece.stop) for piece in pieces(made)] == [(0, 100), (100, 150), (150, 200)]
    assert [at_step(made, step) for step in (99, 100, 199)] == expected
    assert [tiles_drawn(made, steps) for steps in (0, 99, 102, 200)] == [0, 99 * 16, 100 * 16 + 16, 100 * 16 + 100 * 8]


def test_stages_are_set_one_by_one_saved_and_taken_out(tmp_path):
    made = changed(changed(debug(), LATE[:3]), LATE[3:])
    assert made == changed(debug(), list(reversed(LATE)))
    save(made, tmp_path / "recipe.json")
    assert load(tmp_path / "recipe.json") == made
    assert flat(made)["stages.100.views.crops.scale"] == "0.95,1.05"
    assert changed(made, ["stages.100=none", "stages.150=none"]) == debug()
    other = changed(made, ["stages.150.schedule.rate=0.002"])
    assert differences(other, made) == ["stages.150.schedule.rate: 0.001 -> 0.002"]
    assert differences(changed(made, ["stages.150.compute.accumulate=2"]), made) == []


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_has_stages_and_files_of_before_have_none(name, tmp_path):
    assert recipe(name).stages == ()
    values = dataclasses.asdict(recipe(name))
    del values["stages"]
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    assert load(tmp_path / "recipe.json") == recipe(name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("stages.9.backbone.width=32", "no stage may change backbone.width: the network stays as it is; positions are"),
        ("stages.9.objective.head.prototypes=64", "no stage may change objective.head.prototypes: heads stay"),
        ("stages.9.objective.targets=centre", "no stage may change objective.targets: it decides"),
        ("stages.9.guide.stain=0.1", "no stage may change guide.stain: a guide's heads learn from the first step"),
        ("stages.9.sampling.seed=1", "no stage may change sampling.seed: which tiles there are"),
        ("stages.9.schedule.steps=20", "no stage may change schedule.steps: the schedule's length and shape"),
        ("stages.9.optim.kind=adamw", "no stage may change optim.kind: the optimizer stays as it is"),
        ("stages.9.saving.every=1", "no stage may change saving.every: it may change whenever a run continues"),
        ("stages.9.compute.parallel=ddp", "no stage may change compute.parallel: it may change whenever"),
        ("stages.9.start_from=a", "no stage may change start_from: a run begins but once"),
        ("stages.9.schedule.rat=1", "no setting is named 'schedule.rat'; did you mean schedule.rate?"),
        ("stages.9.schedule.rate=fast", "schedule.rate is a number, not 'fast'"),
        (
            "stages.9.views.crops.global_px=57",
            "from step 9 on: crops of 57 px (views.crops.global_px) do not divide into patches of 14 px",
        ),
        ("stages.9.views.crops.global_px=392", "from step 9 on: crops of 392 px"),
        ("stages.200.schedule.rate=1", "the stage from step 200 on begins after the last of 200 steps"),
        ("stages.0.schedule.rate=1", "a stage begins at step 1 or later, not at 0"),
        ("stages.late.schedule.rate=1", "names no step; write stages.STEP.name=value"),
        ("stages.9=none", "no stage begins at step 9"),
        ("stages.9=5", "stages.9 is taken out by stages.9=none"),
        ("stages=5", "write stages.STEP.name=value"),
        ("stages.9.stages.10.schedule.rate=1", "no setting is named"),
    ],
)
def test_what_no_stage_can_be_is_refused_with_the_reason(change, says):
    with pytest.raises(BadOption) as refused:
        changed(debug(), [change])
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([{"start": 9, "changes": ["backbone.width=32"]}], "no stage may change backbone.width"),
        ([{"start": 9, "changes": []}], "changes nothing"),
        ([{"start": 9, "changes": ["schedule.rate"]}], "changes nothing"),
        ([{"start": True, "changes": ["schedule.rate=1"]}], "stages.start is a whole number"),
        ([{"start": n, "changes": ["schedule.rate=1"]} for n in (9, 9)], "which do not rise"),
        ({"start": 9}, "stages is several values"),
        ([{"start": n, "changes": ["schedule.rate=1"]} for n in range(1, 34)], "33 stages are more than 32"),
    ],
)
def test_stages_of_a_file_are_not_trusted(stages, says, tmp_path):
    values = dataclasses.asdict(debug()) | {"stages": stages}
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    with pytest.raises(BadOption) as refused:
        load(tmp_path / "recipe.json")
    assert says in str(refused.value)


def test_a_stage_may_be_added_taken_out_or_moved_where_a_run_has_not_come_yet():
    saved = changed(debug(), ["stages.50.schedule.rate=0.001"])
    for change in ("stages.80.objective.gram_weight=1", "stages.50=none", "stages.50.schedule.rate=0.002"):
        asked = changed(saved, [change])
        assert prolonged(asked, saved, 50) == asked
        assert (prolonged(asked, saved, 51) == asked) == change.startswith("stages.80")
    assert prolonged(changed(saved, ["stages.80.schedule.rate=1", "views.crops.local_px=28"]), saved, 1) is None


def test_the_command_shows_stages_by_the_names_that_set_them(capsys):
    assert main(["--recipe", "debug"]) == 0
    assert "# no stages; SET=stages.STEP.name=value" in capsys.readouterr().out
    assert main(["--recipe", "debug", "--set", *LATE]) == 0
    said = capsys.readouterr().out
    assert "stages.100.views.crops.global_px=168" in said
    assert "# from step 100 on: " in said
    given = [line.split("  #")[0].strip() for line in said.splitlines() if line.startswith("stages.")]
    assert changed(debug(), given) == changed(debug(), LATE)


def test_larger_crops_get_positions_resampled_from_those_of_the_embedding():
    """As for crops of any size: the parameter stays as it is, and what is learnt of larger crops goes into it."""
    backbone = small_backbone()
    with torch.no_grad():
        backbone.vit.pos_embed.copy_(torch.randn(backbone.vit.pos_embed.shape))
        backbone.vit.patch_embed.proj.weight.zero_()
    embedded = backbone._embed(torch.zeros(1, 3, 28, 28), None)[0]
    bias = backbone.vit.patch_embed.proj.bias
    grid = backbone.vit.pos_embed[0, 1:].T.reshape(1, 32, 2, 2)
    expected = torch.nn.functional.interpolate(grid, size=(4, 4), mode="bicubic", antialias=True)[0].flatten(1).T
    assert torch.allclose(embedded[1:], expected + bias, atol=1e-5)
    embedded.square().sum().backward()
    assert backbone.vit.pos_embed.grad[0, 1:].abs().min() > 0
