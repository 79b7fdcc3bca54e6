"""The curves of runs as one picture: losses, health, rate of learning, and what labelled tiles say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from pretrain.errors import BadRun
from pretrain.train.metrics import read_metrics
from wsi_prep.storage.atomic import aside

mpl.use("agg")  # no window, wherever it is drawn

_FIRST = ("loss", "feature_spread", "target_entropy_nats", "gradient_norm", "learning_rate", "tiles_per_s")
_ACROSS = 3


def draw_curves(runs: Sequence[Path], file: Path) -> None:
    """Draw metrics.jsonl of RUN folders into a PNG, a line a run and a panel a metric. Raises BadRun."""
    names_of = [run.resolve().name for run in runs]
    found = {
        name if names_of.count(name) == 1 else str(run): _read(run) for name, run in zip(names_of, runs, strict=True)
    }
    names = {name for rows in found.values() for row in rows for name in row}
    panels = [name for name in _FIRST if name in names]
    panels[1:1] = sorted(name for name in names if name.startswith("loss_"))
    panels += sorted(name for name in names if name.startswith(("guide_", "probe_")))
    down = max(1, -(-len(panels) // _ACROSS))
    figure = Figure(figsize=(4.6 * _ACROSS, 2.9 * down), layout="constrained")
    axes = figure.subplots(down, _ACROSS, squeeze=False).ravel()
    for panel, name in zip(axes, panels, strict=False):
        for number, (run, rows) in enumerate(found.items()):
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                dots = "." if name.startswith("probe_") else ""
                panel.plot(*zip(*points, strict=True), label=run, color=f"C{number}", marker=dots)
        panel.set_title(name.replace("_balanced_accuracy", ", balanced accuracy").removeprefix("probe_"), fontsize=9)
        panel.grid(alpha=0.3)
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    axes[0].legend(fontsize=8)
    axes[0].set_xlabel("step")
    with aside(file) as unfinished:
        figure.savefig(unfinished, format="png", dpi=90)


def _read(run: Path) -> list[dict[str, object]]:
    try:
        return read_metrics(run)
    except (OSError, ValueError) as error:
        raise BadRun(f"{run} has no metrics.jsonl to read; name a folder that make pretrain has filled") from error
