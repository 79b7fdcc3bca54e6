"""A picture of what the trainer will see of some shards: tiles by magnification and stratum, then their crops."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines.command import (
    EXIT_NOT_ALL,
    EXIT_OK,
    Terminal,
    local_path,
    progress,
    require_apart,
    run_command,
    shards_option,
    where_options,
)
from pipelines.options import Options
from pretrain.data.index import default_folder, open_index
from pretrain.data.sampler import Sampler, SamplingSettings
from pretrain.pictures.contact_sheet import PeekSettings, contact_sheet
from pretrain.pictures.feature_picture import save_picture
from pretrain.views.colour import ColourSettings
from pretrain.views.crops import CropSettings

EPILOG = "exit codes: 0 the sheet is written; 2 the call is wrong; 3 it is written, but some tiles cannot be read."


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(build_parser(), _work, arguments)


def _work(options: argparse.Namespace, terminal: Terminal) -> int:
    require_apart("PNG", options.out, options.shards)
    with progress(terminal.out, "index") as show:
        index = open_index(options.shards, options.index or default_folder(), options.where, show, options.time_limit)
    sampler = Sampler(index, SamplingSettings(batch=1, alpha=options.alpha, seed=options.seed))
    crops, settings = CropSettings(continuous=options.continuous), PeekSettings(options.strata, options.seed)
    sheet, bad = contact_sheet(sampler, crops, ColourSettings(), settings)
    save_picture(sheet, options.out)
    for line in [*index.warnings, *sampler.warnings, *(f"cannot be read: {name}" for name in bad)]:
        terminal.warn(line)
    what = f"{index.tiles:,} tiles of {len(index.slides):,} slides in {len(sampler.strata):,} strata"
    terminal.say(f"{what}: {options.out}")
    return EXIT_NOT_ALL if bad else EXIT_OK


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.peek", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    shards_option(parser)
    where_options(parser, "\"stain = 'HE' and focus > 0.3\"")
    add("--out", type=local_path, default=Path("peek.png"), metavar="PNG", help="the picture (default: %(default)s)")
    add("--strata", type=int, default=12, metavar="N", help="most strata of a magnification (default: %(default)s)")
    add("--alpha", type=float, default=0.5, help="0 draws strata evenly, 1 as found (default: %(default)s)")
    add("--continuous", action="store_true", help="crops at every scale between the stored magnifications")
    add("--seed", type=int, default=0, help="other tiles and crops (default: %(default)s)")
    add("--index", type=local_path, metavar="FOLDER", help="where the index is kept (default: the user's cache)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
