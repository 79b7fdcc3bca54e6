"""Recipes build, say what is wrong with a change, come back from their file, and have the paper's sizes."""

import dataclasses
import json
from dataclasses import replace

import pytest
import torch

from pretrain.data.sampler import SamplingSettings
from pretrain.model.backbone import make_vit
from pretrain.train.checkpoint import SavingSettings
from pretrain.train.recipe.overrides import changed, shown
from pretrain.train.recipe.recipe import ComputeSettings, LookingSettings, differences, flat, load, save
from pretrain.train.recipe.recipes import RECIPES, debug, recipe, virchow2, virchow2g, virchow2g_mini, vit_s
from wsi_prep.errors import BadOption


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_under_its_name(name):
    assert recipe(name).name == name
    assert recipe(name) == recipe(name)
    assert recipe(name).sampling.batch % 8 == 0


def test_an_unknown_recipe_is_refused_with_those_there_are():
    with pytest.raises(BadOption, match=r"virchow3.*debug, small, vit_s"):
        recipe("virchow3")


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("sampling.batch=32", 32),
        ("schedule.rate=1e-3", 1e-3),
        ("schedule.rate=1", 1.0),
        ("compute.compile=true", True),
        ("compute.compile=False", False),
        ("optim.kind=stable_adamw", "stable_adamw"),
        ("schedule.momentum=0.99,1", (0.99, 1.0)),
        ("views.colour.blur = 1.0, 0.2, 0.3", (1.0, 0.2, 0.3)),
        ("sampling.mix.40x=0.7", 0.7),
        ("sampling.strata=stain", ("stain",)),
        ("sampling.strata=", ()),
        ("sampling.any_mpp=true", True),
        ("objective.head.prototypes=4096", 4096),
        ("views.crops.local_crops=0", 0),
        ("compute.device=cpu", "cpu"),
    ],
)
def test_a_value_of_any_type_is_set_and_nothing_else(change, value):
    name = change.split("=")[0].strip()
    before, after = flat(debug()), flat(changed(debug(), [change]))
    assert after[name] == value
    assert type(after[name]) is type(value)
    assert {key: old for key, old in before.items() if key != name} == {k: v for k, v in after.items() if k != name}


def test_several_changes_are_made_and_the_last_of_one_name_counts():
    out = changed(debug(), ["schedule.steps=5", "sampling.mix.5x=0", "schedule.steps=7"])
    assert (out.schedule.steps, out.sampling.mix["5x"]) == (7, 0.0)
    assert changed(debug(), []) == debug()


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (["backbone.patch_px=16", "views.crops.local_px=96"], ("backbone.patch_px", "views.crops.local_px")),
        (["backbone.width=320", "backbone.heads=5"], ("backbone.width", "backbone.heads")),
        (["views.masking.least=0.6", "views.masking.most=0.7"], ("views.masking.least", "views.masking.most")),
    ],
)
def test_values_that_only_fit_together_can_be_changed_together(changes, names):
    out = flat(changed(vit_s(), changes))
    assert [f"{name}={out[name]}" for name in names] == changes


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("schedule.rat=0.1", "schedule.rate"),
        ("shedule.rate=0.1", "schedule.rate"),
        ("prototypes=1024", "objective.head.prototypes"),
        ("objective.prototypes=1024", "objective.head.prototypes"),
        ("sampling.seeed=3", "sampling.seed"),
        ("sampling.mix.4x=0.5", "sampling.mix.40x"),
        ("loder.threads=2", "loader.threads"),
        ("views.mask.aspect=0.5", "views.masking.aspect"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest(wrong, nearest):
    with pytest.raises(BadOption) as refused:
        changed(debug(), [wrong])
    assert repr(wrong.split("=")[0]) in str(refused.value)
    assert f"did you mean {nearest}?" in str(refused.value)


@pytest.mark.parametrize("wrong", ["name=other", "schedule=5", "schedule.rate.x=5", "sampling.mix=1", "=5", "xyzzy=1"])
def test_what_is_no_setting_is_refused(wrong):
    with pytest.raises(BadOption, match="no setting is named"):
        changed(debug(), [wrong])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("sampling.batch=many", "sampling.batch is a whole number, not 'many'"),
        ("sampling.batch=1.5", "sampling.batch is a whole number, not '1.5'"),
        ("schedule.rate=fast", "schedule.rate is a number, not 'fast'"),
        ("compute.compile=1", "compute.compile is true or false, not '1'"),
        ("schedule.momentum=0.9", "schedule.momentum takes 2 values"),
        ("schedule.momentum=0.9,high", "schedule.momentum is a number, not 'high'"),
        ("sampling.mix.40x=half", "sampling.mix.40x is a number, not 'half'"),
        ("schedule.rate", "sets nothing"),
        ("optim.kind=sgd", "optimizer 'sgd' is not known"),
        ("sampling.density=0.25:1,2", "sampling.density takes 2 values with colons between them, not '2'"),
        ("sampling.density=0.25:1,2:many", "sampling.density is a number, not 'many'"),
        ("sampling.density=0.25:1,2:1", "sampling.any_mpp=true"),
        ("backbone.patch_px=15", "images of 112 px (backbone.image_px) do not divide into patches of 15 px"),
        ("views.crops.local_px=50", "crops of 50 px (views.crops.local_px) do not divide into patches of 14 px"),
        ("compute.device=banana", "device 'banana' is not known; choose cpu or cuda"),
        ("objective.dino_weight=-1", "dino_weight, ibot_weight and spread_weight must be at least 0"),
        ("views.colour.sigma=1,1000", "blur sigma 1 to 1000 px is no range above 0 and up to 392"),
        ("backbone.layer_scale=1e308", "backbone.layer_scale 1e+308 is not between -1e+30 and 1e+30"),
        ("views.crops.aspect=1e9", "crops of 112 px at scale 0.9 and aspect 1000000000.0 need 3.935e+06 px of a tile"),
        ("objective.gram_scale=0.5", "gram_scale 0.5 is not between 1 and 8"),
        ("objective.gram_every=-1", "gram_every and gram_refreshes must be at least 0"),
    ],
)
def test_a_wrong_value_is_refused_and_named(wrong, says):
    with pytest.raises(BadOption) as refused:
        changed(debug(), [wrong])
    assert says in str(refused.value)


