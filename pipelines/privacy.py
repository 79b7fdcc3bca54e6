"""Shows a person what is in shards, text by text, before they leave the house."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from pipelines.calls.slides import PrivacyCall
from pipelines.command import EXIT_NOT_ALL, EXIT_OK, Terminal, output_named, run_command
from pipelines.spoken import in_callers_words
from wsi_prep.curation.disclosure import Disclosure, disclose
from wsi_prep.errors import BadOption, counted
from wsi_prep.storage.atomic import write_atomically
from wsi_prep.storage.select import local_folder

_ALL_SHOWN, _SAMPLE, _STRAYS = 12, 4, 20
_MOST_LETTERS = 160


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(PrivacyCall, _work, arguments)


def _work(call: PrivacyCall, terminal: Terminal) -> int:
    outs = [output_named(where) for where in call.shards]
    if call.to is not None:
        _require_outside(call.to, outs)
    found = [disclose(out) for out in outs]
    for each in found:
        show(terminal, each, call.to)
    if call.to is not None:
        _write(call.to, found)
    return EXIT_NOT_ALL if any(each.strays for each in found) else EXIT_OK


def show(terminal: Terminal, found: Disclosure, to: Path | None = None) -> None:
    """Files, times, texts, what does not belong, and what a person has to decide."""
    say = terminal.say
    made = "with PRIVATE=1" if found.is_private else "with the slides' names"
    say(f"{found.where}: {counted(found.slides, 'slide')}, made {made}")
    for kind, (count, size) in found.kinds.items():
        say(f"  {kind}: {counted(count, 'file')}, {counted(size, 'byte')}")
    if found.times is not None:
        first, last = (datetime.fromtimestamp(int(time), UTC).isoformat() for time in found.times)
        say(f"  times of files and folders: {first if first == last else f'{first} to {last}'}")
    for where, texts in sorted(found.texts.items()):
        for line in _lines(where, texts, to):
            say(line)
    say(f"what does not belong: {f'{len(found.strays):,}' if found.strays else 'nothing'}")
    for stray in found.strays[:_STRAYS]:
        say(f"  {stray}")
    if len(found.strays) > _STRAYS:
        say(f"  and {len(found.strays) - _STRAYS:,} more{_where_all(to)}")
    terminal.note(_decision(found))


def _lines(where: str, texts: Counter[str], to: Path | None) -> list[str]:
    """A place's texts: all where they are few, else the longest and the rarest."""
    if len(texts) <= _ALL_SHOWN:
        return [f"{where}: {', '.join(_shown(text, count) for text, count in texts.most_common())}"]
    longest = sorted(texts, key=lambda text: (-len(text), text))[:_SAMPLE]
    rarest = sorted(texts, key=lambda text: (texts[text], text))[:_SAMPLE]
    return [
        f"{where}: {len(texts):,} texts{_where_all(to)}",
        f"  the longest: {', '.join(_shown(text, texts[text]) for text in longest)}",
        f"  the rarest: {', '.join(_shown(text, texts[text]) for text in rarest)}",
    ]


def _where_all(to: Path | None) -> str:
    return f", all in {to}" if to is not None else in_callers_words("; TO=file.csv lists all", "privacy")


def _shown(text: str, count: int) -> str:
    short = text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}... ({len(text):,} letters)"
    return f"{short!r} ({count:,})"


def _decision(found: Disclosure) -> str:
    strays = len(found.strays)
    foreign = (
        f"remove {counted(strays, 'thing that does', 'things that do')} not belong, or accept it; " if strays else ""
    )
    names = "" if found.is_private else "may others know slide_id and file, which hold the slides' names; "
    return (
        f"for a person to decide: {foreign}{names}does any text above name a patient, a person, a day or a case; does "
        "a rare institution or tissue single one out; do the overlays show writing or a label (see make audit)"
    )


def _require_outside(to: Path, outs: list[str]) -> None:
    for out in outs:
        folder = local_folder(out)
        if folder is not None and to.resolve().is_relative_to(folder.resolve()):
            raise BadOption(f"TO {to} lies inside {out}, which is given away; name a file outside of it")


def _write(to: Path, found: list[Disclosure]) -> None:
    """Every text, and what does not belong, as a table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["out", "where", "text", "count"])
    for each in found:
        for where, texts in sorted(each.texts.items()):
            writer.writerows([each.where, where, _cell(value), count] for value, count in sorted(texts.items()))
        writer.writerows([each.where, "does not belong", _cell(stray), 1] for stray in each.strays)
    try:
        write_atomically(to, text.getvalue().encode(errors="replace"))
    except OSError as error:
        raise BadOption(f"TO {to} cannot be written ({error.strerror})") from error


def _cell(text: str) -> str:
    """The text as a spreadsheet shows it, which would compute what begins like a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


if __name__ == "__main__":
    sys.exit(main())
