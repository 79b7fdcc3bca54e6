"""Import this before timm or torchvision: lets them be imported beside a CPU build of torch.

PyPI's torchvision is built for CUDA. Beside a CPU torch its library does not load, and its import ends with "operator
torchvision::nms does not exist" although nobody here calls that operator. Naming the two operators is enough.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def torchvision_loads() -> bool:
    """Whether torchvision's own library can be loaded (or there is no torchvision at all)."""
    found = importlib.util.find_spec("torchvision")
    if not found or not found.origin:
        return True
    libraries = list(Path(found.origin).parent.glob("_C*.so"))
    try:
        for library in libraries:
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return bool(libraries)


if not torchvision_loads():
    for _name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, _name):
            torch.library.define(f"torchvision::{_name}", _BOXES)
