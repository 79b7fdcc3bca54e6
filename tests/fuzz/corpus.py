"""Sound slides to be broken: small ones of every family, made here, and real ones where they are at hand."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import tifffile

from tests.support.dicom_wsi import write_dicom_slide
from tests.support.mrxs_wsi import write_mrxs
from tests.support.paths import REAL, ROOT

_LARGEST_REAL = 2_000_000
"""Bytes: beyond it a case takes longer to write than to read."""

_APERIO = "Aperio Image Library v11.2.1 \n900x900 (256x256) JPEG/RGB Q=75|AppMag = 20|MPP = 0.5000|Title = fuzz"
_OME = """<?xml version="1.0"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">
<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="900" SizeY="900" SizeC="3" SizeZ="1" SizeT="1"
 PhysicalSizeX="0.5" PhysicalSizeY="0.5" Interleaved="true"><Channel ID="Channel:0:0" SamplesPerPixel="3"/>
<TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>"""


def picture(side: int = 900) -> np.ndarray:
    """(side, side, 3) uint8: something pink with dark nuclei, on glass."""
    rng = np.random.default_rng(5)
    out = np.full((side, side, 3), 242, np.uint8)
    inner = slice(side // 20, -side // 40)
    size = out[inner, inner].shape[:2]
    noise = cv2.GaussianBlur(rng.normal(0, 60, (*size, 1)).astype(np.float32), (0, 0), 3)[..., None]
    nuclei = cv2.GaussianBlur((rng.random(size) > 0.9985).astype(np.float32), (0, 0), 4)[..., None] * 80
    tissue = np.array([214, 150, 190], np.float32) + noise - np.clip(nuclei, 0, 1) * (130, 110, 60)
    out[inner, inner] = np.clip(tissue, 0, 255)
    return out


def make_corpus(folder: Path, *, real: bool) -> list[Path]:
    """Slides by family, each in a folder of its own with all its files; returns what a user would name of each."""
    pixels = picture()
    half = cv2.resize(pixels, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    tiled = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
    scale = {"resolution": (20_000, 20_000), "resolutionunit": 3}
    jpeg = {"compression": "jpeg", "compressionargs": {"level": 85}}
    pages = {
        "aperio.svs": [(pixels, jpeg | {"description": _APERIO}), (half, jpeg | {"description": _APERIO})],
        "jpeg.tiff": [(pixels, jpeg | scale), (half, jpeg | scale)],
        "deflate.tiff": [(pixels, {"compression": "zlib"} | scale)],
        "lzw.tif": [(pixels, {"compression": "lzw"} | scale)],
        "jpeg2000.tif": [(pixels, {"compression": "jpeg2000"} | scale)],
        "plain.tif": [(pixels, scale)],
        "image.ome.tif": [(pixels, jpeg | {"description": _OME.encode()})],
        "strips.tif": [(pixels, {"tile": None, "rowsperstrip": 16} | scale)],
    }
    paths = []
    for name, levels in pages.items():
        path = folder / name.partition(".")[0] / name
        path.parent.mkdir(parents=True)
        with tifffile.TiffWriter(path, bigtiff=name in ("jpeg.tiff", "plain.tif")) as tiff:
            for level, options in levels:
                tiff.write(level, **{**tiled, **options})
        paths.append(path)
    (folder / "dicom").mkdir()
    paths.append(write_dicom_slide(folder / "dicom", [pixels], 0.5)[0])
    (folder / "mirax").mkdir()
    paths.append(write_mrxs(folder / "mirax/slide.mrxs", pixels[:768, :768], 0.5, 0, 0, 3, 3))
    return paths + (_real_slides(folder) if real else [])


def _real_slides(folder: Path) -> list[Path]:
    paths = []
    for where in (ROOT / "sample_slides", REAL):
        for path in sorted(where.glob("*.*")) if where.is_dir() else []:
            slide = path.suffix.lower() in (".svs", ".tif", ".tiff", ".ndpi", ".dcm")
            if slide and path.stat().st_size <= _LARGEST_REAL and not (folder / f"real-{path.stem}").exists():
                (folder / f"real-{path.stem}").mkdir()
                paths.append(Path(shutil.copyfile(path, folder / f"real-{path.stem}" / path.name)))
    return paths
