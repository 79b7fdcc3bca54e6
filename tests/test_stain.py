"""The stain rule on mixtures of known dyes (Ruifrok & Johnston's vectors), whatever the glass."""

import numpy as np
import pytest
from skimage.data import immunohistochemistry

from wsi_prep.stain import classify_stain

HAEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)
MAGENTA, AZURE = (0.30, 0.90, 0.40), (0.90, 0.55, 0.15)
SIDE, GLASS_COLS = 96, 24


def slide(*dyes, glass=(245, 245, 245)):
    """(picture, tissue): (vector, least, most, share of the tissue) a dye, on a slide with glass at its left."""
    rng = np.random.default_rng(0)
    density = np.zeros((SIDE, SIDE, 3))
    for vector, least, most, share in dyes:
        here = rng.random((SIDE, SIDE, 1)) < share
        density += here * rng.uniform(least, most, (SIDE, SIDE, 1)) * np.array(vector)
    density[:, :GLASS_COLS] = 0
    tissue = np.zeros((SIDE, SIDE), bool)
    tissue[:, GLASS_COLS:] = True
    return np.rint(np.array(glass) * 10**-density).astype(np.uint8), tissue


SLIDES = {
    "HE": [(EOSIN, 0.1, 0.3, 1.0), (HAEMATOXYLIN, 0.3, 0.8, 0.4)],
    "IHC": [(HAEMATOXYLIN, 0.1, 0.4, 1.0), (DAB, 0.5, 1.0, 0.1)],
    "SPECIAL": [(MAGENTA, 0.1, 0.8, 1.0)],
}


@pytest.mark.parametrize("glass", [(245, 245, 245), (205, 205, 205), (240, 236, 226)])
@pytest.mark.parametrize("stain", SLIDES)
def test_dyes_are_told_apart_on_any_glass(stain, glass):
    found, confidence = classify_stain(*slide(*SLIDES[stain], glass=glass))
    assert found == stain
    assert 0.5 <= confidence <= 1


def test_azure_is_special():
    assert classify_stain(*slide((AZURE, 0.1, 0.8, 1.0)))[0] == "SPECIAL"


def test_counterstain_alone_is_not_guessed_at():
    stain, confidence = classify_stain(*slide((HAEMATOXYLIN, 0.1, 0.6, 1.0)))
    assert stain == "UNKNOWN"
    assert confidence < 0.5


def test_real_brown_is_ihc():
    picture = immunohistochemistry()
    assert classify_stain(picture, np.ones(picture.shape[:2], bool))[0] == "IHC"


def test_no_tissue_is_unknown():
    picture, tissue = slide(*SLIDES["HE"])
    assert classify_stain(picture, np.zeros_like(tissue)) == ("UNKNOWN", 0.0)
