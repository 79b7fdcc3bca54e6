"""Released weights: whatever their layout, the backbone says what the model that they are from says."""

import pytest
import torch
from safetensors.torch import save_file

from pretrain.errors import BadWeights
from pretrain.model.backbone import Backbone, BackboneSettings
from pretrain.model.weights.load import load_backbone, released_backbone
from tests.support.released_weights import CONFIG, agree, backbone, folder_of, released, without
from tests.support.training import make_shards


def as_meta(vit):
    """The names of Meta's repository: class position apart from the class token, registers without positions."""
    state = dict(vit.state_dict())
    rows = torch.zeros(1, 1, 32)
    state["pos_embed"] = torch.cat([rows, state["pos_embed"]], dim=1)
    state["register_tokens"] = state.pop("reg_token")
    return state | {"mask_token": torch.full((1, 32), 0.5)}


def as_hugging_face(vit):
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "reg_token": "embeddings.register_tokens",
    }
    out = {"embeddings.mask_token": torch.full((1, 32), 0.5)}
    for given, value in vit.state_dict().items():
        name = names.get(given, given).replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        name = name.replace("blocks.", "encoder.layer.").replace("attn.proj", "attention.output.dense")
        name = name.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1")
        name = "layernorm." + name.removeprefix("norm.") if name.startswith("norm.") else name
        if "attn.qkv" in name:
            for key, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[name.replace("attn.qkv", f"attention.attention.{key}")] = part.contiguous()
        else:
            out[name] = value
    out["embeddings.position_embeddings"] = torch.cat([torch.zeros(1, 1, 32), vit.pos_embed.detach()], dim=1)
    return out


def test_timms_own_layout(tmp_path):
    vit = released(registers=4)
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    ours = backbone(registers=4)
    loaded = load_backbone(ours, tmp_path)
    assert loaded.missing == ("mask_token",)
    assert (loaded.unused, loaded.resampled) == ((), ())
    agree(ours, vit)


def test_positions_of_the_patches_alone(tmp_path):
    vit = released(registers=4, no_embed_class=True)
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    ours = backbone(registers=4)
    load_backbone(ours, tmp_path)
    agree(ours, vit)


@pytest.mark.parametrize("layout", [as_meta, as_hugging_face])
def test_other_layouts(tmp_path, layout):
    vit = released(registers=4, no_embed_class=True)
    torch.save({"teacher": layout(vit)}, tmp_path / "weights.pth")
    ours = backbone(registers=4)
    loaded = load_backbone(ours, tmp_path / "weights.pth")
    assert loaded.missing == loaded.unused == ()
    assert (ours.mask_token == 0.5).all()
    agree(ours, vit)


def test_positions_are_resampled_to_the_recipes_crops_and_said(tmp_path):
    vit = released(px=112)
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    ours = backbone(px=56)
    loaded = load_backbone(ours, tmp_path)
    assert "resampled: pos_embed" in loaded.lines()
    agree(ours, vit)


def test_another_architecture_is_refused_with_what_to_set(tmp_path):
    save_file(released(registers=4).state_dict(), tmp_path / "model.safetensors")
    ours = Backbone(BackboneSettings(width=48, depth=3, heads=2, image_px=56))
    with pytest.raises(BadWeights, match=r"backbone\.width=32 backbone\.depth=2 backbone\.registers=4"):
        load_backbone(ours, tmp_path)


def test_a_file_with_code_in_it_is_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"cls_token": Trap()}, tmp_path / "weights.pth")
    with pytest.raises(BadWeights, match="holds more than tensors"):
        load_backbone(backbone(), tmp_path / "weights.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense" * 10])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_damaged_files_are_one_clear_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadWeights, match=name) as caught:
        load_backbone(backbone(), tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_whole_is_what_it_was(tmp_path):
    vit = released()
    config = CONFIG | {"pretrained_cfg": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}
    agree(released_backbone(folder_of(tmp_path, vit.state_dict(), {"config.json": config})).eval(), vit)


def test_weights_without_biases_of_queries_are_those_with_zeros(tmp_path):
    vit = released()
    with torch.no_grad():
        for block in vit.blocks:
            block.attn.qkv.bias.zero_()
    weights = {name: value for name, value in vit.state_dict().items() if not name.endswith("attn.qkv.bias")}
    agree(released_backbone(folder_of(tmp_path, weights, {"config.json": CONFIG})).eval(), vit)


@pytest.mark.parametrize(
    ("weights", "files", "reason"),
    [
        (without("norm.weight"), {}, r"lacks norm\.weight"),
        (without("blocks.1.norm2.bias"), {}, r"lacks blocks\.1\.norm2\.bias"),
        (without("pos_embed"), {}, "pos_embed is not in it"),
        (without("") | {"blocks.0.attn.rel_pos": torch.zeros(2)}, {}, r"holds blocks\.0\.attn\.rel_pos"),
        (without("") | {"norm_pre.weight": torch.zeros(32)}, {}, r"holds norm_pre\.weight"),
        (
            without(""),
            {"config.json": CONFIG | {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5]}}},
            r"by \[0\.5, 0\.5, 0\.5\]",
        ),
        (without(""), {"preprocessor_config.json": {"image_std": [0.2, 0.2, 0.2]}}, r"by \[0\.2, 0\.2, 0\.2\]"),
    ],
)
def test_a_folder_that_would_give_other_features_than_its_model_is_refused(tmp_path, weights, files, reason):
    with pytest.raises(BadWeights, match=reason) as caught:
        released_backbone(folder_of(tmp_path, weights, {"config.json": CONFIG} | files))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_begins_from_them_and_says_what_it_took(tmp_path, capsys):
    from tests.support.training import run

    save_file(released().state_dict(), tmp_path / "model.safetensors")
    shards = make_shards(tmp_path / "out")
    change = f"start_from={tmp_path / 'model.safetensors'}"
    assert run(shards, tmp_path / "run", change, "backbone.layer_scale=1e-5", "schedule.steps=2") == 0
    assert "of the backbone are from there" in capsys.readouterr().out