@pytest.mark.parametrize("text", ["-5", "0", "1e31", "10000000000000"])
def test_a_number_that_cannot_be_is_refused_by_its_name(text):
    """Of every setting that is a number, or some; a few may be anything."""
    refused = {}
    for name, value in flat(debug()).items():
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or not all(type(number) in (int, float) for number in numbers):
            continue
        try:
            changed(debug(), [f"{name}={','.join([text] * len(numbers))}"])
        except BadOption as error:
            refused[name] = str(error)
    assert len(refused) > 20
    assert [said for name, said in refused.items() if name.rsplit(".", maxsplit=1)[-1] not in said] == []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("objective.gram_scale=1.1", "an anchor's crops of 123.2 px (objective.gram_scale) do not divide into patches"),
        ("teacher=runs/a", "leave out the teacher"),
    ],
)
def test_gram_anchoring_that_cannot_be_is_refused(more, says):
    with pytest.raises(BadOption) as refused:
        changed(debug(), ["objective.gram_weight=2", more])
    assert says in str(refused.value)
    changed(debug(), [more])


@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_recipe_comes_back_equal(name, tmp_path):
    held = changed(recipe(name), ["sampling.mix.40x=0.1", "schedule.decay=0,0.3", "sampling.strata=stain,tissue"])
    save(held, tmp_path / "recipe.json")
    back = load(tmp_path / "recipe.json")
    assert back == held
    assert differences(back, held) == []
    assert [type(value) for value in flat(back).values()] == [type(value) for value in flat(held).values()]


def test_a_file_of_before_goes_on_as_before(tmp_path):
    """Settings that are newer than a run take the value that it was computed with, not that of a new run."""
    held = changed(debug(), ["optim.clip_apart=false", "optim.decay_tokens=false", "views.masking.scattered=true"])
    held = changed(held, ["views.masking.blocks=10", "views.masking.least_block=0", "views.colour.blur=1,0.1,0.5"])
    values = dataclasses.asdict(held)
    for group, names in (
        (values["optim"], ("clip_apart", "decay_tokens")),
        (values["views"]["masking"], ("blocks", "least_block", "scattered")),
        (values["objective"]["head"], ("patch_bottleneck",)),
        (values["compute"], ("loss_mb",)),
    ):
        for name in names:
            del group[name]
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    assert load(tmp_path / "recipe.json") == held


ANY = ["sampling.any_mpp=true", "sampling.density=0.25:1, 0.5:3.5,2:0"]


def test_a_density_is_set_shown_and_saved(tmp_path):
    held = changed(recipe("vit_s"), ANY)
    assert held.sampling.density == ((0.25, 1.0), (0.5, 3.5), (2.0, 0.0))
    assert shown(held.sampling.density) == "0.25:1.0,0.5:3.5,2.0:0.0"
    assert changed(recipe("vit_s"), [ANY[0], f"sampling.density={shown(held.sampling.density)}"]) == held
    save(held, tmp_path / "recipe.json")
    assert load(tmp_path / "recipe.json") == held
    assert differences(load(tmp_path / "recipe.json"), recipe("vit_s"))[:1] == ["sampling.any_mpp: False -> True"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("views.crops.continuous=true", "any_mpp and views.crops.continuous exclude"),
        ("views.crops.resized=true", "any_mpp and views.crops.resized exclude"),
        ("sampling.alone=1.6", r"need 408 px of a tile of 392 at 1.6 times its own um/px; ask for sampling.alone=1.53"),
    ],
)
def test_any_mpp_with_crops_that_it_does_not_go_with_is_refused(more, says):
    with pytest.raises(BadOption, match=says):
        changed(recipe("vit_s"), [*ANY, more])
    assert changed(recipe("vit_s"), [*ANY, "sampling.alone=1.53"]).sampling.alone == 1.53


