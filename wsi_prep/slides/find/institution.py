"""Where a slide comes from: the manifest, else a barcode in its name, else a pattern of the user's, else unknown."""

from __future__ import annotations

import re
from typing import NamedTuple

from wsi_prep.errors import BadOption
from wsi_prep.untrusted.pattern import TimedPattern

UNKNOWN = "unknown"

_GROUPS = ("institution", "patient")
_MAX_VALUE = 64

_BARCODES = (
    # tissue source site and participant (GDC, "TCGA Barcode")
    (r"(TCGA-[A-Z0-9]{2})-[A-Z0-9]{4}", None),
    # donor and tissue site; nothing of who collected it (GTEx Portal, "Sample ID")
    (r"GTEX-[A-Z0-9]{4,5}(?=-[0-9]{4})", "GTEx"),
    # case of CPTAC's third phase; nothing of who collected it
    (r"C3[LN]-[0-9]{5}", "CPTAC"),
)
_COMPILED = tuple(
    (re.compile(rf"(?<![A-Z0-9]){text}(?![A-Z0-9])", re.IGNORECASE), institution) for text, institution in _BARCODES
)


class Origin(NamedTuple):
    """Who made a slide and of whom; `source` is "manifest", "barcode", "pattern" or "unknown"."""

    institution: str = UNKNOWN
    source: str = UNKNOWN
    patient: str | None = None


class InstitutionPattern:
    """A user's regular expression with a group `institution` and, if wanted, a group `patient`.

    Raises BadOption for one that cannot be used, and when it takes longer than a second on one path.
    """

    def __init__(self, text: str) -> None:
        self._pattern = TimedPattern(text, "institution pattern")
        groups = self._pattern.groups
        if "institution" not in groups or set(groups) - set(_GROUPS):
            named = ", ".join(groups) or "none"
            raise BadOption(
                f"institution pattern {text!r} names the groups {named}; it needs (?P<institution>...), "
                "and may have (?P<patient>...)"
            )

    def search(self, path: str) -> Origin | None:
        """What the pattern finds in a path, or None where it finds nothing or the path is longer than 1,000."""
        found = self._pattern.search(path)
        if found is None:
            return None
        institution, patient = (_clean(found.get(group) or "") for group in _GROUPS)
        return Origin(institution, "pattern", patient or None) if institution else None


def find_origin(
    institution: str | None, patient: str | None, name: str, path_below: str, pattern: InstitutionPattern | None
) -> Origin:
    """A slide's origin from what the manifest says (None where it is silent), its file name, and its path below SLIDES.

    What the manifest says of institution or patient stands; the other is still taken from the name or the path.
    """
    found = _barcode(name) or (pattern.search(path_below) if pattern else None) or Origin()
    if institution is not None:
        return Origin(institution, "manifest", patient or found.patient)
    return found._replace(patient=patient) if patient else found


def _barcode(name: str) -> Origin | None:
    for barcode, institution in _COMPILED:
        found = barcode.search(name)
        if found is not None:
            return Origin(institution or found[1].upper(), "barcode", found[0].upper())
    return None


def _clean(text: str) -> str:
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:_MAX_VALUE]
