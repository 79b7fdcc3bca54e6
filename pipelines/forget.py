"""Deletes a patient's slides, or single ones, from shards, and sees to it that make shards does not make them again."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from pipelines.command import (
    EXIT_NOT_ALL,
    EXIT_OK,
    PATIENT_KEY_VARIABLE,
    Terminal,
    agreed,
    output_named,
    read_key,
    run_command,
    shards_option,
)
from pipelines.options import Options
from wsi_prep.curation.forget import DeletionPlan, forget, look_up
from wsi_prep.errors import BadOption
from wsi_prep.slides.private import check_names_file, keyed_patient
from wsi_prep.storage.select import local_folder

_SHOWN = 50
_DASHED_ID = re.compile(r"-[A-Za-z0-9._-]*-[0-9a-f]{10}")

EPILOG = """exit codes: 0 forgotten, or listed; 2 the call is wrong, nothing was done; 3 nobody was found, nothing was
done; 130 interrupted, the same call goes on."""

BEYOND = """not reached from here: indices and runs of the trainer, exported features, pages and tables, what was made
for other tools, other copies, backups and older versions of these folders, and the slides themselves"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = _dashed_ids_last(sys.argv[1:] if arguments is None else arguments)
    return run_command(build_parser(), _work, words, "interrupted; call again to finish")


def _work(options: argparse.Namespace, terminal: Terminal) -> int:
    found = _look_up(options)
    for each in found:
        _list(terminal, each)
    if not any(each.rows or each.known_before for each in found):
        terminal.warn(
            f"nobody was found, nothing was done; {_why_nobody(found, by_patient=options.patient is not None)}"
        )
        return EXIT_NOT_ALL
    if options.dry:
        terminal.say("nothing was deleted: DRY=1")
        return EXIT_OK
    slides = sum(len(each.rows) for each in found)
    if not agreed(f"delete {slides:,} slides of {len(found):,} outputs for good", options.yes):
        raise BadOption("nothing was deleted")
    for each in found:
        forget(each, options.names, take_over=options.take_over)
        _told(terminal, each)
    terminal.say(" ".join(BEYOND.split()))
    return EXIT_OK


def _dashed_ids_last(arguments: list[str]) -> list[str]:
    """The same arguments, with ids that begin with a dash, as earlier versions made them, so that none is an option."""
    dashed = [text for text in arguments if _DASHED_ID.fullmatch(text)]
    return [text for text in arguments if text not in dashed] + [f"--slide={text}" for text in dashed]


def _look_up(options: argparse.Namespace) -> list[DeletionPlan]:
    """What each folder holds of whom the options name; all of them before any is touched."""
    if not options.patient and not options.slide:
        raise BadOption("nobody is named; give PATIENT=id with PATIENT_KEY=file, or SLIDE=slide_id")
    patient_key = None
    if options.patient:
        key = read_key("patient key", options.patient_key, PATIENT_KEY_VARIABLE)
        if key is None:
            raise BadOption(f"PATIENT needs the secret of make shards: PATIENT_KEY=file, or ${PATIENT_KEY_VARIABLE}")
        patient_key = keyed_patient(key, options.patient)
    outs = [output_named(where) for where in options.shards]
    if options.names is not None:
        if not options.names.exists():
            raise BadOption(f"NAMES {options.names} does not exist")
        for out in outs:
            check_names_file(options.names, local_folder(out))
    return [look_up(out, patient_key, options.slide) for out in outs]


def _list(terminal: Terminal, found: DeletionPlan) -> None:
    files = f"{found.files:,} files, {found.bytes / 1e6:,.1f} MB"
    terminal.say(f"{found.out}: {len(found.rows):,} slides, {found.tiles:,} tiles, {files}")
    for row in found.rows[:_SHOWN]:
        terminal.say(f"  {row['status']!s:<8}  {row['slide_id']}")
    if len(found.rows) > _SHOWN:
        terminal.say(f"  ... and {len(found.rows) - _SHOWN:,} more")


def _why_nobody(found: list[DeletionPlan], *, by_patient: bool) -> str:
    bare = sum(each.without_patient for each in found)
    reason = "is it the right PATIENT_KEY?" if by_patient else "SLIDE takes slide ids as the catalog has them"
    if by_patient and bare:
        reason += f" {bare:,} slides have no patient_key; name theirs with SLIDE=slide_id"
    return reason


def _told(terminal: Terminal, found: DeletionPlan) -> None:
    more = f", {found.names:,} lines of NAMES" if found.names else ""
    more += f", {found.warnings:,} warnings of run.json" if found.warnings else ""
    counts = f"{len(found.rows):,} slides, {found.tiles:,} tiles, {found.files:,} files"
    terminal.say(f"forgotten in {found.out}: {counts}{more}")


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.forget", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    shards_option(parser)
    add("--patient", metavar="ID", help="the patient as manifest, barcode or pattern named them")
    add("--patient-key", type=Path, metavar="FILE", help=f"secret of make shards (or ${PATIENT_KEY_VARIABLE})")
    add("--slide", nargs="*", action="extend", default=[], metavar="SLIDE_ID", help="slides by their ids")
    add("--names", type=Path, metavar="CSV", help="the names file of private output, to take their lines out of")
    add("--take-over", action="store_true", help="object store: the run that holds the lock is gone for good")
    add("--yes", action="store_true", help="delete without a question")
    add("--dry", action="store_true", help="only list what would be deleted")
    return parser


if __name__ == "__main__":
    sys.exit(main())
