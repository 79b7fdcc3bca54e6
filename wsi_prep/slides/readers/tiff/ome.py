"""What is taken from OME-XML: scale, channels, names of images (compared, never copied), the microscope's model.

Source: OME data model 2016-06.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from wsi_prep.slides.readers.tags import parse_number

_UM_PER_UNIT = {
    **{"ym": 1e-18, "zm": 1e-15, "am": 1e-12, "fm": 1e-9, "pm": 1e-6, "nm": 1e-3, "um": 1.0, "mm": 1e3, "cm": 1e4},
    **{"dm": 1e5, "m": 1e6, "dam": 1e7, "hm": 1e8, "km": 1e9, "Mm": 1e12, "Gm": 1e15, "Tm": 1e18, "Pm": 1e21},
    **{"Em": 1e24, "Zm": 1e27, "Ym": 1e30, "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}": 1e-4},
    **{"thou": 25.4, "li": 25400 / 12, "in": 25400.0, "ft": 304800.0, "yd": 914400.0, "mi": 1609344e3},
    **{"ua": 1.495978707e17, "ly": 9.4607304725808e21, "pc": 3.0856775814913673e22, "pt": 25400 / 72},
}
"""OME's UnitsLength in um; "pixel" and "reference frame" are no lengths."""

_OTHER_WORDS = {
    **dict.fromkeys(("micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres", "mkm"), "um"),
    **dict.fromkeys(("nanometer", "nanometers", "nanometre", "nanometres"), "nm"),
    **dict.fromkeys(("millimeter", "millimeters", "millimetre", "millimetres"), "mm"),
    **dict.fromkeys(("centimeter", "centimeters", "centimetre", "centimetres"), "cm"),
    **dict.fromkeys(("meter", "meters", "metre", "metres"), "m"),
    **dict.fromkeys(("inch", "inches", '"'), "in"),
    **dict.fromkeys(("angstrom", "angstroms", "ångström"), "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}"),
}

_MICRO = ("\N{MICRO SIGN}", "\N{GREEK SMALL LETTER MU}")
_NO_NAME = re.compile(
    r"(ch(annel)?|c)?[\s:#_.-]*\d*([\s:._-]+\d+)*|(tl |transmitted )?(bright[\s-]?field|light)( \d+)?|rgb( \d+)?", re.I
)
_COLOUR_VALUES = {0xFF0000FF: 0, 0x00FF00FF: 1, 0x0000FFFF: 2}  # of OME: red, green, blue and alpha in a byte each
_COLOUR_WORDS = {"red": 0, "r": 0, "green": 1, "g": 1, "blue": 2, "b": 2}


@dataclass(frozen=True)
class OmeChannel:
    """A channel's `name`, `colour` (RGBA in 32 bits) or None, and whether something says that it `fluoresces`."""

    name: str
    colour: int | None
    fluoresces: bool


@dataclass(frozen=True)
class OmeImage:
    """An image of the OME-XML: its name, width and height in px, and channels.

    `mpp` is um/px in x and y where both are lengths; `stated` is how they stand there.
    """

    name: str
    sides: tuple[int, int]
    mpp: tuple[float, float] | None
    stated: str
    channels: tuple[OmeChannel, ...]


def read_images(xml: str | None) -> tuple[OmeImage, ...]:
    """The images that hold data, in order; none where the text is no XML."""
    return tuple(
        _image(image, pixels)
        for image in _children(_root(xml), "Image")
        for pixels in _children(image, "Pixels")
        if _children(pixels, "TiffData")
    )


def read_microscope(xml: str | None) -> dict[str, str]:
    """Maker and model of the first instrument, by names as OpenSlide gives to tags."""
    for instrument in _children(_root(xml), "Instrument"):
        for microscope in _children(instrument, "Microscope"):
            given = {name: microscope.get(name) for name in ("Manufacturer", "Model")}
            return {f"ome.Microscope.{name}": text for name, text in given.items() if text}
    return {}


def um_per_unit(unit: str) -> float | None:
    """How many um a unit of length has, or None where it is none that OME or people use."""
    word = unit.strip()
    for mu in _MICRO:
        word = word.replace(mu, "u")
    word = word.replace("\N{ANGSTROM SIGN}", "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}")
    word = _OTHER_WORDS.get(word.lower(), word)
    return _UM_PER_UNIT.get(word)


def colour_order(channels: Sequence[OmeChannel]) -> tuple[int, int, int] | str:
    """Which of three channels are red, green and blue, or why they are not; as they stand where nothing names them."""
    if any(channel.fluoresces for channel in channels):
        return "its three channels are of fluorescence"
    names = [channel.name.strip() for channel in channels]
    by_name = [_word_of_colour(name) for name in names]
    if sorted(by_name) == [0, 1, 2]:
        return by_name.index(0), by_name.index(1), by_name.index(2)
    if not all(_NO_NAME.fullmatch(name) for name in names):
        return "its three channels have names, and these are not red, green and blue"
    by_value = [_COLOUR_VALUES.get(channel.colour, -1) if channel.colour is not None else -1 for channel in channels]
    if sorted(by_value) == [0, 1, 2]:
        return by_value.index(0), by_value.index(1), by_value.index(2)
    return 0, 1, 2


def _word_of_colour(name: str) -> int:
    """0, 1, 2 for a name with one word for red, green or blue; -1 of others."""
    found = {_COLOUR_WORDS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in _COLOUR_WORDS}
    return found.pop() if len(found) == 1 else -1


def _root(xml: str | None) -> ElementTree.Element | None:
    try:
        return ElementTree.fromstring(xml) if xml else None  # noqa: S314 - expat bounds what entities may grow to
    except (ElementTree.ParseError, ValueError):
        return None


def _children(element: ElementTree.Element | None, name: str) -> Sequence[ElementTree.Element]:
    """The children of this name, whatever the schema's namespace."""
    return [] if element is None else [child for child in element if child.tag.rpartition("}")[2] == name]


def _image(image: ElementTree.Element, pixels: ElementTree.Element) -> OmeImage:
    sizes = [_length(pixels, axis) for axis in "XY"]
    values = [size for size, _ in sizes]
    x, y = values
    mpp = (x, y) if x is not None and y is not None else None
    stated = ", ".join(text for _, text in sizes if text)
    width, height = (int(parse_number(pixels.get(f"Size{axis}")) or 0) for axis in "XY")
    channels = tuple(map(_channel, _children(pixels, "Channel")))
    return OmeImage(image.get("Name") or "", (width, height), mpp, stated, channels)


def _length(pixels: ElementTree.Element, axis: str) -> tuple[float | None, str]:
    """PhysicalSize of an axis in um, and as it stands in the file."""
    text = pixels.get(f"PhysicalSize{axis}")
    if text is None:
        return None, ""
    unit = pixels.get(f"PhysicalSize{axis}Unit", "\N{MICRO SIGN}m")  # an empty one is none, and not the default
    number, factor = parse_number(text), um_per_unit(unit)
    known = number is not None and number > 0 and factor is not None
    return (number * factor if known and number and factor else None), f"PhysicalSize{axis} = {text} {unit}"


def _channel(channel: ElementTree.Element) -> OmeChannel:
    try:
        colour = int(channel.get("Color") or "") & 0xFFFFFFFF
    except ValueError:
        colour = None
    lit = channel.get("IlluminationType") == "Epifluorescence" or channel.get("ContrastMethod") == "Fluorescence"
    return OmeChannel(
        channel.get("Name") or "",
        colour,
        lit or bool(channel.get("Fluor")) or channel.get("EmissionWavelength") is not None,
    )
