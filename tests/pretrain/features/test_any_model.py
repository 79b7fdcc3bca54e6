"""Features of shards by models of others: what timm itself computes of the same pixels, and whose they are."""

import io
import json
import re
import socket

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

from pipelines.embed import main
from pretrain.errors import BadWeights
from pretrain.features.embedder import Inference, of_backbone, width_at
from pretrain.features.kept_features import FeatureRecord
from pretrain.model.backbone import Backbone, BackboneSettings
from pretrain.train.runs import load_embedder
from tests.support.paths import ROOT
from tests.support.released_weights import folder_of, released
from tests.support.shard_folders import add_slide
from wsi_prep.format.magnifications import TILE_PX

import timm  # isort: skip - backbone has made it importable

MEAN, STD = [0.6, 0.5, 0.4], [0.2, 0.25, 0.3]
SIZES = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 16}
VIT = "vit_small_patch16_224"


def picture(slide, magnification, index):
    """Smooth, so that JPEG keeps it, and another one in each place and channel."""
    at = np.arange(TILE_PX) / 60
    waves = [np.sin(at[:, None] * (1 + channel) + index) + np.cos(at * (2 + channel)) for channel in range(3)]
    return np.clip(128 + 60 * np.stack(waves, axis=2), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "out"
    add_slide(out, 1, {"20x": 3}, picture)
    return out


def local(folder, architecture, **arguments):
    """A folder as timm writes it, and timm's own model."""
    folder.mkdir()
    torch.manual_seed(4)
    model = timm.create_model(architecture, num_classes=0, **arguments).eval()
    side = arguments.get("img_size", 160)
    asked = {"input_size": [3, side, side], "mean": MEAN, "std": STD, "num_classes": 0}
    asked |= {name: model.pretrained_cfg[name] for name in ("first_conv", "classifier")}
    config = {"architecture": architecture, "num_classes": 0, "model_args": arguments, "pretrained_cfg": asked}
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}", model


def embed(shards, model, to, *more):
    return main(["--shards", str(shards), "--model", model, "--to", str(to), "--threads", "1", "--batch", "2", *more])


def features(to):
    return np.array(ds.dataset(to / "parquet").to_table()["features"].to_pylist(), np.float32)


def tiles(shards, prepare):
    """(n, 3, h, w), normalised as the card asks, read by Pillow, of what `prepare` makes of each image."""
    images = []
    for row in ds.dataset(shards / "catalog/tiles").to_table().to_pylist():
        jpeg = (shards / row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["nbytes"]]
        images.append(np.asarray(prepare(Image.open(io.BytesIO(jpeg)).convert("RGB")), np.float32) / 255)
    normalised = (np.stack(images) - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(normalised).permute(0, 3, 1, 2)


def middle(px):
    begin = (TILE_PX - px) // 2
    return lambda image: image.crop((begin, begin, begin + px, begin + px))


def class_and_mean(model, crops, prefix=1):
    with torch.no_grad():
        tokens = model.forward_features(crops)
    return torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=1).numpy()


@pytest.mark.parametrize(("more", "px"), [((), 384), (("--px", "100"), 96)])  # whole patches of 16 px
def test_a_vit_of_any_size_sees_the_middle_at_its_own_scale(shards, tmp_path, more, px):
    name, model = local(tmp_path / "vit", VIT, img_size=64, dynamic_img_size=True, reg_tokens=2, **SIZES)
    assert embed(shards, name, tmp_path / "to", *more) == 0
    expected = class_and_mean(model, tiles(shards, middle(px)), prefix=3)
    np.testing.assert_allclose(features(tmp_path / "to"), expected, atol=1e-4)


def resized(image):
    return image.resize((64, 64), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("more", "prepare"), [((), resized), (("--px", "64"), middle(64))])
def test_a_vit_of_one_size_sees_the_whole_tile_resized_or_its_middle(shards, tmp_path, more, prepare):
    name, model = local(tmp_path / "vit", VIT, img_size=64, **SIZES)
    assert embed(shards, name, tmp_path / "to", *more) == 0
    np.testing.assert_allclose(features(tmp_path / "to"), class_and_mean(model, tiles(shards, prepare)), atol=1e-4)
    assert "resized to 64 px" in json.loads((tmp_path / "to/features.json").read_text())["features"]


