"""Deletes a patient's slides, or single ones, from shards, and sees to it that make shards does not make them again."""

from __future__ import annotations

import re
import sys

from pipelines.calls.slides import ForgetCall
from pipelines.command import (
    EXIT_NOT_ALL,
    EXIT_OK,
    PATIENT_KEY_VARIABLE,
    Terminal,
    agreed,
    output_named,
    read_key,
    run_command,
)
from wsi_prep.curation.forget import DeletionPlan, forget, look_up
from wsi_prep.errors import BadOption, counted
from wsi_prep.format.records import shown_name
from wsi_prep.slides.private import check_names_file, keyed_patient
from wsi_prep.storage.select import local_folder

_SHOWN = 50
_DASHED_ID = re.compile(r"-[A-Za-z0-9._-]*-[0-9a-f]{10}")


BEYOND = """not reached from here: indices and runs of the trainer, exported features, pages and tables, what was made
for other tools, other copies, backups and older versions of these folders, and the slides themselves"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = _dashed_ids_last(sys.argv[1:] if arguments is None else arguments)
    return run_command(ForgetCall, _work, words, "interrupted; repeat the command to finish")


def _work(call: ForgetCall, terminal: Terminal) -> int:
    found = _look_up(call)
    for each in found:
        _list(terminal, each, named=call.dry or not call.yes)
    if not any(each.rows or each.known_before for each in found):
        terminal.warn(f"nobody was found, nothing was done; {_why_nobody(found, by_patient=call.patient is not None)}")
        return EXIT_NOT_ALL
    if call.dry:
        terminal.note("nothing was deleted: DRY=1")
        return EXIT_OK
    slides = sum(len(each.rows) for each in found)
    if not agreed(f"permanently delete {counted(slides, 'slide')} of {counted(len(found), 'output')}", call.yes):
        raise BadOption("nothing was deleted")
    for each in found:
        forget(each, call.names, take_over=call.take_over)
        _told(terminal, each)
    if call.names is None and any(each.private for each in found):
        terminal.note("note: NAMES still holds their lines and paths: repeat the command with NAMES=file")
    terminal.say(" ".join(BEYOND.split()))
    return EXIT_OK


def _dashed_ids_last(arguments: list[str]) -> list[str]:
    """The same arguments, with ids that begin with a dash, as earlier versions made them, so that none is an option."""
    dashed = [text for text in arguments if _DASHED_ID.fullmatch(text)]
    return [text for text in arguments if text not in dashed] + [f"--slide={text}" for text in dashed]


def _look_up(call: ForgetCall) -> list[DeletionPlan]:
    """What each folder holds of whom the call name; all of them before any is touched."""
    if not call.patient and not call.slide:
        raise BadOption("nobody is named; give PATIENT=id with PATIENT_KEY=file, or SLIDE=slide_id")
    patient_key = None
    if call.patient:
        key = read_key("patient key", call.patient_key, PATIENT_KEY_VARIABLE)
        if key is None:
            raise BadOption(f"PATIENT needs the secret of make shards: PATIENT_KEY=file, or ${PATIENT_KEY_VARIABLE}")
        patient_key = keyed_patient(key, call.patient)
    outs = [output_named(where) for where in call.shards]
    if call.names is not None:
        if not call.names.exists():
            raise BadOption(f"NAMES {call.names} does not exist")
        for out in outs:
            check_names_file(call.names, local_folder(out))
    return [look_up(out, patient_key, call.slide) for out in outs]


def _list(terminal: Terminal, found: DeletionPlan, *, named: bool) -> None:
    """With `named`, each with its file, to be known by: it is to be taken out of SLIDES, too."""
    terminal.say(f"{found.out}: {_counts(found)}, {found.bytes / 1e6:,.1f} MB")
    for row in found.rows[:_SHOWN]:
        file = "" if row["file"] == row["slide_id"] or not named else f"  {shown_name(row)}"
        terminal.say(f"  {row['status']!s:<8}  {row['slide_id']}{file}")
    if len(found.rows) > _SHOWN:
        terminal.say(f"  ... and {len(found.rows) - _SHOWN:,} more")


def _why_nobody(found: list[DeletionPlan], *, by_patient: bool) -> str:
    bare = sum(each.without_patient for each in found)
    reason = "is it the right PATIENT_KEY?" if by_patient else "SLIDE takes slide ids as the catalog has them"
    meant = [slide_id for each in found for slide_id in each.meant]
    if meant:
        reason += f"; files of that name have {' '.join(meant[:_SHOWN])}"
    if by_patient and bare:
        reason += f" {counted(bare, 'slide has', 'slides have')} no patient_key; name such slides with SLIDE=slide_id"
    return reason


def _told(terminal: Terminal, found: DeletionPlan) -> None:
    more = f", {counted(found.names, 'line')} of NAMES" if found.names else ""
    more += f", {counted(found.warnings, 'warning')} of run.json" if found.warnings else ""
    terminal.note(f"forgotten in {found.out}: {_counts(found)}{more}")


def _counts(found: DeletionPlan) -> str:
    return ", ".join((counted(len(found.rows), "slide"), counted(found.tiles, "tile"), counted(found.files, "file")))


if __name__ == "__main__":
    sys.exit(main())
