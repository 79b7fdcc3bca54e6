"""What the judges of slides say of features that know nothing: mean, spread, and how often intervals hold one half.

`python -m tests.benchmarks.slide_chance --patients 40 --draws 60`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
import torch

from pretrain.evaluation.slides.attention import AttentionSettings
from pretrain.evaluation.slides.bags import Bags, LabelledSlides
from pretrain.evaluation.slides.judge import judge_slides, judged_slides

_TILES, _WIDTH = 10, 6


def main() -> None:
    """Print a line for each judge and metric, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument("--steps", type=int, default=300, help="of attention, at least")
    given = parser.parse_args()
    torch.set_num_threads(1)
    values: dict[tuple[str, str], list[tuple[float, bool]]] = defaultdict(list)
    for draw in range(given.draws):
        rng = np.random.default_rng(draw)
        patients = np.arange(given.patients)
        names = tuple(f"slide {n}" for n in patients)
        told = LabelledSlides("chance", names, rng.permutation(patients % 2), ("a", "b"), patients)
        noise = rng.normal(size=(len(names), _TILES, _WIDTH)) + rng.normal(size=(len(names), 1, _WIDTH))
        bags = Bags("noise", names, tuple(noise.astype(np.float32)))
        slides, fold = judged_slides(told, [bags], 5)
        for row in judge_slides(slides, fold, bags, AttentionSettings(steps=given.steps, epochs=5)):
            values[row.judge, row.metric].append((row.value, row.low <= 0.5 <= row.high))
    print("| judge | metric | mean | spread | intervals that hold one half |\n| --- | --- | --- | --- | --- |")
    for (judge, metric), found in values.items():
        value, held = np.array(found).T
        print(f"| {judge} | {metric} | {value.mean():.3f} | {value.std():.3f} | {held.mean():.0%} |")


if __name__ == "__main__":
    main()