@pytest.mark.parametrize(
    ("architecture", "arguments", "px"),
    [
        ("test_resnet", {}, 392),
        (VIT, SIZES | {"img_size": 64, "class_token": False, "reg_tokens": 2, "global_pool": "avg"}, 0),
    ],
    ids=["convolutions", "registers without a class token"],
)
def test_a_network_without_a_class_token_gives_what_its_classifier_gets(shards, tmp_path, architecture, arguments, px):
    name, model = local(tmp_path / "model", architecture, **arguments)
    assert embed(shards, name, tmp_path / "to") == 0
    with torch.no_grad():
        expected = model(tiles(shards, middle(px) if px else resized)).numpy()
    np.testing.assert_allclose(features(tmp_path / "to"), expected, atol=1e-4)
    assert "classifier" in json.loads((tmp_path / "to/features.json").read_text())["features"]


def rewrite(folder, model, **says):
    """Other weights than those that the folder was made with, and what its config.json says beside its options."""
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | says
    config["pretrained_cfg"] |= says
    (folder / "config.json").write_text(json.dumps(config))


GATED = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
SCALED = {"init_values": 0.5}


@pytest.mark.parametrize("more", [GATED, SCALED, GATED | SCALED], ids=["gated", "layer scale", "both"])
@pytest.mark.parametrize("classes", [0, 5])
def test_what_config_json_does_not_say_of_a_vit_is_seen_in_its_weights(shards, tmp_path, more, classes):
    arguments = SIZES | {"img_size": 64, "mlp_ratio": 4.0, "dynamic_img_size": True}
    name, _ = local(tmp_path / "other", VIT, **arguments)
    model = timm.create_model(VIT, num_classes=classes, **arguments, **more).eval()
    rewrite(tmp_path / "other", model, num_classes=classes)
    assert embed(shards, name, tmp_path / "to", "--px", "96") == 0
    np.testing.assert_allclose(features(tmp_path / "to"), class_and_mean(model, tiles(shards, middle(96))), atol=1e-4)


@pytest.mark.parametrize("classes", [0, 5])
def test_weights_that_the_model_has_no_place_for_are_no_models(tmp_path, classes):
    name, _ = local(tmp_path / "other", VIT, img_size=64, **SIZES)
    model = timm.create_model(VIT, num_classes=classes, img_size=64, qk_norm=True, **SIZES)
    rewrite(tmp_path / "other", model, num_classes=classes)
    with pytest.raises(BadWeights, match="q_norm"):
        load_embedder(name)


