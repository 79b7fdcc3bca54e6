"""`make evaluate-tissue PICTURES=folder`: ink that is found, and stain that is taken for it, on real overviews.

PICTURES: a folder of pictures of whole slides with manifest.csv (file, class, um_per_px) and, where known, masks/ (255
tissue, 0 ink or glass, 128 open). Strokes of real pens' colours are drawn on every slide that has no pen in its name.
"""

from __future__ import annotations

import argparse
import collections
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.detect import MASK_MPP, detect_tissue
from wsi_prep.tissue.ink import ink

PENS = {
    **{"green": (36, 115, 63), "teal": (20, 140, 120), "blue": (30, 50, 160), "pale blue": (95, 120, 205)},
    **{"red": (210, 20, 25), "purple": (80, 40, 130), "purple-black": (38, 25, 52), "black": (25, 25, 28)},
}
_TILE_PX = 98 / MASK_MPP
_MOST_PX = 1000
Mask = NDArray[np.bool_]


class Overview(NamedTuple):
    """One slide at MASK_MPP; `mask` (h, w) uint8, or None."""

    file: str
    stain: str
    picture: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None


def main() -> None:
    """Print two Markdown tables, and a line for each slide that loses tissue or has real ink."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--pens-a-slide", type=int, default=3)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    lost, recall = collections.defaultdict(list), collections.defaultdict(list)
    for number, slide in enumerate(read(given.pictures)):
        found = ink(slide.picture, MASK_MPP, BackgroundModel.of(slide.picture))
        if "-pen_" in slide.file and slide.mask is not None:
            shares = found[slide.mask == 0].mean(), found[slide.mask == 255].mean()
            print(f"{slide.file}: {shares[0]:.1%} of the ink found, {shares[1]:.1%} of the tissue taken for it")
            continue
        tissue = detect_tissue(slide.picture, MASK_MPP, marks=np.zeros_like(found))
        share, tiles = found[tissue].mean() if tissue.any() else 0.0, tiles_lost(found, tissue)
        lost[slide.stain].append((share, tiles))
        if found.any():
            print(f"{slide.file}: unmarked; {share:.2%} of the tissue taken for ink, {tiles:.2%} of 40x tiles lost")
        for pen in range(given.pens_a_slide):
            name = list(PENS)[(3 * number + 3 * pen) % len(PENS)]
            for place, value in drawn(slide, tissue, name, np.random.default_rng([number, pen])):
                recall[name, place, slide.stain].append(value)
    print(
        "\n| unmarked slides | slides | most tissue taken for ink | most 40x tiles with pen > 0.02 |\n|---|---|---|---|"
    )
    for stain, values in sorted(lost.items()):
        most = np.max(values, axis=0)
        print(f"| {stain} | {len(values)} | {most[0]:.2%} | {most[1]:.2%} |")
    stains = sorted(lost)
    print("\n| ink found | " + " | ".join(f"{s}, {p}" for s in stains for p in ("tissue", "glass")) + " |")
    print("|---" * (1 + 2 * len(stains)) + "|")
    for name in PENS:
        cells = [recall[name, place, stain] for stain in stains for place in ("tissue", "glass")]
        print(f"| {name} | " + " | ".join(f"{np.mean(c):.0%} of {len(c)}" if c else "" for c in cells) + " |")


def read(folder: Path) -> Iterator[Overview]:
    """The overviews of a folder, reduced to MASK_MPP."""
    with (folder / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        picture = cv2.imread(str(folder / row["file"]))[..., ::-1]
        path = folder / "masks" / f"{row['file'].rpartition('.')[0]}.png"
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) if path.is_file() else None
        scale = float(row["um_per_px"]) / MASK_MPP
        if scale < 0.9:
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            mask = None if mask is None else cv2.resize(mask, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        yield Overview(row["file"], row["class"], np.ascontiguousarray(picture), mask)


def tiles_lost(found: Mask, tissue: Mask) -> float:
    """Share of the 40x tiles of at least 65 % tissue that are more than 2 % ink."""
    rows, cols = (int(side / _TILE_PX) for side in found.shape)
    ys, xs = (np.rint(np.arange(n + 1) * _TILE_PX).astype(int) for n in (rows, cols))
    area = np.outer(np.diff(ys), np.diff(xs))

    def shares(mask: Mask) -> NDArray[np.float64]:
        at = cv2.integral(mask.astype(np.uint8))[np.ix_(ys, xs)].astype(float)
        return np.asarray((at[1:, 1:] - at[1:, :-1] - at[:-1, 1:] + at[:-1, :-1]) / area)

    kept = shares(tissue) >= 0.65
    return float((kept & (shares(found) > 0.02)).sum() / max(kept.sum(), 1))


def drawn(slide: Overview, tissue: Mask, pen: str, rng: np.random.Generator) -> Iterator[tuple[str, float]]:
    """The shares that are found of a straight and a curved stroke on a slide's middle, over tissue and over glass."""
    middle = np.argwhere(tissue).mean(0).astype(int) if tissue.any() else np.array(tissue.shape) // 2
    y, x = np.maximum(0, np.minimum(middle - _MOST_PX // 2, np.array(tissue.shape) - _MOST_PX))
    box = np.s_[y : y + _MOST_PX, x : x + _MOST_PX]
    picture, tissue = slide.picture[box].astype(np.float32), tissue[box]
    size = np.array(tissue.shape)
    covered = np.zeros(tissue.shape, np.float32)
    for bend in (0.0, rng.uniform(0.1, 0.3)):
        width_um = min(np.exp(rng.uniform(np.log(300), np.log(2000))), max(300, size.min() * MASK_MPP / 5))
        cover = stroke(size, width_um / MASK_MPP, bend, rng)
        thickness = rng.uniform(0.7, 1.3) * (1 + 0.12 * clouds(size, rng) + dried_rim(cover, rng))
        ink_alone = (np.array(PENS[pen]) / 255) ** np.clip(thickness, 0.3, 2)[..., None]
        picture *= 1 - cover[..., None] * (1 - ink_alone)
        covered = np.maximum(covered, cover)
    shown = np.clip(np.rint(picture + rng.normal(0, 0.7, picture.shape)), 0, 255).astype(np.uint8)
    jpeg = cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, int(rng.choice([75, 85, 92]))])[1]
    shown = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8)
    found = ink(shown, MASK_MPP, BackgroundModel.of(shown))
    for place, part in (("tissue", tissue), ("glass", ~tissue)):
        inside = part & (covered > 0.9)
        if inside.sum() > 200:
            yield place, float(found[inside].mean())


