"""A picture of what the trainer will see of some shards: tiles by magnification and stratum, then their crops."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from pipelines.local import local_path
from pipelines.options import Options
from pipelines.progress import index_progress
from pretrain.data.index import default_folder, open_index
from pretrain.data.sampler import Sampler, SamplingSettings
from pretrain.pictures.look import save_picture
from pretrain.pictures.peek import PeekSettings, contact_sheet
from pretrain.views.colour import ColourSettings
from pretrain.views.crops import CropSettings
from wsi_prep.errors import UsageError
from wsi_prep.untrusted.sql import CONDITION_SECONDS

EXIT_OK, EXIT_WRONG_CALL, EXIT_BAD_TILES = 0, 2, 3

EPILOG = "exit codes: 0 the sheet is written; 2 the call is wrong; 3 it is written, but some tiles cannot be read."


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = build_parser().parse_args(arguments)
    errors = Console(stderr=True, highlight=False)
    console = Console(highlight=False)
    try:
        with index_progress(console) as progress:
            index = open_index(
                options.shards, options.index or default_folder(), options.where, progress, options.time_limit
            )
        sampler = Sampler(index, SamplingSettings(batch=1, alpha=options.alpha, seed=options.seed))
        sheet, bad = contact_sheet(
            sampler,
            CropSettings(continuous=options.continuous),
            ColourSettings(),
            PeekSettings(options.strata, options.seed),
        )
        save_picture(sheet, options.out)
    except UsageError as error:
        errors.print(f"peek: {error}", markup=False, soft_wrap=True)
        return EXIT_WRONG_CALL
    except OSError as error:
        errors.print(f"peek: {options.out} cannot be written: {error.strerror or error}", markup=False, soft_wrap=True)
        return EXIT_WRONG_CALL
    for line in [*index.warnings, *sampler.warnings, *(f"cannot be read: {name}" for name in bad)]:
        errors.print(f"peek: {line}", markup=False, soft_wrap=True)
    what = f"{index.tiles:,} tiles of {len(index.slides):,} slides in {len(sampler.strata):,} strata"
    console.print(f"{what}: {options.out}", markup=False, soft_wrap=True)
    return EXIT_BAD_TILES if bad else EXIT_OK


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.peek", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("--shards", required=True, nargs="+", metavar="WHERE", help="folders or URLs that make shards has filled")
    add("--where", metavar="SQL", help="a condition on the catalog's columns, as in \"stain = 'HE' and focus > 0.3\"")
    add(
        "--time-limit",
        type=float,
        default=CONDITION_SECONDS,
        metavar="SECONDS",
        help="most that --where may take for a part of the catalog (default: %(default)g)",
    )
    add("--out", type=local_path, default=Path("peek.png"), metavar="PNG", help="the picture (default: %(default)s)")
    add("--strata", type=int, default=12, metavar="N", help="most strata of a magnification (default: %(default)s)")
    add("--alpha", type=float, default=0.5, help="0 draws strata evenly, 1 as found (default: %(default)s)")
    add("--continuous", action="store_true", help="crops at every scale between the stored magnifications")
    add("--seed", type=int, default=0, help="other tiles and crops (default: %(default)s)")
    add("--index", type=local_path, metavar="FOLDER", help="where the index is kept (default: the user's cache)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
