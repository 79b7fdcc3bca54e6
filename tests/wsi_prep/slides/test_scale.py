import math
from dataclasses import replace

import pytest

from wsi_prep.errors import BadOption, ImplausibleMpp, MissingMpp, TooCoarse
from wsi_prep.slides.base import Level, SlideInfo
from wsi_prep.slides.scale import check_assumed_mpp, resolve_scale


def info(mpp=None, source="vendor", objective=None):
    return SlideInfo("tiff", "v", "", mpp, mpp, source if mpp is not None else None, objective, (Level(10, 10, 1.0),))


def test_the_manifest_wins_and_says_when_it_disagrees():
    scale = resolve_scale(info(0.25), 0.5, None)
    assert (scale.mpp_x, scale.mpp_y, scale.source) == (0.5, 0.5, "manifest")
    assert "the file says 0.25" in scale.warning
    assert resolve_scale(info(0.25), 0.2527, None).warning == ""


def test_one_number_in_the_manifest_for_pixels_that_are_not_square_is_said():
    oblong = replace(info(0.25), mpp_y=0.5)
    said = resolve_scale(oblong, 0.25, None).warning
    assert said == "the manifest's mpp 0.25 was used both across and down, the file says 0.25 x 0.5 (vendor)"
    assert resolve_scale(replace(oblong, mpp_y=0.2527), 0.25, None).warning == ""


def test_the_file_comes_before_what_is_assumed():
    assert resolve_scale(info(0.499), None, 0.25).source == "vendor"
    assert resolve_scale(info(), None, 0.25).source == "assumed"


def test_objective_power_is_never_taken_for_a_scale():
    with pytest.raises(MissingMpp):
        resolve_scale(info(objective=40.0), None, None)


@pytest.mark.parametrize("mpp", [0.0, math.nan, math.inf, -0.25, 400.0])
def test_implausible_values_are_refused_wherever_they_stand(mpp):
    with pytest.raises(ImplausibleMpp, match="correct the manifest"):
        resolve_scale(info(0.25), mpp, None)
    with pytest.raises(ImplausibleMpp, match="give the right mpp in the manifest"):
        resolve_scale(info(mpp), None, None)
    with pytest.raises(BadOption):
        check_assumed_mpp(mpp)


def test_a_resolution_for_printers_is_there_and_implausible():
    printer = info(25_400 / 72, "tiff-resolution")
    with pytest.raises(ImplausibleMpp, match=r"TIFF resolution of 352\.778 um/px \(72 dpi\)"):
        resolve_scale(printer, None, None)
    assert resolve_scale(printer, None, 0.25).source == "assumed"


@pytest.mark.parametrize("stated", ["MPP = 0.25 furlongs", "PhysicalSizeX = 1 pixel, PhysicalSizeY = 1 pixel"])
def test_a_scale_that_is_not_understood_is_quoted(stated):
    with pytest.raises(MissingMpp, match=f"the file's scale, '{stated}', is not understood"):
        resolve_scale(replace(info(), mpp_stated=stated), None, None)
    passed_over = resolve_scale(replace(info(0.5, "tiff-resolution"), mpp_stated=stated), None, None)
    assert passed_over.mpp_x == 0.5
    assert f"'{stated}' is not understood, 0.5 of tiff-resolution was used" in passed_over.warning


def test_only_what_scales_are_made_of_is_quoted():
    with pytest.raises(MissingMpp, match="the file's scale, a text, is not understood"):
        resolve_scale(replace(info(), mpp_stated="MPP = Jane Doe <jane@doe>"), None, None)


def test_no_value_is_said_only_where_there_is_none():
    with pytest.raises(MissingMpp, match="no micron-per-pixel value in the file"):
        resolve_scale(info(), None, None)


@pytest.mark.parametrize(
    ("power", "error"), [(10, TooCoarse), (20, TooCoarse), (40, TooCoarse), (60, ImplausibleMpp), (100, ImplausibleMpp)]
)
def test_an_objectives_power_in_place_of_a_scale_is_called_so(power, error):
    said = f"mpp {power} looks like an objective's power"
    write = "write um per pixel, as in 0.25"
    with pytest.raises(error, match=f"^the manifest's {said}; correct the manifest: {write}$"):
        resolve_scale(info(0.25), float(power), None)
    with pytest.raises(error, match=f"^the file's {said}; give the right mpp in the manifest: {write}$"):
        resolve_scale(info(float(power)), None, 0.25)
    with pytest.raises(BadOption, match=f"^assumed {said}; {write}$"):
        check_assumed_mpp(float(power))
    assert resolve_scale(info(float(power)), 0.25, None).mpp_x == 0.25


@pytest.mark.parametrize("mpp", [0.1, 0.25, 1.0, 2.0, 2.5, 5.0, 9.99, 10.5, 39.0])
def test_the_scale_of_an_overview_is_no_power(mpp):
    assert resolve_scale(info(mpp), None, None).mpp_x == mpp
    assert check_assumed_mpp(mpp) == mpp
