"""Stages: settings that change from a step of a run on, such as larger crops at its end; and what may change so."""

from __future__ import annotations

from dataclasses import dataclass

from wsi_prep.errors import BadOption

PREFIX = "stages."
NONE = "none"
"""What a stage is set to, to take it out of a recipe: stages.800=none."""

_MAY = (
    *("views", "sampling.batch", "sampling.mix", "sampling.alpha", "sampling.any_mpp", "sampling.density"),
    *("sampling.alone", "schedule.rate", "schedule.least_rate", "schedule.decay", "schedule.momentum"),
    *("schedule.temperature", "objective.dino_weight", "objective.ibot_weight", "objective.spread"),
    *("objective.spread_weight", "objective.kappa", "objective.gram_weight", "objective.gram_every"),
    *("objective.gram_refreshes", "objective.gram_scale", "optim.clip"),
    *("compute.accumulate", "compute.recompute", "compute.loss_mb", "compute.compile"),
)
_WHY_NOT = {
    "backbone": "the network stays as it is; positions are resampled for crops of any size",
    "objective.head": "heads stay as they are",
    "objective": "it decides what the teacher's targets are, which a run learns from its first step on",
    "guide": "a guide's heads learn from the first step on",
    "sampling": "which tiles there are to draw, and in which strata, is decided once",
    "schedule": "the schedule's length and shape are those of the whole run; schedule.rate may change",
    "optim": "the optimizer stays as it is; schedule.rate and optim.clip may change",
    "stages": "a stage has no stages",
    "name": "a run has one name",
}
_DIGITS = 12
_AT_ANY_TIME = "it may change whenever a run continues: set it without a stage"
_ONCE = "a run begins but once"


@dataclass(frozen=True)
class Stage:
    """From step `start` on, these `changes` of the recipe, each as SET has it (name=value), in order of their names."""

    start: int
    changes: tuple[str, ...]

    @property
    def values(self) -> dict[str, str]:
        """By name."""
        return dict(change.split("=", 1) for change in self.changes)

    def __post_init__(self) -> None:
        if self.start < 1:
            raise BadOption(f"a stage begins at step 1 or later, not at {self.start}; before it, the recipe holds")
        if not self.changes or any("=" not in change for change in self.changes):
            raise BadOption(f"the stage from step {self.start} on changes nothing; write name=value")
        for name in self.values:
            require_may_change(name)


def require_may_change(name: str) -> None:
    """Raise BadOption, with the reason, for a setting that no stage may change."""
    if any(name == may or name.startswith(f"{may}.") for may in _MAY):
        return
    parts = name.split(".")
    beginnings = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    at_any_time = parts[0] in ("compute", "loader", "saving", "looking")
    why = next((_WHY_NOT[each] for each in beginnings if each in _WHY_NOT), _AT_ANY_TIME if at_any_time else _ONCE)
    raise BadOption(f"no stage may change {name}: {why}")


def place_of(name: str) -> tuple[int, str]:
    """Step and setting of `stages.800.schedule.rate`; no setting of `stages.800`. Raises BadOption."""
    number, _, setting = name.removeprefix(PREFIX).partition(".")
    if not (number.isascii() and number.isdigit() and len(number) <= _DIGITS):
        raise BadOption(f"{name} names no step; write stages.STEP.name=value, as in stages.800.schedule.rate=0.001")
    return int(number), setting
