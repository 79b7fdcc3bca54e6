"""Folders that timm builds a model of (`local-dir:FOLDER`), looked at before it does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pretrain.compute.tensor_files import open_tensors
from pretrain.errors import BadWeights
from pretrain.model.weights.load import read_config
from wsi_prep.errors import first_line

import timm  # isort: skip - weights has made it importable

PREFIX = "local-dir:"
_LARGEST, _DEEPEST, _LONGEST_LIST, _LARGEST_PX = 65_536, 1000, 64, 4096
_LEAST_STD = 1e-4
_DEPTHS = ("depth", "layer", "block", "stage", "repeat", "num")


def check_timm_folder(folder: Path) -> None:
    """Raise BadWeights unless config.json asks for a model of sizes that can be, whose numbers model.safetensors holds.

    The model is made without memory first. timm itself reads the weights then.
    """
    config = read_config(folder / "config.json")
    where = folder / "config.json"
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
    file = open_tensors(folder / "model.safetensors")
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(f"{PREFIX}{folder}", pretrained=False, num_classes=0)
    except Exception as error:  # of timm and its models, each with errors of its own
        reason = first_line(error)
        raise BadWeights(f"{where} names no model that timm can make: {reason[:200]}") from error
    wants = sum(parameter.numel() for parameter in model.parameters())
    has = sum(math.prod(info.shape) for info in file.tensors.values())
    if wants > has:
        raise BadWeights(f"{where} asks for a model of {wants:,} numbers, and {file.path.name} holds {has:,}")


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
