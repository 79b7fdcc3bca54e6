"""A recipe: everything that decides what a run computes, as one frozen record that can be shown, changed and saved."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.compute.distributed import DEVICES
from pretrain.compute.distributed import MODES as PARALLEL
from pretrain.compute.plain_files import read_json
from pretrain.data.fields import unknown_field
from pretrain.data.loader import MOST_THREADS, LoaderSettings
from pretrain.data.sampler import SamplingSettings
from pretrain.learning.guide import GuideSettings
from pretrain.learning.optimizer import OptimSettings
from pretrain.learning.schedules import ScheduleSettings
from pretrain.learning.self_distillation import ObjectiveSettings
from pretrain.model.backbone import BackboneSettings
from pretrain.model.recompute import MODES as RECOMPUTE
from pretrain.train.checkpoint import SavingSettings
from pretrain.train.recipe.stages import PREFIX, Stage, place_of
from pretrain.views.views import ViewSettings
from wsi_prep.errors import BadOption
from wsi_prep.format.magnifications import TILE_PX
from wsi_prep.storage.atomic import write_json

PRECISIONS = ("fp32", "bf16")
CONTINUED = ("all", "network", "backbone", "steps")
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_MOST_STAGES = 32
_AT_STEP = re.compile(r".+@[0-9]{1,12}")
_MOST_COUNT, _MOST_NUMBER, _LONGEST_TEXT, SHOWN = 10**12, 1e30, 4096, 60


@dataclass(frozen=True)
class ComputeSettings:
    """How a step is computed; changes results by rounding at most, but for `accumulate`.

    `accumulate`: a process's share of the batch is computed in so many parts, which also see only each other in
    Sinkhorn-Knopp and in the spreading term. `parallel`: whole copies (ddp) or shards (fsdp) of the model, or
    a copy in shards over each `shard_group` processes (hsdp); these must lie beside each other, as on one machine.
    `gather_ahead`: how many blocks' shards are gathered while one is computed; 0 leaves it to FSDP, which gathers one.
    `precision`: of products. `recompute`: activations computed again in the backward pass. `compile`: each block by
    torch.compile. `threads`: of a process on the CPU, 0 for all cores. `loss_mb`: the largest matrix of rows and
    prototypes that the losses make, in 2^20 bytes; larger ones are computed in parts, exactly. `skips`: how many steps
    may be left out in any `skip_window` of them, where loss or gradient is not finite; one more ends the run.
    """

    device: str = ""
    precision: str = "bf16"
    parallel: str = "ddp"
    shard_group: int = 8
    gather_ahead: int = 0
    accumulate: int = 1
    recompute: str = "none"
    compile: bool = False
    threads: int = 0
    loss_mb: int = 256
    skips: int = 5
    skip_window: int = 1000

    def __post_init__(self) -> None:
        for name, allowed in (("precision", PRECISIONS), ("parallel", PARALLEL), ("recompute", RECOMPUTE)):
            if getattr(self, name) not in allowed:
                raise BadOption(f"{name} {getattr(self, name)!r} is not known; choose from {', '.join(allowed)}")
        if self.device not in ("", *DEVICES):
            raise BadOption(f"device {self.device!r} is not known; choose {' or '.join(DEVICES)}")
        if self.shard_group < 1 or self.gather_ahead < 0:
            raise BadOption("shard_group must be at least 1, gather_ahead at least 0")
        if self.accumulate < 1 or not 0 <= self.threads <= MOST_THREADS:
            raise BadOption(f"accumulate must be at least 1, threads between 0 and {MOST_THREADS:,}")
        if min(self.loss_mb, self.skip_window) < 1 or self.skips < 0:
            raise BadOption("loss_mb and skip_window must be at least 1, skips at least 0")


@dataclass(frozen=True)
class LookingSettings:
    """Every how many steps metrics are written, a picture is drawn, and labelled tiles are probed (at most
    `probe_tiles` on either side, 0 for all); 0 for never.
    """

    log: int = 10
    picture: int = 500
    probe: int = 500
    probe_tiles: int = 1500

    def __post_init__(self) -> None:
        if self.log < 1 or min(self.picture, self.probe, self.probe_tiles) < 0:
            raise BadOption("looking.log must be at least 1, picture, probe and probe_tiles at least 0")


@dataclass(frozen=True)
class Recipe:
    """The whole configuration of a run, under the name of the function that made it.

    `start_from`: a file or folder with weights that the backbone begins with, see model.weights. `teacher`: a
    RUN folder or a folder of released weights to be distilled; empty for self-distillation. `continue_from`: a RUN
    folder and a step, as runs/a@1000, with which the run begins; `continue_with` what of it: all, network (without the
    optimizer's state), backbone (without heads, too), or steps (all, and the count of steps: what is drawn and the
    schedule go on, as if the other run had gone on under this recipe). `stages`: what changes from some steps on.

    >>> from dataclasses import replace
    >>> small = recipe("small")
    >>> longer = replace(small, schedule=replace(small.schedule, steps=3000))
    >>> isinstance(longer, Recipe), longer.backbone == small.backbone
    (True, True)
    """

    name: str
    sampling: SamplingSettings
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    guide: GuideSettings = field(default_factory=GuideSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    saving: SavingSettings = field(default_factory=SavingSettings)
    looking: LookingSettings = field(default_factory=LookingSettings)
    start_from: str = ""
    teacher: str = ""
    continue_from: str = ""
    continue_with: str = "all"
    stages: tuple[Stage, ...] = ()

    @property
    def seed(self) -> int:
        """Of the whole run: weights, draws, crops, masks and what is dropped. Its setting is `sampling.seed`."""
        return self.sampling.seed

    def __post_init__(self) -> None:
        if self.continue_with not in CONTINUED:
            raise BadOption(f"continue_with {self.continue_with!r} is not known; choose from {', '.join(CONTINUED)}")
        if self.continue_from and self.start_from:
            raise BadOption("a run begins with start_from or continue_from, not both")
        if self.continue_from and not _AT_STEP.fullmatch(self.continue_from):
            raise BadOption(
                f"continue_from {_short(self.continue_from)} names no step, as run@1000 does; CONTINUE=run takes its "
                "newest checkpoint"
            )
        starts = [stage.start for stage in self.stages]
        if len(starts) > _MOST_STAGES:
            raise BadOption(f"{len(starts)} stages are more than {_MOST_STAGES}")
        if starts != sorted(set(starts)):
            raise BadOption(f"stages begin at steps {', '.join(map(str, starts))}, which do not rise")
        if starts and starts[-1] >= self.schedule.steps:
            raise BadOption(
                f"the stage from step {starts[-1]:,} on begins after the last of {self.schedule.steps:,} steps; begin "
                f"it earlier, or leave it out: stages.{starts[-1]}=none"
            )
        patch, crops = self.backbone.patch_px, self.views.crops
        for name, px in (("global_px", crops.global_px), ("local_px", crops.local_px)):
            if px % patch:
                raise BadOption(
                    f"crops of {px} px (views.crops.{name}) do not divide into patches of {patch} px "
                    "(backbone.patch_px)"
                )
        if 0 < self.saving.erase_px < patch:
            raise BadOption(f"saving.erase_px {self.saving.erase_px} holds no patch of {patch} px; 0 is the whole tile")
        if self.sampling.any_mpp:
            self._require_any_mpp()
        if self.objective.gram_weight:
            self._require_anchor()
        if crops.global_crops + crops.local_crops < 2:
            raise BadOption("one crop of a tile has nothing to be compared with; ask for at least two")

    def _require_anchor(self) -> None:
        if self.teacher:
            raise BadOption(
                "Gram anchoring holds a student to what its own moving mean was; one of a frozen teacher has none: set "
                "objective.gram_weight=0, or leave out the teacher"
            )
        px, patch = self.views.crops.global_px * self.objective.gram_scale, self.backbone.patch_px
        if px % patch:
            raise BadOption(
                f"an anchor's crops of {px:g} px (objective.gram_scale) do not divide into patches of {patch} px"
            )

    def _require_any_mpp(self) -> None:
        crops, alone = self.views.crops, self.sampling.alone
        if crops.continuous or crops.resized:
            other = "continuous" if crops.continuous else "resized"
            raise BadOption(f"sampling.any_mpp and views.crops.{other} exclude each other; switch one of them off")
        if (need := crops.most_px * alone) > TILE_PX:
            raise BadOption(
                f"crops of {crops.global_px} px need {need:.0f} px of a tile of {TILE_PX} at {alone:g} times its own "
                f"um/px; ask for sampling.alone={math.floor(TILE_PX / crops.most_px * 100) / 100:g} or less"
            )


FREE = ("compute", "loader", "saving", "looking")
"""What may change when a run goes on: it decides how, not what, is computed."""


BEFORE: Mapping[str, object] = {
    "views.masking.blocks": 10,
    "views.masking.least_block": 0,
    "views.masking.scattered": True,
    "optim.clip_apart": False,
    "optim.decay_tokens": False,
}
"""How a run goes on whose recipe.json is older than these settings; of the newer ones not named here, by default."""


def flat(recipe: Recipe) -> dict[str, object]:
    """Every value under its dotted name."""
    return dict(_walk(recipe, ""))


def differences(recipe: Recipe, saved: Recipe) -> list[str]:
    """`name: saved -> now` for all that would change what a run computes."""
    before, now = flat(saved), flat(recipe)
    return [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in {**before, **now}
        if not _is_free(name) and before.get(name) != now.get(name)
    ]


def _is_free(name: str) -> bool:
    """Whether a setting, or that of a stage, decides only how a run is computed."""
    setting = place_of(name)[1] if name.startswith(PREFIX) else name
    return setting.split(".")[0] in FREE


def save(recipe: Recipe, file: Path) -> None:
    """As JSON."""
    write_json(file, dataclasses.asdict(recipe))


def load(file: Path) -> Recipe:
    """What `save` wrote; BadOption if it is something else."""
    try:
        values = _completed(read_json(file))
        recipe: Recipe = build(Recipe, values, "")
    except OSError as error:
        raise BadOption(
            f"{file} cannot be read ({error.strerror}); name a folder that make pretrain has filled"
        ) from error
    except ValueError as error:
        raise BadOption(f"{file} is no recipe of this version: {error}") from error
    return recipe


def _completed(values: Any) -> Any:
    """A saved recipe with what was done before the settings that it lacks."""
    for name, value in BEFORE.items():
        *way, last = name.split(".")
        record = values
        for step in way:
            record = record.get(step) if isinstance(record, dict) else None
        if isinstance(record, dict):
            record.setdefault(last, value)
    return values


def _walk(record: Any, prefix: str) -> typing.Iterator[tuple[str, object]]:
    for one in dataclasses.fields(record):
        value = getattr(record, one.name)
        if one.name == "stages":
            yield from ((f"stages.{s.start}.{name}", text) for s in value for name, text in s.values.items())
        elif dataclasses.is_dataclass(value):
            yield from _walk(value, f"{prefix}{one.name}.")
        elif isinstance(value, Mapping):
            yield from ((f"{prefix}{one.name}.{key}", entry) for key, entry in value.items())
        else:
            yield prefix + one.name, value


def build(kind: Any, values: Any, name: str) -> Any:
    """A record of the kind, of values as JSON has them; BadOption for one of another type, by its dotted name."""
    if dataclasses.is_dataclass(kind):
        return kind(**_checked(kind, values, name))  # type: ignore[operator]
    origin, kinds = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(values, (list, tuple)) or (kinds[-1] is not Ellipsis and len(values) != len(kinds)):
            many = "several" if kinds[-1] is Ellipsis else len(kinds)
            raise BadOption(f"{name} is {many} values, not {_short(values)}")
        of = [kinds[0]] * len(values) if kinds[-1] is Ellipsis else kinds
        return tuple(build(each, value, name) for each, value in zip(of, values, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(values, dict):
            raise BadOption(f"{name} is a number for each of some names, not {_short(values)}")
        return {str(key): build(float, value, f"{name}.{_short(key)}") for key, value in values.items()}
    return _plain(kind, values, name)


def unknown_setting(name: str) -> str:
    """What to tell somebody who names a setting that no recipe has, with the nearest that there is."""
    if name.startswith("guide."):
        return unknown_field(name.removeprefix("guide."))
    names = [known for known in _setting_names(Recipe) if known != "name"]
    tail = [known for known in names if known.split(".")[-1] == name.rsplit(".", maxsplit=1)[-1]]
    near = difflib.get_close_matches(name, tail or names, n=1, cutoff=0.0 if tail else 0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"no setting is named {name!r}{hint} (make recipe lists them all)"


def _setting_names(kind: Any, prefix: str = "") -> typing.Iterator[str]:
    """Dotted names of all settings; of a record by keys, those that it has by default."""
    types = typing.get_type_hints(kind)
    for one in (each for each in dataclasses.fields(kind) if each.name != "stages"):
        if dataclasses.is_dataclass(types[one.name]):
            yield from _setting_names(types[one.name], f"{prefix}{one.name}.")
        elif one.default_factory is not dataclasses.MISSING and isinstance(entries := one.default_factory(), Mapping):
            yield from (f"{prefix}{one.name}.{key}" for key in entries)
        else:
            yield prefix + one.name


def _checked(kind: Any, values: Any, name: str) -> dict[str, Any]:
    """Arguments for a record, each of its type. Raises BadOption."""
    if not isinstance(values, dict):
        raise BadOption(f"{name or 'a recipe'} is a record of settings, not {_short(values)}")
    types, prefix = typing.get_type_hints(kind), f"{name}." if name else ""
    if unknown := [key for key in values if key not in types]:
        raise BadOption(unknown_setting(f"{prefix}{unknown[0][:SHOWN]}"))
    needed = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing := [key for key in needed if key not in values]:
        raise BadOption(f"{prefix}{missing[0]} is missing")
    return {key: build(types[key], value, f"{prefix}{key}") for key, value in values.items()}


def _plain(kind: type, value: Any, name: str) -> Any:
    """One value of its type: no number beyond all that is counted, no text that could steer a terminal."""
    if kind is float and type(value) is int:
        value = float(value) if abs(value) <= _MOST_COUNT else math.inf
    right = type(value) is kind
    if right and kind is float:
        right = math.isfinite(value)
    elif right and kind is int and name != "sampling.seed":
        right = abs(value) <= _MOST_COUNT
    elif right and kind is str:
        right = value.isprintable() and len(value) <= _LONGEST_TEXT
    if not right:
        raise BadOption(f"{name} is {KINDS[kind]}, not {_short(value)}")
    if kind is float and abs(value) > _MOST_NUMBER:
        raise BadOption(f"{name} {value:g} is not between -{_MOST_NUMBER:g} and {_MOST_NUMBER:g}")
    return value


def _short(value: object) -> str:
    """A value for a message."""
    said = type(value).__name__ if isinstance(value, (dict, list)) else repr(value)
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}..."
