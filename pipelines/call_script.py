"""A call of make shards as a script that repeats it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from pipelines.calls.base import declared
from pipelines.calls.shards import ShardsCall
from wsi_prep.slides.urls import bare_url

_FOR_ONCE = ("redo", "take_over", "forgotten_lost")
"""What is said once, and would be wrong to repeat."""

_HEAD = """#!/bin/sh
# Repeats the last call of make shards on this folder, which does what is not done:  sh call.sh
# Secrets are not in it: set WSI_PREP_PATIENT_KEY again where it was set.
"""
_LEFT_OUT = "# What a URL below held of names, passwords or signatures was omitted, too: put it back.\n"


def call_script(call: ShardsCall, folder: Path | None = None, python: str = sys.executable) -> bytes:
    """The script of a call that was made in `folder` (this process's) by the interpreter `python`.

    URLs come without what gives access, and options that are for one call alone are left out.
    """
    words, bare = [], False
    for option, text in _said(call):
        kept = text if text is None else bare_url(text)
        bare |= kept != text
        words.append(shlex.quote(option if kept is None else f"{option}={kept}"))
    lines = [f"python={shlex.quote(python)}", f"cd -- {shlex.quote(str(folder or Path.cwd()))} || exit"]
    command = ['exec "${PYTHON:-$python}" -m pipelines.shards', *words]
    body = "\n".join(lines) + "\n" + " \\\n    ".join(command) + "\n"
    return os.fsencode(_HEAD + (_LEFT_OUT if bare else "") + body)


def _said(call: ShardsCall) -> Iterator[tuple[str, str | None]]:
    """Options that are not as they are by default, each with its value; None for a flag."""
    defaults = {each.name: each.default for each in fields(ShardsCall)}
    for each in declared(ShardsCall):
        value = getattr(call, each.name)
        if value == defaults[each.name] or each.name in _FOR_ONCE:
            continue
        yield each.option, None if value is True else str(value)
