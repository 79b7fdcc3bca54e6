"""What a GeoJSON file draws: its pixels against shapely, its classes and frame as in QuPath, and what is refused."""

import contextlib
import json
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import contains_xy
from shapely.geometry import Polygon as Shape

from tests.support.outlines import SQUARE, feature
from wsi_prep.errors import BadMask
from wsi_prep.tissue import geojson as geojson_module
from wsi_prep.tissue.geojson import FILE_FRAME, Outlines, feature_collection, read_outlines
from wsi_prep.tissue.polygons import filled, tissue_polygons

FAR = [[500, 500], [600, 500], [600, 600], [500, 600], [500, 500]]
HOLE = [[20, 20], [40, 20], [40, 40], [20, 40], [20, 20]]


def outlines(document, bounds=(0, 0)):
    return read_outlines(json.dumps(document).encode(), *bounds)


def drawn(document, shape=(70, 70)):
    found = outlines(document)
    return filled(found.kept, shape, 10.0, 10.0) & ~filled(found.cut, shape, 10.0, 10.0)


def blob(rng, count):
    """A star-shaped ring of `count` points."""
    angle = np.sort(rng.random(count)) * 2 * math.pi
    ring = 40 + np.stack([np.cos(angle), np.sin(angle)], 1) * (5 + 30 * rng.random((count, 1)))
    return np.concatenate([ring, ring[:1]])


@pytest.mark.parametrize("seed", range(5))
def test_filled_pixels_are_those_whose_centre_shapely_finds_inside(seed):
    rng = np.random.default_rng(seed)
    ring, hole = blob(rng, 40), 40 + 0.1 * (blob(rng, 9) - 40)
    mask = filled([[ring, hole]], (90, 75), 1.0, 0.9)
    rows, cols = np.mgrid[0:90, 0:75]
    inside = contains_xy(Shape(ring, [hole]), cols + 0.5, (rows + 0.5) * 0.9)
    assert 500 < inside.sum() < 5000
    assert (mask == inside).all()


def test_a_mask_comes_back_as_it_was_to_the_pixel():
    rng = np.random.default_rng(0)
    mask = cv2.GaussianBlur(rng.random((150, 130)).astype(np.float32), (0, 0), 3) > 0.5
    mask[:20, :20], mask[-1, -1], mask[75, 60:64] = True, True, True
    for step in ((32.0, 31.4), (2.3, 2.3)):
        document = feature_collection(tissue_polygons(mask, *step), FILE_FRAME)
        found = outlines(document)
        assert len(found.kept) > 10
        assert (filled(found.kept, mask.shape, *step) == mask).all()


def test_an_outline_that_crosses_itself_has_an_even_odd_inside():
    star = [[35 + 30 * math.sin(i * 0.8 * math.pi), 35 - 30 * math.cos(i * 0.8 * math.pi)] for i in range(6)]
    mask = filled([[np.array(star)]], (70, 70), 1.0, 1.0)
    assert not mask[35, 35]
    assert mask[12, 35]
    assert 0.2 < mask.sum() / (math.pi * 30**2) < 0.3  # with its middle it would be 0.36


def test_overlapping_annotations_are_one_tissue_and_parts_outside_are_left_out():
    shifted = [[x - 50, y + 50] for x, y in SQUARE]
    mask = drawn([feature(SQUARE), feature(SQUARE), feature(shifted), feature([[x * 1000, y] for x, y in FAR])])
    expected = np.zeros((70, 70), bool)
    expected[0:10, 0:10] = expected[5:15, 0:5] = True
    assert (mask == expected).all()


def test_classes_decide_what_is_tissue():
    left, right = np.zeros((70, 70), bool), np.zeros((70, 70), bool)
    left[:10, :10], right[50:60, 50:60] = True, True
    without_hole = left.copy()
    without_hole[2:4, 2:4] = False
    assert (drawn([feature(SQUARE), feature(FAR, name="Tumor")]) == (left | right)).all()
    assert (drawn([feature(SQUARE, name="Tissue"), feature(FAR)]) == left).all()
    assert (drawn([feature(SQUARE, name="Tissue"), feature(HOLE, name="Ignore*")]) == without_hole).all()
    assert (drawn([feature(SQUARE), feature(HOLE, name="Hole")]) == without_hole).all()
    assert (drawn([feature(SQUARE, HOLE)]) == without_hole).all()
    derived = feature(SQUARE, classification={"names": ["Tissue", "Stroma"]})
    assert (drawn([derived, feature(FAR, name="Other")]) == left).all()
    assert (drawn([feature(SQUARE), feature(FAR, objectType="detection")]) == left).all()
    assert (drawn([feature(SQUARE, objectType="annotation"), {**feature(FAR), "id": "PathCellObject"}]) == left).all()


