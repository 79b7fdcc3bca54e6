"""Fits the stain classifier to real tissue as it is and in other dyes, and says how well it does on held-out cases."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from pipelines.calls.training import FitStainCall
from pipelines.command import EXIT_OK, EXIT_WRONG_CALL, Terminal, run_command
from wsi_prep.errors import WsiPrepError, counted
from wsi_prep.stain.fit.cohort import Cohort, read_slides, read_tiles
from wsi_prep.stain.fit.examples import Example, changed, recoloured
from wsi_prep.stain.fit.fit import HeldOut, fit, fit_temperature, hold_out_cases, with_temperature
from wsi_prep.stain.fit.report import by_recipe, reliability, section
from wsi_prep.stain.network import MODEL_FILE


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(FitStainCall, _work, arguments)


def _work(call: FitStainCall, terminal: Terminal) -> int:
    cv2.setNumThreads(1)
    to = call.to or MODEL_FILE
    try:
        cohort = sum((read_tiles(file) for file in call.tiles), Cohort((), (), ()))
        cohort += read_slides(call.slides) if call.slides else Cohort((), (), ())
    except WsiPrepError as error:
        terminal.warn(str(error))
        return EXIT_WRONG_CALL
    terminal.say(
        f"{counted(len(cohort.tissues), 'slide')}, {counted(len(cohort.tiles), 'tile')}; dyes {call.examples} pictures"
    )
    dyed = recoloured(cohort.tissues, call.examples, call.seed)
    examples = dyed + changed(cohort.tissues, call.examples // 2, call.seed + 1) + cohort.as_they_are()
    temperature, lines = judge(cohort, examples, dyed, call.seed)
    if call.unseen:
        lines += ["### Stains that were not fitted to", "", *by_recipe(unseen(examples, call.unseen, call.seed))]
    with_temperature(fit(examples, call.seed), temperature).save(to)
    for line in lines:
        terminal.say(line)
    terminal.say(f"temperature {temperature:.2f}; weights: {to}")
    return EXIT_OK


def judge(cohort: Cohort, examples: list[Example], dyed: list[Example], seed: int) -> tuple[float, list[str]]:
    """The temperature that calibrates slides and tiles, and lines of Markdown on slides, tiles and dyed pictures.

    Each is judged without its own case.
    """
    judged = hold_out_cases(examples, [*cohort.slides, *cohort.tiles, *dyed], seed)
    place = np.arange(len(judged.truth))
    to_tiles = len(cohort.slides) + len(cohort.tiles)
    slides = judged.only(place < len(cohort.slides))
    lines = [*section("Slides", slides, name_wrong=True), *reliability(slides)]
    if cohort.tiles:
        tiles = judged.only((place >= len(cohort.slides)) & (place < to_tiles))
        lines += [*section("Tiles", tiles, name_wrong=False), *reliability(tiles)]
    return fit_temperature(judged.only(place < to_tiles)), [*lines, *by_recipe(judged.only(place >= to_tiles))]


def unseen(examples: list[Example], names: Sequence[str], seed: int) -> HeldOut:
    """Dyed pictures of the stains of these names, each stain judged by a classifier that was fitted to all others."""
    by_name = [replace(example, case=example.name) for example in examples]
    return hold_out_cases(by_name, [example for example in by_name if example.name in names], seed)


if __name__ == "__main__":
    sys.exit(main())
