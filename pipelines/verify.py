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
from wsi_prep.errors import BadOption

_EXAMPLES = 3


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(VerifyCall, _work, arguments, "interrupted; nothing was half repaired")


def _work(call: VerifyCall, terminal: Terminal) -> int:
    outs = [output_named(where) for where in call.shards]
    if call.repair and not agreed(f"delete what is broken or belongs to no slide in {', '.join(outs)}", call.yes):
        raise BadOption("nothing was looked at and nothing deleted; without REPAIR=1 it only looks")
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
    terminal.say(f"{found.out}: {found.slides:,} slides, {found.tiles:,} tiles, {found.bytes / 1e6:,.1f} MB read")
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
        older = f"{found.undigested:,} slides and {found.unsealed:,} files of the catalog"
        terminal.say(f"{older} were made before digests were kept: they are checked by all but these")
    if found.beside:
        some = ", ".join(found.beside[:_EXAMPLES]) + (", ..." if len(found.beside) > _EXAMPLES else "")
        terminal.say(f"not looked at, and left: {len(found.beside):,} things in OUT that are none of its own ({some})")
    terminal.say(_verdict(found))


def _verdict(found: Verified) -> str:
    if not found.faults:
        return "sound"
    if found.undone is not None:
        done = f"{found.undone:,} slides are undone and {found.removed:,} strays removed"
        done += "".join(f", {name} is restored from its copy" for name in found.restored)
        again = "; make shards, with the settings of this folder, does them again" if found.undone else ""
        if found.lost:
            names = " and ".join(found.lost)
            return (
                f"not repaired: {names}, which no sound copy is left of; put one of yours in its place. {done}{again}"
            )
        return f"repaired: {done}{again}"
    return f"{len(found.faults):,} faults; REPAIR=1 drops what is broken, so that make shards does it again"


if __name__ == "__main__":
    sys.exit(main())
