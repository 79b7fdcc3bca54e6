import numpy as np
import pytest

from sample_slides.coordinates import coordinate_slide as make_coordinate_slide
from sample_slides.coordinates import expected
from wsi_prep.errors import ImplausibleMpp
from wsi_prep.slides.pyramid.thumbnail import read_thumbnail
from wsi_prep.slides.readers.select import open_slide


@pytest.mark.parametrize("factors", [(), (3, 9), (2, 16)])
@pytest.mark.slow
def test_a_thumbnail_is_the_area_mean_of_the_whole_slide(tmp_path, factors):
    """Whatever level it is read from; none of the sizes is a multiple of another."""
    width, height = 5291, 2411
    path = make_coordinate_slide(tmp_path / "s.tiff", width, height, 0.25, factors=factors)
    thumbnail = read_thumbnail(open_slide(str(path)), 0.25, 0.25, 8.0)
    assert thumbnail.pixels.shape == (75, 165, 3)
    assert (thumbnail.step_x0, thumbnail.step_y0) == (width / 165, height / 75)
    exact = expected(0, 0, width, height, (165, 75))
    difference = np.abs(thumbnail.pixels - exact)
    # a thumbnail's pixel is 16 grey levels from its neighbour here; the second averaging rounds the waves' peaks
    assert np.percentile(difference, 99) <= 5.0
    assert difference[:-1, :-1].max() <= 5.5
    assert difference.max() <= 10.0  # a level may lack the slide's last pixels


def test_a_slide_coarser_than_asked_is_taken_as_it_is(tmp_path):
    path = make_coordinate_slide(tmp_path / "s.tiff", 300, 200, 28.97)
    thumbnail = read_thumbnail(open_slide(str(path)), 28.97, 28.97, 8.0)
    assert thumbnail.mpp == 28.97
    assert np.abs(thumbnail.pixels - expected(0, 0, 300, 200, (300, 200))).max() <= 0.5


def test_pixels_that_are_not_square_give_square_ones(tmp_path):
    path = make_coordinate_slide(tmp_path / "s.tiff", 3200, 1600, 0.25)
    thumbnail = read_thumbnail(open_slide(str(path)), 0.25, 0.5, 8.0)
    assert thumbnail.pixels.shape == (100, 100, 3)


def test_a_scale_that_makes_the_slide_a_metre_wide_is_refused(tmp_path):
    class Huge:
        info = open_slide(str(make_coordinate_slide(tmp_path / "s.tiff", 300, 200, 0.25))).info

        def __init__(self):
            object.__setattr__(self.info.levels[0], "width", 100_000)
            object.__setattr__(self.info.levels[0], "height", 80_000)

    with pytest.raises(ImplausibleMpp, match="would be 100 x 80 cm; correct the mpp"):
        read_thumbnail(Huge(), 10.0, 10.0, 8.0)
