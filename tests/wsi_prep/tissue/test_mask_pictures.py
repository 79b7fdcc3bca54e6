"""Pictures that people give as masks: which values are tissue, and which pictures cannot say."""

import hashlib
import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.masked import encoded
from wsi_prep.errors import BadMask
from wsi_prep.slides.base import Level, SlideInfo
from wsi_prep.slides.pyramid.thumbnail import Thumbnail
from wsi_prep.tissue.masks import MaskFile, read_mask

HALF = np.zeros((34, 66), np.uint8)
HALF[:, :33] = 1


class Given:
    """A slide of the masks' proportions, as far as reading a mask asks."""

    info = SlideInfo("tiff", "v", "", None, None, None, None, (Level(660, 340, 1.0),))
    thumbnail = Thumbnail(np.zeros((34, 66, 3), np.uint8), 8.0, 10.0, 10.0)


def read(tmp_path, data):
    (tmp_path / "m.png").write_bytes(data)
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return read_mask(MaskFile(str(tmp_path / "m.png"), digest, "m.png"), Given.info, Given.thumbnail)


def palette(*colours, transparent=None):
    """A PNG of HALF whose 0 and 1 have these colours, as RGB."""
    picture = Image.fromarray(HALF, "P")
    picture.putpalette([value for colour in colours for value in colour])
    data = io.BytesIO()
    picture.save(data, "PNG", **({} if transparent is None else {"transparency": transparent}))
    return data.getvalue()


def with_alpha(grey, alpha):
    return encoded(np.dstack([grey] * 3 + [alpha]))


GOOD = {
    "8 bits": encoded(HALF * 255),
    "16 bits": encoded(HALF.astype(np.uint16) * 65535),
    "RGB": encoded(np.dstack([HALF * 255] * 3)),
    "16-bit RGB": encoded(np.dstack([HALF.astype(np.uint16) * 65535] * 3)),
    "black and red": encoded(np.dstack([HALF * 0, HALF * 0, HALF * 255])),
    "two colours of a palette": palette((0, 0, 0), (255, 255, 255)),
    "a palette's red": palette((0, 0, 0), (255, 0, 0)),
    "a palette with a transparent 0": palette((0, 0, 0), (255, 255, 255), transparent=0),
    "opaque": with_alpha(HALF * 255, HALF * 0 + 255),
    "transparent where there is none": with_alpha(HALF * 255, HALF * 255),
    "nearly grey": encoded(np.dstack([HALF * 250, HALF * 255, HALF * 240])),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD)
def test_a_picture_is_read_by_its_values(tmp_path, data):
    np.testing.assert_array_equal(read(tmp_path, data), HALF == 1)


LABELS = np.arange(34 * 66, dtype=np.uint8).reshape(34, 66) % 8
BAD = {
    "8-bit labels": (encoded(HALF), "its 8-bit values are 0 and 1: its highest value is 1, where tissue is 255"),
    "16-bit labels": (
        encoded(HALF.astype(np.uint16)),
        r"its 16-bit values are 0 and 1: its highest value is 1, where tissue is 65535 \(255 in 8 bits\)",
    ),
    "8 bits in 16": (
        encoded(HALF.astype(np.uint16) * 255),
        "its 16-bit values are 0 and 255: .* where tissue is 65535",
    ),
    "many labels": (encoded(LABELS), "its 8-bit values are 0 to 7: "),
    "one label": (encoded(HALF * 0 + 1), "its 8-bit values are 1: "),
    "RGB labels": (encoded(np.dstack([HALF] * 3)), "its 8-bit values are 0 and 1: "),
    "a palette's labels": (palette((0, 0, 0), (1, 1, 1)), "its 8-bit values are 0 and 1: "),
    "alpha, on black": (with_alpha(HALF * 0, HALF * 255), "its shape is in the alpha channel alone"),
    "alpha, on white": (with_alpha(HALF * 0 + 255, HALF * 255), "its shape is in the alpha channel alone"),
    "transparent tissue": (with_alpha(HALF * 255, 255 - HALF * 255), "some of its tissue is transparent"),
    "colours": (
        palette((255, 0, 0), (0, 255, 0)),
        "it is in colours, as red, green, blue of 0, 255, 0; save it in grey",
    ),
    "a dark colour": (palette((0, 0, 0), (0, 128, 0)), "it is in colours, as red, green, blue of 0, 128, 0; "),
}


@pytest.mark.parametrize(("data", "said"), BAD.values(), ids=BAD)
def test_a_picture_that_does_not_say_where_tissue_is_names_the_reason(tmp_path, data, said):
    with pytest.raises(BadMask, match=f"^mask m.png: {said}") as raised:
        read(tmp_path, data)
    assert "\n" not in str(raised.value)


def test_what_is_lost_when_a_picture_is_reduced_is_not_called_empty(tmp_path):
    dots = np.zeros((340, 660), np.uint8)
    dots[5::10, 5::10] = 255
    with pytest.raises(BadMask, match="smaller than a pixel of 8 um"):
        read(tmp_path, encoded(dots))


@given(
    st.lists(st.integers(0, 65535), min_size=2, max_size=4),
    st.sampled_from([np.uint8, np.uint16]),
    st.sampled_from([1, 3]),
)
def test_no_picture_with_values_passes_as_one_without_tissue(tmp_path_factory, values, kind, channels):
    pixels = np.zeros((34, 66), kind)
    parts = np.array_split(np.arange(66), len(values))
    for columns, value in zip(parts, values, strict=True):
        pixels[:, columns] = value % (int(np.iinfo(kind).max) + 1)
    folder = tmp_path_factory.getbasetemp()
    data = encoded(pixels if channels == 1 else np.dstack([pixels] * 3))
    most = int(np.iinfo(kind).max)
    if 0 < pixels.max() <= most // 2 or ((pixels > most // 10) & (pixels <= most // 2)).any():
        with pytest.raises(BadMask, match=f"its {8 * pixels.itemsize}-bit values are "):
            read(folder, data)
    else:
        np.testing.assert_array_equal(read(folder, data), pixels > most // 2)


def test_labels_of_which_some_are_low_are_refused_and_soft_edges_are_not(tmp_path):
    disc = cv2.circle(np.zeros((340, 660), np.uint8), (200, 170), 100, 255, -1)
    labels = np.where(disc, 200, 0).astype(np.uint8)
    labels[100:240, 400:600] = 100
    with pytest.raises(BadMask, match="values are 0 and 100 and 200: the low ones would be no tissue"):
        read(tmp_path, encoded(labels))
    for sigma in (1, 8):
        assert np.count_nonzero(read(tmp_path, encoded(cv2.GaussianBlur(disc, (0, 0), sigma))))
