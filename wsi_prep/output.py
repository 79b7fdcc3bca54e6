"""The output folder of a run: whose it is, what it was made with, and what a killed run left in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsi_prep.catalog import Catalog, remove_tree, write_atomically
from wsi_prep.errors import BadOutput, OtherConfiguration
from wsi_prep.prepare import LOCK, STAGING, output_places

_RUN = "run.json"


@contextlib.contextmanager
def open_output(out: Path, settings: dict[str, Any], token: str, *, redo: bool) -> Iterator[Catalog]:
    """The catalog of `out`, which is made if missing, locked against a second run, and swept of half-made slides.

    Raises BadOutput where the folder cannot be written, holds something else or is in use, and OtherConfiguration where
    it was made with other settings and `redo` is not given.
    """
    _require_ours(out)
    _create(out)
    with _locked(out, token):
        before = read_run(out)
        if before and not redo:
            _require_same(out, before.get("settings", {}), settings)
        catalog = Catalog(out)
        with writing(out):
            if not before or redo:
                write_run(out, {**before, "settings": settings})
            catalog.create()
            catalog.recover()
            sweep(out, catalog)
        yield catalog


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Around the client's own writing into `out`: what the system refuses becomes BadOutput."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise BadOutput(
            f"OUT {out} cannot be written ({reason}); mend that and run again, what is done is kept"
        ) from error


def dismiss_workers(out: Path) -> None:
    """From here on a worker that still finishes a slide writes nothing of it."""
    with (out / LOCK).open("r+b", buffering=0) as lock:  # as long as the token, so that a full disk takes it too
        lock.write(b"-" * (out / LOCK).stat().st_size)


def read_run(out: Path) -> dict[str, Any]:
    """What run.json says, or an empty dictionary."""
    try:
        run: dict[str, Any] = json.loads((out / _RUN).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise BadOutput(f"{out / _RUN} cannot be read as JSON; move it away and run again") from error
    return run


def write_run(out: Path, run: dict[str, Any]) -> None:
    """Replace run.json."""
    write_atomically(out / _RUN, json.dumps(run, indent=2).encode())


def sweep(out: Path, catalog: Catalog) -> None:
    """Remove everything of slides that have no committed row, or failed."""
    remove_tree(out / STAGING)
    (out / STAGING).mkdir()
    rows = catalog.slides(["slide_id", "status"])
    committed = {row["slide_id"] for row in rows if row["status"] != "failed"}
    for place in output_places(out, "*").values():
        for path in place.parent.glob(place.name):
            if path.name.removesuffix(place.suffix) not in committed:
                remove_tree(path)


def _require_ours(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise BadOutput(f"OUT {out} is a file; name a folder")
    ours = (out / _RUN).exists()
    if out.is_dir() and not ours and any(not p.name.startswith(".") for p in out.iterdir()):
        raise BadOutput(f"OUT {out} holds other files and no {_RUN}; name a new or an empty folder")


def _create(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise BadOutput(f"OUT {out} cannot be written ({error.strerror}); name a folder that can") from error


@contextlib.contextmanager
def _locked(out: Path, token: str) -> Iterator[None]:
    with (out / LOCK).open("ab", buffering=0) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadOutput(f"another run is writing to {out}; wait for it, or name another OUT") from error
        with writing(out):
            lock.truncate(0)
            lock.write(token.encode())
        yield


def _require_same(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    old, new = _flat(before), _flat(now)
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if changed:
        shown = "; ".join(f"{name} was {old.get(name)}, now {new.get(name)}" for name in changed[:3])
        raise OtherConfiguration(
            f"OUT {out} was made with other settings ({shown}); name another OUT, "
            "or add REDO=1 to do its slides again with the new ones"
        )


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
