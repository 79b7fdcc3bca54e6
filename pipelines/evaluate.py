"""Judges runs and released weights on labelled tiles, beside untrained networks and the colours alone."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from pretrain.backbone import Backbone
from pretrain.evaluate import Judged, judge, load_model, load_run, untrained
from pretrain.probe import load_task
from wsi_prep.errors import UsageError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = build_parser().parse_args(arguments)
    console = Console(highlight=False)
    try:
        tasks = [load_task(spec, options.limit) for spec in options.tasks]
        backbones: dict[str, Backbone] = {}
        for folder in options.models:
            if not (folder / "recipe.json").is_file():
                backbones[folder.name] = load_model(folder)
                continue
            trained, step = load_run(folder)
            backbones |= {f"{folder.name}, untrained": untrained(folder), f"{folder.name}, step {step}": trained}
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        rows = []
        with console.status("embedding tiles") as status:
            for row in judge(tasks, backbones, device):
                rows.append(row)
                status.update(f"{row.task}: {row.features}")
    except UsageError as error:
        Console(stderr=True, highlight=False).print(f"evaluate: {error}", markup=False, soft_wrap=True)
        return 2
    console.print(_table(rows))
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    return 0


def _table(rows: list[Judged]) -> Table:
    table = Table("task", "features", "linear", "kNN", "folds", title="balanced accuracy on held-out groups")
    for row in rows:
        spread = [f" ± {sd:.3f}" if row.folds > 1 else "" for sd in (row.linear_sd, row.knn_sd)]
        figures = (f"{row.linear:.3f}{spread[0]}", f"{row.knn:.3f}{spread[1]}", str(row.folds))
        table.add_row(row.task, row.features, *figures)
    return table


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.evaluate", description=__doc__)
    add = parser.add_argument
    add("--models", required=True, nargs="+", type=Path, metavar="FOLDER", help="runs, or folders of weights")
    add(
        "--tasks",
        required=True,
        nargs="+",
        metavar="PARQUET",
        help="file.parquet, or file.parquet:labels",
    )
    add("--limit", type=int, default=0, metavar="N", help="most tiles on either side of a task (default: all)")
    add("--json", type=Path, metavar="FILE", help="write the figures here, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
