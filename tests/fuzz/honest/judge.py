"""Whether what a run stored of a slide is what was painted, or what it said instead is true."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import zarr

from tests.fuzz.honest.case import Case
from tests.fuzz.honest.painting import STEP, Picture
from wsi_prep.format.records import told

TILE_PX = 392
MAGS = {"40x": 0.25, "20x": 0.5, "10x": 1.0, "5x": 2.0}
MOST_COLOUR = 3.0
"""Grey levels between the means of a tile as stored and as painted."""
MOST_SPREAD = 7.0
"""Grey levels, root mean square, between both at a quarter of their size: sees what is shifted or swapped."""
_SLACK = 0.04
"""Of the tissue's or a tile's area, beyond what a detector is let: an edge up to _INSIDE_UM too narrow or _OUTSIDE_UM
too wide, gaps up to _GAP_UM closed, specks up to _SPECK_UM2 filled or dropped."""
_INSIDE_UM, _OUTSIDE_UM, _GAP_UM, _SPECK_UM2 = 24.0, 40.0, 60.0, 15_000.0
_APART = "those that the TIFF reader reads"
_TRACEBACK = re.compile(
    r"Traceback|\b\w*(?<!Dask)(?:Error|Exception)\b|NoneType|has no attribute|out of range|not subscriptable"
)


def judge(case: Case, row: dict, out: Path) -> list[str]:
    """What is wrong, in words: "wrong: ..." for what is stored, "untrue: ..." for what is said, "refused: ..." for a
    sound slide that is not made.
    """
    if row["status"] in ("failed", "excluded"):
        return _refusal(case, row)
    if case.must_refuse:
        return [f"wrong: {row['status']}, where it must be refused"]
    if not case.mpp_known:
        return [f"wrong: {row['status']} at {row['mpp_x']} um/px ({row['mpp_source']}), which nothing tells"]
    found = _untrue_warning(case, row)
    truth = case.truth
    for scene in case.scenes:
        if (row["width"], row["height"]) == scene.size != truth.size:
            truth = scene
            if not re.search(r"image|scene|picture|series", row["warning"] or "", re.IGNORECASE):
                found.append("wrong: a smaller scene was taken, and nothing says so")
    if (row["width"], row["height"]) != truth.size:
        return [*found, f"wrong: {row['width']} x {row['height']} px, painted {truth.size[0]} x {truth.size[1]}"]
    for axis, true in (("mpp_x", truth.mpp_x), ("mpp_y", truth.mpp_y)):
        if abs(row[axis] - true) > 0.01 * true:
            return [*found, f"wrong: {axis} {row[axis]:.5g}, painted {true:.5g}"]
    # OpenSlide's colours are stored where it is asked for by name, with a word that they are not ours
    apart = case.settings.reader == "openslide" and _APART in (row["warning"] or "")
    excused = apart or any(re.search(said, row["warning"] or "", re.IGNORECASE) for said in case.soft)
    table = out / "catalog/tiles" / f"{row['slide_id']}.parquet"
    tiles = pq.read_table(table).to_pylist() if table.exists() else []
    if not excused:
        bounds = Bounds.of(truth)
        found += _outline(truth, bounds, row, out) + _counts(case, truth, bounds, row, tiles) + _stain(truth, row)
    wrong = _pixels(truth, tiles, out)
    found += _unless(wrong) if apart else wrong
    if row["file"] != case.name:
        found.append(f"wrong: file is {row['file']!r}, named {case.name!r}")
    return found


def _unless(wrong):
    return [] if wrong else [f"untrue: warning of what is not so: the pixels are not {_APART}"]


def _refusal(case, row):
    text = row["error"] or ""
    said = f"{row['status']} {row['error_type']}: {text}"
    if _TRACEBACK.search(text):
        return [f"untrue: the reason is a programmer's: {said}"]
    if len(text) >= 500 or text.endswith(("...", "…")):
        return [f"untrue: the reason is cut off: {said}"]
    plain = text.replace("whole-slide image", "slide")
    if any(re.search(reason, plain, re.IGNORECASE) for reason in case.refusals):
        return []
    return [f"untrue: not why it must be refused: {said}" if case.must_refuse else f"refused: {said}"]


def _untrue_warning(case, row):
    true = list(case.warnings)
    if case.settings.reader == "openslide":
        true.append(_APART)
        if _APART in (row["warning"] or ""):
            true.append("no bare glass")  # in the colours that are stored there may be none: magenta, say
    texts = [text for text in told(row["warning"]) if not any(re.search(s, text, re.IGNORECASE) for s in true)]
    return [f"untrue: warning of what is not so: {text}" for text in texts]


def drawn(document: dict, shape: tuple[int, int]) -> np.ndarray:
    """The GeoJSON's polygons as a mask of every STEP px, by the even-odd rule."""
    mask = np.zeros(shape, np.uint8)
    for feature in document["features"]:
        geometry = feature["geometry"]
        polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        for rings in polygons:
            one = np.zeros(shape, np.uint8)
            points = [np.rint((np.array(ring) / STEP - 0.5) * 16).astype(np.int32) for ring in rings]
            cv2.fillPoly(one, points, 1, shift=4)
            mask |= one
    return mask.astype(bool)


