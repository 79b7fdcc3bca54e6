"""The manifest: what a lab knows of its slides, as a CSV with one row a slide."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import PurePosixPath
from typing import Any

from wsi_prep.errors import BadManifest, counted
from wsi_prep.format.records import STAINS
from wsi_prep.slides.find.endings import why_left_out
from wsi_prep.slides.find.found import SlideSource
from wsi_prep.slides.find.lists import read_list
from wsi_prep.slides.find.naming import KnownNames, did_you_mean, one_form
from wsi_prep.slides.urls import bare_url, name_of
from wsi_prep.untrusted.csv_lines import in_one_line

COLUMNS = ("slide", "mpp", "stain", "institution", "tissue", "patient")
_WORDS = ("institution", "tissue")
"""Columns of our own that hold free words, as further columns do: in these alone a line break is as good as a blank."""

_LIKE_MPP = re.compile(
    r"(?<![a-z])mpp(?![a-z])|pixel[\W_]*(size|spacing)|(um|[\u00b5\u03bc]m|microns?|micromet(er|re)s?)[\W_]*(per)?[\W_]*(px|pix)"
)
"""Names of columns that may hold the scale."""

_STAIN_SPELLINGS = {"H&E": "HE", "H & E": "HE", "H+E": "HE"}
_MAX_CELL = 1000
_SHOWN = 5
_MOST_MORE, _LONGEST_MORE, _LONGEST_NAME = 32, 200, 60
"""Further columns, and characters of their cells and names."""

_TYPO, _MOST_FAULTS = 0.8, 10


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """What the manifest says of one slide; None where its cell is empty. `mpp` is um/px as given, plausible or not.

    `more` holds its cells of further columns as JSON by the columns' names, None where all are empty.
    """

    mpp: float | None = None
    stain: str | None = None
    institution: str | None = None
    tissue: str | None = None
    patient: str | None = None
    more: str | None = None


EMPTY_ROW = ManifestRow()
_SAID = attrgetter(*(field.name for field in fields(ManifestRow)))


@dataclass(frozen=True)
class Matched:
    """Manifest rows by slide_id, the manifest's entries that fit no slide found, and slides that it does not name.

    Of these entries, their lines too, and what else can be said of each: `hints` with names, `bare_hints` without.
    Of these slides, `unnamed` has the names, and `unnamed_ids` the ids.
    """

    rows: dict[str, ManifestRow]
    unknown: tuple[str, ...]
    unknown_lines: tuple[int, ...] = ()
    hints: tuple[str, ...] = ()
    bare_hints: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()
    unnamed_ids: tuple[str, ...] = ()

    def notes(self, *, private: bool) -> list[str]:
        """What a user should know of entries and slides that fit none, a line for each kind; `private`: no names."""
        notes = []
        if self.unknown:
            names = [f"line {line}" for line in self.unknown_lines] if private else self.unknown
            entries = [f"{name}{hint}" for name, hint in zip(names, self._hints(private), strict=True)]
            count = counted(len(names), "slide that was", "slides that were")
            notes.append(f"the manifest names {count} not found: {_some(entries)}")
        if self.unnamed:
            count = counted(len(self.unnamed), "slide has", "slides have")
            shown = _some(sorted(self.unnamed_ids) if private else self.unnamed)
            notes.append(f"{count} no row in the manifest: {shown}")
        return notes

    def _hints(self, private: bool) -> tuple[str, ...]:
        return self.bare_hints if private else self.hints


def _some(names: Sequence[str]) -> str:
    """The first of these, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class _Entry:
    line: int
    cell: str
    row: ManifestRow

    @property
    def parts(self) -> tuple[str, ...]:
        """The slide's name, after as many of its folders as are given."""
        parts = tuple(part for part in self.cell.replace("\\", "/").split("/") if part not in ("", "."))
        return parts or (self.cell,)


