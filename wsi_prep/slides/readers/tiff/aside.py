"""Names that say of a picture that it shows the label, or the whole glass with it, and not the slide alone."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

_ASIDE = frozenset(
    {*("label", "labels", "lbl", "macro", "macros", "makro", "macroscopic", "overview", "overviews", "thumb", "thumbs")}
    | {*("thumbnail", "thumbnails", "preview", "previews", "barcode", "barcodes", "qrcode", "datamatrix", "rotulo")}
    | {*("vignette", "apercu", "miniature", "supplemental")}
)
_ALONG = (
    *("image", "images", "img", "photo", "photos", "photograph", "picture", "scan", "slide", "glass", "of", "the"),
    *("series", "camera", "area", "full", "file", "wsi", "bild", "foto", "png", "jpg", "jpeg", "tif", "tiff", "bmp"),
)
"""Words that are written together with these: LABELIMAGE."""

_TOGETHER = re.compile(
    rf"(?:{'|'.join(_ALONG)})*(?:{'|'.join(sorted(_ASIDE, key=len, reverse=True))})(?:{'|'.join((*_ALONG, *_ASIDE))})*"
)
_STEMS = ("etiket", "etiquet", "etichet", "etykiet", "uebersicht", "ubersicht", "oversikt", "oversigt", "overzicht")
"""How words of other languages for label and overview begin; nothing else does."""

_SIGNS = ("标签", "標籤", "ラベル", "라벨", "缩略图", "宏观", "этикет")
_NOT_ASIDE = re.compile(
    r"(?:label|etikett?)s?[\W_]*(?:free|frei|less|los)(?![a-z])"
    r"|(?<![a-z])(?:un|non|without|ohne|sans)[\W_]*label(?:s|led|ed)?(?![a-z])"
    r"|macro[\W_]*(?:vesic|nodul|metast|follic|phag|cyst|aden)[a-z]*"
)
"""Label-free imaging; and what is large, not the whole glass."""

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_MOST_LETTERS = 200
_STRUCTURED = re.compile(r"[|<{=]")
_SAID = re.compile(
    r"(?i)(?<![a-z])(?:image[_ ]?|page[_ ]?)?(?:name|type|kind|image|page)\W{0,3}[=:]\W{0,3}([^\"'|;,<>{}\r\n]+)"
)
_APERIO = re.compile(r"Aperio[^\r\n]*[\r\n]+([^|\r\n]*)")


def is_aside(name: str) -> bool:
    """Whether one of the name's words says so, in any case, with digits and endings, alone or written together."""
    if any(sign in name.casefold() for sign in _SIGNS):
        return True
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return any(_says_aside(text) for text in (plain.lower(), _CAMEL.sub(" ", plain).lower()))


def name_in(description: str) -> str:
    """What a TIFF's description says of which picture it is: a short text itself, or what is named in a longer one.

    Of Aperio's it is the second line's beginning.
    """
    aperio = _APERIO.match(description)
    said = [aperio[1]] if aperio else []
    if aperio or _STRUCTURED.search(description):
        return " ".join([*said, *_SAID.findall(description)])[:_MOST_LETTERS]
    return description[:_MOST_LETTERS]


def _says_aside(text: str) -> bool:
    words = re.findall(r"[a-z]+", _NOT_ASIDE.sub(" ", text))
    pairs = [first + second for first, second in pairwise(words)]
    return any(_TOGETHER.fullmatch(word) or word.startswith(_STEMS) for word in words) or not _ASIDE.isdisjoint(pairs)
