"""A run's backbone as a folder that timm loads: config.json, model.safetensors, and a model card made from the run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors.torch import save_file

from pretrain.compute.plain_files import read_json
from pretrain.errors import BadRun
from pretrain.model.backbone import Backbone, BackboneSettings
from pretrain.model.normalise import MEAN, STD
from pretrain.train.checkpoint import STATE, step_folder
from pretrain.train.metrics import read_metrics
from pretrain.train.recipe import recipe as recipes
from pretrain.train.recipe.pieces import tiles_drawn
from pretrain.train.runs import load_run
from wsi_prep.storage.atomic import aside, sync, write_atomically, write_json

# timm's builders with these MLPs; every size is given in model_args
_ARCHITECTURE = {True: "vit_giant_patch14_dinov2", False: "vit_small_patch14_dinov2"}

_MOST_STATE = 64 << 20
_SHOWN = ("magnification", "stain", "tissue")
_NOT_SHOWN = (*recipes.FREE, "start_from", "continue_", "teacher")  # nor any path


def export(run: Path, to: Path, licence: str = "unknown", step: int | None = None) -> int:
    """Write the averaged backbone of the RUN folder into the new folder `to`; returns its step. Raises BadRun."""
    backbone, chosen = load_run(run, step)
    if backbone.mpp_token is not None:
        raise BadRun(
            f"{run} has backbone.mpp_token, and timm's ViT takes no um/px of its tiles; use the run itself, as "
            f"make embed MODEL={run}"
        )
    if backbone.eraser is not None:
        raise BadRun(
            f"{run} erases fields of its guide between its layers, which timm's ViT cannot; use the run itself, as "
            f"make embed MODEL={run}"
        )
    if to.exists() and any(to.iterdir()):
        raise BadRun(f"{to} is not empty; name a new folder")
    unfinished = to.with_name(f".{to.name}.{uuid4().hex}")
    unfinished.mkdir(parents=True)
    weights = {name: value.detach().contiguous() for name, value in backbone.vit.state_dict().items()}
    with aside(unfinished / "model.safetensors") as file:
        save_file(weights, file, metadata={"format": "pt"})
    write_json(unfinished / "config.json", timm_config(backbone.settings))
    write_atomically(unfinished / "README.md", model_card(run, backbone, chosen, licence).encode())
    if to.exists():
        to.rmdir()
    unfinished.rename(to)
    sync(to.parent)
    return chosen


def timm_config(settings: BackboneSettings) -> dict[str, object]:
    """The config.json from which `timm.create_model("local-dir:...", pretrained=True)` builds the same transformer."""
    return {
        "architecture": _ARCHITECTURE[settings.swiglu],
        "num_classes": 0,
        "num_features": settings.width,
        "global_pool": "",
        "model_args": {
            "img_size": settings.image_px,
            "patch_size": settings.patch_px,
            "embed_dim": settings.width,
            "depth": settings.depth,
            "num_heads": settings.heads,
            "mlp_ratio": settings.mlp_ratio,
            "init_values": settings.layer_scale or None,
            "qk_norm": settings.qk_norm,
            "reg_tokens": settings.registers,
            "no_embed_class": False,
            "num_classes": 0,
            "global_pool": "",
            "dynamic_img_size": True,
        },
        "pretrained_cfg": {
            "input_size": [3, settings.image_px, settings.image_px],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(MEAN),
            "std": list(STD),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def model_card(run: Path, backbone: Backbone, step: int, licence: str) -> str:
    """What the run knows of itself, as Markdown with the front matter of model hubs."""
    recipe = recipes.load(run / "recipe.json")
    settings = backbone.settings
    each = f"{recipe.sampling.batch:,} tiles"
    batches = f"{each}, later of others, {tiles_drawn(recipe, step):,} tiles in all" if recipe.stages else each
    millions = sum(p.numel() for p in backbone.vit.parameters()) / 1e6
    lines = [
        "---",
        f"license: {licence}",
        "library_name: timm",
        "tags: [pathology, feature-extraction]",
        "---",
        "",
        f"# {run.name}",
        "",
        f"A vision transformer of {millions:,.1f} M parameters ({settings.width} wide, {settings.depth} deep, "
        f"patches of {settings.patch_px} px, {settings.registers} registers), trained by self-distillation on tiles of "
        f"slides: {step:,} steps of {batches} (recipe `{recipe.name}`).",
        "",
        *_usage(settings),
        "",
        "## What it was shown",
        "",
        *_drawn(run, step),
        "",
        "## How it went",
        "",
        *_figures(run, step),
        "",
        "## Recipe",
        "",
        "```",
        *(f"{name}={value}" for name, value in recipes.flat(recipe).items() if not name.startswith(_NOT_SHOWN)),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _usage(settings: BackboneSettings) -> list[str]:
    """Code that computes embeddings by timm alone, and what it needs."""
    side, patch = settings.image_px, settings.patch_px
    return [
        "```python",
        "import timm, torch",
        "",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()',
        f"images = torch.rand(2, 3, {side}, {side})  # RGB in 0 to 1; sides are any multiple of {patch} px",
        f"mean, std = torch.tensor({list(MEAN)}), torch.tensor({list(STD)})",
        "with torch.no_grad():",
        "    tokens = model((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))  # (B, tokens, width)",
        f"embedding = torch.cat([tokens[:, 0], tokens[:, {1 + settings.registers}:].mean(1)], dim=-1)"
        "  # class token and mean patch",
        "```",
        "",
        "It needs `pip install torch torchvision timm`. Where `import timm` says `operator torchvision::nms does not "
        "exist`, torchvision is of another build than torch, as PyPI's is beside a torch for CPUs. Install both from "
        "one place, or begin again with",
        "",
        "```python",
        "import torch",
        "",
        'boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"',
        'for name in ("nms", "qnms"):',
        '    torch.library.define(f"torchvision::{name}", boxes)',
        "```",
    ]


def _drawn(run: Path, step: int) -> list[str]:
    """Tiles drawn up to the step, by each property of their strata; institutions are counted, not named."""
    try:
        rows = _checked_draws(read_json(step_folder(run / "checkpoints", step) / STATE, _MOST_STATE))
    except (OSError, ValueError):
        return ["What was drawn is not known: the checkpoint does not say it."]
    total = max(sum(row["drawn"] for row in rows), 1)
    lines = ["| property | share of the tiles drawn |", "| --- | --- |"]
    institutions = {row["institution"] for row in rows if "institution" in row}
    lines.append(f"| institutions | {len(institutions) or 'not told apart'} |")
    for name in _SHOWN:
        counts: Counter[str] = Counter()
        for row in rows:
            counts[str(row.get(name, "all"))] += row["drawn"]
        shown = ", ".join(f"{value} {count / total:.1%}" for value, count in counts.most_common(8))
        more = f", and {len(counts) - 8} more" if len(counts) > 8 else ""
        lines.append(f"| {name} | {shown}{more} |")
    return lines


def _checked_draws(state: object) -> list[dict[str, Any]]:
    """The rows of what was drawn; ValueError where they are no counts of strata."""
    rows = state.get("drawn") if isinstance(state, dict) else None
    if not isinstance(rows, list):
        raise ValueError("it does not say what was drawn")  # noqa: TRY004 - of what a file says
    for row in rows:
        if not isinstance(row, dict) or type(row.get("drawn")) is not int or row["drawn"] < 0:
            raise ValueError("it does not count what was drawn")
        shown = [row[name] for name in (*_SHOWN, "institution") if name in row]
        if not all(isinstance(value, str) and value.isprintable() for value in shown):
            raise ValueError("it names a stratum that is no text")
    return rows


def _figures(run: Path, step: int) -> list[str]:
    """The last losses and probes up to the step."""
    try:
        rows = [row for row in read_metrics(run) if row["step"] < step + ("loss" not in row)]
    except (OSError, ValueError):
        return ["No metrics were kept."]
    last: dict[str, float | None] = {}
    for row in rows:
        last |= {name: value for name, value in row.items() if name.startswith(("loss", "probe_", "feature_spread"))}
    lines = ["| figure | last value |", "| --- | --- |"]
    return lines + [f"| {name} | {value:.4g} |" for name, value in sorted(last.items()) if value is not None]