@dataclass(frozen=True)
class Manifest:
    """A manifest as read; `match` says which row belongs to which slide.

    `more` are its further columns, those that `may_be_mpp` among them, where none is called mpp. `broken` are the lines
    of rows in which line breaks were taken for blanks.
    """

    where: str
    entries: tuple[_Entry, ...]
    more: tuple[str, ...] = ()
    may_be_mpp: tuple[str, ...] = ()
    broken: tuple[int, ...] = ()

    def notes(self, *, private: bool) -> list[str]:
        """What a user should know of further columns, and of line breaks, a line for each; `private`: no names."""
        notes = []
        if self.more:
            kept = f"the catalog keeps the manifest's further columns, in its column manifest: {', '.join(self.more)}"
            left = f"PRIVATE=1 leaves out the manifest's further columns ({len(self.more)} of them)"
            notes.append(f"{left if private else kept}{self._of_scale(private)}")
        if self.broken:
            rows = counted(len(self.broken), "row", "rows")
            notes.append(
                f"line breaks in cells of {rows} of the manifest became blanks, first in line {self.broken[0]}"
            )
        return notes

    def _of_scale(self, private: bool) -> str:
        if not self.may_be_mpp:
            return ""
        which = "none of them" if private else ", ".join(self.may_be_mpp)
        return f"; {which} is not taken for the scale: a column that gives it, in um/px, is called mpp"

    def match(self, sources: Sequence[SlideSource], left_out: Sequence[str] = ()) -> Matched:
        """Find each entry's slide by its name, or by as much of its path as the entry gives, in any Unicode form.

        `left_out` are files that were found and are not read. Raises BadManifest for an entry that fits several slides.
        """
        by_name = _by_name(sources)
        chosen: dict[str, _Entry] = {}
        unknown, faults = [], list[str]()
        for entry in self.entries:
            parts = entry.parts
            alike = by_name.get(one_form(parts[-1]), ())
            named = [sources[number] for number in ([alike] if isinstance(alike, int) else alike)]
            fits = [s for s in named if _ends_with(s, parts, one_form)]
            if len(fits) > 1:  # of names that differ in their form alone, the one that is written
                fits = [s for s in fits if _ends_with(s, parts, str)] or fits
            if not fits:
                unknown.append(entry)
                continue
            if len(fits) > 1:
                places = ", ".join(bare_url(s.path) for s in fits[:3])
                several = f"{entry.cell} fits {len(fits)} slides ({places}); write part of the folder too"
                faults.append(f", line {entry.line}: {several}")
                continue
            before = chosen.setdefault(fits[0].slide_id, entry)
            if before is not entry:
                faults.append(_twice(before, entry))
        _raise_any(self.where, faults)
        rows = {slide_id: entry.row for slide_id, entry in chosen.items()}
        cells, lines = tuple(entry.cell for entry in unknown), tuple(entry.line for entry in unknown)
        hints = _hints(unknown, sources, left_out)
        bare = [] if len(rows) == len(sources) else [source for source in sources if source.slide_id not in rows]
        return Matched(
            rows,
            cells,
            lines,
            tuple(hint for hint, _ in hints),
            tuple(hint for _, hint in hints),
            tuple(source.name for source in bare),
            tuple(source.slide_id for source in bare),
        )


def read_manifest(path: str) -> Manifest:
    """Read a manifest from a file or URL; raises BadManifest, naming all lines with what is not understood.

    Where cells are separated by semicolons or tabs, a number may have a decimal comma.
    """
    header, rows, separator = read_list(path, "MANIFEST")
    path = bare_url(path)
    faults: list[str] = []
    more = _further_columns(path, header, faults)
    broken: list[int] = []
    entries: dict[str, _Entry] = {}
    one: dict[Any, Any] = {}  # of what is said of many slides, each once: millions of cells are few texts
    for line, cells in rows:
        whole = _unbroken(header, cells)
        if whole != cells:
            broken.append(line)
        entry = _entry(line, header, whole, faults, decimal_comma=separator in ";\t")
        if entry is not None:
            row = ManifestRow(*(one.setdefault(each, each) for each in _SAID(entry.row)))
            entry = replace(entry, row=one.setdefault(row, row))
            before = entries.setdefault(entry.cell, entry)
            if before is not entry:
                faults.append(_twice(before, entry))
    _raise_any(path, faults)
    may_be_mpp = () if "mpp" in header else tuple(name for name in more if _LIKE_MPP.search(name))
    return Manifest(path, tuple(entries.values()), more, may_be_mpp, tuple(broken))


def _unbroken(header: list[str], cells: list[str]) -> list[str]:
    """The cells, those of words in one line; in others a line break stays, and is a character that does not print."""
    if not any("\n" in cell or "\r" in cell for cell in cells):
        return cells
    words = [name in _WORDS or name not in COLUMNS for name in header] + [False] * (len(cells) - len(header))
    return [in_one_line(cell) if of_words else cell for cell, of_words in zip(cells, words, strict=False)]


def _twice(before: _Entry, entry: _Entry) -> str:
    return f" names {entry.cell} twice, in lines {before.line} and {entry.line}; keep one"


def _raise_any(path: str, faults: Sequence[str]) -> None:
    """Raise BadManifest where there are faults, each as it goes on behind the path: all of them in one line."""
    if not faults:
        return
    if len(faults) == 1:
        raise BadManifest(f"{path}{faults[0]}")
    told = "; ".join(f"({number}) {fault.lstrip(',: ')}" for number, fault in enumerate(faults[:_MOST_FAULTS], 1))
    more = len(faults) - _MOST_FAULTS
    raise BadManifest(f"{path} has {len(faults):,} faults: {told}" + (f"; and {more:,} more" if more > 0 else ""))


