"""Broken slides by the dozen, in processes that are watched; and whether the watch sees what it is there for."""

import os
import re
import struct
import subprocess
import sys

import imagecodecs
import pydicom
import pytest
import tifffile

from tests.fuzz.corpus import picture
from tests.fuzz.tiff_lies import TILE_LENGTH, TILE_WIDTH, Layout, payload
from tests.support.dicom_wsi import write_dicom_slide
from tests.support.paths import ROOT
from wsi_prep.errors import DamagedSlide, UnreadableSlide
from wsi_prep.slides import dicom
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.slides.pyramid.thumbnail import read_thumbnail
from wsi_prep.slides.readers.select import open_slide
from wsi_prep.slides.readers.tiff.bounds import MOST_DIRECTORIES, coded_size

pytestmark = pytest.mark.slow


def run(*command):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.long
def test_slides_broken_in_every_way_break_no_rule(tmp_path):
    call = ("--made-only", "--cases", 16, "--seed", 100, "--limit-seconds", 60, "--keep", tmp_path / "found")
    found = run("-m", "tests.fuzz", *call)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "16 cases (seeds 100 to 115), 0 broke a rule, 0 workers died" in found.stdout
    assert len(re.findall(r"^sound .* ok ", found.stdout, re.MULTILINE)) >= 9
    assert not (tmp_path / "found").exists()


WORK = """
import ctypes, os, sys, time
from pathlib import Path
from tests.fuzz import harness
harness._GRACE_S = 1.0
folder = Path(sys.argv[1])
(folder / "slide").mkdir()
(folder / "slide/s.svs").write_text("x")

def crash(*_): ctypes.string_at(0)
def hang(*_): time.sleep(60)
def fill(*_): bytearray(600 << 20)
def write(path, out, *_): (path.parent / "left").write_text("x")
def write_and_remove(path, out, *_):
    (out.parent / "left").write_text("x")
    (out.parent / "left").unlink()
def start(*_): os.system("true")
def fail(*_): raise KeyError("x")
def fine(path, out, limit, told): (out / "x").write_text("x")

for work in (crash, hang, fill, write, write_and_remove, start, fail, fine):
    outcome = harness.run_case(folder / "slide/s.svs", folder / "out", 1.0, 500, work)
    print(work.__name__, *outcome.died.split(), *sorted({fault.partition(":")[0] for fault in outcome.faults}))
    (folder / "slide/left").unlink(missing_ok=True)
"""


def test_the_watch_sees_crashes_hangs_memory_and_escapes(tmp_path):
    assert run("-c", WORK, tmp_path).stdout.splitlines() == [
        "crash SIGSEGV",
        "hang hang",
        "fill memory",
        "write escaped",
        "write_and_remove escaped",
        "start escaped",
        "fail raised",
        "fine",
    ]


@pytest.mark.parametrize("bigtiff", [False, True])
def test_directories_without_end_are_not_followed(tmp_path, bigtiff):
    path = tmp_path / "many.tiff"
    tifffile.imwrite(path, picture(300), tile=(256, 256), photometric="rgb", bigtiff=bigtiff, metadata=None)
    data = bytearray(path.read_bytes())
    layout = Layout(bytes(data))
    (first,) = layout.directories
    body, at = bytes(data[first.at : first.next_at]), first.next_at
    for _ in range(MOST_DIRECTORIES + 5):
        layout.write(data, at, len(data))
        data += body
        at = len(data)
        data += bytes(8 if bigtiff else 4)
    path.write_bytes(data)
    with pytest.raises(UnreadableSlide, match="more than 300 TIFF directories"):
        open_slide(str(path), "tiff")
    layout.write(data, at, first.at)  # and round again
    path.write_bytes(data)
    with pytest.raises(UnreadableSlide):
        open_slide(str(path), "tiff")


def lying(path, tag, value):
    """The slide with another value of a tag of its first directory."""
    data = bytearray(path.read_bytes())
    layout = Layout(bytes(data))
    entry = next(entry for entry in layout.directories[0].entries if entry.tag == tag)
    layout.write(data, entry.value_at, value, "I" if entry.kind == 4 else "H")
    path.write_bytes(data)


def test_tiles_of_gigabytes_are_refused_before_memory_is_asked_for(tmp_path):
    path = tmp_path / "s.tiff"
    tifffile.imwrite(path, picture(300), tile=(304, 304), photometric="rgb", metadata=None)
    for tag in (TILE_WIDTH, TILE_LENGTH):
        lying(path, tag, 60_000)
    with pytest.raises(UnreadableSlide, match="tiles are 60000 x 60000 px"):
        open_slide(str(path), "tiff")


@pytest.mark.parametrize("kind", [9, 11])  # signed, and floating-point
def test_tiles_before_the_file_begins_are_refused(tmp_path, kind):
    path = tmp_path / "s.tiff"
    tifffile.imwrite(path, picture(300), tile=(304, 304), photometric="rgb", metadata=None)
    data = bytearray(path.read_bytes())
    (offsets,) = Layout(bytes(data)).find(324)
    data[offsets.at + 2 : offsets.at + 4] = kind.to_bytes(2, "little")
    data[offsets.value_at : offsets.value_at + 4] = struct.pack("<i" if kind == 9 else "<f", -16)
    path.write_bytes(data)
    with pytest.raises(UnreadableSlide, match="list of tiles is damaged"):
        open_slide(str(path), "tiff")