@dataclass(frozen=True)
class Bounds:
    """What any good outline of the painted tissue holds, and what none reaches beyond; masks of every STEP px."""

    inner: np.ndarray
    outer: np.ndarray

    @classmethod
    def of(cls, truth: Picture) -> "Bounds":
        pixel = (STEP * truth.mpp_x, STEP * truth.mpp_y)
        least = _SPECK_UM2 / (pixel[0] * pixel[1])

        def morphed(mask, way, radius_um):
            size = [2 * round(radius_um / side) + 1 for side in pixel]
            border = 1 if way == cv2.MORPH_ERODE else 0
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, size)
            plain = mask.astype(np.uint8)
            return cv2.morphologyEx(plain, way, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=border).astype(bool)

        wide = _without_specks(~truth.tissue, least)
        wide = morphed(morphed(~wide, cv2.MORPH_DILATE, _OUTSIDE_UM + _GAP_UM / 2), cv2.MORPH_ERODE, _GAP_UM / 2)
        return cls(morphed(_without_specks(truth.tissue, least), cv2.MORPH_ERODE, _INSIDE_UM), wide)


def _without_specks(mask, least):
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    large = stats[:, cv2.CC_STAT_AREA] >= least
    large[0] = False
    return large[labels]


def _outline(truth, bounds, row, out):
    path = out / "tissue" / f"{row['slide_id']}.geojson"
    mask = drawn(json.loads(path.read_text()), truth.tissue.shape)
    painted = max(1, truth.tissue.sum())
    found = []
    for what, share in (
        ("lacks {:.0%} of the painted tissue", (bounds.inner & ~mask).sum() / painted),
        ("takes in glass, {:.0%} of the painted tissue", (mask & ~bounds.outer).sum() / painted),
    ):
        if share > _SLACK:
            found.append(f"wrong: the outline {what.format(share)}")
    true = painted * STEP**2 * truth.mpp_x * truth.mpp_y * 1e-6
    traced = mask.sum() * STEP**2 * truth.mpp_x * truth.mpp_y * 1e-6
    if abs(row["tissue_mm2"] - traced) > 0.05 * max(traced, true):
        found.append(
            f"wrong: {row['tissue_mm2']:.3f} mm2 of tissue in the row, {traced:.3f} outlined, {true:.3f} painted"
        )
    return found


def _spans(truth, name):
    """Level-0 px that a tile covers from left to right and from top to bottom; None where it cannot be made."""
    coarser = max(truth.mpp_x, truth.mpp_y)
    base = next((mpp for mpp in MAGS.values() if coarser <= mpp * 1.05), None)
    if base is None or MAGS[name] < base:
        return None
    native = all(abs(mpp - base) <= 0.05 * base for mpp in (truth.mpp_x, truth.mpp_y))
    side = TILE_PX * MAGS[name] / base
    return (side, side) if native else (side * base / truth.mpp_x, side * base / truth.mpp_y)


def _fraction(mask, x0, y0, span_x, span_y):
    x, y, right, below = (round(n / STEP) for n in (x0, y0, x0 + span_x, y0 + span_y))
    return float(mask[y : max(y + 1, below), x : max(x + 1, right)].mean())


