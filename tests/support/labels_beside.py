"""Slides with a picture of their label, or of the whole glass, put where it may be taken for the slide or a level."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pydicom
import tifffile

from tests.support.dicom_wsi import write_dicom_slide
from tests.support.mrxs_wsi import write_mrxs

MPP = 1.0
WORDS = (
    *("label", "barcode", "macro photo", "Overview", "Etikett", "thumbnail", "slide label", "LabelImage", "macro"),
    *("Macro image of the glass", "preview", "Übersicht", "étiquette", "thumbnailImage", "SlideBarcode", "qr code"),
)
LEVELS = (4, 8)
APERIO = "Aperio Image Library v11.2.1 \n{0}x{1} (256x256) JPEG/RGB Q=75|AppMag = 10|MPP = 1.0"


@dataclass(frozen=True)
class Placement:
    """`layout` of the file; `at` which picture it is put before, or "below" the slide; `size`, `name` and `kind`."""

    layout: str
    at: str
    size: str
    name: str
    kind: str


def placement(rng: np.random.Generator) -> Placement:
    """One at random, of those that a reader can tell from the slide by name, structure or content."""
    layout = str(rng.choice(("ome", "ome", "generic", "generic", "generic", "svs", "svs", "dicom", "mirax")))
    kind = str(rng.choice(("label", "label", "macro")))
    at = str(rng.choice(("first", "between", "last", "below")))
    size = str(rng.choice(("small", "like", "like", "larger", "larger like")))
    named = bool(rng.random() < 0.5)
    if at == "below" or (kind == "macro" and size == "larger like" and not named):
        size = "like"
    if layout == "svs" and at == "below":
        at = "last"
    return Placement(layout, at, size, odd_name(rng) if named else "", kind)


def odd_name(rng: np.random.Generator) -> str:
    """A word for such pictures as people and programs write it."""
    word = str(rng.choice(WORDS))
    word = str(rng.choice((word, word.upper(), word.lower(), word.title())))
    begins, ends = str(rng.choice(("", "", "S19_", "2 "))), str(rng.choice(("", "_1", " 2", ".png", "-3.JPG", "17")))
    return f"{begins}{word}{ends}"


def picture(rng: np.random.Generator, kind: str, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: black letters and bars on white; or a photograph of a glass with such a label."""
    if kind == "macro":
        out = np.full((height, width, 3), rng.integers(60, 130, 3), np.uint8)
        cv2.rectangle(out, (width // 30, height // 20), (width * 29 // 30, height * 19 // 20), (222, 226, 224), -1)
        cv2.rectangle(out, (width // 30, height // 20), (width * 29 // 30, height * 19 // 20), (90, 96, 100), 3)
        cv2.ellipse(out, (width * 2 // 3, height // 2), (width // 6, height // 5), 20, 0, 360, (190, 120, 170), -1)
        part = picture(rng, "label", max(16, width // 3), max(16, height * 3 // 4))
        out[height // 8 : height // 8 + part.shape[0], width // 24 : width // 24 + part.shape[1]] = part
        noise = rng.normal(0, 4, (height, width, 1))
        return np.clip(out + noise, 0, 255).astype(np.uint8)
    out = np.full((height, width, 3), rng.integers(238, 256), np.uint8)
    scale = width / 260
    for line in range(3):
        text = "".join(rng.choice(list("ABCDEFGHKLMNPRSTUXYZ0123456789-"), 12))
        at = (width // 20, int(height * (0.2 + 0.16 * line)))
        cv2.putText(out, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), max(1, round(2.4 * scale)))
    x = width // 15
    while x < width * 14 // 15:
        bar = max(1, int(width / 120 * rng.integers(1, 4)))
        out[int(height * 0.62) : int(height * 0.92), x : x + bar] = 0
        x += bar + max(1, int(width / 120 * rng.integers(1, 4)))
    return out


def write(folder: Path, slide: np.ndarray, what: Placement, rng: np.random.Generator) -> Path:
    """The slide at MPP um/px with the picture beside it; returns the file to read."""
    folder.mkdir(parents=True)
    beside = picture(rng, what.kind, *_sides(rng, what.size, slide))
    levels = [_reduced(slide, factor) for factor in LEVELS]
    return {"ome": _ome, "generic": _generic, "svs": _svs, "dicom": _dicom, "mirax": _mirax}[what.layout](
        folder, [slide, *levels], beside, what
    )


def _sides(rng, size, slide):
    height, width = slide.shape[:2]
    if size == "like":
        factor = int(rng.choice((2, 3, 5, 6, 8, 16)))
        return width // factor, height // factor
    if size == "larger like":
        factor = float(rng.choice((1.25, 1.5, 2)))
        return round(width * factor), round(height * factor)
    if size == "larger":
        return width + int(rng.integers(50, 200)), height + int(rng.integers(-100, 30))
    return int(rng.integers(150, 450)), int(rng.integers(140, 350))


def _reduced(pixels, factor):
    height, width = (side // factor for side in pixels.shape[:2])
    cut = pixels[: height * factor, : width * factor]
    return cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA)


_TILED = {"photometric": "rgb", "tile": (256, 256), "compression": "jpeg"}
_SCALE = {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}


def _order(what, pages, extra):
    at = {"first": 0, "between": 1, "last": len(pages), "below": 0}[what.at]
    return [*pages[:at], extra, *pages[at:]]


def _generic(folder, pyramid, beside, what):
    path = folder / "slide.tiff"
    plain = {**_TILED, "metadata": None}
    with tifffile.TiffWriter(path) as tif:
        if what.at == "below":
            tif.write(pyramid[0], subifds=3, **_SCALE, **plain)
            for level in (*pyramid[1:], beside):
                tif.write(level, subfiletype=1, **plain)
            return path
        scaled = [(page, 1e4 / (pyramid[0].shape[1] / page.shape[1]), None) for page in pyramid]
        for page, per_cm, name in _order(what, scaled, (beside, 1e4, what.name or None)):
            scale = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
            tif.write(page, description=name.encode() if name else None, **scale, **plain)
    return path


def _svs(folder, pyramid, beside, what):
    path = folder / "slide.svs"
    about = APERIO.format(*pyramid[0].shape[1::-1])
    second = f"{what.name} {beside.shape[1]}x{beside.shape[0]}"
    named = f"Aperio Image Library v11.2.1 \n{second}" if what.name else about
    pages = [(page, about) for page in pyramid]
    with tifffile.TiffWriter(path) as tif:
        for page, text in _order(what, pages, (beside, named)):
            tif.write(page, description=text.encode(), metadata=None, **_TILED)
    return path


def _ome(folder, pyramid, beside, what):
    path = folder / "slide.ome.tif"
    meta = {"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
    with tifffile.TiffWriter(path, ome=True) as tif:

        def slide():
            below = [*pyramid[1:], *([beside] if what.at == "below" else [])]
            tif.write(pyramid[0], subifds=len(below), metadata=meta, **_TILED)
            for level in below:
                tif.write(level, subfiletype=1, **_TILED)

        def other():
            tif.write(beside, metadata={**meta, **({"Name": what.name} if what.name else {})}, **_TILED)

        steps = {"first": (other, slide), "below": (slide,)}.get(what.at, (slide, other))
        for step in steps:
            step()
    return path


def _dicom(folder, pyramid, beside, what):
    files = write_dicom_slide(folder / "series", pyramid, MPP)
    kind = write_dicom_slide(folder / "aside", [beside], 20.0)[0]
    label, data = pydicom.dcmread(files[-1]), pydicom.dcmread(kind)
    data.ImageType = ["ORIGINAL", "PRIMARY", "LABEL" if what.kind == "label" else "OVERVIEW", "NONE"]
    for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(data, name, getattr(label, name))
    data.save_as(files[-1])
    return files[0]


def _mirax(folder, pyramid, beside, what):
    slide = pyramid[0]
    rows, cols = (-(-side // 256) for side in slide.shape[:2])
    whole = np.pad(slide, ((0, -slide.shape[0] % 256), (0, -slide.shape[1] % 256), (0, 0)), mode="edge")
    path = write_mrxs(folder / "slide.mrxs", whole, MPP, 0, 0, cols, rows)
    path.write_bytes(cv2.imencode(".jpg", beside)[1].tobytes())
    return path