def test_a_classifier_that_is_not_in_the_weights_is_not_missed(tmp_path):
    name, model = local(tmp_path / "model", VIT, img_size=64, **SIZES)
    rewrite(tmp_path / "model", model, num_classes=5)
    crops = torch.rand(2, 3, 64, 64)
    normalised = (crops - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        found = load_embedder(name).features(crops).numpy()
    np.testing.assert_allclose(found, class_and_mean(model, normalised), atol=1e-5)


def test_other_models_features_do_not_mix(shards, tmp_path, capsys):
    one, _ = local(tmp_path / "one", VIT, img_size=64, **SIZES)
    other, _ = local(tmp_path / "other", "test_resnet")
    assert embed(shards, one, tmp_path / "to") == 0
    assert embed(shards, other, tmp_path / "to") == 2
    assert "model: local-dir:one (weights" in capsys.readouterr().err
    assert str(tmp_path) not in (tmp_path / "to/features.json").read_text()  # a folder's place is nobody's business
    assert embed(shards, one, tmp_path / "to") == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_name_that_nobody_knows_is_one_line(shards, tmp_path, capsys):
    assert embed(shards, "no_such_model", tmp_path / "to") == 2
    assert capsys.readouterr().err == (
        "embed: no_such_model is no folder, and timm cannot make it: Unknown model (no_such_model)\n"
    )
    assert not (tmp_path / "to").exists()


def test_a_tile_that_the_network_does_not_take_is_said_before_anything_is_written():
    embedder = of_backbone(Backbone(BackboneSettings(width=8, depth=1, heads=2, patch_px=14, image_px=28)))
    assert width_at(embedder, 28, Inference(torch.device("cpu"))) == 16
    with pytest.raises(BadWeights, match="does not take tiles of 30 px"):
        width_at(embedder, 30, Inference(torch.device("cpu")))


def test_a_folder_of_weights_is_loaded_by_its_path_or_text(tmp_path):
    vit = released()
    config = {"architecture": "vit_small_patch14_dinov2", "model_args": {"num_heads": 2}}
    folder = folder_of(tmp_path, vit.state_dict(), {"config.json": config})
    for where in (folder, str(folder)):
        assert load_embedder(where).features(torch.rand(1, 3, 56, 56)).shape == (1, 64)


def test_features_of_our_own_models_that_were_made_before_count_as_made():
    backbone = Backbone(BackboneSettings(width=8, depth=1, heads=2, patch_px=14, image_px=28))
    with torch.no_grad():
        for number, parameter in enumerate(backbone.parameters()):
            parameter.fill_(number / 64)
    embedder = of_backbone(backbone)
    assert embedder.digest == "8d9f3573ffc78d6ecd8113a6adb56eed"
    record = FeatureRecord(embedder.digest, 392, None, "float32", embedder.what)
    assert record.digest == "1b424ef0e536567fe94b8e2e386bbfca"


def unreachable(patch):
    """A hub that nobody listens for; in between, the port was ours."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        patch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.augreg_in21k", "hf-hub:nobody/nothing"])
def test_without_a_network_a_model_to_download_is_refused_at_once(shards, name, tmp_path, monkeypatch, capfd):
    unreachable(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    before = constants.HF_HUB_OFFLINE
    assert embed(shards, name, tmp_path / "to") == 2
    said = capfd.readouterr().err
    assert f"{name} has not been downloaded here, and {constants.ENDPOINT} cannot be reached" in said
    assert "local-dir:FOLDER" in said
    assert "Retrying" not in said
    assert said.count("\n") == 1
    assert before == constants.HF_HUB_OFFLINE


def test_without_a_network_a_folder_is_still_taken(shards, tmp_path, monkeypatch):
    unreachable(monkeypatch)
    name, _ = local(tmp_path / "model", VIT, img_size=64, **SIZES)
    assert embed(shards, name, tmp_path / "to", "--px", "64") == 0
    assert features(tmp_path / "to").shape == (3, 64)  # class token and mean patch token


def test_features_meet_their_patients_as_the_page_says(tmp_path, monkeypatch, capsys):
    for number, patient in ((1, "p"), (2, "q"), (3, "p")):
        folder = {"file_folder": f"site/{number}"} if number < 3 else {}  # two of one name
        given = {"patient_key": patient, "file": "1.svs" if number < 3 else "3.svs", **folder}
        add_slide(tmp_path / "shards", number, {"20x": number}, picture, **given)
    (tmp_path / "slides.csv").write_text("slide,patient\n/data/site/1/1.svs,Ann\n2/1.svs,Bob\n3.svs,Ann\n")
    name, _ = local(tmp_path / "model", VIT, img_size=64, **SIZES)
    assert embed(tmp_path / "shards", name, tmp_path / "features", "--px", "64") == 0
    page = (ROOT / "docs/training.md").read_text()
    (block,) = (code for code in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "features/parquet" in code)
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(block, scope)  # noqa: S102 - our own document
    table = ds.dataset(tmp_path / "features/parquet").to_table().to_pylist()
    owners = {
        row["slide_id"]: (row["file_folder"], row["file"])
        for row in ds.dataset(tmp_path / "shards/catalog/slides").to_table().to_pylist()
    }
    of = {"p": (("site/1", "1.svs"), (None, "3.svs")), "q": (("site/2", "1.svs"),)}
    assert set(scope["means"]) == set(of)
    for patient, files in of.items():
        mine = np.array([row["features"] for row in table if owners[row["slide_id"]] in files])
        assert len(mine) == {"p": 4, "q": 2}[patient]
        np.testing.assert_allclose(scope["means"][patient], mine.mean(0), rtol=1e-5)
    assert dict(scope["names"]) == {"p": "Ann", "q": "Bob"}