def nested(values, path, value):
    head, *rest = path
    return {**values, head: nested(values[head], rest, value) if rest else value}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda values: {key: value for key, value in values.items() if key != "sampling"},
        lambda values: {**values, "more": 1},
        lambda values: nested(values, ["schedule", "speed"], 1),
        lambda values: nested(values, ["schedule", "steps"], 0),
        lambda values: nested(values, ["schedule", "rate"], "fast"),
        lambda values: {**values, "schedule": 3},
        lambda values: [values],
        lambda _: None,
    ],
    ids=["missing", "unknown", "unknown inside", "refused", "type", "no record", "list", "null"],
)
def test_a_file_that_is_no_recipe_is_refused_and_named(spoil, tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(spoil(dataclasses.asdict(debug()))))
    with pytest.raises(BadOption, match=r"recipe\.json"):
        load(file)


@pytest.mark.parametrize("text", ["", "{", "\x00\x01"])
def test_a_file_that_is_no_json_is_refused_and_named(text, tmp_path):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(BadOption, match=r"recipe\.json"):
        load(tmp_path / "recipe.json")


def test_differences_are_of_what_is_computed_alone():
    free = replace(
        debug(),
        compute=ComputeSettings(precision="bf16", accumulate=2, threads=3),
        loader=replace(debug().loader, threads=7),
        saving=SavingSettings(every=3),
        looking=LookingSettings(log=1),
    )
    assert differences(free, debug()) == []
    other = changed(free, ["schedule.rate=0.5", "sampling.mix.5x=0", "objective.head.hidden=8"])
    assert set(differences(other, debug())) == {
        "schedule.rate: 0.004 -> 0.5",
        "sampling.mix.5x: 0.2 -> 0.0",
        "objective.head.hidden: 256 -> 8",
    }


@pytest.mark.parametrize("mixes", [({"20x": 1.0}, {"20x": 1.0, "5x": 1.0}), ({"20x": 1.0, "5x": 1.0}, {"20x": 1.0})])
def test_a_mix_of_other_magnifications_is_a_difference(mixes):
    now, saved = (replace(debug(), sampling=SamplingSettings(batch=16, mix=mix)) for mix in mixes)
    found = differences(now, saved)
    assert len(found) == 1
    assert found[0].startswith("sampling.mix.5x:")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "millions", "image_px"), [(virchow2, 631, 224), (virchow2g, 1850, 224), (virchow2g_mini, 22, 518)]
)
def test_backbones_have_the_papers_size(made, millions, image_px):
    """On the meta device: shapes without memory. ViT-S/14 has 22 M with the positions of DINOv2's, at 518 px."""
    with torch.device("meta"):
        vit = make_vit(replace(made().backbone, image_px=image_px))
    assert sum(p.numel() for p in vit.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ("group", "wrong"),
    [
        (ComputeSettings, {"precision": "fp8"}),
        (ComputeSettings, {"parallel": "tp"}),
        (ComputeSettings, {"recompute": "some"}),
        (ComputeSettings, {"accumulate": 0}),
        (SavingSettings, {"every": 0}),
        (SavingSettings, {"keep_hours": float("nan")}),
        (LookingSettings, {"log": 0}),
    ],
)
def test_bad_settings_are_refused(group, wrong):
    (name,) = wrong
    with pytest.raises(BadOption, match=name):
        group(**wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_what_the_command_shows_can_be_given_back_to_it(name, capsys):
    from pipelines.recipe import main

    assert main(["--recipe", name]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    shown = [line.partition("  # ")[0] for line in lines]
    assert all(line.partition("  # ")[2] for line in lines[1:])
    settable = [line for line in shown if not line.startswith("name=")]
    assert len(settable) == len(shown) - 1 > 60
    assert changed(recipe(name), settable) == recipe(name)


@pytest.mark.slow
def test_the_command_says_where_values_come_from(capsys):
    from pipelines.recipe import main

    assert main(["--recipe", "virchow2g", "--set", "optim.clip=1"]) == 0
    said = dict(line.split("#") for line in capsys.readouterr().out.splitlines() if "=" in line and "  # " in line)
    said = {name.split("=")[0]: (name.split("=")[1].strip(), source.strip()) for name, source in said.items()}
    assert said["schedule.rate"] == ("0.0002", "DINOv2 vitl14.yaml and vitg14.yaml")
    assert said["optim.betas"] == ("0.9,0.95", "Virchow2's paper")
    assert said["optim.clip"] == ("1.0", "SET")
    assert said["loader.threads"] == ("0", "ours")


def test_the_command_refuses_what_is_not_there(capsys):
    from pipelines.recipe import main

    assert main(["--recipe", "virchow3"]) == 2
    assert main(["--set", "backbone.widht=8"]) == 2
    assert "did you mean backbone.width?" in capsys.readouterr().err
