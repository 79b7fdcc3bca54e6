"""Checkpoints: written by all processes while training goes on, there once they are renamed, thinned out by age.

RUN/checkpoints/step-00001000/ holds safetensors, each process's share of the tensors, and state.json. Any number of
processes can read what any other number has written.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.compute import distributed
from pretrain.compute.plain_files import read_json
from pretrain.errors import BadRun, CheckpointFailed
from wsi_prep.errors import BadOption, first_line, refusal
from wsi_prep.format.magnifications import TILE_PX
from wsi_prep.storage.atomic import sync

CHECKPOINT_VERSION = 2
STATE = "state.json"
_MOST_STATE = 64 << 20
_PREFIX, _PARTIAL = "step-", ".partial-"


@dataclass(frozen=True)
class SavingSettings:
    """A checkpoint every `every` steps; the newest `keep` stay, and of older ones, one for every `keep_hours` hours.

    `erase_tiles`: over how many tiles, drawn as in training, a checkpoint's fields below 0 in `guide` are erased, and
    `erase_px` of their middle, 0 for whole tiles: as they are to be embedded.
    """

    every: int = 500
    keep: int = 2
    keep_hours: float = 12.0
    erase_tiles: int = 2048
    erase_px: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1 or not self.keep_hours >= 0:
            raise BadOption("saving.every and saving.keep must be at least 1, saving.keep_hours at least 0")
        if self.erase_tiles < 1:
            raise BadOption("saving.erase_tiles must be at least 1")
        if not 0 <= self.erase_px <= TILE_PX:
            raise BadOption(f"saving.erase_px {self.erase_px} is not between 1 and {TILE_PX}, or 0 for the whole tile")


@dataclass(frozen=True)
class _Pending:
    step: int
    state: Mapping[str, object]
    written: Future[object]


class Checkpoints:
    """Those of one run. Every process calls every method; the first one renames and deletes."""

    def __init__(self, folder: Path, settings: SavingSettings, world: distributed.World) -> None:
        self._folder, self._settings, self._world = folder, settings, world
        self._writer = distributed.Writer()
        self._pending: _Pending | None = None
        self._saved = -1
        if world.first:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f"{_PARTIAL}*"):  # by a process that was killed
                shutil.rmtree(left)

    def latest(self) -> int | None:
        """The newest step that can be gone on from; None where there is none."""
        return latest_step(self._folder)

    def save(self, step: int, tensors: dict[str, Tensor], state: Mapping[str, object]) -> None:
        """Begin to write; the tensors are copied before this returns. One checkpoint is in work at a time."""
        self.settle(wait=True)
        if step == self._saved:
            return
        self._saved = step
        aside = self._folder / f"{_PARTIAL}{step:08d}"
        if self._world.first:
            with self._writing(step):
                aside.mkdir(exist_ok=True)
        distributed.agree(mine=True)  # the folder is there for everyone
        state = {"version": CHECKPOINT_VERSION, "step": step, "time": time.time(), **state}
        self._pending = _Pending(step, state, self._writer.save(tensors, aside))

    def settle(self, wait: bool = False) -> None:
        """Rename a checkpoint that has been written whole; `wait` for one that has not. Raises CheckpointFailed."""
        pending = self._pending
        if pending is None or not (wait or pending.written.done()):
            return
        self._pending = None
        with self._writing(pending.step):
            distributed.finish(pending.written)
            if self._world.first:
                self._bring_in(pending)

    def _bring_in(self, pending: _Pending) -> None:
        """Give a checkpoint that has been written its state, and its name."""
        aside = self._folder / f"{_PARTIAL}{pending.step:08d}"
        files = {file.name: file.stat().st_size for file in aside.iterdir()}
        (aside / STATE).write_text(json.dumps({**pending.state, "files": files}) + "\n")
        for file in aside.iterdir():
            sync(file)
        aside.rename(self._path(pending.step))
        sync(self._folder)
        self._thin_out()

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointFailed(
                f"the checkpoint of step {step} cannot be written to {self._folder} ({refusal(error)}); "
                "repeat the command to continue from the one before"
            ) from error

    def _thin_out(self) -> None:
        """Keep the newest few, and of the others the first of every so many hours."""
        steps = _steps(self._folder)
        times = {step: read_json(self._path(step) / STATE, _MOST_STATE)["time"] for step in steps}
        for step in superseded(times, self._settings.keep, self._settings.keep_hours):
            gone = self._path(step).rename(self._folder / f"{_PARTIAL}{step:08d}")
            shutil.rmtree(gone)

    def _path(self, step: int) -> Path:
        return step_folder(self._folder, step)


def read_state(folder: Path) -> dict[str, Any]:
    """What was saved beside the tensors of a step, in its folder. Raises BadRun."""
    with _reading(folder):
        state = read_json(folder / STATE, _MOST_STATE)
        if not isinstance(state, dict):
            raise ValueError(f"its {STATE} is no record")  # noqa: TRY004 - of what a file says
        return state


def holds(folder: Path, beginning: str) -> bool:
    """Whether tensors of a step were saved whose names begin so. Raises BadRun."""
    with _reading(folder):
        return any(name.startswith(beginning) for name in distributed.saved_shapes(folder))


def load(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Fill the tensors in place from a step's folder, and return what else was saved. Raises BadRun."""
    state = read_state(folder)
    with _reading(folder):
        _check_sizes(folder, state["files"])
        distributed.load(tensors, folder)
    if state.get("version") != CHECKPOINT_VERSION:
        raise BadRun(f"{folder} is of checkpoint version {state.get('version')}, not {CHECKPOINT_VERSION}")
    return state


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of json, safetensors and torch, each with errors of its own
        line = first_line(error)
        raise BadRun(f"{folder} cannot be read ({line}); delete it to continue from the one before") from error


def latest_step(folder: Path) -> int | None:
    """The newest step of a RUN's checkpoints; None where there is none."""
    return max(_steps(folder), default=None)


def step_folder(folder: Path, step: int) -> Path:
    """Where a step's checkpoint is."""
    return folder / f"{_PREFIX}{step:08d}"


def _steps(folder: Path) -> list[int]:
    found = (path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*"))
    return sorted(int(name) for name in found if name.isascii() and name.isdigit())


def superseded(times: dict[int, float], keep: int, keep_hours: float) -> list[int]:
    """Steps that may go, of checkpoints of these times (s): all but the newest `keep`, and one every so many hours."""
    newest = sorted(times)[-keep:]
    last: float | None = None
    gone = []
    for step in sorted(times):
        if step in newest:
            continue
        if keep_hours and (last is None or times[step] - last >= keep_hours * 3600):
            last = times[step]
        else:
            gone.append(step)
    return gone


def _check_sizes(folder: Path, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        if (folder / name).stat().st_size != size:
            raise OSError(f"{name} has another length than it was written with")
