"""Runs and recipes that somebody else made: one line each, before anything is built, or what they are."""

import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pretrain.compute import distributed
from pretrain.errors import BadRun
from pretrain.model.backbone import Backbone, BackboneSettings
from pretrain.model.weights.load import shapes_of
from pretrain.train.export import export
from pretrain.train.recipe import recipe as recipes
from pretrain.train.recipe.overrides import changed
from pretrain.train.recipe.recipes import debug
from pretrain.train.runs import load_run
from tests.support.hostile_files import Trap, flood, refused
from wsi_prep.errors import BadOption


def run_folder(folder, tensors=None, **backbone_settings):
    """A RUN folder with one checkpoint as training leaves it, of a small ViT that learned nothing."""
    made = replace(debug(), backbone=BackboneSettings(width=32, depth=2, heads=2, image_px=112))
    at = folder / "checkpoints/step-00000003"
    at.mkdir(parents=True)
    state = {f"average.backbone.{name}": value.clone() for name, value in Backbone(made.backbone).state_dict().items()}
    save_file(state | (tensors or {}), at / "shard-00001-model-00001-of-00001.safetensors")
    (at / "state.json").write_text(json.dumps({"version": 2, "step": 3, "files": {}}))
    values = json.loads(json.dumps(recipes.dataclasses.asdict(made)))
    values["backbone"] |= backbone_settings
    (folder / "recipe.json").write_text(json.dumps(values))
    return folder


def test_a_run_of_others_is_read_without_a_pickle(tmp_path):
    folder = run_folder(tmp_path / "run")
    sprung = tmp_path / "sprung"
    for name in (".metadata", "model.bin", "x.pt"):
        (folder / "checkpoints/step-00000003" / name).write_bytes(pickle.dumps(Trap(sprung)))
    found, step = load_run(folder)
    assert step == 3
    assert len(found.vit.blocks) == 2
    assert not sprung.exists()


PIECE = "average.backbone.vit.norm.weight"


@pytest.mark.parametrize(
    ("tensors", "changes", "said"),
    [
        ({}, {"depth": 1000}, r"blocks\.2\..* is None there"),
        ({}, {"width": 16384}, "by recipe.json"),
        ({}, {"depth": 10**9}, "depth"),
        ({}, {"width": 0}, "width"),
        ({}, {"image_px": 2**30}, "image_px"),
        ({PIECE: torch.zeros(31)}, {}, r"\(31,\) there"),
        ({PIECE: torch.full((32,), float("nan"))}, {}, "NaN"),
        ({PIECE: torch.zeros(32, dtype=torch.int64)}, {}, "no floating-point numbers"),
        ({PIECE: torch.zeros(32, dtype=torch.float8_e4m3fn)}, {}, "no floating-point numbers"),
    ],
)
def test_a_run_whose_files_and_recipe_disagree_is_one_line(tmp_path, tensors, changes, said):
    folder = run_folder(tmp_path / "run", tensors, **changes)
    refused(load_run, folder, match=said, error=(BadRun, BadOption))


def test_pieces_that_overlap_or_lack_are_no_tensor(tmp_path):
    sharding = {"a": {"saved_offsets": [8]}}
    metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(sharding)}
    save_file({"a": torch.zeros(4)}, tmp_path / "shard-00001.safetensors", metadata)
    with pytest.raises(ValueError, match="a is incomplete"):
        distributed.saved_shapes(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("/dev/zero"), flood])
def test_a_checkpoint_that_never_ends_is_one_line(tmp_path, make):
    folder = run_folder(tmp_path / "run")
    make(folder / "checkpoints/step-00000003/more.safetensors")
    refused(load_run, folder, error=BadRun)


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": "x" * 100}],
        [{"loss": 1.0}],
        [7],
        [{"step": 1, "loss": [1]}],
        [{"step": 1, "loss\x1b[2J": 1}],
        [{"step": 1, "loss": "| a |\n# b"}],
    ],
)
def test_the_card_of_a_run_shows_no_metric_that_is_none(tmp_path, rows):
    folder = run_folder(tmp_path / "run")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    state = {"drawn": [{"drawn": 3, "stain": "HE\n# shouted", "magnification": "20x"}]}
    (folder / "checkpoints/step-00000003/state.json").write_text(json.dumps(state))
    export(folder, tmp_path / "to")
    card = (tmp_path / "to/README.md").read_text()
    assert "No metrics were kept." in card
    assert "What was drawn is not known" in card


