"""Names that say of a picture that it shows the label, or the whole glass with it, and not the slide alone."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
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
_ONE = rf"(?:{'|'.join(sorted(_ASIDE, key=len, reverse=True))})(?:[\W_]*(?:{'|'.join(_ALONG)}))*"
_SOME = rf"{_ONE}(?:[\W_]*(?:and|or|nor|und|et|&)[\W_]+{_ONE})*"
_NOT_ASIDE = re.compile(
    r"(?:label|etikett?)s?[\W_]*(?:free|frei|less|los)(?![a-z])"
    r"|(?<![a-z])(?:un|non|without|ohne|sans)[\W_]*label(?:s|led|ed)?(?![a-z])"
    rf"|(?<![a-z])(?:without|no|ohne|sans)[\W_]+(?:an?|the|any)?[\W_]*{_SOME}(?![a-z])"
    rf"|(?<![a-z]){_SOME}(?:[\W_]|is|was|has|been)*(?:removed|deleted|stripped|excluded|omitted|missing|absent)(?![a-z])"
    r"|macro[\W_]*(?:vesic|nodul|metast|follic|phag|cyst|aden)[a-z]*"
)
"""Label-free imaging; a label that is not there; and what is large, not the whole glass."""

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_MOST_LETTERS = 200
_MOST_WORDS = 4
"""Of a name that ends with such a word; what has more is a sentence."""

_STRUCTURED = re.compile(r"[|<{=]")
_SAID = re.compile(
    r"(?im)(?:^|[|;,{}\"']|<[\w:]*(?:image|page|series)\b)\s{0,8}[\"']?"
    r"(?:(?:associated|sub|image|page|picture|series|scene)[_ ]?)*"
    r"(?:name|type|kind|image|page)\W{0,3}[=:][\s\"']{0,3}([^\"'|;,<>{}\r\n]+)"
)
"""What stands under a key for a picture's name. The name of a user or of a slide has another key."""

_SIZED = re.compile(r"(?m)^([^|=:<>{}\r\n]{0,200}?)[ \t]{1,8}\d+ ?x ?\d")
_APERIO = re.compile(r"Aperio[^\r\n]*[\r\n]+([^|\r\n]*)")
_FOLDERS = re.compile(r"(?:[A-Za-z]:|~|\.{1,2})?[/\\].*[/\\](?=.)")


def is_aside(name: str) -> bool:
    """Whether one of the name's words says so, in any case, with digits and endings, alone or written together."""
    return _has_sign(name) or any(_says_aside(_words(text)) for text in _spellings(name))


def name_in(description: str) -> str:
    """What a TIFF's description calls its picture, where that is such a word; an empty text where it is not.

    A short text itself is a name where it begins or ends with the word. Of keys and values, the value of a key for
    names is, or what stands before a size at the beginning of a line. Of Aperio's it is the second line's beginning.
    Within a sentence ("H&E slide, label removed") or another value a word names nothing.
    """
    if description.startswith("Aperio"):
        aperio = _APERIO.match(description)
        said = [aperio[1]] if aperio else []
    elif _STRUCTURED.search(description):
        said = [*_SIZED.findall(description), *_SAID.findall(description)]
    else:
        said = description[:_MOST_LETTERS].splitlines()
    bare = (_FOLDERS.sub("", one.strip(), count=1) for one in said)
    return " ".join(one for one in bare if _is_name(one))[:_MOST_LETTERS]


def _is_name(text: str) -> bool:
    """Whether a text begins or ends with such a word, numbers and words like "image" aside."""
    return _has_sign(text) or any(map(_is_spelt_name, _spellings(text)))


def _is_spelt_name(text: str) -> bool:
    parts = re.findall(r"[a-z0-9]+", _NOT_ASIDE.sub(" ", text))
    words = [word for part in parts for word in _words(part) if len(word) > (1 if part.isalpha() else 2)]
    words = [word for word in words if word not in _ALONG]
    if _says_aside(words[:1]) or _says_together(words[:2]):
        return True
    return len(words) <= _MOST_WORDS and (_says_aside(words[-1:]) or _says_together(words[-2:]))


def _has_sign(text: str) -> bool:
    return any(sign in text.casefold() for sign in _SIGNS)


def _spellings(text: str) -> tuple[str, str]:
    """The text without accents, in small letters; and the same with words apart that only capitals tell apart."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return plain.lower(), _CAMEL.sub(" ", plain).lower()


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", _NOT_ASIDE.sub(" ", text))


def _says_aside(words: Sequence[str]) -> bool:
    return any(_TOGETHER.fullmatch(word) or word.startswith(_STEMS) for word in words) or _says_together(words)


def _says_together(words: Sequence[str]) -> bool:
    return not _ASIDE.isdisjoint(first + second for first, second in pairwise(words))
