"""What is taken from a slide's tags: the lists below, and nothing that is not on them.

Not on them, and so in no output: dates and times, serial numbers (Aperio's ScanScope ID names one machine), operators,
file names and titles that the scanner noted, labels' texts, patients, accessions, UIDs, free descriptions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

MODEL_TAGS = (
    "aperio.ScannerType",
    "hamamatsu.Product",
    "leica.device-model",
    "ventana.ScannerModel",
    "philips.DICOM_MANUFACTURERS_MODEL_NAME",
    "dicom.ManufacturerModelName",
    "ome.Microscope.Model",
    "tiff.Model",
)
"""Models of scanner, in OpenSlide's names for tags and in its manner for what it does not read."""

MAKER_TAGS = ("dicom.Manufacturer", "ome.Microscope.Manufacturer", "tiff.Make")
"""Makers, where the format itself does not tell; looked through for the names of `_MAKERS`, never copied."""

_MAKERS = (
    (("aperio", "leica biosystems", "gt450", "scanscope"), "aperio"),
    (("leica",), "leica"),
    (("hamamatsu", "nanozoomer"), "hamamatsu"),
    (("3dhistech", "mirax", "pannoramic"), "mirax"),
    (("philips",), "philips"),
    (("ventana", "roche"), "ventana"),
    (("zeiss",), "zeiss"),
    (("sakura",), "sakura"),
    (("olympus", "evident"), "olympus"),
    (("huron",), "huron"),
    (("motic",), "motic"),
    (("akoya", "perkinelmer"), "akoya"),
    (("nikon",), "nikon"),
    (("grundium",), "grundium"),
)
"""Words in lower case, and the vendor that they mean: OpenSlide's word where it has one for the maker's own format."""

_OPEN_FORMATS = ("dicom", "ome", "generic-tiff")
"""Formats that scanners of many makers write."""

_MODEL_PREFIX = re.compile(r"(?:aperio|leica(?: biosystems)?|hamamatsu|3dhistech|philips|ventana|roche)\s+(?=\S)", re.I)
_MODEL = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9 .()/+_-]{1,40}")
_NUMBERED = re.compile(r"\d{6}|\d{1,4}[-/.:]\d{1,2}[-/.:]\d{1,4}")
_MAX_OBJECTIVE = 200.0
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+\s*")


def vendor_and_scanner(file_format: str, tags: Mapping[str, str]) -> tuple[str, str]:
    """Who made the scanner and its model, each from a tag of the lists or from the format; "" where nothing tells.

    `file_format` is OpenSlide's vendor, or "ome". A model that holds what could be a serial number or a date, or is
    longer than models are, is left out.
    """
    model = " ".join(next((tags[tag] for tag in MODEL_TAGS if tags.get(tag)), "").strip('" ').split())
    named = " ".join([model, *(tags[tag] for tag in MAKER_TAGS if tags.get(tag))]).lower()
    vendor = file_format
    if file_format in _OPEN_FORMATS:
        vendor = next((maker for words, maker in _MAKERS if any(word in named for word in words)), file_format)
    if not _MODEL.fullmatch(model) or _NUMBERED.search(model):
        return vendor, ""
    return vendor, _MODEL_PREFIX.sub("", model, count=1)


def parse_number(text: object) -> float | None:
    """A tag's text as a finite number, or None. A comma is a decimal point where it can be nothing else: "0,25"."""
    plain = str(text)
    if _DECIMAL_COMMA.fullmatch(plain):
        plain = plain.replace(",", ".")
    try:
        number = float(plain)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def parse_objective(text: object) -> float | None:
    """A tag's text as an objective's power, or None where it cannot be one."""
    number = parse_number(text)
    return number if number is not None and 0 < number <= _MAX_OBJECTIVE else None