@pytest.mark.parametrize(
    "geometry",
    [
        {"type": "MultiPolygon", "coordinates": [[SQUARE], [FAR, [[x + 500, y + 500] for x, y in HOLE]]]},
        {
            "type": "GeometryCollection",
            "geometries": [
                {"type": "Polygon", "coordinates": [[[*p, 0] for p in SQUARE]]},
                {"type": "Polygon", "coordinates": [FAR[:-1], [[x + 500, y + 500] for x, y in HOLE]]},
                {"type": "LineString", "coordinates": [[0, 0], [9, 9]]},
            ],
        },
    ],
    ids=["multi", "collection"],
)
@pytest.mark.parametrize("wrap", ["collection", "list", "alone"])
def test_every_form_that_qupath_writes_is_read(geometry, wrap):
    one = {"type": "Feature", "id": "3f0c", "geometry": geometry, "properties": {"objectType": "annotation"}}
    document = {"collection": {"type": "FeatureCollection", "features": [one]}, "list": [one], "alone": one}[wrap]
    expected = np.zeros((70, 70), bool)
    expected[:10, :10] = expected[50:60, 50:60] = True
    expected[52:54, 52:54] = False
    assert (drawn(document) == expected).all()


def test_the_frame_is_what_the_file_says_and_qupaths_where_it_says_nothing():
    ours = {"type": "FeatureCollection", "frame": "level-0", "features": [feature(SQUARE)]}
    theirs = {"type": "FeatureCollection", "features": [feature(SQUARE)]}
    for_them = {**theirs, "frame": "qupath"}
    assert outlines(ours, (300, 200)).kept[0][0].min(axis=0).tolist() == [0, 0]
    for document in (theirs, for_them, [feature(SQUARE)]):
        assert outlines(document, (300, 200)).kept[0][0].min(axis=0).tolist() == [300, 200]


def nested(depth):
    return '{"type":"Feature","geometry":' + '{"type":"GeometryCollection","geometries":[' * depth + "]}" * depth + "}"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("", "not JSON"),
        ('{"type": "FeatureCollection"', "not JSON"),
        ("\xff\xfe", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        (nested(400), "encloses an area"),
        ("3", "no type 'Feature'"),
        ('{"type": "FeatureCollection", "features": {}}', "no type 'Feature'"),
        ('{"type": "FeatureCollection", "frame": "mars", "features": []}', "frame is 'mars'"),
        ([{"type": "Feature", "geometry": {"type": "Circle", "coordinates": []}}], "feature 1 of 1: .*'Circle'"),
        ([{"type": "Feature", "geometry": {"type": "Polygon"}}], "no coordinates"),
        ([{"type": "Feature", "geometry": [1]}], "no coordinates"),
        ([feature()], "no ring"),
        ([feature(SQUARE), feature(SQUARE, [[1, 1], [2, 2]])], "feature 2 of 2: a ring has 2 points"),
        ([feature([[0, 0], [1], [2, 2], [0, 0]])], "no list of"),
        ([feature([["a", "b"], [1, 1], [2, 2]])], "no list of"),
        ([feature([[0, 0], [1e9, 0], [2, 2]])], "no number between"),
        ([feature([[0, 0], [float("nan"), 0], [2, 2]])], "no number between"),
        ([feature([[0, 0], [None, 0], [2, 2]])], "no number between"),
        ([feature([[0, 0], [10**400, 0], [2, 2]])], "no list of"),
        ([feature(SQUARE, objectType="cell")], "none of its 1 features"),
        ([{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}], "none of its 1 features"),
    ],
)
def test_a_file_that_cannot_be_used_says_what_is_wrong(data, said):
    text = data if isinstance(data, str) else json.dumps(data)
    with pytest.raises(BadMask, match=said) as caught:
        read_outlines(text.encode("latin-1"), 0, 0)
    assert "\n" not in str(caught.value)


def test_absurd_work_is_refused():
    zigzag = np.array([[i / 50_000, (i % 2) * 1e6] for i in range(50_000)])
    with pytest.raises(BadMask, match="to and fro"):
        filled([[np.concatenate([zigzag, zigzag[:1]])]], (1000, 1000), 1.0, 1.0)
    whole = np.array([[0.0, 0], [1000, 0], [1000, 1000], [0, 1000], [0, 0]])
    with pytest.raises(BadMask, match="over and over"):
        filled([[whole]] * 5000, (1000, 1000), 1.0, 1.0)


def test_points_are_bounded(monkeypatch):
    monkeypatch.setattr(geojson_module, "_MOST_POINTS", 1000)
    long = [[i % 100, i] for i in range(990)]
    assert len(outlines([feature(SQUARE), feature(long[:900])]).kept) == 2
    with pytest.raises(BadMask, match="more than 1,000 points"):
        outlines([feature(SQUARE), feature(SQUARE), feature(long)])


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from([SQUARE, "Feature", "Polygon"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["type", "features", "geometry", "coordinates", "geometries", "properties", "classification"]
            ),
            inner | st.sampled_from(["Feature", "FeatureCollection", "Polygon", "MultiPolygon", "GeometryCollection"]),
        )
    ),
    max_leaves=20,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(anything)
def test_whatever_json_comes_nothing_but_a_bad_mask_is_raised(document):
    with contextlib.suppress(BadMask):
        assert isinstance(outlines(document), Outlines)
