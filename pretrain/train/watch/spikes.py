"""Steps whose loss or gradient is finite and far beyond that of the steps before."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

_STEPS, _LEAST = 200, 50
"""How many steps before a step are looked at, and how many there must be."""

_TIMES = 5.0
"""A gradient norm so many times the median of those before is a spike."""

_SPREADS, _SHARE = 10.0, 0.05
"""So is a loss that lies so many times their median distance from their median above it, and by this share of it."""

_QUIET = 50
"""Steps after a spike in which no other is named: it is one fault that is seen in several steps."""


@dataclass
class Spikes:
    """The steps that were named, and what is known of the steps before."""

    count: int = 0
    _quiet_until: int = 0
    _before: dict[str, deque[float]] = field(default_factory=dict)

    def add(self, step: int, values: Mapping[str, float]) -> str:
        """One more step, with its `loss` and `gradient_norm`; what to say of it, empty where it is as those before."""
        told = [self._told(name, values[name]) for name in ("loss", "gradient_norm")]
        said = ", ".join(filter(None, told))
        if not said or step < self._quiet_until:
            return ""
        self._quiet_until = step + _QUIET
        self.count += 1
        return said

    def _told(self, name: str, value: float) -> str:
        before = self._before.setdefault(name, deque(maxlen=_STEPS))
        count = len(before)
        enough = count >= _LEAST
        usual = median(before) if enough else value
        if name == "loss":
            spread = median(abs(each - usual) for each in before) if enough else 0.0
            limit = usual + max(_SPREADS * spread, _SHARE * abs(usual))
        else:
            limit = _TIMES * usual
        before.append(value)
        if not enough or value <= limit:
            return ""
        return f"{name.replace('_', ' ')} {value:.4g}, usually {usual:.4g} in the {count} steps before"
