"""Weights, runs and recipes that somebody else made: one line each, before anything is built, or what they are."""

import json
import os
import pickle
import resource
import struct
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.compute.tensor_files import open_tensors
from pretrain.features.embedder import of_timm
from pretrain.model.backbone import Backbone, BackboneSettings
from pretrain.model.weights.load import load_backbone, released_backbone, shapes_of
from tests.support.hostile_files import Trap, flood, refused
from tests.support.released_weights import CONFIG, agree, backbone, folder_of, released, without

import timm  # isort: skip - pretrain has made it importable

WHOLE = without("")


def zeros(*shape, **options):
    return torch.zeros(*shape, **options)


STRANGE = {
    "a block far away": ({"blocks.999999999.x": zeros(1)}, "block 999999999 and no block 2"),
    "a block of 5000 digits": ({"blocks." + "9" * 200 + ".x": zeros(1)}, "which is no number"),
    "a block by name": ({"blocks.first.x": zeros(1)}, "'first', which is no number"),
    "a block with a zero before it": ({"blocks.01.x": zeros(1)}, "'01', which is no number"),
    "a gap": ({f"blocks.7.{n[9:]}": v.clone() for n, v in WHOLE.items() if n.startswith("blocks.0.")}, "no block 2"),
    "positions of no side": ({"pos_embed": zeros(17)}, "pos_embed of shape 17"),
    "positions of no square": ({"pos_embed": zeros(1, 12, 32)}, "12 tokens"),
    "no position": ({"pos_embed": zeros(1, 0, 32)}, "each from 1 up"),
    "positions of another width": ({"pos_embed": zeros(1, 17, 31)}, "not 32 wide"),
    "registers of one side": ({"reg_token": zeros(4)}, "reg_token of shape 4"),
    "registers of another width": ({"reg_token": zeros(1, 4, 31)}, "not 32 wide"),
    "no register": ({"reg_token": zeros(1, 0, 32)}, "reg_token of shape 1 x 0 x 32"),
    "width 0": ({"patch_embed.proj.weight": zeros(0, 3, 14, 14)}, "each from 1 up"),
    "patch 0": ({"patch_embed.proj.weight": zeros(32, 3, 0, 0)}, "each from 1 up"),
    "patch 2^30 of nothing": ({"patch_embed.proj.weight": zeros(0, 3, 2**30, 2**30)}, "each from 1 up"),
    "patches that are not square": ({"patch_embed.proj.weight": zeros(32, 3, 14, 7)}, "3 x px x px"),
    "one colour": ({"patch_embed.proj.weight": zeros(32, 1, 14, 14)}, "3 x px x px"),
    "a vector as patches": ({"patch_embed.proj.weight": zeros(32)}, "of shape 32"),
    "another width": ({"patch_embed.proj.weight": zeros(30, 3, 14, 14)}, "not 30 wide"),
    "a vector as MLP": ({"blocks.0.mlp.fc1.weight": zeros(128)}, "of shape 128"),
    "a transposed matrix": ({"blocks.1.mlp.fc1.weight": zeros(32, 128)}, "32 x 128; in this ViT it is 128 x 32"),
    "attention of another width": ({"blocks.1.attn.qkv.weight": zeros(64, 32)}, "in this ViT it is 96 x 32"),
    "NaN": ({"norm.weight": torch.full((32,), float("nan"))}, "norm.weight with NaN"),
    "infinite": ({"blocks.0.norm1.bias": torch.full((32,), float("-inf"))}, "with NaN or infinite"),
    "beyond float32": ({"norm.weight": torch.full((32,), 1e300, dtype=torch.float64)}, "float32 cannot hold"),
    "whole numbers": ({"norm.weight": zeros(32, dtype=torch.int64)}, "norm.weight as I64"),
    "flags": ({"norm.weight": zeros(32, dtype=torch.bool)}, "norm.weight as BOOL"),
    "8 bits": ({"norm.weight": zeros(32, dtype=torch.float8_e4m3fn)}, "norm.weight as F8_E4M3"),
    "two of one name": ({"backbone.norm.weight": zeros(32)}, "holds norm.weight twice"),
    "a query alone": ({"encoder.layer.0.attention.attention.query.weight": zeros(32, 32)}, "once each"),
    "a name that steers": ({"\x1b[2J": zeros(1)}, r"'\\x1b\[2J'"),
    "a name without end": ({"x" * 4000: zeros(1)}, "no name of a ViT's"),
}


@pytest.mark.parametrize(("more", "said"), STRANGE.values(), ids=STRANGE)
def test_a_header_of_no_vit_is_refused_by_what_is_wrong(tmp_path, more, said):
    folder = folder_of(tmp_path, WHOLE | more, {"config.json": CONFIG})
    refused(released_backbone, folder, match=said)


def test_a_tensor_far_away_takes_no_memory(tmp_path):
    """It took 14 GB, for a file of 0.2 MB."""
    folder = folder_of(tmp_path, WHOLE | {"blocks.999999999.x": torch.zeros(1)}, {"config.json": CONFIG})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(released_backbone, folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def sparse_header(file):
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", 20 << 30))
        opened.truncate(21 << 30)


def lying(header, data=b""):
    def write(file):
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data)

    return write


