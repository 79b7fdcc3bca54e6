"""What every process does between steps: metrics, pictures, probes and health, and what people are told of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pretrain.compute import distributed
from pretrain.evaluation.probe import Score, embed
from pretrain.evaluation.probe import score as judge
from pretrain.evaluation.robustness.figures import indices
from pretrain.evaluation.segmentation.probe import PatchTask
from pretrain.features.embedder import Inference, of_backbone
from pretrain.pictures.feature_picture import FeaturePictures, LookSettings, save_picture
from pretrain.train.learner import DTYPES
from pretrain.train.loop import Trainer
from pretrain.train.metrics import MetricsLog
from pretrain.train.recipe.flops import measured_peak
from pretrain.train.watch.probes import Bests, Probe, colours_alone, task_of

_COLLAPSED_SPREAD, _FLAT_TARGETS = 1e-4, 0.999


class Reporter:
    """Told by the first process what people should see. Does nothing."""

    def note(self, text: str) -> None:
        """Something to know, once."""

    def started(self, trainer: Trainer, step: int) -> None:
        """Before the first step."""

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Of a logged step."""

    def stepped(self, step: int) -> None:
        """After every step; `step` is the next one's number."""

    def stopping(self, number: int) -> None:
        """Told in a thread, as soon as the signal comes: the run ends after the step, or at once by a second one."""


class RunWatcher:
    """Every process's: what all must do together, and on the first one metrics, pictures, probes and health."""

    def __init__(self, folder: Path, trainer: Trainer, reporter: Reporter, probes: list[Probe]) -> None:
        self._folder, self._trainer, self._reporter, self._probes = folder, trainer, reporter, probes
        self._looking = trainer.recipe.looking
        schedule = trainer.recipe.schedule
        self._last_step, self._settled = schedule.steps, schedule.warmup * schedule.steps
        self._log: MetricsLog | None = None
        self._said: set[str] = set()
        self._to_show: list[Callable[[], None]] = []
        self.last: dict[str, float] = {}
        self.scores: dict[str, Score] = {}

    def started(self, step: int) -> None:
        """See train.Watcher."""
        trainer = self._trainer
        if trainer.world.first:
            self._log = MetricsLog(self._folder, step)
            self._bests = Bests(self._folder)
            self._peak = measured_peak(trainer.world.device, DTYPES[trainer.recipe.compute.precision])
            self._lookout = FeaturePictures(trainer.sampler, LookSettings()) if self._looking.picture else None
            self._reporter.started(trainer, step)
            if not step:
                self._judge_colour()
        if not step:
            self._look(step)

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """See train.Watcher."""
        if self._log is None:
            return
        values["mfu_share"] = values["executed_tflop_per_s_and_device"] * 1e12 / self._peak
        self._log.write(step, values)
        self.last = {"step": step, **values}
        prototypes = self._trainer.recipe.objective.head.prototypes
        collapsed = health(values, prototypes) if step >= self._settled else []
        for text in set(collapsed) - self._said:
            self._said.add(text)
            self._to_show.append(partial(self._reporter.note, f"step {step}: {text}"))
        self._to_show.append(partial(self._reporter.numbers, step, values))

    def odd(self, text: str) -> None:
        """See train.Watcher."""
        if self._log is not None:
            self._to_show.append(partial(self._reporter.note, text))

    def stepped(self, step: int) -> None:
        """See train.Watcher."""
        self._show()
        self._look(step)
        if self._log is not None:
            self._reporter.stepped(step)

    def stopping(self, number: int) -> None:
        """See train.Watcher."""
        if self._log is not None:
            self._reporter.stopping(number)

    def close(self) -> None:
        """Finish the files, and show what is not shown yet."""
        if self._log is not None:
            self._log.close()
        self._show()

    def _show(self) -> None:
        """What has come since the last step: late, so that the step is saved even where showing it does not end."""
        shown, self._to_show = self._to_show, []
        for show in shown:
            show()

    def _look(self, step: int) -> None:
        """Draw and probe where it is time to; every process gives its share of the weights."""
        draw, probe = (_due(step, every, self._last_step) for every in (self._looking.picture, self._looking.probe))
        if not (draw or (probe and self._probes)):
            return
        backbone = self._trainer.whole_backbone()
        if backbone is not None and self._log is not None:
            device = self._trainer.world.device
            if draw and self._lookout:
                save_picture(self._lookout.draw(backbone, step, device), self._folder / f"pictures/step-{step:08d}.png")
            if probe:
                for each in self._probes:
                    task, inference = task_of(each), Inference(device)
                    if isinstance(each, PatchTask):
                        self._judged(step, judge(each.tokens(of_backbone(backbone), inference), task), {})
                    else:
                        features = embed(backbone, task, inference)
                        self._judged(step, judge(features, task), indices(task, features))
        distributed.wait_for_all()  # the others, too, who would give up on a step's sums after some minutes

    def _judged(self, step: int, score: Score, robust: dict[str, float]) -> None:
        self.scores[score.task] = score
        if self._log is not None:
            figures = {"linear": score.linear, "knn": score.knn}
            by_site = {f"probe_{score.task}_{site}_robustness_index": value for site, value in robust.items()}
            judged = {f"probe_{score.task}_{by}_balanced_accuracy": v for by, v in figures.items()}
            self._log.write(step, judged | by_site)
        said = "".join(f", robust to {site} {value:.3f}" for site, value in robust.items())
        said += self._bests.said(score, step)
        self._reporter.note(f"step {step}: {score.task}: linear {score.linear:.3f}, kNN {score.knn:.3f}{said}")

    def _judge_colour(self) -> None:
        for probe in self._probes:
            task, patch_px = task_of(probe), self._trainer.recipe.backbone.patch_px
            score = judge(colours_alone(probe, patch_px), task)
            what = "patches" if isinstance(probe, PatchTask) else "tiles"
            sides = f"{score.train} {what} to learn from, {score.test} held out"
            self._reporter.note(f"{task.name}: colour alone: linear {score.linear:.3f}, kNN {score.knn:.3f}; {sides}")


def _due(step: int, every: int, last: int) -> bool:
    return bool(every) and (step % every == 0 or step == last)


def health(values: dict[str, float], prototypes: int) -> list[str]:
    """What is wrong with a run that has warmed up, by its numbers: the two ways in which it collapses."""
    largest = math.log(prototypes)
    found = []
    if values["feature_spread"] < _COLLAPSED_SPREAD:
        found.append("collapse: all tiles look the same to the teacher (feature_spread near 0); lower schedule.rate")
    if values.get("target_entropy_nats", 0.0) > _FLAT_TARGETS * largest:
        found.append("collapse: the teacher's targets are flat (target_entropy_nats near log of the prototypes)")
    return found
