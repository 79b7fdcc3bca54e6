"""What a plan of training assumes; read by the command line too, so nothing but Python is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from wsi_prep.errors import BadOption

_LEAST, _MOST = 1e-6, 1e12
_SHARES = ("matrix", "bandwidth", "fused", "overlap", "fragmentation")


@dataclass(frozen=True, kw_only=True)
class PlanAssumptions:
    """What no simulation can tell. Money is in any one currency; sizes are decimal (GB is 1e9 bytes)."""

    matrix: float = 0.6
    """Share of the GPU's dense peak that matrix products reach."""

    bandwidth: float = 0.75
    """Share of the memory's and of the links' bandwidth that is reached."""

    fused: float = 0.4
    """With compute.compile: share of the memory traffic outside of matrix products that remains."""

    overlap: float = 0.8
    """Share of the collectives' time that may pass while the GPU computes."""

    launch_us: float = 8.0
    """Time that the host needs to start one operation, in microseconds."""

    network: float | None = None
    """GB/s of each GPU to other machines, one way; without it, as in the GPU's table."""

    per_machine: int = 8
    """GPUs of a machine."""

    reserved_gb: float = 3.0
    """Memory of a GPU that CUDA and NCCL take, in GB."""

    fragmentation: float = 0.07
    """Share of a GPU's memory that is lost between blocks."""

    core_tiles: float = 1000.0
    """Tiles per second that one core reads and decodes; make bench BENCH=feed measures it."""

    price: float = 0.0
    """Price of a GPU for an hour."""

    def __post_init__(self) -> None:
        for each in fields(PlanAssumptions):
            value = getattr(self, each.name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise BadOption(f"{each.name} {value:g} is not a number from 0 on")
            if value is not None and value > _MOST:
                raise BadOption(f"{each.name} {value:g} is above {_MOST:g}")
        for name in _SHARES:
            if getattr(self, name) > 1:
                raise BadOption(f"{name} {getattr(self, name):g} is a share, from 0 to 1")
        for name in ("matrix", "bandwidth", "network", "per_machine", "core_tiles"):
            value = getattr(self, name)
            if value is not None and value < _LEAST:
                what = f"{value:g} is below {_LEAST:g}" if value else "must be above 0"
                raise BadOption(f"{name} {what}")
        if self.fragmentation >= 1:
            raise BadOption("fragmentation must be below 1")