@pytest.mark.parametrize(("compression", "code"), [("jpeg", 7), ("jpeg2000", 34_712)])
def test_a_tile_whose_own_head_says_gigabytes_is_not_decoded(tmp_path, compression, code):
    path = tmp_path / "s.tiff"
    tifffile.imwrite(path, picture(300), tile=(304, 304), photometric="rgb", compression=compression, metadata=None)
    data = bytearray(path.read_bytes())
    (offsets,) = Layout(bytes(data)).find(324)
    whole = payload(code)
    data[offsets.value_at : offsets.value_at + 4] = len(data).to_bytes(4, "little")
    path.write_bytes(data + whole)
    lying(path, 325, len(whole))
    reader = open_slide(str(path), "tiff")
    with pytest.raises(DamagedSlide, match=r"says that it is (65500 x 65500|30000 x 30000) px"):
        reader.read(0, 0, 0, 300, 300)
    reader.close()


def test_the_size_in_a_tiles_head_is_read_as_libraries_read_it():
    pixels = picture(200)[:96, :150]
    for quality in (30, 95):
        assert coded_size(imagecodecs.jpeg8_encode(pixels, level=quality)) == (96, 150)
    for form in ("j2k", "jp2"):
        assert coded_size(imagecodecs.jpeg2k_encode(pixels, codecformat=form)) == (96, 150)
    assert coded_size(b"") == coded_size(bytes(100)) == coded_size(b"\xff\xd8") == (0, 0)


def test_a_picture_of_a_few_pixels_is_no_slide(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", picture(300)[:7, :5], tile=(16, 16), photometric="rgb", metadata=None)
    reader = open_slide(str(tmp_path / "s.tif"))
    with pytest.raises(UnreadableSlide, match="5 x 7 px, which is no slide"):
        read_thumbnail(reader, 0.5, 0.5, 8.0)


def test_a_dicom_header_is_read_as_far_as_it_is_needed(tmp_path, monkeypatch):
    paths = write_dicom_slide(tmp_path / "whole", [picture(512)], 0.5)
    assert len(find_slides(str(tmp_path / "whole"))[0].files) == 2
    data = paths[0].read_bytes()
    pixels = data.index(b"\xe0\x7f\x10\x00O")
    more = b"\x51\x00\x10\x00LO\x02\x00xx" * 100_000
    paths[0].write_bytes(data[:pixels] + more + data[pixels:])
    monkeypatch.setattr(dicom, "_MOST_ELEMENTS", 60)  # what comes after is not looked at
    assert len(find_slides(str(tmp_path / "whole"))[0].files) == 2
    monkeypatch.setattr(dicom, "_MOST_ELEMENTS", 3)  # and what is before is, so far
    assert [len(source.files) for source in find_slides(str(tmp_path / "whole"))] == [1, 1]


@pytest.mark.parametrize(("deep", "refused"), [(3, False), (90, False), (200_000, True)])
def test_dicom_sequences_without_end_are_refused_before_they_end_the_process(tmp_path, deep, refused):
    paths = write_dicom_slide(tmp_path / "whole", [picture(512)], 0.5)
    data = paths[0].read_bytes()
    pixels = data.index(b"\xe0\x7f\x10\x00O")
    begin, end = b"\x51\0\x10\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff", b"\xfe\xff\x0d\xe0\0\0\0\0"
    whole = begin * deep + (end + b"\xfe\xff\xdd\xe0\0\0\0\0") * deep
    paths[0].write_bytes(data[:pixels] + whole + data[pixels:])
    if refused:
        for path in paths:  # the one, and the label beside it that OpenSlide looks at too
            with pytest.raises(UnreadableSlide, match="nested more than 100 deep"):
                open_slide(str(path), files=[str(p) for p in paths])
    else:
        assert open_slide(str(paths[0])).info.vendor == "dicom"


def test_a_dicom_header_of_nothing_is_given_up_early(tmp_path, monkeypatch):
    path = tmp_path / "holes.dcm"
    with path.open("wb") as file:
        file.write(bytes(128) + b"DICM")
        file.truncate(20 * 2**30)
    came = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *arguments: (came.append(len(data := pread(*arguments))), data)[1])
    assert len(find_slides(str(path))) == 1  # named by itself, it is to fail with its reason
    assert find_slides(str(path))[0].files == (str(path),)
    assert 0 < sum(came) <= 2 * 8 * 2**20


def test_a_deflated_header_is_not_inflated(tmp_path):
    path = tmp_path / "bomb.dcm"
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = dicom._WSI_CLASS, pydicom.uid.generate_uid()
    data.PixelData = bytes(40_000_000)
    data["PixelData"].VR = "OB"
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    assert path.stat().st_size < 1_000_000
    import tracemalloc

    tracemalloc.start()
    (found,) = find_slides(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.files == (str(path),)
    assert peak < 20_000_000
