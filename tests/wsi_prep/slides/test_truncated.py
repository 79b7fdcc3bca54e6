"""A refused TIFF that was cut off is told so, before any advice on its kind; a whole one never is."""

import struct

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.paths import ROOT
from wsi_prep.errors import DamagedSlide
from wsi_prep.slides.readers.directories import truncated
from wsi_prep.slides.readers.select import open_slide

PIXELS = np.random.default_rng(0).random((300, 400, 3)).astype(np.float32)  # no reader takes floats
NDPI = ROOT.parent / "shared/slides/fluorescence_TRITC.ndpi"
GIB4 = 2**32


def needed(path):
    """How many bytes a TIFF needs, by tifffile: to the end of its last directory, table or picture."""
    with tifffile.TiffFile(path) as tif:
        pages = [page for top in tif.pages for page in (top, *(top.pages or []))]
        heads = [page.offset + tif.tiff.tagnosize + tif.tiff.tagsize * len(page.tags) for page in pages]
        tables = [
            page.tags[code].valueoffset + page.tags[code].valuebytecount
            for page in pages
            for code in (273, 279, 324, 325, 330)
            if code in page.tags
        ]
        data = [at + n for page in pages for at, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
        return max(*[head + tif.tiff.offsetsize for head in heads], *tables, *data)


@settings(max_examples=30, deadline=None)
@given(
    order=st.sampled_from("<>"),
    big=st.booleans(),
    form=st.sampled_from([{"tile": (128, 128)}, {"rowsperstrip": 16}, {"rowsperstrip": 300}]),
    levels=st.integers(1, 4),
    sub=st.booleans(),
    data=st.data(),
)
def test_what_lies_beyond_the_end_is_found_and_nothing_else(tmp_path_factory, order, big, form, levels, sub, data):
    path = tmp_path_factory.getbasetemp() / "cut.tif"
    with tifffile.TiffWriter(path, byteorder=order, bigtiff=big) as tif:
        tif.write(PIXELS, photometric="rgb", metadata=None, subifds=levels - 1 if sub else 0, **form)
        for level in range(1, levels):
            tif.write(PIXELS[:: 2**level, :: 2**level], photometric="rgb", metadata=None, **form)
    whole, end = path.read_bytes(), needed(path)
    for size in (end, len(whole)):
        path.write_bytes(whole[:size])
        assert truncated(str(path)) == ""
    size = data.draw(st.integers(4, end - 1))
    path.write_bytes(whole[:size])
    assert f", it has {size:,}" in truncated(str(path))
    with pytest.raises(DamagedSlide, match=r"^the file is truncated: .*; copy the slide again$"):
        open_slide(str(path))


def test_a_level_that_only_one_reader_knows_may_not_be_cut_off(tmp_path):
    path = tmp_path / "cut.tif"
    with tifffile.TiffWriter(path) as tif:
        tif.write(PIXELS, photometric="rgb", metadata=None, subifds=1, tile=(128, 128))
        tif.write(PIXELS[::2, ::2], photometric="rgb", metadata=None, tile=(128, 128))
    path.write_bytes(path.read_bytes()[:-1000])  # OpenSlide opens this: it takes the first level alone
    with pytest.raises(DamagedSlide, match="the file is truncated: the tiles of its TIFF directory 2"):
        open_slide(str(path))


@pytest.mark.parametrize("end", [".ndpi", ".scn", ".bif", ".svs", ".tiff"])
def test_no_advice_is_given_whatever_it_is_called(tmp_path, end):
    path = tmp_path / f"a{end}"
    tifffile.imwrite(path, PIXELS, photometric="rgb", rowsperstrip=16, metadata=None)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DamagedSlide) as raised:
        open_slide(str(path))
    assert "the strips of its TIFF directory 1 reach to byte" in str(raised.value)
    assert "vips" not in str(raised.value)


def test_offsets_of_an_ndpi_beyond_4_gib_are_read_in_both_parts(tmp_path):
    path, at = tmp_path / "large.ndpi", GIB4 + 5000
    entries = [(256, 4, 1, 100, 0), (273, 4, 1, 4000, 1), (279, 4, 1, 900, 0), (65420, 4, 1, 1, 0)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry[:4]) for entry in entries)
    with path.open("wb") as file:
        file.write(b"II*\0" + struct.pack("<Q", at))
        file.seek(at)
        file.write(directory + struct.pack("<Q4I", 0, *(entry[4] for entry in entries)))
        end = file.tell()
    assert truncated(str(path)) == ""
    with path.open("r+b") as file:
        file.truncate(GIB4 + 100)
    assert truncated(str(path)) == f"its TIFF directory 1 reaches to byte {at + 2:,}, it has {GIB4 + 100:,}"
    with path.open("r+b") as file:
        file.truncate(end)
        file.seek(at)
        file.write(directory.replace(struct.pack("<I", 900), struct.pack("<I", 9000)))
        file.write(struct.pack("<Q4I", 0, 0, 1, 0, 0))
    assert truncated(str(path)) == (
        f"the strips of its TIFF directory 1 reach to byte {GIB4 + 13000:,}, it has {end:,}"
    )


@pytest.mark.skipif(not NDPI.exists(), reason="needs the slides beside a checkout")
@pytest.mark.parametrize("part", [0.01, 2 / 3, 0.99])
def test_a_real_ndpi_that_is_cut_off_is_to_be_copied_again(tmp_path, part):
    assert truncated(str(NDPI)) == ""
    data = NDPI.read_bytes()
    path = tmp_path / "a.ndpi"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DamagedSlide, match=r"^the file is truncated: its TIFF directory \d reaches to byte"):
        open_slide(str(path))
