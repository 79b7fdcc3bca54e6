"""What changes with the step: learning rate, weight decay, the teacher's momentum and temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wsi_prep.errors import BadOption

_LEAST_TEMPERATURE = 0.02  # of exp(cosine / temperature)


_MOST_STEPS = 10**9


@dataclass(frozen=True)
class ScheduleSettings:
    """Cosines over `steps`; shares are of the steps. Where the paper is silent, the values are DINOv2's.

    `rate` is the learning rate's top for a global batch of 1024, scaled by the square root of the batch. `frozen`:
    share in which the prototypes stand still. `momentum`, `decay`: first and last. `temperature`: the teacher's, first
    and after `temperature_warmup`.
    """

    steps: int = 1000
    rate: float = 0.004
    least_rate: float = 1e-6
    warmup: float = 0.1
    decay: tuple[float, float] = (0.04, 0.2)
    momentum: tuple[float, float] = (0.992, 1.0)
    temperature: tuple[float, float] = (0.04, 0.07)
    temperature_warmup: float = 0.3
    frozen: float = 0.01

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= _MOST_STEPS:
            raise BadOption(f"{self.steps} steps are not between 1 and {_MOST_STEPS:,}")
        for name in ("warmup", "temperature_warmup", "frozen"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadOption(f"{name} {getattr(self, name)} is not a share between 0 and 1")
        if not (0 <= self.least_rate <= self.rate < math.inf):
            raise BadOption(f"learning rates {self.least_rate} to {self.rate} are no range from 0 up")
        if not all(0 <= m <= 1 for m in self.momentum):
            raise BadOption(f"momentum {self.momentum} is not between 0 and 1")
        if not all(0 <= d < math.inf for d in self.decay):
            raise BadOption(f"decay {self.decay} is not at least 0")
        if not all(_LEAST_TEMPERATURE <= t < math.inf for t in self.temperature):
            raise BadOption(f"temperature {self.temperature} is below {_LEAST_TEMPERATURE}, where float32 overflows")


@dataclass(frozen=True)
class Scheduled:
    """The values of one step."""

    step: int
    rate: float
    decay: float
    momentum: float
    temperature: float
    frozen: bool


def at(settings: ScheduleSettings, step: int, batch: int) -> Scheduled:
    """The values of a step, for a global batch of this many tiles."""
    steps = settings.steps
    top = settings.rate * math.sqrt(batch / 1024)
    warmup, cool = settings.warmup * steps, settings.temperature_warmup * steps
    if step < warmup:
        rate = top * (step + 1) / (warmup + 1)
    else:
        rate = _cosine(top, settings.least_rate, (step - warmup) / max(steps - warmup, 1))
    first, last = settings.temperature
    return Scheduled(
        step=step,
        rate=rate,
        decay=_cosine(*settings.decay, step / steps),
        momentum=_cosine(*settings.momentum, step / steps),
        temperature=last if step >= cool else first + (last - first) * step / cool,
        frozen=step < settings.frozen * steps,
    )


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