def _counts(case, truth, bounds, row, tiles):
    found = []
    for name in case.settings.plan.magnifications:
        spans = _spans(truth, name)
        made = [t for t in tiles if t["magnification"] == name]
        if len(made) != row[f"tiles_{name}"]:
            found.append(f"wrong: {row[f'tiles_{name}']} tiles at {name} in the row, {len(made)} in the table")
        if spans is None:
            found += [f"wrong: {len(made)} tiles at {name}, which is finer than the slide"] if made else []
            continue
        found += _places(truth, bounds, name, spans, made)
    return found


def _places(truth, bounds, name, spans, made):
    """Tiles that are missing, that should not be, or whose share of tissue is off."""
    across, down = (math.floor(n / span + 1e-9) for n, span in zip(truth.size, spans, strict=True))
    grid = [(c * spans[0], r * spans[1]) for r in range(down) for c in range(across)]
    least = sum(_fraction(bounds.inner, *at, *spans) >= 0.65 + _SLACK for at in grid)
    most = sum(_fraction(bounds.outer, *at, *spans) >= 0.65 - _SLACK for at in grid)
    found = [] if least <= len(made) <= most else [f"wrong: {len(made)} tiles at {name}, painted are {least} to {most}"]
    for tile in made:
        low, high = (_fraction(mask, tile["x0"], tile["y0"], *spans) for mask in (bounds.inner, bounds.outer))
        if not low - _SLACK <= tile["tissue_fraction"] <= high + _SLACK:
            where = f"{name} tile at {tile['x0']}, {tile['y0']}"
            found.append(f"wrong: {where} has {tile['tissue_fraction']:.2f} tissue, painted is {low:.2f} to {high:.2f}")
            break
    return found


def _stain(truth, row):
    if truth.coloured:
        return (
            [] if row["stain"] == "HE" else [f"wrong: stain {row['stain']} ({row['stain_confidence']:.2f}), painted HE"]
        )
    if row["stain"] in ("UNKNOWN", None) or row["stain_confidence"] < 0.5:
        return []
    return [f"wrong: stain {row['stain']} ({row['stain_confidence']:.2f}) of a slide without colour"]


def _pixels(truth, tiles, out):
    found, arrays, worst = [], {}, {}
    for tile in _sampled(tiles):
        name = tile["magnification"]
        if tile["array"] not in arrays:
            arrays[tile["array"]] = zarr.open(out / tile["array"], mode="r")
        got = arrays[tile["array"]][tile["index"]].astype(np.float32)
        want = painted_tile(truth, tile["x0"], tile["y0"], *_spans(truth, name))
        colour = float(np.abs(got.mean((0, 1)) - want.mean((0, 1))).max())
        small = [cv2.resize(t, (98, 98), interpolation=cv2.INTER_AREA) for t in (got, want)]
        spread = float(np.sqrt(np.square(small[0] - small[1]).mean()))
        where = f"{name} tile at {tile['x0']}, {tile['y0']}"
        for kind, value, most in (("mean colour", colour, MOST_COLOUR), ("pixels", spread, MOST_SPREAD)):
            if value > most and value > worst.get(kind, (0.0,))[0]:
                worst[kind] = (value, where)
    for kind, (value, where) in worst.items():
        found.append(f"wrong: {kind} of the {where} are {value:.1f} levels off")
    return found


def _sampled(tiles):
    """All tiles of the coarse magnifications and every so many of the fine ones."""
    out = []
    for name in MAGS:
        of_mag = [t for t in tiles if t["magnification"] == name]
        out += of_mag[:: max(1, len(of_mag) // 16)]
    return out


def painted_tile(truth, x0: int, y0: int, span_x: float, span_y: float) -> np.ndarray:
    """(392, 392, 3) float32: area means of the painted pixels under a tile."""
    right, below = (
        min(n, round(at + span)) for n, at, span in zip(truth.size, (x0, y0), (span_x, span_y), strict=True)
    )
    part = truth.pixels[y0:below, x0:right]
    return cv2.resize(part, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