def one(shape, begin, end, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


FILES = {
    "longer header than file": flood,
    "20 GB of header, in a file that is as long": sparse_header,
    "bytes that are not there": lying({"a": one([10], 0, 40)}),
    "overlapping": lying({"a": one([2], 0, 8), "b": one([2], 4, 12)}, bytes(12)),
    "a hole": lying({"a": one([1], 0, 4), "b": one([1], 8, 12)}, bytes(12)),
    "twice": lying({"a": one([1], 0, 4), "b": one([1], 0, 4)}, bytes(4)),
    "a product that overflows": lying({"a": one([2**33, 2**33], 0, 4)}, bytes(4)),
    "negative": lying({"a": one([-1], 0, 4)}, bytes(4)),
    "no dtype": lying({"a": one([1], 0, 4, "F99")}, bytes(4)),
    "more bytes than shape": lying({"a": one([1], 0, 8)}, bytes(8)),
    "nested": lambda file: file.write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000),
    "a folder": lambda file: file.mkdir(),
    "a pipe": os.mkfifo,
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "a link in a ring": lambda file: file.symlink_to(file),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_a_file_that_lies_or_never_ends_is_one_line(tmp_path, write, suffix):
    file = tmp_path / f"w{suffix}"
    write(file)
    refused(load_backbone, backbone(), file)
    refused(open_tensors, file, match="w" + suffix)


def torch_zip(file, content, *, compress=zipfile.ZIP_STORED, twice=False):
    """A file as torch.save writes it, with another pickle."""
    torch.save({"a": torch.zeros(1)}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    (name,) = (name for name in parts if name.endswith("data.pkl"))
    with zipfile.ZipFile(file, "w", compress) as archive:
        for part, data in parts.items():
            archive.writestr(part, content if part == name else data)
        if twice:
            archive.writestr(name.replace("data.pkl", "DATA.PKL"), content)


def hash_bomb():
    """A key of tuples that hold one another twice: its hash takes 2^60 steps."""
    key = b"N\x85q\x00" + b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60))
    return b"\x80\x02}" + key + b"Ns."


PICKLES = {
    "code": lambda file, trap: torch_zip(file, pickle.dumps({"a": trap}, 2)),
    "code by another way": lambda file, trap: torch_zip(file, pickle.dumps({"a": trap}, 4)),
    "code, compressed": lambda file, trap: torch_zip(file, pickle.dumps({"a": trap}, 2), compress=zipfile.ZIP_DEFLATED),
    "a second pickle": lambda file, trap: torch_zip(file, pickle.dumps({}, 2), twice=True),
    "no zip": lambda file, trap: file.write_bytes(pickle.dumps(trap)),
    "a hash without end": lambda file, _: torch_zip(file, hash_bomb()),
    "a bytearray": lambda file, _: torch_zip(file, pickle.dumps({"a": bytearray(10)}, 2)),
    "an expanded tensor": lambda file, _: torch.save({"a": torch.zeros(1).expand(10**12)}, file),
    "a sparse tensor": lambda file, _: torch.save({"a": torch.eye(3).to_sparse()}, file),
    "numbers as names": lambda file, _: torch.save({1: torch.zeros(1)}, file),
    "a list": lambda file, _: torch.save([torch.zeros(1)], file),
}


@pytest.mark.parametrize("write", PICKLES.values(), ids=PICKLES)
def test_a_pickle_that_is_no_table_of_tensors_is_not_run(tmp_path, write):
    file, sprung = tmp_path / "w.pth", tmp_path / "sprung"
    write(file, Trap(sprung))
    refused(load_backbone, backbone(), file, match="w.pth")
    assert not sprung.exists()


CONFIGS = {
    "no heads": {"num_attention_heads": 0},
    "heads that do not divide": {"num_attention_heads": 5},
    "a billion heads": {"num_attention_heads": 10**9},
    "heads as text": {"num_attention_heads": "2"},
    "half a head": {"model_args": {"num_heads": 0.5}},
    "true": {"num_attention_heads": True},
    "arguments that are none": {"model_args": 3},
    "an architecture that is fetched": {"architecture": "hf-hub:some/where"},
    "an architecture by number": {"architecture": 7},
    "nothing": {},
    "a list": [],
    "colours as text": CONFIG | {"pretrained_cfg": {"mean": "x" * 100_000}},
    "colours without end": CONFIG | {"mean": [0.485] * 100_000},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_config_of_nonsense_is_one_line(tmp_path, config):
    refused(released_backbone, folder_of(tmp_path, WHOLE, {"config.json": config}))


NO_JSON = [b"[" * 100_000, b'{"num_attention_heads": NaN}', b"\xff\xfe", b" " * (5 << 20), b"9" * 9999]


@pytest.mark.parametrize("text", NO_JSON, ids=range(len(NO_JSON)))
def test_a_config_that_is_no_json_is_one_line(tmp_path, text):
    folder_of(tmp_path, WHOLE, {})
    (tmp_path / "config.json").write_bytes(text)
    refused(released_backbone, tmp_path, match=r"config\.json")


def test_a_config_that_is_a_pipe_is_not_waited_for(tmp_path):
    folder_of(tmp_path, WHOLE, {})
    os.mkfifo(tmp_path / "config.json")
    refused(released_backbone, tmp_path, match="no plain file")


SIZES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.sampled_from([8, 14]))


