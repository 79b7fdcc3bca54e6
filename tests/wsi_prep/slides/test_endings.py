"""`make shards` on formats that are more than one TIFF, and on what slides carry beside their pixels."""

import json
import shutil

import cv2
import numpy as np
import openslide
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr

from pipelines.shards import main
from tests.support.dicom_wsi import write_dicom_slide
from tests.support.mrxs_wsi import write_mrxs

pytestmark = [pytest.mark.usefixtures("shared_dask"), pytest.mark.slow]


def shards(slides, out, *more):
    return main(["--slides", str(slides), "--out", str(out), "--workers", "1", *more])


def rows(out, table="slides"):
    return pq.read_table(out / "catalog" / table).to_pylist()


def test_private_tags_reach_no_output(tmp_path, he_slide):
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    path = slides / "private.svs"
    shutil.copy(he_slide, path)
    private = "|ScanScope ID = SN-7788|Filename = DOE-JANE|Date = 12/29/09|Time = 09:59:15|User = b414003d|MPP = 0.25"
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        old = tiff.pages[0].description
        tiff.pages[0].tags["ImageDescription"].overwrite(old + private)
    assert shards(slides, out) == 0
    everything = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    for word in (b"SN-7788", b"DOE-JANE", b"12/29/09", b"09:59:15", b"b414003d"):
        assert word not in everything


def test_a_dicom_series_becomes_one_slide_without_its_patient(tmp_path, he_slide):
    with openslide.OpenSlide(he_slide) as source:
        pixels = np.asarray(source.read_region((1500, 60), 0, (3400, 3300)))[..., :3]
    quarter = cv2.resize(pixels, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    files = write_dicom_slide(tmp_path / "slides/case", [pixels, quarter], 0.25)
    assert len(files) == 3
    out = tmp_path / "out"
    assert shards(tmp_path / "slides", out) == 0
    (row,) = rows(out)
    assert (row["status"], row["file"], row["reader"], row["scanner"]) == ("ok", "case", "openslide", "")
    assert (row["width"], row["height"], row["mpp_x"], row["tiles_5x"]) == (3400, 3300, 0.25, 1)
    everything = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    assert b"DOE" not in everything
    assert b"MRN-55501" not in everything


def test_an_mrxs_keeps_its_frame_and_what_was_not_scanned_is_never_black(tmp_path, he_slide):
    with openslide.OpenSlide(he_slide) as source:
        pixels = np.asarray(source.read_region((1500, 40), 0, (3328, 3328)))[..., :3]
    path = tmp_path / "slides/case.mrxs"
    path.parent.mkdir()
    write_mrxs(path, pixels, 0.25, left=3, top=2, across=20, down=19)
    with openslide.OpenSlide(path) as reference:
        bounds = [reference.properties[f"openslide.bounds-{axis}"] for axis in "xy"]
    assert bounds == ["768", "512"]
    out = tmp_path / "out"
    assert shards(tmp_path / "slides", out, "--tissue", "0.3") == 0
    (row,) = rows(out)
    assert (row["file"], row["status"], row["vendor"]) == ("case.mrxs", "ok", "mirax")
    assert (row["width"], row["height"]) == (5120, 4864)

    whole = np.full((4864, 5120, 3), 255, np.uint8)
    whole[512 : 512 + 3328, 768 : 768 + 3328] = pixels
    compared = 0
    for tile in rows(out, "tiles"):
        stored = zarr.open(out / tile["array"], mode="r")[tile["index"]].astype(float)
        span = round(tile["span0"])
        region = whole[tile["y0"] : tile["y0"] + span, tile["x0"] : tile["x0"] + span]
        expected = cv2.resize(region, (392, 392), interpolation=cv2.INTER_AREA)
        assert np.abs(stored - expected).mean() < 6
        assert stored[(expected == 255).all(axis=2)].min(initial=255) > 150  # JPEG rings beside an edge
        compared += (expected == 255).all(axis=2).mean() > 0.05
    assert compared > 5

    (polygon, *_) = json.loads((out / "tissue" / f"{row['slide_id']}.geojson").read_text())["features"]
    corners = np.array(polygon["geometry"]["coordinates"][0])
    assert corners.min(axis=0) == pytest.approx([768, 512], abs=80)
    everything = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    assert b"DOE JANE" not in everything
