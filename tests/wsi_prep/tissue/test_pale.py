"""Pale, fatty and single-celled tissue is found; films, edges of a coverslip and bubbles are not, wherever they lie."""

import cv2
import numpy as np
import pytest

from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.detect import MASK_MPP, detect_tissue

SHAPE, GLASS = (420, 560), 243.0


def iou(found, known):
    return np.count_nonzero(found & known) / np.count_nonzero(found | known)


def blob(centre, radii):
    mask = np.zeros(SHAPE, np.uint8)
    return cv2.ellipse(mask, centre, radii, 20, 0, 360, 1, -1) > 0


def picture(density, noise=0.7, quality=92):
    """A slide of (h, w, 3) density, as a scanner and JPEG leave it."""
    light = GLASS * 10**-density + np.random.default_rng(0).normal(0, noise, density.shape)
    taken = np.clip(light, 0, 255).astype(np.uint8)
    full = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imdecode(cv2.imencode(".jpg", taken, [cv2.IMWRITE_JPEG_QUALITY, quality, *full])[1], cv2.IMREAD_COLOR)


def cells(mask, strength, dye, rng):
    """Texture of cells some 10 um large inside a mask."""
    texture = np.abs(cv2.GaussianBlur(rng.normal(0, 1, SHAPE), (0, 0), 0.7))
    return (mask * strength * texture / texture.mean())[..., None] * np.array(dye)


PALE_BLUE, EOSIN = (1.0, 0.85, 0.7), (0.25, 1.0, 0.5)


def test_a_pale_section_that_takes_a_fiftieth_of_the_light_is_tissue():
    rng = np.random.default_rng(1)
    known = blob((280, 210), (200, 120))
    assert iou(detect_tissue(picture(cells(known, 0.014, PALE_BLUE, rng)), MASK_MPP), known) > 0.9


def test_fat_is_inside_the_outline():
    rng = np.random.default_rng(2)
    known = blob((280, 210), (220, 150))
    seeds = rng.uniform((0, 0), SHAPE[::-1], (2_400, 2))  # cells some 80 um across
    subdivision = cv2.Subdiv2D((0, 0, SHAPE[1], SHAPE[0]))
    subdivision.insert(seeds.astype(np.float32).tolist())
    walls = np.zeros(SHAPE, np.uint8)
    facets, _ = subdivision.getVoronoiFacetList([])
    for facet in facets:
        cv2.polylines(walls, [facet.astype(np.int32)], True, 255, 1, cv2.LINE_AA)
    density = (walls / 255.0 * 0.06 * known)[..., None] * np.array(EOSIN)
    assert iou(detect_tissue(picture(density), MASK_MPP), known) > 0.9


def test_a_smear_of_single_cells_is_one_outline():
    rng = np.random.default_rng(3)
    known = blob((280, 210), (180, 180))
    dots = np.zeros(SHAPE, np.float32)
    for x, y in rng.uniform((0, 0), SHAPE[::-1], (9_000, 2)).astype(int):
        cv2.circle(dots, (int(x), int(y)), 1, 0.5, -1)
    found = detect_tissue(picture((dots * known)[..., None] * np.array(PALE_BLUE)), MASK_MPP)
    assert iou(found, known) > 0.9
    assert cv2.connectedComponents(found.astype(np.uint8))[0] - 1 == 1


@pytest.mark.parametrize("what", ["film", "edge of a coverslip", "bubbles"])
def test_what_is_grey_is_no_tissue_even_where_it_touches_some(what):
    rng = np.random.default_rng(4)
    known = blob((280, 210), (160, 110))
    density = cells(known, 0.12, EOSIN, rng)
    if what == "film":
        grey = cv2.GaussianBlur(np.where(blob((420, 210), (90, 160)), 0.09, 0.0), (0, 0), 12)
    elif what == "edge of a coverslip":
        grey = (
            np.repeat(np.linspace(0.5, 0, SHAPE[0])[:, None] ** 2, SHAPE[1], 1) * (np.arange(SHAPE[0]) < 120)[:, None]
        )
    else:
        lines = np.zeros(SHAPE, np.uint8)
        for x in range(0, SHAPE[1], 40):
            cv2.ellipse(lines, (x, 20), (30, 16), 0, 0, 360, 255, 2, cv2.LINE_AA)
        grey = lines / 255.0 * 0.25
    outside = ~known & (grey > 0.02)
    taken = picture(density + (grey * ~known)[..., None])
    found = detect_tissue(taken, MASK_MPP, glass=BackgroundModel.of(taken))
    assert np.count_nonzero(found & outside) < 0.15 * np.count_nonzero(outside)
    assert np.count_nonzero(found & known) > 0.97 * np.count_nonzero(known)
