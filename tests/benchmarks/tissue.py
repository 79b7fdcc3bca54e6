"""`make evaluate-tissue PICTURES=folder`: how well tissue is found on overviews with reference masks."""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.detect import MASK_MPP, Outline, TissueSettings, outline_tissue
from wsi_prep.tissue.evidence import texture

_TISSUE, _NONE = 192, 63
_DRAWS, _RANK_DRAWS = 10_000, 1_000
_FOLDS = 5
_FACTORS = (0.75, 1.0, 1.25)
"""Of the limits of density, of fine texture, and of the share that has it: the settings that are chosen among."""


class Overview(NamedTuple):
    """One slide at MASK_MPP, and its reference mask, (h, w) uint8."""

    file: str
    case: str
    picture: NDArray[np.uint8]
    reference: NDArray[np.uint8]


def main() -> None:
    """Print IoU of each picture, their mean by case with its interval, the time taken, what certainty says of pictures
    made harder, and what limits that are chosen without a case do on it.
    """
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--pictures", type=Path, required=True, help="manifest.csv (file, case, um_per_px), pictures and masks/NAME.png"
    )
    parser.add_argument("--draw", type=Path, metavar="TO", help="write outlines here: reference red, found green")
    parser.add_argument("--quick", action="store_true", help="neither harder pictures nor other limits: half a minute")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    overviews = list(_read(given.pictures))
    by_case: dict[str, list[float]] = defaultdict(list)
    seconds, pixels = 0.0, 0
    for overview in overviews:
        begun = time.process_time()
        found = _outline(overview.picture)
        seconds, pixels = seconds + time.process_time() - begun, pixels + found.tissue.size
        share, missed, extra = _compare(found.tissue, overview.reference)
        by_case[overview.case].append(share)
        sure = f"certainty {found.certain or 0:.3f}"
        print(f"{share:.3f}  missed {missed:.3f}  too much {extra:.3f}  {sure}  {overview.file}", flush=True)
        if given.draw:
            given.draw.mkdir(parents=True, exist_ok=True)
            name = f"{Path(overview.file).stem}.png"
            cv2.imwrite(str(given.draw / name), _outlined(overview, found.tissue))
    worst = min(min(shares) for shares in by_case.values())
    print(f"mean IoU {_mean(by_case)}, lowest {worst:.3f}")
    print(f"{seconds / pixels * 1e6:.3f} s for a million pixels, glass, ink and tissue")
    if not given.quick:
        _print_ranks(overviews)
        _print_held_out(overviews)


def _outline(picture: NDArray[np.uint8], settings: TissueSettings | None = None) -> Outline:
    return outline_tissue(picture, MASK_MPP, settings, BackgroundModel.of(picture))


