"""The command `mixmag`: every command of the project by its name, as `mixmag shards --slides folder`."""

from __future__ import annotations

import contextlib
import importlib
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version

from cyclopts import App, CycloptsError
from packaging.requirements import Requirement

from pipelines.command import EXIT_OK, EXIT_WRONG_CALL, printable
from pipelines.options import command_line
from pipelines.spoken import by_mixmag
from pipelines.targets import COMMANDS, Target

_PROJECT = "mixed-magnification"
_OURS = ("pipelines", "pretrain", "wsi_prep", "sample_slides")
_NOT_FOR_USERS = ("dev", "bench", "peers")
_ABOUT = "Turn whole-slide images into balanced tiles at true magnifications, and pretrain the mixed-magnification ViT."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first word names; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    target = COMMANDS.get(words[0]) if words else None
    if target is not None:
        return _run(target, words[1:])
    if words == ["--version"]:
        print("\n".join(versions()))
        return EXIT_OK
    try:
        command_lines()(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(printable(f"mixmag: {error} mixmag --help lists the commands."), file=sys.stderr)
        return EXIT_WRONG_CALL
    return EXIT_OK


def command_lines() -> App:
    """The parsers of all commands in one, for help and for the shell's completion."""
    app = App(
        name="mixmag", help=_ABOUT, help_format="plaintext", version=version(_PROJECT), result_action="return_value"
    )
    for number, target in enumerate(COMMANDS.values()):
        if target.call is not None:
            line = command_line(target.call)
            line.sort_key = number
            app.command(line)
    app.register_install_completion_command()
    return app


def versions() -> list[str]:
    """What a report of a fault needs to name: the project, Python, the machine, and the packages that are installed."""
    lines = [f"mixmag {version(_PROJECT)}", f"Python {platform.python_version()}, {platform.platform()}"]
    for requirement in map(Requirement, sorted(set(requires(_PROJECT) or []))):
        if any(f'"{extra}"' in str(requirement.marker) for extra in _NOT_FOR_USERS):
            continue
        with contextlib.suppress(PackageNotFoundError):
            lines.append(f"{requirement.name} {version(requirement.name)}")
    return list(dict.fromkeys(lines))


def _run(target: Target, words: list[str]) -> int:
    """Run a command; one line where a package is missing that only its part of the project needs."""
    if {"--help", "-h"} & set(words) and target.call is not None:
        command_lines()([target.name, "--help"])
        return EXIT_OK
    try:
        module = importlib.import_module(target.module)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in _OURS:
            raise
        extra = "'.[train]'" if target.for_training else "."
        print(
            f"mixmag {target.name} needs {name}, which is not installed: in a clone of the repository, "
            f"pip install {extra}",
            file=sys.stderr,
        )
        return EXIT_WRONG_CALL
    with by_mixmag():
        code: int = module.main(words)
    return code


if __name__ == "__main__":
    sys.exit(main())
