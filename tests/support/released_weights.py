"""Weights as others release them."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from pretrain.model.backbone import Backbone, BackboneSettings, VisionTransformer

CONFIG = {"architecture": "vit_small_patch14_dinov2", "model_args": {"num_heads": 2}}


def released(registers=0, px=56, **options):
    """A narrow DINOv2 ViT as timm builds it, with weights that are all different from their beginnings."""
    torch.manual_seed(1)
    vit = VisionTransformer(
        img_size=px, patch_size=14, embed_dim=32, depth=2, num_heads=2, init_values=1e-5, num_classes=0, global_pool="",
        reg_tokens=registers, dynamic_img_size=True, **options,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return vit.eval()


def backbone(registers=0, px=56, **options):
    torch.manual_seed(2)
    return Backbone(BackboneSettings(width=32, depth=2, heads=2, registers=registers, image_px=px, **options)).eval()


def agree(ours, theirs, px=56):
    crops = torch.randn(2, 3, px, px)
    expected = theirs.forward_features(crops)
    tokens = ours([crops])[0]
    prefix = ours.prefix
    torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.patches, expected[:, prefix:], rtol=1e-5, atol=1e-5)


def folder_of(folder, weights, files):
    save_file(weights, folder / "model.safetensors")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def without(name):
    return {key: value for key, value in released().state_dict().items() if key != name}
