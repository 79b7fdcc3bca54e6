"""Models that timm builds with their weights; folders (`local-dir:FOLDER`) are looked at before it does."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from pretrain.compute.tensor_files import open_tensors
from pretrain.errors import BadWeights
from pretrain.model.weights.load import read_config
from wsi_prep.errors import first_line

import timm  # isort: skip - weights has made it importable
from timm.layers.mlp import SwiGLUPacked  # isort: skip

PREFIX = "local-dir:"
_LARGEST, _DEEPEST, _LONGEST_LIST, _LARGEST_PX = 65_536, 1000, 64, 4096
_LEAST_STD = 1e-4
_REACHED_WITHIN = 5.0
"""Seconds for the hub to answer at all."""
_GATED: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
_LOADING = "Error(s) in loading state_dict for "
_TOLD: tuple[tuple[re.Pattern[str], dict[str, Any]], ...] = (
    (re.compile(r"size mismatch for \S*\.mlp\."), _GATED),
    (re.compile(r"Unexpected key\(s\) [^\n]*\.ls1\.gamma\""), {"init_values": 1e-5}),
)
"""What the errors of loading say of a ViT."""
_CLASSIFIER_ALONE = re.compile(
    re.escape(_LOADING)
    + r'\w+:\s+Unexpected key\(s\) in state_dict: ("(head|fc\.|classifier|last_linear)[^"]*"(, |\. *))+\s*'
)
_DEPTHS = ("depth", "layer", "block", "stage", "repeat", "num")


def timm_model(name: str) -> nn.Module:
    """A model of timm with its released weights, without a classifier, in eval mode: a name as timm takes it.

    What its config.json leaves out and its weights tell, it gets: gated MLPs (Virchow2's), which no config.json of timm
    can say, and layer scale (UNI's). Every other tensor must have its place. Raises BadWeights.
    """
    if name.startswith(PREFIX):
        _check_timm_folder(Path(name.removeprefix(PREFIX)))
    try:
        with contextlib.nullcontext() if name.startswith(PREFIX) else _offline_where_unreachable():
            return _made(name).eval()
    except LocalEntryNotFoundError as error:
        raise BadWeights(
            f"{name} has not been downloaded here, and {constants.ENDPOINT} cannot be reached; download its folder "
            f"elsewhere and name it as {PREFIX}FOLDER, or name the folder of a run of yours"
        ) from error
    except _OtherTensors as error:
        raise BadWeights(f"{name} holds weights of another model than its config.json says ({error})") from error
    except Exception as error:  # of timm, the hub and the network, each with errors of its own
        reason = first_line(error)
        raise BadWeights(f"{name} is no folder, and timm cannot make it: {reason}") from error


@contextlib.contextmanager
def _offline_where_unreachable() -> Iterator[None]:
    """Around what asks the hub: where it does not answer, only what was downloaded before is used, at once.

    The hub's own client would ask for each file again and again, for a minute or more.
    """
    before = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=_REACHED_WITHIN)
    except Exception:  # of the client that the hub's library has, of the network, or that it is offline
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


class _OtherTensors(Exception):
    """Tensors of the weights and of the model that do not fit together, in a line."""


def _made(name: str) -> nn.Module:
    """The same, with timm's errors."""
    try:
        return _strict(name)
    except RuntimeError as error:
        said = str(error)
        if _LOADING not in said:
            raise
        told: dict[str, Any] = {}
        for pattern, options in _TOLD:
            told |= options if pattern.search(said) else {}
        unfit = _OtherTensors(" ".join(said.splitlines()[1:2]).strip()[:200])
        if not told:
            raise unfit from error
        try:
            return _strict(name, **told)
        except (RuntimeError, TypeError):
            raise unfit from error


def _strict(name: str, **options: Any) -> nn.Module:
    """Every tensor of the weights must have its place, but for those of a classifier.

    Asked for no classifier where a model has one, timm would pass over all that does not fit.
    """
    try:
        return timm.create_model(
            name, pretrained=True, num_classes=0, pretrained_cfg_overlay={"num_classes": 0}, **options
        )
    except RuntimeError as error:
        if not _CLASSIFIER_ALONE.fullmatch(str(error)):
            raise
        return timm.create_model(name, pretrained=True, num_classes=0, **options)


def _check_timm_folder(folder: Path) -> None:
    """Raise BadWeights unless config.json asks for a model of sizes that can be, whose numbers model.safetensors holds.

    The model is made without memory first. timm itself reads the weights then.
    """
    where = folder / "config.json"
    _check_config(where)
    file = open_tensors(folder / "model.safetensors")
    has = sum(math.prod(info.shape) for info in file.tensors.values())
    try:
        wants = _numbers_of(folder)
    except Exception as error:  # of timm and its models, each with errors of its own
        reason = first_line(error)
        raise BadWeights(f"{where} names no model that timm can make: {reason[:200]}") from error
    if wants > has and _numbers_when_gated(folder) > has:
        raise BadWeights(f"{where} asks for a model of {wants:,} numbers, and {file.path.name} holds {has:,}")


def _numbers_of(folder: Path, **options: Any) -> int:
    with torch.device("meta"):
        model: Any = timm.create_model(f"{PREFIX}{folder}", pretrained=False, num_classes=0, **options)
    return sum(parameter.numel() for parameter in model.parameters())


def _numbers_when_gated(folder: Path) -> float:
    """With gated MLPs; without end for a network that has none."""
    try:
        return _numbers_of(folder, **_GATED)
    except Exception:  # of timm's models, each with errors of its own
        return math.inf


def _check_config(where: Path) -> None:
    config = read_config(where)
    if not isinstance(config.get("architecture"), str):
        raise BadWeights(f"{where} names no architecture, as timm writes it")
    arguments, told = config.get("model_args", {}), config.get("pretrained_cfg", config)
    if not isinstance(arguments, dict) or not isinstance(told, dict):
        raise BadWeights(f"{where} is not of timm")
    for name, value in arguments.items():
        _check_argument(where, name, value)
    for name in ("input_size", "test_input_size", "min_input_size"):
        if (sides := told.get(name)) is not None and not _is_size(sides):
            raise BadWeights(f"{where} says {name} {str(sides)[:60]}; it is [3, px, px], of at most {_LARGEST_PX} px")
    _check_normalisation(where, told)


def _check_normalisation(where: Path, told: dict[str, object]) -> None:
    for name, least in (("mean", -math.inf), ("std", _LEAST_STD)):
        three = told.get(name)
        if three is not None and not _is_three(three, least):
            raise BadWeights(
                f"{where} says {name} {str(three)[:60]}; it is three numbers{', above 0' * (name == 'std')}"
            )


def _is_three(values: object, least: float) -> bool:
    """Whether these are three numbers of at least so much, one a colour."""
    return (
        isinstance(values, list)
        and len(values) == 3
        and all(type(value) in (int, float) and least <= value <= _LARGEST for value in values)
    )


def _check_argument(where: Path, name: str, value: object) -> None:
    if name.startswith("pretrained"):  # timm's own, as whether tensors may be missing, which would be random numbers
        raise BadWeights(f"{where} says {name[:60]!r}, which is no size or part of a model; remove it")
    numbers = list(_numbers(value, 0))
    deep = any(word in name for word in _DEPTHS)
    if any(map(math.isnan, numbers)) or len(numbers) > _LONGEST_LIST:
        raise BadWeights(f"{where} says {name[:60]!r} in a way that timm does not write")
    large = max((abs(number) for number in numbers), default=0)
    if not large <= _LARGEST or (deep and sum(map(abs, numbers)) > _DEEPEST):
        raise BadWeights(f"{where} says {name[:60]} {str(value)[:60]}, which no model has")


def _numbers(value: object, depth: int) -> Iterator[float]:
    """The numbers of a value; NaN for what is no plain value."""
    if isinstance(value, (list, tuple)) and depth < 3:
        for each in value[: _LONGEST_LIST + 1]:
            yield from _numbers(each, depth + 1)
    elif isinstance(value, (int, float)):
        yield float(value) if abs(value) <= _LARGEST else math.inf
    elif not (value is None or (isinstance(value, str) and len(value) <= _LARGEST)):
        yield math.nan


def _is_size(sides: object) -> bool:
    return (
        isinstance(sides, list)
        and len(sides) == 3
        and all(type(side) is int and 1 <= side <= _LARGEST_PX for side in sides)
    )
