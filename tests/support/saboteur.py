"""A preload for Dask workers that lets a named slide do harm there: `dask worker --preload tests/support/saboteur.py`.

The file named by the environment variable SABOTAGE says what happens, and may change while the worker runs:
{"slide": how its name begins, "at": open, tile (the fifth), tiles (their rows), row; "do": one of DEEDS, "times": n},
or a list of such, each with a "mark" of its own. The process whose number is "spared" does none of it.
"""

import contextlib
import json
import os
import signal
import threading
from pathlib import Path


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    threading.Event().wait()


def eat():
    """Take memory until the nanny ends this process."""
    eaten = []
    for _ in range(60):
        eaten.append(b"x" * 2**26)
        threading.Event().wait(0.02)
    hang()


def hold():
    """Wait until somebody makes the file beside the plan whose name ends in .go."""
    go = Path(os.environ["SABOTAGE"]).with_suffix(".go")
    while not go.exists():
        threading.Event().wait(0.02)


DEEDS = {"die": die, "hang": hang, "eat": eat, "hold": hold}


def act(point, name):
    path = Path(os.environ["SABOTAGE"])
    if path.exists():
        said = json.loads(path.read_text())
        for plan in said if isinstance(said, list) else [said]:
            traces = path.with_name(f"{path.stem}{plan.get('mark', '')}{path.suffix}")
            meant = plan["at"] == point and name.startswith(plan["slide"]) and plan.get("spared") != os.getpid()
            if meant and _may(traces, plan["times"]):
                DEEDS[plan["do"]]()


def _may(path, times):
    """True `times` times over all workers: each takes a numbered file that nobody else has taken."""
    for number in range(times):
        with contextlib.suppress(FileExistsError), path.with_suffix(f".{number}").open("x"):
            return True
    return False


def dask_setup(worker):
    from wsi_prep.run import slide as prepare
    from wsi_prep.storage import atomic
    from wsi_prep.tiles import writer as tile_writer

    opened, sync_file = prepare.opened, atomic.sync
    current = {"name": "", "tiles": 0}

    @contextlib.contextmanager
    def opening(source, *rest):
        current.update(name=source.name, tiles=0)
        act("open", current["name"])
        with opened(source, *rest) as slide:
            yield slide

    def counted(encode):
        def encoding(*arguments):
            current["tiles"] += 1
            if current["tiles"] == 5:
                act("tile", current["name"])
            return encode(*arguments)

        return encoding

    def syncing(file):
        sync_file(file)  # it has its final name only later
        if file.parent.parent.name == "catalog":
            act({"tiles": "tiles", "slides": "row"}[file.parent.name], file.name.lstrip("."))

    prepare.opened, atomic.sync = opening, syncing
    for name in ("encode_tile", "encode_planes"):
        setattr(tile_writer, name, counted(getattr(tile_writer, name)))