@settings(max_examples=8, deadline=None)
@given(SIZES, st.booleans(), st.booleans(), st.sampled_from([0, 1e-5]))
def test_any_vit_that_can_be_is_read_whole(tmp_path_factory, sizes, swiglu, qk, scale):
    """Of whatever size, what is read is what was written, tensor for tensor; and every shape is foretold."""
    width, depth, registers, patch = sizes
    made = BackboneSettings(16 * width, depth, 2, 3.0, swiglu, registers, qk, scale, 0.0, patch, 3 * patch)
    vit = Backbone(made).vit
    with torch.no_grad():
        for value in vit.parameters():
            value.normal_()
    config = {"num_attention_heads": 2}
    folder = folder_of(tmp_path_factory.mktemp("vit"), vit.state_dict(), {"config.json": config})
    found = released_backbone(folder)
    shapes = {name: tuple(value.shape) for name, value in found.vit.state_dict().items()}
    assert shapes | {"mask_token": (16 * width,)} == shapes_of(made)
    for name, value in vit.state_dict().items():
        torch.testing.assert_close(found.vit.state_dict()[name], value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_read_as_what_they_are(tmp_path, dtype):
    vit = released().to(dtype)
    ours = released_backbone(folder_of(tmp_path, vit.state_dict(), {"config.json": CONFIG}))
    agree(ours.eval(), vit.float())


SIDES = {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 32}
TIMM = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}, "model_args": SIDES}
TIMM_WRONG = {
    "depth": ({"model_args": {"depth": 10**9}}, "depth 1000000000"),
    "width": ({"model_args": {"embed_dim": 10**9}}, "embed_dim"),
    "a list of depths": ({"architecture": "convnext_tiny", "model_args": {"depths": [900] * 4}}, "depths"),
    "a list without end": ({"model_args": {"depths": [1] * 10**6}}, "depths"),
    "more than the file": ({"model_args": {"depth": 20, "embed_dim": 1024, "num_heads": 2}}, "asks for a model of"),
    "infinite": ({"model_args": {"mlp_ratio": 1e999}}, "no number"),
    "large": ({"model_args": {"mlp_ratio": 1e9}}, "mlp_ratio"),
    "a record": ({"model_args": {"norm_layer": {"a": 1}}}, "norm_layer"),
    "another file": ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "names no model|asks for"),
    "a side": ({"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}}, "input_size"),
    "a mean of text": ({"pretrained_cfg": {"mean": "abc"}}, "says mean abc; it is three numbers"),
    "a mean of one": ({"pretrained_cfg": {"mean": [0.5]}}, "says mean"),
    "a mean of nobody": ({"pretrained_cfg": {"mean": {"a": 1}}}, "says mean"),
    "a std of nothing": ({"pretrained_cfg": {"std": [0, 0.5, 0.5]}}, "three numbers, above 0"),
    "not strict": ({"model_args": SIDES | {"pretrained_strict": False}}, "pretrained_strict"),
    "nobody": ({"architecture": "no_such_model"}, "no model that timm can make"),
    "no name": ({"architecture": None}, "no architecture"),
}


@pytest.mark.parametrize(("changes", "said"), TIMM_WRONG.values(), ids=TIMM_WRONG)
def test_a_folder_for_timm_is_looked_at_before_timm_builds_it(tmp_path, changes, said):
    folder = folder_of(tmp_path, {"a": torch.zeros(10)}, {"config.json": TIMM | changes})
    refused(of_timm, f"local-dir:{folder}", match=said)


def test_a_folder_for_timm_that_is_whole_is_what_it_was(tmp_path):
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SIDES).eval()
    folder = folder_of(tmp_path, vit.state_dict(), {"config.json": TIMM | {"num_classes": 0}})
    crops = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    tokens = vit.forward_features((crops - mean) / std)
    expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
    torch.testing.assert_close(of_timm(f"local-dir:{folder}").features(crops), expected)


def test_a_folder_for_timm_that_lacks_a_tensor_gives_no_features_by_chance(tmp_path):
    """Its config allows it, and another tensor has as many numbers."""
    tensors = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SIDES).state_dict()
    tensors["spare"] = tensors.pop("blocks.0.attn.qkv.weight")
    config = TIMM | {"num_classes": 0, "model_args": SIDES | {"pretrained_strict": False}}
    refused(of_timm, f"local-dir:{folder_of(tmp_path, tensors, {'config.json': config})}", match="pretrained_strict")


def test_only_safetensors_is_read_of_a_folder_for_timm(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    sprung = tmp_path / "sprung"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung)))
    refused(of_timm, f"local-dir:{tmp_path}", match=r"model\.safetensors")
    assert not sprung.exists()
