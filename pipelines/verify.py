"""Looks at every row, file and tile of shards; with --repair, takes what is broken out, for make shards to do again."""

from __future__ import annotations

import sys
import time

from rich import box
from rich.table import Table
from rich.text import Text

from pipelines.calls.slides import VerifyCall
from pipelines.command import (
    EXIT_NOT_ALL,
    EXIT_OK,
    Terminal,
    agreed,
    output_named,
    progress,
    run_command,
)
from wsi_prep.curation.verify.catalog import KINDS
from wsi_prep.curation.verify.store import Verified, verify
from wsi_prep.errors import BadOption, counted

_EXAMPLES = 3


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(VerifyCall, _work, arguments, "interrupted; nothing is half repaired")


def _work(call: VerifyCall, terminal: Terminal) -> int:
    outs = [output_named(where) for where in call.shards]
    if call.repair and not agreed(f"delete what is broken or belongs to no slide in {', '.join(outs)}", call.yes):
        raise BadOption("nothing was checked or deleted; without REPAIR=1, verify only checks")
    faults = 0
    for out in outs:
        found = _verify_one(terminal, out, call)
        show(terminal, found)
        faults += len(found.faults)
    return EXIT_NOT_ALL if faults else EXIT_OK


def _verify_one(terminal: Terminal, out: str, call: VerifyCall) -> Verified:
    began = time.monotonic()
    with progress(terminal.out, "slides", "{task.fields[rate]:,.0f} MB/s", rate=0.0) as bar:

        def told(done: int, total: int, read: int) -> None:
            bar(done, total, rate=read / 1e6 / max(time.monotonic() - began, 1e-9))

        return verify(out, repair=call.repair, take_over=call.take_over, workers=call.workers, progress=told)


def show(terminal: Terminal, found: Verified) -> None:
    """What was looked at, a line a kind of fault with the first of each, and what a repair did."""
    counts = f"{counted(found.slides, 'slide')}, {counted(found.tiles, 'tile')}"
    terminal.say(f"{found.out}: {counts}, {found.bytes / 1e6:,.1f} MB read")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (("checked", "left"), ("faults", "right"), ("at", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left")
    for kind, meaning in KINDS.items():
        faults = [fault for fault in found.faults if fault.kind == kind]
        table.add_row(Text(meaning), f"{sum(fault.count for fault in faults):,}", f"{len(faults):,}")
    terminal.out.print(table)
    for kind in KINDS:
        for fault in [fault for fault in found.faults if fault.kind == kind][:_EXAMPLES]:
            more = f" (and {fault.count - 1:,} more there)" if fault.count > 1 else ""
            terminal.say(f"{kind:<8}  {fault.where}: {fault.what}{more}")
    if found.undigested or found.unsealed:
        older = f"{counted(found.undigested, 'slide')} and {counted(found.unsealed, 'file')} of the catalog"
        terminal.say(f"{older} have no digests, because an older version made them: all other checks ran")
    if found.beside:
        some = ", ".join(found.beside[:_EXAMPLES]) + (", ..." if len(found.beside) > _EXAMPLES else "")
        others = counted(len(found.beside), "file or folder", "files or folders")
        terminal.note(f"not checked: {others} in OUT that make shards did not write ({some})")
    terminal.note(_verdict(found))


def _verdict(found: Verified) -> str:
    if not found.faults:
        return "sound"
    if found.undone is not None:
        done = f"{counted(found.undone, 'slide')} and {counted(found.removed, 'stray file')} removed"
        done += "".join(f", {name} is restored from its copy" for name in found.restored)
        again = "; make shards, with the settings of this folder, makes them again" if found.undone else ""
        if found.lost:
            names = " and ".join(found.lost)
            return f"not repaired: {names}: no sound copy is left, so restore it from a backup of yours. {done}{again}"
        return f"repaired: {done}{again}"
    return (
        f"{counted(len(found.faults), 'fault')}; REPAIR=1 removes what is damaged, and make shards then makes it again"
    )


if __name__ == "__main__":
    sys.exit(main())
