"""Slides with everything that scanners and people write beside the pixels, and reading it all back with libraries."""

import re
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import openslide
import pydicom
import tifffile

from tests.support.dicom_wsi import MAGENTA, write_dicom_slide
from tests.support.mrxs_wsi import write_mrxs

_TAGS = [  # Artist, HostComputer, DateTime, DocumentName, PageName, Copyright
    (315, 2, 0, "Quincy Adams MD", True),
    (316, 2, 0, "SCAN-PC-0713", True),
    (306, 2, 20, "2019:08:23 14:15:33", True),
    (269, 2, 0, "S19-0044721 DOE JANE", True),
    (285, 2, 0, "A1-HE-0044721", True),
    (33432, 2, 0, "St Elsewhere Hospital 1988", True),
]
_APERIO = (
    "|Date = 08/23/19|Time = 14:15:33|User = b414003d-95c6-48b0|ScanScope ID = SS77881"
    "|Filename = 0044721|ImageID = 1004486"
    "|Title = DOE JANE S19-0044721|Parmset = Dr Adams HE|Barcode = BC-0044721|ScannerType = GT450|DSR ID = resc3-dsr2"
)
_OME = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:7b0b5c1e-1111-4a3b-9d2f-000044721000">
<Experimenter ID="Experimenter:0" FirstName="Quincy" LastName="Adams-Elsewhere" Email="q.adams@elsewhere.org"/>
<Instrument ID="Instrument:0">
<Microscope Manufacturer="3DHISTECH Ltd." Model="Pannoramic 250" SerialNumber="PANN-0713"/>
</Instrument>
<Image ID="Image:0" Name="DOE JANE S19-0044721"><AcquisitionDate>2019-08-23T14:15:33</AcquisitionDate>
<Description>Left breast of Jane Doe, MRN-55501</Description>
<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{0}" SizeY="{1}" SizeC="3" SizeZ="1" SizeT="1"
 PhysicalSizeX="0.5" PhysicalSizeY="0.5" Interleaved="true"><Channel ID="Channel:0:0" SamplesPerPixel="3"/>
<TiffData IFD="0" PlaneCount="1"/></Pixels></Image>
<Image ID="Image:1" Name="label image"><Pixels ID="Pixels:1" DimensionOrder="XYCZT" Type="uint8" SizeX="400" SizeY="300"
 SizeC="3" SizeZ="1" SizeT="1" Interleaved="true"><Channel ID="Channel:1:0" SamplesPerPixel="3"/>
