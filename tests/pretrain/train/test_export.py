"""An exported run is what timm makes of the folder: the same tokens, by timm alone and by the Virchow2 card's words."""

import json
import os
import re
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from pipelines.embed import main as embed
from pipelines.export import main
from pretrain.model.backbone import VisionTransformer
from pretrain.model.torchvision_schemas import torchvision_loads
from pretrain.train.metrics import read_metrics
from pretrain.train.runs import load_embedder, load_run
from tests.support.training import make_shards, run

import timm  # isort: skip - pretrain has made it importable
from timm.layers import SwiGLUPacked  # isort: skip

pytestmark = pytest.mark.slow

SWIGLU = "backbone.swiglu=true"
KINDS = {
    "plain": ["backbone.layer_scale=0"],
    "virchow2": [SWIGLU, "backbone.mlp_ratio=5.25", "backbone.registers=4", "backbone.layer_scale=1e-5"],
    "virchow2g": [SWIGLU, "backbone.mlp_ratio=6.5", "backbone.registers=8", "backbone.qk_norm=true"],
}


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    shards = make_shards(folder / "out")
    assert run(shards, folder / "run", "schedule.steps=2", *KINDS[request.param]) == 0
    assert main(["--folder", str(folder / "run"), "--to", str(folder / "model"), "--licence", "apache-2.0"]) == 0
    return folder


def agree(model, folder, px):
    images = torch.randn(2, 3, px, px)
    backbone, _ = load_run(folder / "run")
    with torch.no_grad():
        tokens = model.eval()(images)
        ours = backbone.eval()([images])[0]
    prefix = backbone.prefix
    torch.testing.assert_close(tokens[:, 0], ours.cls, rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens[:, prefix:], ours.patches, rtol=0, atol=1e-5)
    embedding = torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=-1)
    torch.testing.assert_close(embedding, ours.embedding, rtol=0, atol=1e-5)


@pytest.mark.parametrize("px", [56, 84])
def test_timm_alone_gives_the_same_tokens(exported, px):
    model = timm.create_model(f"local-dir:{exported / 'model'}", pretrained=True)
    assert isinstance(model, VisionTransformer)
    agree(model, exported, px)


def test_the_words_of_the_virchow2_card_load_it(exported):
    if SWIGLU not in KINDS[exported.name.rstrip("0")]:
        pytest.skip("the card is of a model with SwiGLU")
    name = f"local-dir:{exported / 'model'}"
    agree(timm.create_model(name, pretrained=True, mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU), exported, 56)


def test_timm_prepares_images_as_training_did(exported):
    model = timm.create_model(f"local-dir:{exported / 'model'}", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    assert list(config["mean"]) == [0.485, 0.456, 0.406]
    assert list(config["std"]) == [0.229, 0.224, 0.225]
    assert list(config["input_size"]) == [3, 56, 56]


def test_the_cards_lines_run_where_nothing_of_ours_is(exported, tmp_path):
    if "virchow2g" not in str(exported):
        pytest.skip("once is enough, with registers")
    card = (exported / "model/README.md").read_text()
    example, beside_a_cpu_torch = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    code = ("" if torchvision_loads() else beside_a_cpu_torch) + example.replace("FOLDER", str(exported / "model"))
    code = f"import sys; sys.modules['pretrain'] = sys.modules['wsi_prep'] = None\n{code}"
    code += "from safetensors.torch import save_file; save_file({'images': images, 'found': embedding}, 'said')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    said = load_file(tmp_path / "said")
    with torch.no_grad():
        expected = load_embedder(exported / "run").features(said["images"])
    torch.testing.assert_close(said["found"], expected, rtol=0, atol=1e-5)


def test_the_card_says_what_the_run_knows(exported):
    card = (exported / "model/README.md").read_text()
    assert "license: apache-2.0" in card
    assert "| magnification | " in card
    assert "backbone.width=32" in card
    assert "slide1" not in card
    assert str(exported) not in card
    assert json.loads((exported / "model/config.json").read_text())["model_args"]["embed_dim"] == 32


def test_the_card_of_an_earlier_step_says_what_was_known_then(tmp_path):
    shards = make_shards(tmp_path / "out")
    changes = ("schedule.steps=4", "saving.every=2", "saving.keep=4")
    assert run(shards, tmp_path / "run", *changes) == 0
    cards = []
    for step in (2, 4):
        to = tmp_path / f"model-{step}"
        assert main(["--folder", str(tmp_path / "run"), "--to", str(to), "--step", str(step)]) == 0
        cards.append((to / "README.md").read_text())
    rows = {row["step"]: row for row in read_metrics(tmp_path / "run")}
    for card, last in zip(cards, (1, 3), strict=True):
        assert f"| loss | {rows[last]['loss']:.4g} |" in card
    drawn = json.loads((tmp_path / "run/checkpoints/step-00000002/state.json").read_text())["drawn"]
    shares = [sum(row["drawn"] for row in drawn if row["magnification"] == m) / 16 for m in ("20x", "10x")]
    assert all(f"{mag} {share:.1%}" in cards[0] for mag, share in zip(("20x", "10x"), shares, strict=True))


def test_a_folder_with_something_in_it_is_left_alone(exported, capsys):
    assert main(["--folder", str(exported / "run"), "--to", str(exported / "model")]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.fixture
def readable_by_the_group():
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("readable_by_the_group")
def test_the_group_may_read_all_that_is_made(tmp_path):
    shards, to = make_shards(tmp_path / "out"), tmp_path / "made"
    to.mkdir()
    assert run(shards, to / "run", "schedule.steps=1") == 0
    assert main(["--run", str(to / "run"), "--to", str(to / "model")]) == 0
    words = ["--model", str(to / "model"), "--shards", str(shards), "--to", str(to / "features"), "--px", "56"]
    assert embed(words) == 0
    found = {str(path.relative_to(to)): path for path in to.rglob("*")}
    for name in ("model/model.safetensors", "run/recipe.json", "features/features.json"):
        assert name in found
    modes = {name: stat.S_IMODE(path.stat().st_mode) for name, path in found.items()}
    assert modes == {name: 0o750 if path.is_dir() else 0o640 for name, path in found.items()}
