"""A picture of what the trainer will see of some shards: tiles by magnification and stratum, then their crops."""

from __future__ import annotations

import sys

from pipelines.calls.training import PeekCall
from pipelines.command import (
    EXIT_NOT_ALL,
    EXIT_OK,
    Terminal,
    progress,
    require_apart,
    run_command,
)
from pretrain.data.index import default_folder, open_index
from pretrain.data.sampler import Sampler, SamplingSettings
from pretrain.pictures.contact_sheet import PeekSettings, contact_sheet
from pretrain.pictures.feature_picture import save_picture
from pretrain.views.colour import ColourSettings
from pretrain.views.crops import CropSettings
from wsi_prep.errors import BadOption, counted


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(PeekCall, _work, arguments)


def _work(call: PeekCall, terminal: Terminal) -> int:
    require_apart("PNG", call.png, call.shards)
    if call.any_mpp and call.continuous:
        raise BadOption("ANY_MPP and CONTINUOUS exclude each other; leave one of them out")
    with progress(terminal.out, "index") as show:
        index = open_index(call.shards, call.index or default_folder(), call.where, show, call.time_limit)
    sampler = Sampler(index, SamplingSettings(batch=1, alpha=call.alpha, seed=call.seed, any_mpp=call.any_mpp))
    crops, settings = CropSettings(continuous=call.continuous), PeekSettings(call.strata, call.seed)
    sheet, bad = contact_sheet(sampler, crops, ColourSettings(), settings)
    save_picture(sheet, call.png)
    for line in [*index.warnings, *sampler.warnings, *(f"cannot be read: {name}" for name in bad)]:
        terminal.warn(line)
    what = f"{counted(index.tiles, 'tile')} of {counted(index.slides_with_tiles, 'slide')}"
    terminal.say(
        f"{what} in {counted(len(sampler.strata), 'stratum', 'strata')}, each of one magnification: {call.png}"
    )
    return EXIT_NOT_ALL if bad else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
