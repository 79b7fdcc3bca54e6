"""What an estimate assumes; read by the command line too, so nothing but Python is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from wsi_prep.errors import BadOption


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a sample cannot tell. Money is in any one currency; sizes are decimal (GB is 1e9 bytes)."""

    workers: int = 500
    """Worker processes at a time, one a core."""

    busy: float = 0.9
    """Share of their time that they work."""

    speed: float = 1.0
    """Speed of a core against one of the sample's."""

    slide_gb: float | None = None
    """Mean size of a slide's file, in GB; without it, that of the sample's, or 1 where the sample does not say."""

    core_hour: float = 0.04
    """Price of a core for an hour."""

    tb_month: float = 23.0
    """Price of a TB stored for a month."""

    months: float = 12.0
    """Months that the shards are kept."""

    puts_1000: float = 0.005
    """Price of 1,000 PUT requests, one an object."""

    egress_gb: float = 0.0
    """Price of a GB of slides that is read; 0 within one region."""

    def __post_init__(self) -> None:
        for each in fields(Assumptions):
            value = getattr(self, each.name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise BadOption(f"{each.name} {value:g} is not a number from 0 on")
        if self.workers < 1 or not 0 < self.busy <= 1 or self.speed <= 0:
            raise BadOption("workers must be at least 1, busy in (0, 1], speed above 0")
