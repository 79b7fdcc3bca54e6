"""The output folder of a run: whose it is, what it was made with, and what a killed run left in it."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from wsi_prep.catalog import Catalog
from wsi_prep.errors import BadOutput, OtherConfiguration
from wsi_prep.place import Place, remove_tree
from wsi_prep.prepare import output_places

_RUN = "run.json"


@contextlib.contextmanager
def open_output(
    place: Place, settings: dict[str, Any], token: str, *, redo: bool, take_over: bool = False
) -> Iterator[Catalog]:
    """The catalog of `place`, which is made if missing, locked against a second run, and swept of half-made slides.

    Raises BadOutput where the folder cannot be written, holds something else or is in use, and OtherConfiguration where
    it was made with other settings and `redo` is not given.
    """
    _require_ours(place)
    place.create()
    with place.locked(token, take_over=take_over):
        before = read_run(place)
        if before and not redo:
            _require_same(place, before.get("settings", {}), settings)
        catalog = Catalog(place)
        with writing(place):
            if not before or redo:
                write_run(place, {**before, "settings": settings})
            catalog.create()
            catalog.recover()
            sweep(place, catalog)
        yield catalog


@contextlib.contextmanager
def writing(place: Place) -> Iterator[None]:
    """Around the client's own writing into `place`: what the system refuses becomes BadOutput."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise BadOutput(
            f"OUT {place.where} cannot be written ({reason}); mend that and run again, what is done is kept"
        ) from error


def require_held(place: Place, token: str) -> None:
    """Raise BadOutput where another run was let take the output over; nothing of it is this one's to change then."""
    if place.holder() != token:
        raise BadOutput(f"another run has taken {place.where} over; what this one had done is kept")


def read_run(place: Place) -> dict[str, Any]:
    """What run.json says, or an empty dictionary."""
    try:
        data = place.read(_RUN)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        run: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise BadOutput(f"{place.where}/{_RUN} cannot be read as JSON; move it away and run again") from error
    return run


def write_run(place: Place, run: dict[str, Any]) -> None:
    """Replace run.json."""
    place.write(_RUN, json.dumps(run, indent=2).encode())


def catalog_counts(catalog: Catalog) -> dict[str, Any]:
    """What run.json says of the catalog: its slides by status, its tiles by magnification."""
    statuses = Counter(row["status"] for row in catalog.slides(["status"]))
    return {"slides": dict(sorted(statuses.items())), "tiles": catalog.count_tiles()}


def sweep(place: Place, catalog: Catalog) -> None:
    """Remove everything of slides that have no committed row, or failed."""
    if place.staging is not None:
        remove_tree(place.staging)
        place.staging.mkdir()
    rows = catalog.slides(["slide_id", "status"])
    committed = {row["slide_id"] for row in rows if row["status"] != "failed"}
    for anyones in output_places("*").values():
        folder, _, name = anyones.partition("/")
        ending = name.removeprefix("*")
        for found in place.names(folder):
            if found.endswith(ending) and found.removesuffix(ending) not in committed:
                place.remove(f"{folder}/{found}")


def _require_ours(place: Place) -> None:
    names = place.names("")
    if _RUN not in names and any(not name.startswith(".") for name in names):
        raise BadOutput(f"OUT {place.where} holds other files and no {_RUN}; name a new or an empty folder")


def _require_same(place: Place, before: dict[str, Any], now: dict[str, Any]) -> None:
    old, new = _flat(before), _flat(now)
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if changed:
        shown = "; ".join(f"{name} was {old.get(name)}, now {new.get(name)}" for name in changed[:3])
        raise OtherConfiguration(
            f"OUT {place.where} was made with other settings ({shown}); name another OUT, "
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
