"""OME-TIFFs: channel orders, units, several images, SubIFDs. The XML is written by hand, so it can say anything."""

from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np

from tests.fuzz.honest.case import Case, chance, pick
from tests.fuzz.honest.coding import SOUND, Coding
from tests.fuzz.honest.painting import glowing, macro, resized, smaller_scene
from tests.fuzz.honest.pyramid import reduced_levels
from tests.fuzz.honest.slides import ABOUT_PICTURES, coding, pyramid
from tests.fuzz.honest.tiff import Page, write_pages

_HEAD = '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
_LEGAL = {
    "µm": 1.0,
    "mm": 1e-3,
    "cm": 1e-4,
    "nm": 1e3,
    "pm": 1e6,
    "in": 1 / 25400,
    "pt": 72 / 25400,
    "m": 1e-6,
    "Å": 1e4,
}
_COMMON = {"μm": 1.0, "micron": 1.0, "microns": 1.0, "um": 1.0, "inch": 1 / 25400, "Micrometer": 1.0}
_NO_LENGTH = ("pixel", "reference frame", "", "furlong")
_RGBA = {"r": -16776961, "g": 16711935, "b": 65535}
"""The attribute Color of a channel that is red, green or blue."""
_ABOUT_SCALE = r"micron-per-pixel|mpp|um/px|unit|resolution|PhysicalSize"
ABOUT_CHANNELS = r"channel|grey|gray|RGB|colou?r|plane|axes|sample|bit|fluoresc|dark|bright"


@dataclass
class _Image:
    """One image of the file: its `pages`, what the XML says of them, and its name ("": none is said)."""

    pages: list[Page]
    name: str
    channels: str
    size_c: int
    kind: str = "uint8"
    order: str = "XYCZT"
    interleaved: bool = True
    size: str = ""


def ome(rng, case: Case, folder: Path) -> None:
    """An OME-TIFF pyramid."""
    way = rng.choice(("yxs", "planes", "named", "unnamed", "bgr", "glow", "glow4", "rgba", "deep"), p=_SHARES)
    image = _LAYOUTS[way](rng, case)
    image.name = pick(rng, ("slide", "Image:0", "", "20x_01", "Label-free H&E"))
    image.size = _scale(rng, case, image.pages[0])
    image.order = pick(rng, ("XYCZT", "XYCZT", "XYZCT", "XYCTZ", "XYTZC"))
    images = [image]
    if chance(rng, 0.3):
        _put_beside(rng, case, images)
    if chance(rng, 0.1) and way == "yxs":
        _other_scene(rng, case, images, image.size)
    pages = [page for one in images for page in one.pages]
    pages[0].description = _xml(images).encode()
    ending = pick(rng, (".ome.tif", ".ome.tiff", ".tif"))
    write_pages(folder / f"slide{ending}", pages, rng, big=chance(rng, 0.5))
    case.path = folder / f"slide{ending}"


def _interleaved(rng, case):
    if chance(rng, 0.2):
        case.tell("no reduced levels")
        level0 = Page(case.truth.pixels, coding(rng, case, SOUND))
    else:
        level0, level0.sub = pyramid(rng, case, SOUND)
    return _Image([level0], "", '<Channel ID="Channel:0:0" SamplesPerPixel="3"/>', 3)


def _planes(rng, case):
    """Red, green and blue planes of one image (PlanarConfiguration 2)."""
    case.tell("planes apart", warning=ABOUT_CHANNELS)
    page = _lossless(rng, np.ascontiguousarray(case.truth.pixels.transpose(2, 0, 1)), "rgb")
    page.planes_apart = True
    page.sub = [
        _lossless(rng, np.ascontiguousarray(p.transpose(2, 0, 1)), "rgb") for p in reduced_levels(rng, case.truth)
    ]
    for sub in page.sub:
        sub.planes_apart = True
    return _Image([page], "", '<Channel ID="Channel:0:0" SamplesPerPixel="3"/>', 3, interleaved=False)


def _named(rng, case):
    names = pick(
        rng, (("Red", "Green", "Blue"), ("R", "G", "B"), ("red", "green", "blue"), ("TL Red", "TL Green", "TL Blue"))
    )
    case.tell(f"grey channels {', '.join(names)}", warning=ABOUT_CHANNELS)
    return _channels(rng, case.truth.pixels, names)


