"""Fits the stain classifier to real tissue as it is and in other dyes, and says how well it does on held-out cases."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from pipelines.command import EXIT_OK, Terminal, run_command
from pipelines.options import EXIT_WRONG_CALL, Options
from wsi_prep.errors import WsiPrepError
from wsi_prep.stain.fit.cohort import Cohort, read_slides, read_tiles
from wsi_prep.stain.fit.examples import Example, changed, recoloured
from wsi_prep.stain.fit.fit import HeldOut, fit, fit_temperature, hold_out_cases, with_temperature
from wsi_prep.stain.fit.report import by_recipe, reliability, section
from wsi_prep.stain.network import MODEL_FILE


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(build_parser(), _work, arguments)


def _work(options: argparse.Namespace, terminal: Terminal) -> int:
    cv2.setNumThreads(1)
    try:
        cohort = sum((read_tiles(file) for file in options.tiles), Cohort((), (), ()))
        cohort += read_slides(options.slides) if options.slides else Cohort((), (), ())
    except WsiPrepError as error:
        terminal.warn(str(error))
        return EXIT_WRONG_CALL
    terminal.say(f"{len(cohort.tissues)} slides, {len(cohort.tiles)} tiles; dyeing {options.examples} pictures")
    dyed = recoloured(cohort.tissues, options.examples, options.seed)
    examples = dyed + changed(cohort.tissues, options.examples // 2, options.seed + 1) + cohort.as_they_are()
    temperature, lines = judge(cohort, examples, dyed, options.seed)
    if options.unseen:
        lines += ["### Stains that were not fitted to", "", *by_recipe(unseen(examples, options.unseen, options.seed))]
    with_temperature(fit(examples, options.seed), temperature).save(options.to)
    for line in lines:
        terminal.say(line)
    terminal.say(f"temperature {temperature:.2f}; weights: {options.to}")
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


def unseen(examples: list[Example], names: list[str], seed: int) -> HeldOut:
    """Dyed pictures of the stains of these names, each stain judged by a classifier that was fitted to all others."""
    by_name = [replace(example, case=example.name) for example in examples]
    return hold_out_cases(by_name, [example for example in by_name if example.name in names], seed)


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.fit_stain", description=__doc__)
    add = parser.add_argument
    add("--tiles", nargs="+", type=Path, default=[], metavar="FILE", help="Parquet of image, group, mpp, slide, stain")
    add("--slides", type=Path, metavar="FOLDER", help="slides beside a manifest.csv that gives their stain and patient")
    add("--to", type=Path, default=MODEL_FILE, metavar="FILE", help="default: %(default)s")
    add("--examples", type=int, default=7000, metavar="N", help="dyed pictures (default: %(default)s)")
    add(
        "--unseen",
        nargs="+",
        default=[],
        metavar="STAIN",
        help="recipes to judge as stains never seen",
    )
    add("--seed", type=int, default=0, help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
