"""Fat is told from other tissue on the overview: clear cells with thin walls, beside what is pale or hollow."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import tifffile

from tests.support.real_tiles import prepared
from wsi_prep.run.task import PrepareSettings
from wsi_prep.tiles.filters import parse_filters
from wsi_prep.tiles.plan import PlanSettings
from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.detect import MASK_MPP, fat_in, outline_tissue

SHAPE, GLASS = (420, 560), 243.0
EOSIN = np.array((0.25, 1.0, 0.5))
LEFT = np.s_[60:360, 60:270]
RIGHT = np.s_[60:360, 290:500]


def part(where):
    mask = np.zeros(SHAPE, bool)
    mask[where] = True
    return mask


def solid(strength, rng):
    """Stroma with cells some 10 um large."""
    cells = np.abs(cv2.GaussianBlur(rng.normal(0, 1, SHAPE), (0, 0), 0.7))
    return strength * (0.6 + 0.4 * cells / cells.mean())


def cells_with_walls(across_um, wall, rng):
    """Voronoi cells so wide, clear inside, whose walls are one pixel of so much density."""
    count = round(SHAPE[0] * SHAPE[1] * (MASK_MPP / across_um) ** 2)
    subdivision = cv2.Subdiv2D((0, 0, SHAPE[1], SHAPE[0]))
    subdivision.insert(rng.uniform((0, 0), SHAPE[::-1], (count, 2)).astype(np.float32).tolist())
    walls = np.zeros(SHAPE, np.uint8)
    for facet in subdivision.getVoronoiFacetList([])[0]:
        cv2.polylines(walls, [facet.astype(np.int32)], True, 255, 1, cv2.LINE_AA)
    return walls / 255.0 * wall


def glands(rng):
    """Dense tissue with round lumina of 150 um, thick walls between them."""
    density = solid(0.35, rng)
    for y in range(0, SHAPE[0], 40):
        for x in range(0, SHAPE[1], 40):
            cv2.circle(density, (x, y), 9, 0.005, -1)
    return density


def slide(left, right, rng):
    """(h, w, 3) picture with these densities in its left and right part, on glass, as JPEG leaves it."""
    density = np.where(part(LEFT), left, 0.0) + np.where(part(RIGHT), right, 0.0)
    light = GLASS * 10 ** -(density[..., None] * EOSIN) + rng.normal(0, 0.7, (*SHAPE, 3))
    taken = np.clip(np.rint(light), 0, 255).astype(np.uint8)
    return cv2.imdecode(cv2.imencode(".jpg", taken, [cv2.IMWRITE_JPEG_QUALITY, 92])[1], cv2.IMREAD_COLOR)


@pytest.mark.parametrize(("across_um", "wall"), [(70, 0.1), (100, 0.12), (130, 0.3)])
def test_clear_cells_with_thin_walls_are_fat_and_solid_tissue_beside_them_is_not(across_um, wall):
    rng = np.random.default_rng(1)
    picture = slide(cells_with_walls(across_um, wall, rng), solid(0.35, rng), rng)
    outline = outline_tissue(picture, MASK_MPP)
    assert outline.tissue[part(LEFT)].mean() > 0.85  # fat is inside the outline
    assert outline.fat[LEFT].sum() > 0.8 * outline.tissue[LEFT].sum()
    assert outline.fat[RIGHT].mean() < 0.05
    assert not (outline.fat & ~outline.tissue).any()


@pytest.mark.parametrize("other", [lambda rng: solid(0.045, rng), lambda rng: solid(0.12, rng), glands])
def test_pale_stroma_and_glands_are_no_fat(other):
    rng = np.random.default_rng(2)
    outline = outline_tissue(slide(solid(0.35, rng), other(rng), rng), MASK_MPP)
    assert outline.tissue[RIGHT].mean() > 0.7
    assert outline.fat.mean() < 0.02


def test_it_is_judged_inside_a_given_mask_alike():
    rng = np.random.default_rng(3)
    picture = slide(cells_with_walls(90, 0.12, rng), solid(0.35, rng), rng)
    glass = BackgroundModel.of(picture)
    given = part(np.s_[60:210, 60:500])
    fat = fat_in(given, picture, MASK_MPP, glass, np.zeros(SHAPE, bool))
    assert fat[:210][part(LEFT)[:210]].mean() > 0.8
    assert not fat[~given].any()


def test_tiles_have_the_share_of_them_that_is_fat(tmp_path):
    rng = np.random.default_rng(4)
    picture = slide(cells_with_walls(90, 0.12, rng), solid(0.35, rng), rng)
    large = cv2.resize(picture, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)  # 2 um/px
    tifffile.imwrite(tmp_path / "fat.tif", large, tile=(256, 256), photometric="rgb")
    settings = PrepareSettings(plan=PlanSettings(("5x",), tissue_threshold=0.3), assume_mpp=2.0)
    row, tiles = prepared(tmp_path / "fat.tif", tmp_path / "out", settings)
    assert row["status"] == "ok"
    fat = outline_tissue(picture, MASK_MPP).fat
    for tile in tiles:
        x, y = tile["x0"] // 4, tile["y0"] // 4
        assert tile["fat"] == pytest.approx(fat[y : y + 98, x : x + 98].mean(), abs=0.05)
    assert min(tile["fat"] for tile in tiles) < 0.05
    assert max(tile["fat"] for tile in tiles) > 0.5
    only = replace(settings, filters=parse_filters("fat<=0.5"))
    _, kept = prepared(tmp_path / "fat.tif", tmp_path / "filtered", only)
    assert [tile["x0"] for tile in kept] == [tile["x0"] for tile in tiles if tile["fat"] <= 0.5]