def _unnamed(rng, case):
    names = pick(rng, (("", "", ""), ("Channel 0", "Channel 1", "Channel 2"), ("0", "1", "2")))
    case.tell(f"three grey channels {', '.join(names)}", ABOUT_CHANNELS, ABOUT_CHANNELS)
    return _channels(rng, case.truth.pixels, names)


def _bgr(rng, case):
    case.tell("grey channels Blue, Green, Red", ABOUT_CHANNELS, ABOUT_CHANNELS)
    return _channels(rng, np.ascontiguousarray(case.truth.pixels[..., ::-1]), ("Blue", "Green", "Red"))


def _glow(rng, case, names=("DAPI", "FITC", "Cy3")):
    case.must_refuse = True
    dark = chance(rng, 0.6)
    case.tell(f"fluorescence {', '.join(names)}{'' if dark else ', bright'}", ABOUT_CHANNELS)
    pixels = glowing(case.truth) if dark else case.truth.pixels
    if len(names) == 4:
        pixels = np.concatenate([pixels, 255 - pixels[..., 1:2] // 2], axis=2)
    return _channels(rng, pixels, names)


def _glow4(rng, case):
    return _glow(rng, case, pick(rng, (("DAPI", "FITC", "Cy3", "Cy5"), ("", "", "", ""), ("Channel 0", "1", "2", "3"))))


def _rgba(rng, case):
    case.tell("RGBA", ABOUT_CHANNELS, ABOUT_CHANNELS)
    page = _lossless(rng, cv2.cvtColor(case.truth.pixels, cv2.COLOR_RGB2RGBA), "rgb")
    return _Image([page], "", '<Channel ID="Channel:0:0" SamplesPerPixel="4"/>', 4)


def _deep(rng, case):
    case.tell("16 bits", ABOUT_CHANNELS, ABOUT_CHANNELS)
    page = _lossless(rng, case.truth.pixels.astype(np.uint16) * 257, "rgb")
    return _Image([page], "", '<Channel ID="Channel:0:0" SamplesPerPixel="3"/>', 3, kind="uint16")


_LAYOUTS = {
    "yxs": _interleaved,
    "planes": _planes,
    "named": _named,
    "unnamed": _unnamed,
    "bgr": _bgr,
    "glow": _glow,
    "glow4": _glow4,
    "rgba": _rgba,
    "deep": _deep,
}
_SHARES = (0.5, 0.1, 0.12, 0.06, 0.05, 0.04, 0.05, 0.04, 0.04)


def _channels(rng, pixels, names):
    """Each channel a page of its own, with its own SubIFDs, as Bio-Formats writes them."""
    height, width = pixels.shape[:2]
    factors = pick(rng, ((4, 16), (2, 4, 8), ()))
    coding_of = pick(rng, ("zlib", "lzw"))
    pages = []
    for channel in range(len(names)):
        page = Page(np.ascontiguousarray(pixels[..., channel]), Coding(coding_of, "minisblack"))
        page.sub = [Page(resized(page.pixels, width // f, height // f), page.coding) for f in factors]
        pages.append(page)
    coloured = chance(rng, 0.3)
    told = ""
    for number, name in enumerate(names):
        colour = _RGBA.get((name.split() or "?")[-1][0].lower()) if coloured else None
        told += f'<Channel ID="Channel:0:{number}" SamplesPerPixel="1"'
        told += f" Name={quoteattr(name)}" if name else ""
        told += f' Color="{colour}"/>' if colour else "/>"
    return _Image(pages, "", told, len(names), interleaved=False)


def _lossless(rng, pixels, photometric):
    return Page(pixels, Coding(pick(rng, ("zlib", "lzw")), photometric))


def _put_beside(rng, case, images):
    """A label, macro or thumbnail before or after the slide, as an image of its own."""
    name = pick(rng, ("label", "macro", "Macro image", "overview", "thumbnail", "label image", "", "Image:1"))
    width, height = case.truth.size
    like = chance(rng, 0.4)
    size = (width // 8, height // 8) if like else (900, 400)
    page = Page(macro(case.truth, *size), tile=int(pick(rng, (0, 256))))
    first = chance(rng, 0.4)
    told = f"{name or 'an image without a name'} {'first' if first else 'last'}"
    case.tell(f"{told}, of the slide's proportions" if like else told, ABOUT_PICTURES if first else "", ABOUT_PICTURES)
    image = _Image([page], name, '<Channel ID="Channel:1:0" SamplesPerPixel="3"/>', 3)
    if chance(rng, 0.6):  # its scale is not the slide's
        image.size = 'PhysicalSizeX="20" PhysicalSizeXUnit="µm" PhysicalSizeY="20" PhysicalSizeYUnit="µm"'
    images.insert(0 if first else len(images), image)


def _other_scene(rng, case, images, size):
    """Another piece of tissue on the same glass, scanned by itself, smaller than the slide."""
    part = smaller_scene(case.base, case.truth)
    told = '<Channel ID="Channel:2:0" SamplesPerPixel="3"/>'
    image = _Image([Page(part.pixels)], "scene 2", told, 3, size=size)
    first = chance(rng, 0.5)
    case.tell(f"another scene {'first' if first else 'last'}", ABOUT_PICTURES, ABOUT_PICTURES)
    case.scenes.append(part)
    images.insert(0 if first else len(images), image)


def _scale(rng, case, page):
    """The attributes of Pixels that say how large a pixel is; TIFF's own tags may say so too, or what printers want."""
    truth = case.truth
    tags = rng.choice(("none", "true", "dpi"), p=(0.5, 0.25, 0.25))
    if tags == "true":
        page.resolution, page.unit = (1e4 / truth.mpp_x, 1e4 / truth.mpp_y), 3
    elif tags == "dpi":
        page.resolution, page.unit = (72.0, 72.0), 2
        case.warnings.append(_ABOUT_SCALE)
    way = rng.choice(("legal", "common", "default", "no length"), p=(0.6, 0.2, 0.1, 0.1))
    if way == "default":
        case.tell("PhysicalSize without a unit", warning=_ABOUT_SCALE)
        return f'PhysicalSizeX="{truth.mpp_x}" PhysicalSizeY="{truth.mpp_y}"'
    units = {"legal": tuple(_LEGAL), "common": tuple(_COMMON), "no length": _NO_LENGTH}[way]
    unit = pick(rng, units)
    per_um = _LEGAL.get(unit) or _COMMON.get(unit) or 1.0
    if way == "common":
        case.tell(f"unit {unit!r}", _ABOUT_SCALE, _ABOUT_SCALE)
    elif way == "no length" and tags != "true":
        case.no_scale(f"unit {unit!r}, TIFF tags: {tags}")
    elif way == "no length" or unit != "µm":
        case.tell(f"unit {unit!r}, TIFF tags: {tags}", "", _ABOUT_SCALE if way == "no length" else "")
    x, y = (f"{mpp * per_um:.9g}" for mpp in (truth.mpp_x, truth.mpp_y))
    return f'PhysicalSizeX="{x}" PhysicalSizeXUnit="{unit}" PhysicalSizeY="{y}" PhysicalSizeYUnit="{unit}"'


def _xml(images):
    out, ifd = [_HEAD], 0
    for number, image in enumerate(images):
        height, width = image.pages[0].planes[0].shape[:2]
        named = f" Name={quoteattr(image.name)}" if image.name else ""
        data = "".join(
            f'<TiffData FirstC="{c}" FirstZ="0" FirstT="0" IFD="{ifd + c}" PlaneCount="1"/>'
            for c in range(len(image.pages))
        )
        ifd += len(image.pages)
        out.append(
            f'<Image ID="Image:{number}"{named}><Pixels ID="Pixels:{number}" DimensionOrder="{image.order}" '
            f'Type="{image.kind}" SizeX="{width}" SizeY="{height}" SizeC="{image.size_c}" SizeZ="1" SizeT="1" '
            f"{image.size} "
            f'Interleaved="{str(image.interleaved).lower()}">'
            f"{image.channels.replace('Channel:0:', f'Channel:{number}:')}{data}</Pixels></Image>"
        )
    return "".join(out) + "</OME>"
