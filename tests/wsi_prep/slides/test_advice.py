"""What is said of files that no reader takes: what they are, and what makes slides of them."""

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from tests.support.found_files import dicom
from tests.support.mrxs_wsi import write_mrxs
from wsi_prep.errors import UnreadableSlide
from wsi_prep.slides.readers.advice import advice
from wsi_prep.slides.readers.select import open_slide

PIXELS = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
COMMAND = (
    "vips tiffsave in{} out.tif --tile --pyramid --bigtiff --compression jpeg --Q 90; give its mpp in the manifest"
)


def refusal(path):
    with pytest.raises(UnreadableSlide) as raised:
        open_slide(str(path))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_an_mrxs_without_its_folder_is_no_picture_to_be_converted(tmp_path):
    slide = tmp_path / "DOE JANE.mrxs"
    write_mrxs(slide, PIXELS[:256, :256], 0.25, left=1, top=1, across=3, down=3)
    slide.with_suffix("").rename(tmp_path / "another name")
    said = refusal(slide)
    assert "Its folder of the same name, which holds its data, is missing beside it" in said
    assert "vips" not in said
    assert "DOE" not in said


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("rows", [1, 16, 300])
def test_a_tiff_in_strips_is_to_be_tiled(tmp_path, order, big, rows):
    path = tmp_path / "DOE JANE.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", rowsperstrip=rows, byteorder=order, bigtiff=big)
    said = refusal(path)
    assert "Its picture is stored in strips; " in said
    assert COMMAND.format(".tif") in said
    assert len(said) < 500  # the row keeps it all
    assert "DOE" not in said


def test_a_tiled_tiff_is_not_called_strips(tmp_path):
    """A float picture, which neither reader takes."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS.astype(np.float32), photometric="rgb", tile=(256, 256), metadata=None)
    assert advice(str(path)) == "Is it a complete whole-slide image?"


@pytest.mark.parametrize(("end", "kind"), [(".jpg", "JPEG"), (".png", "PNG"), (".jp2", "JPEG 2000"), (".svs", "JPEG")])
def test_one_picture_is_to_be_tiled_whatever_it_is_called(tmp_path, end, kind):
    path = tmp_path / f"a{end}"
    path.write_bytes(cv2.imencode(end if end != ".svs" else ".jpg", PIXELS)[1].tobytes())
    said = refusal(path)
    assert f"It is a {kind} picture in one piece; " in said
    assert COMMAND.format(end) in said


def test_other_files(tmp_path):
    (tmp_path / "text.svs").write_text("dear colleague " * 20)
    assert refusal(tmp_path / "text.svs").endswith(". Is it a complete whole-slide image?")
    (tmp_path / "a.vsi").write_bytes(b"0123" * 200)
    assert refusal(tmp_path / "a.vsi").endswith(". .vsi is not read; convert it to a tiled TIFF (docs/operations.md)")
    dicom(tmp_path / "ct.dcm", "1.2.6", sop_class="1.2.840.10008.5.1.4.1.1.2")
    assert refusal(tmp_path / "ct.dcm").endswith(". It is DICOM, but no whole-slide microscopy image")
    assert advice(str(tmp_path / "gone.svs")) == "Is it a complete whole-slide image?"


@given(
    st.sampled_from([b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\xff\xd8\xff", b""]),
    st.binary(max_size=300),
    st.integers(0, 2**64 - 1),
)
def test_any_bytes_get_one_line(tmp_path_factory, start, more, offset):
    path = tmp_path_factory.getbasetemp() / "any.tif"
    for data in (start + more, start + b"\x08\0\0\0" + offset.to_bytes(8) + more):
        path.write_bytes(data)
        said = advice(str(path))
        assert said
        assert said.isprintable()
