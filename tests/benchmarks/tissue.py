"""How well tissue is found on overviews with reference masks: python -m tests.benchmarks.tissue FOLDER [--draw TO]."""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.detect import MASK_MPP, detect_tissue

_TISSUE, _NONE = 192, 63
_DRAWS = 10_000


def main() -> None:
    """Print IoU of each picture that has a mask, their mean by case with its interval, and the time taken."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="manifest.csv (file, case, um_per_px), pictures and masks/NAME.png")
    parser.add_argument("--draw", type=Path, metavar="TO", help="write outlines here: reference red, found green")
    given = parser.parse_args()
    by_case: dict[str, list[float]] = defaultdict(list)
    seconds, pixels = 0.0, 0
    with (given.folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        mask = given.folder / "masks" / f"{Path(row['file']).stem}.png"
        if not mask.exists():
            continue
        picture, reference = _at_mask_mpp(given.folder / row["file"], mask, float(row["um_per_px"]))
        begun = time.process_time()
        found = detect_tissue(picture, MASK_MPP, glass=BackgroundModel.of(picture))
        seconds, pixels = seconds + time.process_time() - begun, pixels + found.size
        share, missed, extra = _compare(found, reference)
        by_case[row["case"]].append(share)
        print(f"{share:.3f}  missed {missed:.3f}  too much {extra:.3f}  {row['file']}", flush=True)
        if given.draw:
            given.draw.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(given.draw / f"{Path(row['file']).stem}.png"), _outlined(picture, found, reference))
    means = np.array([np.mean(shares) for shares in by_case.values()])
    drawn = np.random.default_rng(0).choice(means, (_DRAWS, len(means))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    worst = min(min(shares) for shares in by_case.values())
    interval = f"95 % {low:.3f} to {high:.3f}, bootstrap over {len(means)} cases"
    print(f"mean IoU {means.mean():.3f} ({interval}), lowest {worst:.3f}")
    print(f"{seconds / pixels * 1e6:.3f} s for a million pixels, glass and tissue")


def _at_mask_mpp(picture: Path, mask: Path, mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """(h, w, 3) RGB and (h, w) reference, both at MASK_MPP."""
    pixels, reference = cv2.imread(str(picture)), cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
    if mpp < MASK_MPP:
        size = round(pixels.shape[1] * mpp / MASK_MPP), round(pixels.shape[0] * mpp / MASK_MPP)
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        reference = cv2.resize(reference, size, interpolation=cv2.INTER_NEAREST)
    return np.ascontiguousarray(pixels[..., ::-1]), reference


def _compare(found: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    """IoU, share missed and share too much; without 2 px along each edge of the reference, and what it leaves open."""
    reference = mask >= _TISSUE
    edge = cv2.morphologyEx(reference.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
    judged = ~edge & ((mask >= _TISSUE) | (mask <= _NONE))
    ours, theirs = found & judged, reference & judged
    size = max(1, np.count_nonzero(theirs))
    both, either = np.count_nonzero(ours & theirs), max(1, np.count_nonzero(ours | theirs))
    return both / either, np.count_nonzero(theirs & ~ours) / size, np.count_nonzero(ours & ~theirs) / size


def _outlined(picture: np.ndarray, found: np.ndarray, mask: np.ndarray) -> np.ndarray:
    drawn = picture[..., ::-1].copy()
    for region, colour in ((mask >= _TISSUE, (0, 0, 255)), (found, (0, 200, 0))):
        outlines, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, outlines, -1, colour, 2)
    return drawn


if __name__ == "__main__":
    main()
