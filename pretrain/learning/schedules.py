"""What changes with the step: learning rate, weight decay, the teacher's momentum and temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wsi_prep.errors import BadOption

_LEAST_TEMPERATURE = 0.02  # of exp(cosine / temperature)


_MOST_STEPS = 10**9
SHAPES = ("cosine", "constant")


@dataclass(frozen=True)
class ScheduleSettings:
    """Cosines over `steps`; shares are of the steps. Where the paper is silent, the values are DINOv2's.

    `rate` is the learning rate's top for a global batch of 1024, scaled by the square root of the batch. `frozen`:
    share in which the prototypes stand still. `momentum`, `decay`: first and last. `temperature`: the teacher's, first
    and after `temperature_warmup`.

    `guide_ramp`: share in which the guide's weights rise to their full size.

    `shape` "constant": after its warm-up the rate stays at its top until the last `cooldown` of the steps, in which it
    falls linearly; `decay` and `momentum` stay at their first. So nothing depends on `steps` before the cooldown, if
    `shares_of` is set: the steps that `warmup`, `temperature_warmup`, `frozen` and `guide_ramp` are shares of, 0 for
    `steps`.
    """

    steps: int = 1000
    shape: str = "cosine"
    cooldown: float = 0.2
    shares_of: int = 0
    rate: float = 0.004
    least_rate: float = 1e-6
    warmup: float = 0.1
    decay: tuple[float, float] = (0.04, 0.2)
    momentum: tuple[float, float] = (0.992, 1.0)
    temperature: tuple[float, float] = (0.04, 0.07)
    temperature_warmup: float = 0.3
    frozen: float = 0.01
    guide_ramp: float = 0.25

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= _MOST_STEPS:
            raise BadOption(f"{self.steps} steps are not between 1 and {_MOST_STEPS:,}")
        if self.shape not in SHAPES:
            raise BadOption(f"shape {self.shape!r} is not known; choose from {', '.join(SHAPES)}")
        if not 0 <= self.shares_of <= _MOST_STEPS:
            raise BadOption(f"shares_of {self.shares_of} is not between 0 and {_MOST_STEPS:,}")
        for name in ("warmup", "temperature_warmup", "frozen", "guide_ramp", "cooldown"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadOption(f"{name} {getattr(self, name)} is not a share between 0 and 1")
        if not (0 <= self.least_rate <= self.rate < math.inf):
            raise BadOption(f"schedule.least_rate {self.least_rate} and rate {self.rate} are no range from 0 up")
        if not all(0 <= m <= 1 for m in self.momentum):
            raise BadOption(f"momentum {self.momentum} is not between 0 and 1")
        if not all(0 <= d < math.inf for d in self.decay):
            raise BadOption(f"decay {self.decay} is not at least 0")
        if not all(_LEAST_TEMPERATURE <= t < math.inf for t in self.temperature):
            raise BadOption(f"temperature {self.temperature} is below {_LEAST_TEMPERATURE}, where float32 overflows")


@dataclass(frozen=True)
class Scheduled:
    """The values of one step. `guide`: what the guide's weights are multiplied with."""

    step: int
    rate: float
    decay: float
    momentum: float
    temperature: float
    frozen: bool
    guide: float = 1.0


def at(settings: ScheduleSettings, step: int, batch: int) -> Scheduled:
    """The values of a step, for a global batch of this many tiles."""
    steps, shares_of = settings.steps, settings.shares_of or settings.steps
    top = settings.rate * math.sqrt(batch / 1024)
    warmup, cool = settings.warmup * shares_of, settings.temperature_warmup * shares_of
    first, last = settings.temperature
    along = step / steps if settings.shape == "cosine" else 0.0
    return Scheduled(
        step=step,
        rate=top * (step + 1) / (warmup + 1) if step < warmup else _falling(settings, top, step, warmup),
        decay=_cosine(*settings.decay, along),
        momentum=_cosine(*settings.momentum, along),
        temperature=last if step >= cool else first + (last - first) * step / cool,
        frozen=step < settings.frozen * shares_of,
        guide=_ramp(step, settings.guide_ramp * shares_of),
    )


def _ramp(step: int, steps: float) -> float:
    """From 0 to 1 in so many steps, as Ganin & Lempitsky have it (arXiv 1409.7495, section 4)."""
    return 2 / (1 + math.exp(-10 * step / steps)) - 1 if step < steps else 1.0


def _falling(settings: ScheduleSettings, top: float, step: int, warmup: float) -> float:
    """The learning rate of a step after the warm-up."""
    steps, least = settings.steps, settings.least_rate
    if settings.shape == "cosine":
        return _cosine(top, least, (step - warmup) / max(steps - warmup, 1))
    begins = max(cooldown_begins(settings), warmup)
    return top if step < begins else top + (least - top) * min((step - begins) / max(steps - begins, 1), 1.0)


def cooldown_begins(settings: ScheduleSettings) -> float:
    """The step from which a constant rate falls."""
    return settings.steps * (1 - settings.cooldown)


def same_until(one: ScheduleSettings, other: ScheduleSettings, step: int) -> bool:
    """Whether both schedules have the same values in all steps before `step`."""
    looked = {*range(0, step, max(1, step // 2000)), *range(max(0, step - 2), step)}
    return all(at(one, each, 1024) == at(other, each, 1024) for each in looked)


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