# recipes


def spoiled(name, value):
    """debug's recipe as JSON, with one value replaced."""
    values = json.loads(json.dumps(recipes.dataclasses.asdict(debug())))
    *way, last = name.split(".")
    inside = values
    for step in way:
        inside = inside[step]
    inside[last] = value
    return json.dumps(values)


WRONG = [
    *(("backbone.depth", value) for value in (10**9, 0, -1, 1.5, True, "4", None, [], 10**400, 1e400)),
    *(("backbone.width", value) for value in (0, -96, 10**9, 95)),
    *(("backbone.patch_px", value) for value in (2**30, 0)),
    *(("backbone.mlp_ratio", value) for value in (1e18, 0, -1, "4")),
    *(("sampling.batch", value) for value in (10**12, 0, "all")),
    *(("schedule.rate", value) for value in (float("nan"), float("inf"), -1, "fast", True)),
    *(("schedule.steps", value) for value in (10**18, 0)),
    *(("schedule.momentum", value) for value in ([], [1], [1, 1, 1], "ab", {"a": 1}, [0.9, float("nan")])),
    *(("views.crops.global_px", value) for value in (2**30, 0)),
    *(("views.crops.local_crops", value) for value in (10**9, -1)),
    *(("objective.head.prototypes", value) for value in (2**40, 0)),
    *(("objective.head.layers", value) for value in (10**9, 0)),
    *(("objective.kappa", value) for value in (float("nan"), 0)),
    *(("sampling.mix", value) for value in ({"20x": float("nan")}, {"7x": 1}, [], {"20x": "1"}, {"\x1b[2J": 1})),
    *(("loader.threads", value) for value in (10**9, -1)),
    *(("compute.threads", value) for value in (10**9, -1)),
    ("name", "\x1b[2J"),
    ("teacher", "x" * 10_000),
    ("schedule", 3),
    ("schedule.speed", 1),
    ("views.mask", {}),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: str(value)[:20])
def test_a_recipe_of_nonsense_is_one_line_that_names_it(tmp_path, name, value):
    file = tmp_path / "recipe.json"
    file.write_text(spoiled(name, value))
    refused(recipes.load, file, error=BadOption)
    if type(value) in (int, float) and name != "schedule.speed":
        refused(changed, debug(), [f"{name}={value}"], error=BadOption)


def test_an_unknown_setting_is_told_the_nearest(tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(spoiled("backbone.widht", 96))
    refused(recipes.load, file, match=r"did you mean backbone\.width\?", error=BadOption)


ENDLESS = {
    "a pipe": os.mkfifo,
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "nested": lambda file: file.write_bytes(b"[" * 10**6),
    "a folder": lambda file: file.mkdir(),
}


@pytest.mark.parametrize("write", ENDLESS.values(), ids=ENDLESS)
def test_a_recipe_that_never_ends_is_one_line(tmp_path, write):
    write(tmp_path / "recipe.json")
    refused(recipes.load, tmp_path / "recipe.json", error=BadOption)


def test_a_network_that_no_memory_holds_is_refused_before_it_is_made():
    from pretrain.train.learner import _require_room

    large = changed(debug(), ["backbone.width=16384", "backbone.heads=64", "backbone.depth=25"])
    refused(_require_room, large, 1, match="M parameters.* takes .* GB of memory", error=BadOption)
    assert _require_room(debug(), 1) is None


def test_what_settings_say_of_their_parameters_is_near_the_truth():
    for made in recipes_by_name():
        real = sum(np.prod(shape) for shape in shapes_of(made.backbone).values())
        assert made.backbone.parameters == pytest.approx(real, rel=0.02)


def recipes_by_name():
    from pretrain.train.recipe.recipes import RECIPES

    return [make() for make in RECIPES.values()]
