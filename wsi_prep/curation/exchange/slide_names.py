"""What slides are called in other tools' folders, and how the slides come to lie there by these names.

CLAM and TRIDENT keep all slides in one folder, and find a slide's files by its file name without the ending:
CLAM/extract_features_fp.py (`patches/<stem>.h5`, `<slides>/<stem><slide_ext>`), CLAM/create_patches_fp.py and
TRIDENT/trident/Processor.py (`patches/<stem>_patches.h5`) of github.com/mahmoodlab.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_prep.format.layout import require_slide_id
from wsi_prep.output.folder import read_run
from wsi_prep.output.query import OpenCatalog
from wsi_prep.slides.find.naming import one_form
from wsi_prep.storage.atomic import write_atomically
from wsi_prep.storage.base import Storage

LINKS = "slides"
"""The folder that link_slides.sh fills."""

_UNUSUAL = set('/\\:*?"<>|\ufffd')
_LONGEST = 200  # bytes of a file's name, of the 255 that it may have: the coordinates' ending comes too
_LONGEST_ENDING = 16


@dataclass(frozen=True)
class SlideName:
    """One slide: its `file` as the catalog has it, and the `stem` by which another tool's files know it.

    `own`: the stem is its file's, which no other slide of the output has. Else it is the slide's id.
    """

    slide_id: str
    file: str
    stem: str
    ending: str
    own: bool

    @property
    def link(self) -> str:
        """The file name by which the tools look for the slide; without an ending where the catalog knows none."""
        return self.stem + self.ending


def slide_names(catalog: OpenCatalog) -> dict[str, SlideName]:
    """All slides of the output by their ids, whatever of them is exported: a slide has one name in every export."""
    rows = catalog.ask("SELECT slide_id, coalesce(file, '') AS file FROM slides ORDER BY slide_id").read_all()
    files = {require_slide_id(row["slide_id"]): row["file"] for row in rows.to_pylist()}
    return names_of(files)


def names_of(files: Mapping[str, str]) -> dict[str, SlideName]:
    """The names of slides by their ids, from what their files are called, "" where nobody knows."""
    taken = Counter(_loosely(os.path.splitext(file)[0]) for file in files.values())  # noqa: PTH122 - as the tools do
    taken.update(map(_loosely, files))
    return {slide_id: _named(slide_id, file, taken) for slide_id, file in files.items()}


def _loosely(name: str) -> str:
    """Two names that are one file on many a disk are one here."""
    return one_form(one_form(name).casefold())


def _named(slide_id: str, file: str, taken: Mapping[str, int]) -> SlideName:
    stem, ending = os.path.splitext(file)  # noqa: PTH122 - as the tools do
    if file in ("", slide_id):  # private output
        return SlideName(slide_id, file, slide_id, "", own=False)
    plain = file.isprintable() and not _UNUSUAL & set(file) and len(os.fsencode(file)) <= _LONGEST
    if not plain:
        ending = ending if ending[1:].isalnum() and len(ending) <= _LONGEST_ENDING else ""
    if plain and taken[_loosely(stem)] == 1 and stem[0] not in ".- " and _splits(stem, ending):
        return SlideName(slide_id, file, stem, ending, own=True)
    stem = slide_id if _splits(slide_id, ending) else slide_id.replace(".", "_")
    return SlideName(slide_id, file, stem, ending, own=False)


def _splits(stem: str, ending: str) -> bool:
    """Whether CLAM, which cuts a name at the first place that reads like its ending, finds the stem."""
    return not ending or (stem + ending).split(ending)[0] == stem


def write_slides(to: Path, names: Iterable[SlideName], storage: Storage) -> None:
    """`to`/slides.csv, which leads from ids to names, and `to`/link_slides.sh, which makes links by these names.

    The script takes the folder of the slides: of slides of one name it knows each by the hash in its id, of the path
    that make shards saw. In private output nothing says a slide's name, and there is no script.
    """
    slides = sorted(names, key=lambda slide: slide.slide_id)
    rows = ({"slide_id": each.slide_id, "file": each.file, "name": each.stem, "link": each.link} for each in slides)
    write_csv(to / "slides.csv", list(rows))
    named = [each for each in slides if each.file not in ("", each.slide_id) and "\0" not in each.file]
    if named:
        below = read_run(storage).get("settings", {}).get("ids_below_root") is True
        write_atomically(to / "link_slides.sh", _script(named, below).encode(errors="surrogateescape"))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows, at least one, of which all have the same columns; whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


_SCRIPT = r"""#!/bin/sh
# Makes a link in the folder __LINKS__/ beside this script for each slide, by the name that its coordinate file has.
# It takes the folder of the slides: ID_ROOT of make shards where that was given, else SLIDES, at its path of then:
#     sh link_slides.sh /data/slides
# Where several slides have one name, the hash in a slide's id tells which is meant. DICOM of several files, and
# slides beside whose file others must lie (VMS), cannot be linked; of MRXS the folder is linked too.
set -eu
here=$(cd -- "$(dirname -- "$0")" && pwd)
if [ $# -eq 1 ]; then
    root=$(cd -- "$1" && pwd)
    mkdir -p "$here/__LINKS__"
    find "$root" ! -type d -exec sh "$here/link_slides.sh" "$root" {} +
    missing=0
    for name in __ALL__; do
        [ -e "$here/__LINKS__/$name" ] || { missing=1; printf 'not found: %s\n' "$name" >&2; }
    done
    exit $missing
elif [ $# -eq 0 ]; then
    echo 'usage: sh link_slides.sh FOLDER_OF_THE_SLIDES' >&2
    exit 2
fi
root=${1%/}
shift
for path do
    case $path in "$here"/*) continue ;; esac
    hash=
    case ${path##*/} in
        __SHARED__) hash=$(printf %s __IDENTITY__ | b2sum -l 40 | cut -c1-10) ;;
    esac
    case $hash/${path##*/} in
__CASES__
        *) continue ;;
    esac
    at=$here/__LINKS__/$name
    if [ ! -e "$at" ]; then
        ln -sfn "$path" "$at"
        case $path in *.mrxs) [ ! -d "${path%.mrxs}" ] || ln -sfn "${path%.mrxs}" "${at%.mrxs}" ;; esac
    elif [ "$(readlink "$at")" != "$path" ]; then
        printf '%s is linked already; skipped: %s\n' "$name" "$path" >&2
    fi
done
"""


def _script(slides: Sequence[SlideName], below_root: bool) -> str:
    shared = sorted({each.file for each in slides if not each.own})
    cases = []
    for each in slides:
        seen = f"{'' if each.own else each.slide_id[-10:]}/{each.file}"
        cases.append(f"        {shlex.quote(seen)}) name={shlex.quote(each.link)} ;;")
    filled = {
        "__SHARED__": "|".join(map(shlex.quote, shared)) or "''",
        "__CASES__": "\n".join(cases),
        "__ALL__": " ".join(shlex.quote(each.link) for each in slides),
        "__IDENTITY__": '"${path#"$root"/}"' if below_root else '"$path"',
        "__LINKS__": LINKS,
    }
    return re.sub("__[A-Z]+__", lambda mark: filled[mark[0]], _SCRIPT)