def _further_columns(path: str, names: list[str], faults: list[str]) -> tuple[str, ...]:
    """Columns beside our own; what is wrong with them joins the faults. BadManifest for a header that tells nothing."""
    if "slide" not in names:
        raise BadManifest(f"{path} has no column 'slide'; the columns are {', '.join(COLUMNS)}, and any of your own")
    if len(set(names)) != len(names):
        raise BadManifest(f"{path} has a column twice: {', '.join(names)}")
    more = tuple(name for name in names if name not in COLUMNS)
    for name in more:
        if "patient" in name:
            faults.append(
                f": column {name[:60]!r} would be written as it is; name it 'patient', which is written under "
                "PATIENT_KEY alone, or take it out"
            )
            continue
        near = difflib.get_close_matches(name, [each for each in COLUMNS if each not in names], 1, _TYPO)
        if near:
            faults.append(
                f": column {name!r} is not known, did you mean {near[0]!r}? The columns are "
                f"{', '.join(COLUMNS)}, and any of your own of another name"
            )
        elif not name or len(name) > _LONGEST_NAME or not name.isprintable():
            faults.append(": a column has no name, or one that is too long or does not print")
    if len(more) > _MOST_MORE:
        faults.append(f" has {len(more)} columns of your own; {_MOST_MORE} are kept at most, take some out")
    return more


def _entry(line: int, header: list[str], cells: list[str], faults: list[str], *, decimal_comma: bool) -> _Entry | None:
    """A line's entry; what is wrong with it joins the faults, and None where it is of no use then."""
    at = f", line {line}"
    if len(cells) != len(header):
        faults.append(f"{at} has {len(cells)} cells where the header has {len(header)}")
        return None
    values = dict(zip(header, cells, strict=True))
    known = len(faults)
    for name, value in values.items():
        if "\n" in value or "\r" in value:
            faults.append(f"{at}: the cell of column {name} has a line break; write it in one line")
        elif len(value) > _MAX_CELL or not value.isprintable():
            faults.append(f"{at}: the cell of column {name} is too long, or has characters that do not print")
        elif name not in COLUMNS and len(value) > _LONGEST_MORE:
            faults.append(f"{at}: the cell of column {name} has more than {_LONGEST_MORE} characters; shorten it")
    slide = bare_url(values.pop("slide"))
    if not slide:
        faults.append(f"{at} names no slide")
    if len(faults) > known:
        return None
    more = {name: value for name, value in values.items() if name not in COLUMNS and value}
    row = ManifestRow(
        mpp=_mpp(at, values.get("mpp", ""), faults, decimal_comma=decimal_comma),
        stain=_stain(at, values.get("stain", ""), faults),
        institution=values.get("institution") or None,
        tissue=values.get("tissue") or None,
        patient=values.get("patient") or None,
        more=json.dumps(more, ensure_ascii=False) if more else None,
    )
    return _Entry(line, slide, row)


def _mpp(at: str, cell: str, faults: list[str], *, decimal_comma: bool) -> float | None:
    if not cell:
        return None
    if "_" not in cell:  # which Python would pass over
        with contextlib.suppress(ValueError):
            return float(cell.replace(",", ".") if decimal_comma and cell.count(",") == 1 else cell)
    faults.append(f"{at}: mpp {cell!r} is not a number; write um/px, as in 0.25")
    return None


def _stain(at: str, cell: str, faults: list[str]) -> str | None:
    stain = _STAIN_SPELLINGS.get(cell.upper(), cell.upper()) or None
    if stain is not None and stain not in STAINS:
        near = difflib.get_close_matches(stain, STAINS, 1)
        hint = f", did you mean {near[0]}?" if near else ";"
        faults.append(f"{at}: stain {cell[:60]!r} is not known{hint} choose from {' '.join(STAINS)}")
    return stain


def _by_name(sources: Sequence[SlideSource]) -> dict[str, int | list[int]]:
    """By name in one form, the number of the slide that has it, or the numbers of several."""
    found: dict[str, int | list[int]] = {}
    for number, source in enumerate(sources):
        for name in {one_form(source.name), one_form(name_of(source.path))}:
            before = found.setdefault(name, number)
            if isinstance(before, list):
                before.append(number)
            elif before != number:
                found[name] = [before, number]
    return found


def _ends_with(source: SlideSource, parts: tuple[str, ...], form: Callable[[str], str]) -> bool:
    wanted = tuple(map(form, parts))
    if wanted == (form(source.name),):
        return True
    path = tuple(part for part in form(bare_url(source.path)).split("/") if part)
    return path[-len(wanted) :] == wanted


def _hints(unknown: Sequence[_Entry], sources: Sequence[SlideSource], left_out: Sequence[str]) -> list[tuple[str, str]]:
    """What to put behind each entry that fits no slide, with names and without."""
    if not unknown:
        return []
    known = KnownNames(name for source in sources for name in (source.name, name_of(source.path)))
    not_read = {one_form(PurePosixPath(path).name.rstrip()): path for path in left_out}
    hints = []
    for entry in unknown:
        name = entry.parts[-1]
        path, meant = not_read.get(one_form(name)), known.meant(name)
        if path is not None:
            hints.append((f" ({why_left_out(path)})",) * 2)
        else:
            hints.append((did_you_mean(meant), " (a slide's name but for case or ending)" if meant else ""))
    return hints
