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
from wsi_prep.stain.fit.examples import Example, as_it_is, changed, dyed
from wsi_prep.stain.fit.fit import HeldOut, calibrate, fit, fit_temperature, hold_out
from wsi_prep.stain.fit.report import by_recipe, reliability, section
from wsi_prep.stain.model import MODEL_FILE


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(FitStainCall, _work, arguments)


def _work(call: FitStainCall, terminal: Terminal) -> int:
    cv2.setNumThreads(1)
    to = call.to or MODEL_FILE
    try:
        parts = [*(read_tiles(file) for file in call.tiles), *(read_slides(folder) for folder in call.slides)]
        cohort = sum(parts, Cohort())
        terminal.say(
            f"{counted(len(cohort.pictures), 'picture')}, {counted(len(cohort.tiles), 'tile')}; "
            f"dyes {call.examples} pictures"
        )
        in_dyes = dyed(cohort.bases, call.examples, call.seed) if cohort.bases else []
        examples = in_dyes + changed(cohort.pictures, call.examples, call.seed + 1)
        calibrating, lines = judge(cohort, examples, in_dyes)
        if call.unseen:
            lines += ["### Stains that were not fitted to", "", *by_recipe(unseen(examples, call.unseen))]
        if not call.evaluate:
            calibrate(fit(examples), calibrating).save(to)
    except WsiPrepError as error:
        terminal.warn(str(error))
        return EXIT_WRONG_CALL
    for line in lines:
        terminal.say(line)
    terminal.say(
        f"temperature {fit_temperature(calibrating):.2f}; farthest held-out picture {calibrating.distances.max():.2f}; "
        f"weights: {'not written' if call.evaluate else to}"
    )
    return EXIT_OK


def judge(cohort: Cohort, examples: list[Example], in_dyes: list[Example]) -> tuple[HeldOut, list[str]]:
    """The held-out slides to calibrate by, and lines of Markdown on slides, crops, tiles and dyed pictures.

    Each is judged without its own case; slides also without their own laboratory.
    """
    slides = [shown for picture in cohort.pictures if picture.whole and (shown := as_it_is(picture))]
    crops = [shown for picture in cohort.pictures if not picture.whole and (shown := as_it_is(picture))]
    judged = hold_out(examples, [*slides, *crops, *cohort.tiles, *in_dyes])
    kind = np.repeat(np.arange(4), [len(slides), len(crops), len(cohort.tiles), len(in_dyes)])
    lines: list[str] = []
    calibrating = judged.only(kind == 0) if slides else judged.only(kind == 1)
    if slides:
        lines += [*section("Slides", calibrating, name_wrong=True), *reliability(calibrating)]
        abroad = hold_out(examples, slides, by_laboratory=True)
        lines += section("Slides, without their laboratory", abroad, name_wrong=False)
    for number, title in ((1, "Crops of a slide together"), (2, "Single tiles")):
        if (kind == number).any():
            lines += section(title, judged.only(kind == number), name_wrong=False)
    if in_dyes:
        lines += ["### Dyed pictures", "", *by_recipe(judged.only(kind == 3))]
    return calibrating, lines


def unseen(examples: list[Example], names: Sequence[str]) -> HeldOut:
    """Dyed pictures of the stains of these names, each stain judged by a classifier that was fitted to all others."""
    by_name = [replace(example, case=example.name) for example in examples]
    return hold_out(by_name, [example for example in by_name if example.name in names])


if __name__ == "__main__":
    sys.exit(main())
