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

NO_MAKERS = (*_OPEN_FORMATS, "synthetic")
"""What stands for a vendor and names no maker of scanners, but a format."""

_MODEL_PREFIX = re.compile(r"(?:aperio|leica(?: biosystems)?|hamamatsu|3dhistech|philips|ventana|roche)\s+(?=\S)", re.I)
_MODEL = re.compile(r"[A-Za-z0-9 .()/+_-]{1,40}")
_MAKERS_IN_MODELS = (
    r"(?:aperio|leicabiosystems|leica|hamamatsu|3dhistech|epredia|philips|ventana|roche|carlzeiss|zeiss|olympus|evident"
    r"|huron|motic|kfbio|trestle|sakura|nikon|grundium|akoya|perkinelmer|optrascan|mikroscan|pramana)*"
)
_MODELS = re.compile(
    _MAKERS_IN_MODELS
    + "(?:"
    + "|".join(
        (
            r"(?:scanscope)?(?:gt450(?:dx)?|at2?(?:dx|turbo)?|cs2?|cso|cs5|xt|gl|os|fl|lv1|t2|t3|v)|scanscope",
            r"versa(?:8|200)?|scn400f?",
            r"c(?:9600|10730|12000|13140|13210|13220|13239|14960|16300)(?:01|02|12|13|21|22|l04)?(?:md)?",
            r"nanozoomer(?:20ht|20rs|ht|rs|xr|sq|s20|s60|s210|s360(?:md)?|s540(?:md)?)?|20(?:ht|rs)",
            r"(?:pannoramic)?(?:midi|scan|desk|250|p250|p480|p1000|150|1000|confocal|diagnosticscanner|flash)"
            r"(?:flash|ii?i?|iv|dx|150|rx)*|pannoramic|e1000dx|mirax(?:scan|midi|desk|live)?",
            r"(?:intellisite|pathologyscanner|digitalpathology)*(?:ufs|ultrafast|sg20|sg60|sg300)(?:scanner|dx)*",
            r"(?:iscan(?:coreo|ht)?(?:au)?|dp200|dp600|virtuoso)",
            r"axio(?:scan)?(?:z1|7)?(?:bf|fl)?|axioimager(?:[adm][12]m?|z[12])?|axioobserver[z17]*",
            r"(?:slideview)?vs(?:110|120|200)(?:s[1-6]|l100)?|slideview|dotslide",
            r"tissuescope(?:le|le120|iq|pe|4000|cf)?(?:120)?",
            r"easyscan(?:pro[16]?|one|infinity(?:60|100)?|nano)?|moticeasyscan(?:pro[16]?|one)?|digitalslidescanner",
            r"kf(?:pro|fl|bio)?(?:002|005|020|120|400|400hi)?|dsm|medmicro|medscan",
            r"visiontek(?:m6)?|visionteklive|ocus(?:2|m)?(?:20|40)?(?:mds)?",
            r"vectra(?:3|polaris)?|phenoimager(?:ht|fusion)?|polaris|eclipse(?:ti2?|ni|80i|90i)?e?",
            r"(?:os)(?:1|15|120|320|ultra)|sl5|spectralht",
        )
    )
    + ")"
)
"""Models, in small letters and digits alone: of what a tag says, nothing else is copied. Makers' own tags hold serial
numbers, dates and names beside them, or in their place."""

_MAX_OBJECTIVE = 200.0
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+\s*")


def vendor_and_scanner(file_format: str, tags: Mapping[str, str]) -> tuple[str, str]:
    """Who made the scanner and its model, each from a tag of the lists or from the format; "" where nothing tells.

    `file_format` is OpenSlide's vendor, or "ome". A model that is not on the list is left out: the maker stands alone.
    """
    model = " ".join(next((tags[tag] for tag in MODEL_TAGS if tags.get(tag)), "").strip('" ').split())
    named = " ".join([model, *(tags[tag] for tag in MAKER_TAGS if tags.get(tag))]).lower()
    vendor = file_format
    if file_format in _OPEN_FORMATS:
        vendor = next((maker for words, maker in _MAKERS if any(word in named for word in words)), file_format)
    if not _MODEL.fullmatch(model) or not _MODELS.fullmatch(re.sub(r"[^a-z0-9]", "", model.lower())):
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
