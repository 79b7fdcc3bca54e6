import math
from dataclasses import replace

import pytest

from wsi_prep.errors import BadOption, ImplausibleMpp, MissingMpp
from wsi_prep.readers.base import Level, SlideInfo
from wsi_prep.scale import check_assumed_mpp, resolve_scale


def info(mpp=None, source="vendor", objective=None):
    return SlideInfo("tiff", "v", "", mpp, mpp, source if mpp is not None else None, objective, (Level(10, 10, 1.0),))


def test_the_manifest_wins_and_says_when_it_disagrees():
    scale = resolve_scale(info(0.25), 0.5, None)
    assert (scale.mpp_x, scale.mpp_y, scale.source) == (0.5, 0.5, "manifest")
    assert "the file says 0.25" in scale.warning
    assert resolve_scale(info(0.25), 0.2527, None).warning == ""


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