def stroke(size: NDArray[np.int64], width_px: float, bend: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """(h, w) how much a line covers each pixel, 0 to 1, sharp or out of focus."""
    angle, length = rng.uniform(0, np.pi), size.max() * rng.uniform(0.5, 1.2)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    at = np.linspace(-0.5, 0.5, 60)[:, None]
    centre = rng.uniform(0.3, 0.7, 2) * size[::-1]
    points = centre + at * length * along + (np.cos(np.pi * at) - 0.6) * bend * length * across
    line = np.zeros(tuple(size), np.uint8)
    cv2.polylines(line, [np.rint(points * 16).astype(np.int32)], False, 255, round(width_px), cv2.LINE_AA, 4)
    return np.asarray(cv2.GaussianBlur(line.astype(np.float32) / 255, (0, 0), rng.choice([0.6, 2.0, 4.0])))


def clouds(size: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
    """(h, w) smooth noise of variance 1."""
    field = cv2.GaussianBlur(rng.normal(size=tuple(size)).astype(np.float32), (0, 0), 25)
    return np.asarray(field / field.std())


def dried_rim(cover: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float64]:
    """(h, w) by how much the ink is thicker along its edge, on every other stroke."""
    depth = cv2.distanceTransform((cover > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    return np.asarray(np.exp(-((depth - 3) ** 2) / 8) * (cover > 0.3) * rng.choice([0, 0.4]))


if __name__ == "__main__":
    main()
