"""Fits the stain classifier to real tissue as it is and in other dyes, and says how well it does on held-out cases."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
from rich.console import Console

from stain_fit.cohort import Cohort, read_slides, read_tiles
from stain_fit.examples import Example, changed, recoloured
from stain_fit.fit import fit, fit_temperature, hold_out_cases, with_temperature
from stain_fit.report import by_recipe, reliability, section
from wsi_prep.errors import WsiPrepError
from wsi_prep.stain_model import MODEL_FILE


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = build_parser().parse_args(arguments)
    cv2.setNumThreads(1)
    console = Console(highlight=False)
    try:
        cohort = sum((read_tiles(file) for file in options.tiles), Cohort((), (), ()))
        cohort += read_slides(options.slides) if options.slides else Cohort((), (), ())
    except (WsiPrepError, OSError) as error:
        Console(stderr=True, highlight=False).print(f"fit-stain: {error}", markup=False, soft_wrap=True)
        return 2
    console.print(f"{len(cohort.tissues)} slides, {len(cohort.tiles)} tiles; dyeing {options.examples} pictures")
    dyed = recoloured(cohort.tissues, options.examples, options.seed)
    examples = dyed + changed(cohort.tissues, options.examples // 2, options.seed + 1)
    lines = judge(cohort, examples, dyed, options.seed)
    tuned = fit_temperature(hold_out_cases(examples, cohort.slides, options.seed))
    with_temperature(fit(examples, options.seed), tuned).save(options.to)
    console.print("\n".join(lines), markup=False, soft_wrap=True)
    console.print(f"temperature {tuned:.2f}; weights: {options.to}", markup=False, soft_wrap=True)
    return 0


def judge(cohort: Cohort, examples: list[Example], dyed: list[Example], seed: int) -> list[str]:
    """Lines of Markdown: tiles, slides and dyed pictures, each judged without its own case."""
    slides = hold_out_cases(examples, cohort.slides, seed)
    lines = [*section("Slides", slides, name_wrong=True), *reliability(slides)]
    if cohort.tiles:
        tiles = hold_out_cases(examples, cohort.tiles, seed)
        lines += [*section("Tiles", tiles, name_wrong=False), *reliability(tiles)]
    return [*lines, *by_recipe(hold_out_cases(examples, dyed, seed))]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.fit_stain", description=__doc__)
    add = parser.add_argument
    add("--tiles", nargs="+", type=Path, default=[], metavar="FILE", help="Parquet of image, group, mpp, slide, stain")
    add("--slides", type=Path, metavar="FOLDER", help="slides beside a manifest.csv that gives their stain and patient")
    add("--to", type=Path, default=MODEL_FILE, metavar="FILE", help="default: %(default)s")
    add("--examples", type=int, default=9000, metavar="N", help="dyed pictures (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
