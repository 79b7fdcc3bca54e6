"""Judges features of slides' tiles on labelled slides: attention over tiles, and the mean of tiles."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.table import Table

from pipelines.calls.training import EvaluateSlidesCall
from pipelines.command import EXIT_OK, Terminal, progress, run_command
from pretrain.evaluation.judge import EvaluationRow
from pretrain.evaluation.report import write_parquet
from pretrain.evaluation.slides.bags import Bags, read_bags, read_labels
from pretrain.evaluation.slides.judge import judge_slides, judged_slides
from pretrain.features.colours import WHAT
from pretrain.train.runs import COLOURS, UNTRAINED
from wsi_prep.errors import BadOption, counted

_WIDTH = 160  # of the table in a file


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(EvaluateSlidesCall, _work, arguments)


def _work(call: EvaluateSlidesCall, terminal: Terminal) -> int:
    if not terminal.out.is_terminal:
        terminal.out.width = _WIDTH
    if call.folds < 2 or call.limit < 0:
        raise BadOption("--folds must be at least 2, --limit at least 0")
    told = read_labels(call.labels)
    bags = [read_bags(folder, told.slides, call.magnification, call.limit) for folder in call.features]
    names = [each.name for each in bags]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadOption(f"two folders hold features of {twice[0]!r}; name one, so that the table can tell them")
    slides, fold = judged_slides(told, bags, call.folds)
    rows: list[EvaluationRow] = []
    with progress(terminal.out, "models") as bar:
        for done, each in enumerate(bags):
            bar(done, len(bags))
            rows += judge_slides(slides, fold, each)
        bar(len(bags), len(bags))
    if call.to:
        call.to.mkdir(parents=True, exist_ok=True)
        write_parquet(rows, call.to / "slides.parquet")
    terminal.out.print(_table(rows, slides.name))
    counts = [f"{name} {(slides.labels == n).sum():,}" for n, name in enumerate(slides.classes)]
    terminal.say(
        f"{counted(len(slides.slides), 'slide')} of {counted(rows[0].groups, 'patient')}, {rows[0].folds} folds: "
        f"{', '.join(counts)}"
    )
    for note in [*slides.notes, *(note for each in bags for note in each.notes), *_missing(bags)]:
        terminal.note(f"note: {note}")
    if call.to:
        terminal.say(f"look at {call.to}: slides.parquet")
    return EXIT_OK


def _missing(bags: Sequence[Bags]) -> list[str]:
    """What to compare with is not among the features."""
    names = [each.name for each in bags]
    found = []
    if COLOURS not in names:
        found.append(f"no features of the colours alone ({WHAT}): make them by make embed MODEL={COLOURS}")
    if not any(name.startswith(UNTRAINED) for name in names):
        found.append(f"no features of an untrained network: make them by make embed MODEL={UNTRAINED}RUN")
    return found


def _table(rows: Sequence[EvaluationRow], title: str) -> Table:
    metrics = list(dict.fromkeys(row.metric for row in rows))
    headers = ["features", "judge", *(f"{metric} (95 % interval)" for metric in metrics)]
    table = Table(*headers, title=f"{title}: slides of held-out patients")
    for features, judge in dict.fromkeys((row.features, row.judge) for row in rows):
        of = {row.metric: row for row in rows if (row.features, row.judge) == (features, judge)}
        cells = [f"{of[m].value:.3f} ({of[m].low:.3f} to {of[m].high:.3f})" for m in metrics]
        table.add_row(features, judge, *cells)
    return table


if __name__ == "__main__":
    sys.exit(main())
