"""Looks at every row, file and tile of shards; with --repair, takes what is broken out, for make shards to do again."""

from __future__ import annotations

import argparse
import sys

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipelines.console import agreed, printable
from pipelines.options import Options
from wsi_prep.curation.verify.catalog import KINDS
from wsi_prep.curation.verify.store import Verified, verify
from wsi_prep.errors import BadOption, UsageError
from wsi_prep.storage.select import local_folder

EXIT_SOUND, EXIT_WRONG_CALL, EXIT_FAULTS, EXIT_INTERRUPTED = 0, 2, 3, 130
_EXAMPLES = 3

EPILOG = "exit codes: 0 all is sound; 2 the call is wrong; 3 there are, or were, faults; 130 interrupted."


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = build_parser().parse_args(arguments)
    errors, console = Console(stderr=True, highlight=False), Console(highlight=False)
    faults = 0
    try:
        outs = [output_named(where) for where in options.shards]
        if options.repair and not agreed(
            f"delete what is broken or belongs to no slide in {', '.join(outs)}", options.yes
        ):
            raise BadOption("nothing was looked at and nothing deleted; without REPAIR=1 it only looks")
        for out in outs:
            found = _verify_one(console, out, options)
            show(console, found)
            faults += len(found.faults)
    except UsageError as error:
        errors.print(f"verify: {printable(str(error))}", markup=False, soft_wrap=True)
        return EXIT_WRONG_CALL
    except KeyboardInterrupt:
        errors.print("verify: interrupted; nothing was half repaired")
        return EXIT_INTERRUPTED
    return EXIT_FAULTS if faults else EXIT_SOUND


def output_named(where: str) -> str:
    """`where` as an absolute path or an object store's URL; BadOption for what is neither."""
    folder = local_folder(where)
    if folder is None:
        return where.rstrip("/")
    if not folder.is_dir():
        raise BadOption(f"SHARDS {where} is no folder; name one that make shards has filled")
    return str(folder)


def _verify_one(console: Console, out: str, options: argparse.Namespace) -> Verified:
    columns = (
        TextColumn("slides"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f} MB/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, rate=0.0)

        def progress(done: int, total: int, read: int) -> None:
            rate = read / 1e6 / max(bar.tasks[0].elapsed or 0.0, 1e-9)
            bar.update(task, completed=done, total=total, rate=rate)

        how = {"repair": options.repair, "take_over": options.take_over, "workers": options.workers}
        return verify(out, **how, progress=progress)


def show(console: Console, found: Verified) -> None:
    """What was looked at, a line a kind of fault with the first of each, and what a repair did."""
    console.print(
        f"{found.out}: {found.slides:,} slides, {found.tiles:,} tiles, {found.bytes / 1e6:,.1f} MB read",
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (("checked", "left"), ("faults", "right"), ("at", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left")
    for kind, meaning in KINDS.items():
        faults = [fault for fault in found.faults if fault.kind == kind]
        table.add_row(Text(meaning), f"{sum(fault.count for fault in faults):,}", f"{len(faults):,}")
    console.print(table)
    for kind in KINDS:
        for fault in [fault for fault in found.faults if fault.kind == kind][:_EXAMPLES]:
            more = f" (and {fault.count - 1:,} more there)" if fault.count > 1 else ""
            line = f"{kind:<8}  {fault.where}: {fault.what}{more}"
            console.print(printable(line), markup=False, soft_wrap=True)
    if found.undigested or found.unsealed:
        older = f"{found.undigested:,} slides and {found.unsealed:,} files of the catalog"
        line = f"{older} were made before digests were kept: they are checked by all but these"
        console.print(line, markup=False, soft_wrap=True)
    console.print(_verdict(found), markup=False, soft_wrap=True)


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


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.verify", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("--shards", required=True, nargs="+", metavar="OUT", help="folders or URLs that make shards has filled")
    add("--repair", action="store_true", help="drop broken slides, for make shards to do again, and remove strays")
    add("--yes", action="store_true", help="repair without a question")
    add("--take-over", action="store_true", help="object store: the run that holds the lock is gone for good")
    add("--workers", type=int, metavar="N", help="worker processes (default: one a core)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
