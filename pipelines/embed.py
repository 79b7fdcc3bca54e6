"""Writes the features of every tile of some shards, as Parquet and as h5."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from pipelines.command import (
    EXIT_NOT_ALL,
    EXIT_OK,
    Terminal,
    local_path,
    require_apart,
    run_command,
    shards_option,
    where_options,
)
from pipelines.options import Options
from pretrain.features.embed import Embedded, EmbedSettings, FeaturesTo, WantedTiles, embed_shards
from pretrain.features.embedder import Inference
from pretrain.train.loop import DTYPES
from pretrain.train.recipe.recipe import PRECISIONS
from pretrain.train.runs import load_model

EPILOG = "exit codes: 0 all is written; 2 the call is wrong; 3 it is written, but some tiles cannot be read."


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(build_parser(), _work, arguments)


def _work(options: argparse.Namespace, terminal: Terminal) -> int:
    require_apart("TO", options.to, options.shards)
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    columns = (TextColumn("{task.completed:,} tiles"), TextColumn("{task.description}"), TimeElapsedColumn())
    cast = DTYPES[options.precision] if options.precision != "fp32" else None
    settings = EmbedSettings(Inference(device, options.batch, options.threads, cast), options.px)
    backbone = load_model(options.model)
    with Progress(*columns, console=terminal.out, disable=not terminal.out.is_terminal) as bar:
        task = bar.add_task("", total=None)
        done = embed_shards(
            WantedTiles(options.shards, options.where, options.time_limit),
            backbone,
            FeaturesTo(options.to, options.model.resolve().name, options.redo),
            settings,
            lambda slide, tiles: bar.update(task, advance=tiles, description=slide),
        )
    terminal.warn_of([f"cannot be read: {name}: {reason}" for name, reason in done.unreadable.items()])
    for note in _notes(done, options.to):
        terminal.say(f"note: {note}")
    terminal.say(_what_was_done(done, options.to, time.monotonic() - began, device.type))
    return EXIT_NOT_ALL if done.unreadable else EXIT_OK


def _notes(done: Embedded, to: Path) -> list[str]:
    found = list(done.notes)
    if done.elsewhere:
        found.append(f"{to} also holds features of {done.elsewhere} slides that are not among these tiles")
    return found


def _what_was_done(done: Embedded, to: Path, seconds: float, device: str) -> str:
    if not done.slides:
        return f"nothing to do: the features of all {done.before:,} slides are in {to}"
    before = f" ({done.before} slides were there before)" if done.before else ""
    rate = f"{seconds:.0f} s, {done.tiles / max(seconds, 1e-9):,.0f} tiles/s on {device}"
    return f"{done.tiles:,} tiles of {done.slides:,} slides{before}, {rate}: {to}"


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.embed", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    shards_option(parser)
    add("--model", required=True, type=Path, metavar="FOLDER", help="a run, or a folder that make export has written")
    add(
        "--to",
        required=True,
        type=local_path,
        metavar="FOLDER",
        help="where the features go; slides that are done stay",
    )
    add("--redo", action="store_true", help="delete the features that are there, and make all anew")
    where_options(parser, "\"magnification = '20x'\"")
    add("--px", type=int, default=0, help="embed the middle of a tile, so many px a side (default: all of it)")
    add("--batch", type=int, default=64, help="tiles at once (default: %(default)s)")
    add("--threads", type=int, default=4, help="that read and decode (default: %(default)s)")
    add("--precision", choices=PRECISIONS, default="fp32", help="of products (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
