"""What a run is probed with: labelled tiles, and patches of tiles with masks; and how good it has been at each."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pretrain.evaluation.datasets import read_tasks
from pretrain.evaluation.probe import Score, colour_statistics
from pretrain.evaluation.segmentation.probe import PatchTask, patches_of
from pretrain.evaluation.segmentation.tasks import Segmentation
from pretrain.evaluation.tasks import Task
from pretrain.features.colours import of_patch_colours
from pretrain.features.embedder import Inference
from pretrain.train.metrics import read_metrics
from wsi_prep.errors import BadOption

Probe = Task | PatchTask


def load_probes(specs: Sequence[str], limit: int, patch_px: int) -> list[Probe]:
    """The tasks of PROBE, as datasets.read_tasks takes them; at most `limit` tiles a side, 0 for all.

    Of tiles with masks, patches of `patch_px`. Raises BadTask, and BadOption for what is no class or two of one name.
    """
    found: list[Probe] = []
    for spec in specs:
        for task in read_tasks(spec, limit):
            if isinstance(task, Segmentation):
                found.append(patches_of(task, patch_px))
            elif isinstance(task, Task):
                found.append(task)
            else:
                raise BadOption(
                    f"PROBE={spec} holds numbers to be told, which make evaluate alone judges; leave it out"
                )
    names = [task_of(probe).name for probe in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadOption(f"two of PROBE are named {twice!r}; rename a file or folder, so that curves can tell them")
    return found


def task_of(probe: Probe) -> Task:
    """Its labels and sides."""
    return probe.task if isinstance(probe, PatchTask) else probe


def colours_alone(probe: Probe, patch_px: int) -> Tensor:
    """(n, 12) of each tile or patch: what any model has to beat."""
    if isinstance(probe, PatchTask):
        return probe.tokens(of_patch_colours(patch_px), Inference())
    return colour_statistics(probe.tiles)


class Bests:
    """The highest score of each task by the linear model, and when that was; of earlier calls, too."""

    def __init__(self, run: Path) -> None:
        self._best: dict[str, tuple[float, int]] = {}
        with contextlib.suppress(OSError, ValueError):  # none are written yet, or none that can be read
            for row in read_metrics(run):
                for name, value in row.items():
                    if name.startswith("probe_") and name.endswith("_linear_balanced_accuracy") and value is not None:
                        self._add(name.removeprefix("probe_").removesuffix("_linear_balanced_accuracy"), value, row)

    def said(self, score: Score, step: int) -> str:
        """What to say of the best before, where this score is below it."""
        before = self._best.get(score.task)
        self._add(score.task, score.linear, {"step": step})
        if before is None or not score.linear < before[0]:
            return ""
        return f"; linear was {before[0]:.3f} at step {before[1]}"

    def _add(self, task: str, value: float, row: dict[str, int]) -> None:
        if value == value and value > self._best.get(task, (-1.0, 0))[0]:  # noqa: PLR0124 - NaN
            self._best[task] = (value, row["step"])