<TiffData IFD="1" PlaneCount="1"/></Pixels></Image></OME>"""


def label_picture() -> np.ndarray:
    """(300, 400, 3) uint8: writing and bars on magenta, as a label has them."""
    picture = np.full((300, 400, 3), MAGENTA, np.uint8)
    cv2.putText(picture, "DOE JANE", (20, 110), cv2.FONT_HERSHEY_SIMPLEX, 2.2, (0, 0, 0), 9)
    for x in range(20, 380, 18):
        picture[160:280, x : x + 4 + x % 5] = 0
    return picture


def plant(folder: Path, pixels: np.ndarray) -> None:
    """A slide of each family, of (h, w, 3) uint8 `pixels` at 0.5 um/px, and two that fail; each named by its case."""
    folder.mkdir()
    _svs(folder / "S19-0044721 DOE_JANE.svs", pixels)
    svs = (folder / "S19-0044721 DOE_JANE.svs").read_bytes()
    (folder / "S19-0044722_cut.svs").write_bytes(svs[: len(svs) // 2])
    common = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    scanner = [(271, 2, 0, "Hamamatsu", True), (272, 2, 0, "C13210-01", True)]
    with tifffile.TiffWriter(folder / "S19-0044723.tiff") as tiff:
        scale = {"resolution": (20_000, 20_000), "resolutionunit": 3}
        tiff.write(pixels, extratags=[*_TAGS[:2], *_TAGS[3:], *scanner], datetime=_TAGS[2][3], **scale, **common)
        tiff.write(label_picture(), **{**common, "tile": None, "rowsperstrip": 16})
    with tifffile.TiffWriter(folder / "S19-0044724.ome.tif") as tiff:
        xml = _OME.format(pixels.shape[1], pixels.shape[0])
        tiff.write(pixels, description=xml.encode(), **common)
        tiff.write(label_picture(), **{**common, "tile": (128, 128)})
    write_dicom_slide(folder / "MRN-55501 DOE", [pixels], 0.5)
    whole = np.ascontiguousarray(pixels[: pixels.shape[0] // 256 * 256, : pixels.shape[1] // 256 * 256])
    grid = whole.shape[1] // 256, whole.shape[0] // 256
    write_mrxs(folder / "S19-0044725 DOE.mrxs", whole, 0.5, 0, 0, *grid)
    write_mrxs(folder / "S19-0044726.mrxs", whole[:256, :256], 0.5, 0, 0, 1, 1)
    broken = folder / "S19-0044726/Slidedat.ini"
    broken.write_text(broken.read_text().replace("SLIDE_NAME =", "SLIDE_NAME"))


def _svs(path: Path, pixels: np.ndarray) -> None:
    """Aperio's layout: level 0, a thumbnail that shows the label too, a level reduced 4 times, label and macro."""
    size = f"{pixels.shape[1]}x{pixels.shape[0]}"
    about = f"Aperio Image Library v11.2.1 \n{size} (256x256) JPEG/RGB Q=75|AppMag = 20|MPP = 0.5000{_APERIO}"
    quarter = cv2.resize(pixels, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    thumbnail = quarter.copy()
    thumbnail[:300, :400] = label_picture()
    macro = np.hstack([label_picture(), cv2.resize(quarter, (900, 300))])
    common = {"photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            pixels, tile=(256, 256), description=about, extratags=_TAGS[:2] + _TAGS[3:], datetime=_TAGS[2][3], **common
        )
        tiff.write(thumbnail, rowsperstrip=16, description=about, **common)
        tiff.write(quarter, tile=(256, 256), description=about, **common)
        for name, picture, kind in (("label", label_picture(), 1), ("macro", macro, 9)):
            text = f"Aperio Image Library v11.2.1 \n{name} {picture.shape[1]}x{picture.shape[0]}"
            tiff.write(picture, rowsperstrip=16, subfiletype=kind, description=text, **common)


def tag_values(files: list[str]) -> set[str]:
    """Every value that OpenSlide, tifffile and pydicom find in a slide's files, each as text, XML taken apart."""
    values: set[str] = set()
    for file in files:
        try:
            with openslide.OpenSlide(file) as slide:
                values |= set(slide.properties.values())
        except openslide.OpenSlideError:
            pass
        if file.endswith(".dcm"):
            elements = pydicom.dcmread(file, stop_before_pixels=True).iterall()
            values |= {str(element.value) for element in elements if element.VR != "SQ"}
        elif file.endswith((".svs", ".tif", ".tiff", ".ndpi")):
            values |= _tiff_values(file)
        elif file.endswith(".ini"):
            values |= {line.partition("=")[2] for line in Path(file).read_text().splitlines()}
    return {value.strip() for value in values}


def _tiff_values(file: str) -> set[str]:
    values: set[str] = set()
    with tifffile.TiffFile(file) as tiff:
        for page in tiff.pages:
            for text in (tag.value for tag in page.aspage().tags.values() if isinstance(tag.value, str)):
                values |= {text, *(part.partition("=")[2] for part in re.split(r"[|\r\n]", text))}
                if "<OME" in text:
                    for element in ElementTree.fromstring(text.encode()).iter():  # noqa: S314 - made here or real
                        values |= {*element.attrib.values(), element.text or ""}
    return values


def worth_searching(values: set[str]) -> set[str]:
    """Whole values, and their words that hold a digit, without what is too short or too plain to tell anything."""
    words = values | {
        word for value in values for word in re.split(r"[\s=;|,<>\"'()^]+", value) if re.search(r"\d", word)
    }
    return {word for word in words if len(word) >= 6 and not re.fullmatch(r"[-+\d.eE]*\.[\d.eE+-]*|0*", word)}
