"""Writes the features of every tile of some shards, as Parquet and as h5."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.progress import TextColumn, TimeElapsedColumn

from pipelines.bars import Bar
from pipelines.calls.training import EmbedCall
from pipelines.command import EXIT_NOT_ALL, EXIT_OK, Terminal, require_apart, run_command
from pretrain.compute.devices import best_device
from pretrain.features.embed import Embedded, EmbedSettings, FeaturesTo, WantedTiles, embed_shards
from pretrain.features.embedder import Inference
from pretrain.train.learner import DTYPES
from pretrain.train.runs import load_embedder, model_name
from wsi_prep.errors import counted


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(EmbedCall, _work, arguments)


def _work(call: EmbedCall, terminal: Terminal) -> int:
    require_apart("TO", call.to, call.shards)
    began = time.monotonic()
    device = best_device()
    columns = (TextColumn("{task.completed:,} tiles"), TextColumn("{task.description}"), TimeElapsedColumn())
    cast = DTYPES[call.precision] if call.precision != "fp32" else None
    settings = EmbedSettings(Inference(device, call.batch, call.threads, cast), call.px)
    embedder = load_embedder(call.model)
    with Bar(*columns, console=terminal.out, disable=not terminal.out.is_terminal) as bar:
        task = bar.add_task("", total=None)
        done = embed_shards(
            WantedTiles(call.shards, call.where, call.time_limit),
            embedder,
            FeaturesTo(call.to, model_name(call.model), call.redo, call.regions),
            settings,
            lambda slide, tiles: bar.update(task, advance=tiles, description=slide),
        )
    terminal.warn_of([f"cannot be read: {name}: {reason}" for name, reason in done.unreadable.items()])
    for note in _notes(done, call.to):
        terminal.note(f"note: {note}")
    terminal.say(_what_was_done(done, call.to, time.monotonic() - began, device.type))
    return EXIT_NOT_ALL if done.unreadable else EXIT_OK


def _notes(done: Embedded, to: Path) -> list[str]:
    found = list(done.notes)
    if done.elsewhere:
        found.append(f"{to} also holds features of {counted(done.elsewhere, 'slide')} not among these tiles")
    return found


def _what_was_done(done: Embedded, to: Path, seconds: float, device: str) -> str:
    regions = f", {counted(done.regions, 'region')} written" if done.regions else ""
    if not done.slides:
        begin = "no features to compute" if done.regions else "nothing to do"
        return f"{begin}: {to} has the features of {counted(done.before, 'slide')}{regions}"
    before = f" ({counted(done.before, 'slide')} done before)" if done.before else ""
    rate = f"{seconds:.0f} s, {done.tiles / max(seconds, 1e-9):,.0f} tiles/s on {device}"
    return f"{counted(done.tiles, 'tile')} of {counted(done.slides, 'slide')}{before}{regions}, {rate}: {to}"


if __name__ == "__main__":
    sys.exit(main())