def _mean(by_case: Mapping[str, Sequence[float]]) -> str:
    """The mean over cases, and its interval, in words."""
    means = np.array([np.mean(shares) for shares in by_case.values()])
    drawn = np.random.default_rng(0).choice(means, (_DRAWS, len(means))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{means.mean():.3f} (95 % {low:.3f} to {high:.3f}, bootstrap over {len(means)} cases)"


def _read(folder: Path) -> Iterator[Overview]:
    """The overviews that have a mask, both at MASK_MPP."""
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        mask = folder / "masks" / f"{Path(row['file']).stem}.png"
        if not mask.exists():
            continue
        pixels, reference = cv2.imread(str(folder / row["file"])), cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
        scale = float(row["um_per_px"]) / MASK_MPP
        if scale < 1:
            size = round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            reference = cv2.resize(reference, size, interpolation=cv2.INTER_NEAREST)
        yield Overview(row["file"], row["case"], np.ascontiguousarray(pixels[..., ::-1]), reference)


def _compare(found: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    """IoU, share missed and share too much; without 2 px along each edge of the reference, and what it leaves open."""
    reference = mask >= _TISSUE
    edge = cv2.morphologyEx(reference.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
    judged = ~edge & ((mask >= _TISSUE) | (mask <= _NONE))
    ours, theirs = found & judged, reference & judged
    size = max(1, np.count_nonzero(theirs))
    both, either = np.count_nonzero(ours & theirs), max(1, np.count_nonzero(ours | theirs))
    return both / either, np.count_nonzero(theirs & ~ours) / size, np.count_nonzero(ours & ~theirs) / size


def _outlined(overview: Overview, found: np.ndarray) -> np.ndarray:
    drawn = overview.picture[..., ::-1].copy()
    for region, colour in ((overview.reference >= _TISSUE, (0, 0, 255)), (found, (0, 200, 0))):
        outlines, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, outlines, -1, colour, 2)
    return drawn


def _paler(share: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """Tissue, and all else that takes light, takes that share of it."""

    def change(picture: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
        glass = np.percentile(picture[::5, ::5].reshape(-1, 3), 97, axis=0)
        return np.asarray(glass * (np.maximum(picture, 1) / glass) ** share)

    return change


def _noisy(levels: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    return lambda picture, rng: picture + rng.normal(0, levels, picture.shape)


def _filmed(density: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """Soft grey blots of some mm over a quarter of the slide."""

    def change(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = picture.shape[:2]
        rough = rng.normal(size=(max(2, height // 120), max(2, width // 120))).astype(np.float32)
        clouds = cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)
        return np.asarray(picture * 10 ** (-density / (1 + np.exp((0.6 - clouds) * 8)))[..., None])

    return change


_HARDER: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "as it is": lambda picture, _rng: picture,
    "half as dense": _paler(0.5),
    "a quarter as dense": _paler(0.25),
    "an eighth as dense": _paler(0.125),
    "blurred by 24 um": lambda picture, _rng: cv2.GaussianBlur(picture, (0, 0), 3),
    "blurred by 64 um": lambda picture, _rng: cv2.GaussianBlur(picture, (0, 0), 8),
    "noise of 4 levels": _noisy(4),
    "noise of 10 levels": _noisy(10),
    "film of density 0.03": _filmed(0.03),
    "film of density 0.08": _filmed(0.08),
    "a third as dense, noise of 4": lambda picture, rng: _noisy(4)(_paler(0.33)(picture, rng), rng),
}


def _print_ranks(overviews: Sequence[Overview]) -> None:
    """How far lower certainty goes with lower IoU, over the overviews and harder pictures made of them."""
    cases, shares, certain = [], [], []
    for number, overview in enumerate(overviews):
        for change in _HARDER.values():
            changed = change(overview.picture.astype(np.float32), np.random.default_rng(number))
            found = _outline(np.clip(np.rint(changed), 0, 255).astype(np.uint8))
            cases.append(overview.case)
            shares.append(_compare(found.tissue, overview.reference)[0])
            certain.append(0.0 if found.certain is None else found.certain)
    share, sure = np.array(shares), np.array(certain)
    of_case = [np.flatnonzero(np.array(cases) == case) for case in dict.fromkeys(cases)]
    way = np.arange(len(share)) % len(_HARDER)
    print(
        "\n| pictures | pictures | rank correlation of certainty with IoU | 95 % | median IoU |\n|---|---|---|---|---|"
    )
    for name, kept in (("all", way >= 0), *((name, way == n) for n, name in enumerate(_HARDER))):
        rank, low, high = _rank(sure, share, [rows[kept[rows]] for rows in of_case])
        print(f"| {name} | {kept.sum()} | {rank:.2f} | {low:.2f} to {high:.2f} | {np.median(share[kept]):.3f} |")
    print("\n| certainty | pictures | median IoU | with IoU below 0.8 |\n|---|---|---|---|")
    for least, most in itertools.pairwise((0, 0.6, 0.8, 0.9, 0.95, 1.01)):
        of = share[(sure >= least) & (sure < most)]
        if len(of):
            print(f"| {least:g} to {min(most, 1):g} | {len(of)} | {np.median(of):.3f} | {(of < 0.8).mean():.0%} |")


def _rank(sure: np.ndarray, share: np.ndarray, of_case: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Spearman's rank correlation, and its interval by drawing cases anew."""
    rng = np.random.default_rng(0)
    whole = np.concatenate(of_case)
    drawn = []
    for _ in range(_RANK_DRAWS):
        rows = np.concatenate([of_case[n] for n in rng.integers(len(of_case), size=len(of_case))])
        drawn.append(spearmanr(sure[rows], share[rows]).statistic)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(spearmanr(sure[whole], share[whole]).statistic), float(low), float(high)


def _print_held_out(overviews: Sequence[Overview]) -> None:
    """What limits do that were chosen, among a few, without the cases that they are judged on."""
    usual = TissueSettings()
    grid = list(itertools.product(_FACTORS, repeat=3))
    shares = np.empty((len(grid), len(overviews)))
    for row, (density, fine, share) in zip(shares, grid, strict=True):
        settings = TissueSettings(density * usual.seed_density, density * usual.edge_density)
        limits = {"_LEAST_TEXTURE": fine, "_SPREADS": fine, "ENOUGH": share}
        moved = {name: factor * getattr(texture, name) for name, factor in limits.items()}
        with mock.patch.multiple(texture, **moved):
            row[:] = [_compare(_outline(each.picture, settings).tissue, each.reference)[0] for each in overviews]
    cases = list(dict.fromkeys(each.case for each in overviews))
    of_case = np.array([cases.index(each.case) for each in overviews])
    by_case = np.array([[row[of_case == n].mean() for n in range(len(cases))] for row in shares])
    fold = np.random.default_rng(0).permutation(len(cases)) % _FOLDS
    held_out: dict[str, list[float]] = {}
    chosen = []
    for number in range(_FOLDS):
        best = int(by_case[:, fold != number].mean(axis=1).argmax())
        chosen.append(" ".join(f"{factor:g}" for factor in grid[best]))
        held_out |= {cases[n]: [by_case[best, n]] for n in np.flatnonzero(fold == number)}
    plain = {case: [by_case[grid.index((1.0, 1.0, 1.0)), n]] for n, case in enumerate(cases)}
    lowest, highest = by_case.mean(axis=1).min(), by_case.mean(axis=1).max()
    print(f"\nlimits as they are: mean IoU {_mean(plain)}; of all {len(grid)} settings {lowest:.3f} to {highest:.3f}")
    print(f"limits chosen by the other cases, {_FOLDS} folds: mean IoU {_mean(held_out)}")
    print(f"factors of density, fine texture and its share that each fold chose: {'; '.join(chosen)}")


if __name__ == "__main__":
    main()
