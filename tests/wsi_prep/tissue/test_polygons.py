import cv2
import numpy as np
from shapely.geometry import Point, shape

from wsi_prep.tissue.geojson import FILE_FRAME, feature_collection
from wsi_prep.tissue.polygons import tissue_polygons


def tissue_geojson(mask, *step):
    return feature_collection(tissue_polygons(mask, *step), FILE_FRAME)


def blobs():
    mask = np.zeros((120, 90), np.uint8)
    cv2.ellipse(mask, (40, 50), (30, 40), 20, 0, 360, 1, -1)
    cv2.ellipse(mask, (40, 50), (12, 15), 20, 0, 360, 0, -1)
    cv2.circle(mask, (40, 50), 4, 1, -1)  # an island in the hole
    cv2.rectangle(mask, (70, 100), (89, 119), 1, -1)  # touches the slide's edge
    return mask.astype(bool)


def test_polygons_cover_the_mask_in_level_0_pixels():
    mask, step = blobs(), (32.0, 30.0)
    shapes = [shape(f["geometry"]) for f in tissue_geojson(mask, *step)["features"]]
    assert len(shapes) == 3
    assert all(s.is_valid for s in shapes)
    assert [len(s.interiors) for s in shapes] == [1, 0, 0]
    area = sum(s.area for s in shapes)
    assert abs(area - mask.sum() * step[0] * step[1]) < 0.01 * area
    rows, cols = np.mgrid[0 : mask.shape[0] : 3, 0 : mask.shape[1] : 3]
    for row, col in zip(rows.ravel(), cols.ravel(), strict=True):
        centre = Point((col + 0.5) * step[0], (row + 0.5) * step[1])
        assert any(s.contains(centre) for s in shapes) == mask[row, col]


def test_corners_of_the_slide_belong_to_the_outline():
    mask = np.ones((10, 20), bool)
    (feature,) = tissue_geojson(mask, 8.0, 8.0)["features"]
    left, top, right, bottom = shape(feature["geometry"]).bounds
    assert (left, top, right, bottom) == (0.0, 0.0, 160.0, 80.0)
    assert feature["properties"]["classification"]["name"] == "Tissue"


def test_no_tissue_is_an_empty_collection():
    empty = {"type": "FeatureCollection", "frame": "level-0", "features": []}
    assert tissue_geojson(np.zeros((5, 5), bool), 1.0, 1.0) == empty
