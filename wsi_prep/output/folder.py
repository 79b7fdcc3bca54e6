"""The output folder of a run: whose it is, what it was made with, and what a killed run left in it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from wsi_prep.errors import BadOutput, UsageError
from wsi_prep.format.layout import PLACES, slide_of
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.sealed_json import NotAsWritten, read_sealed, write_sealed
from wsi_prep.output.terms import Terms
from wsi_prep.storage.place import Place, remove_tree
from wsi_prep.untrusted.small_json import Nonsense

RUN = "run.json"


@contextlib.contextmanager
def held_output(place: Place, terms: Terms, token: str, *, take_over: bool = False) -> Iterator[None]:
    """Around a run: `place`, made if missing, is locked against a second one; what it holds is not changed by this.

    Raises BadOutput where the folder cannot be written, holds something else or is in use, and OtherConfiguration where
    it was made on other terms.
    """
    _require_ours(place)
    place.create()
    with place.locked(token, take_over=take_over):
        terms.require_kept(place.where, read_run(place))
        yield


def begin(place: Place, terms: Terms) -> Catalog:
    """While it is held: the catalog of `place`, swept of half-made slides, and the terms in its run.json."""
    catalog = Catalog(place)
    with writing(place):
        before = read_run(place)
        settings = terms.settings if not before or terms.redo else before.get("settings", {})
        write_run(place, {**before, "settings": settings, **terms.named})
        catalog.create()
        catalog.recover()
        sweep(place, catalog)
    return catalog


@contextlib.contextmanager
def writing(place: Place) -> Iterator[None]:
    """Around the client's own writing into `place`: what the system refuses becomes BadOutput."""
    try:
        yield
    except UsageError:
        raise
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
    """What run.json says, or an empty dictionary; BadOutput where it is not as it was written."""
    try:
        run = read_sealed(place, RUN)
        _require_kinds(run)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError as error:
        raise BadOutput(f"{place.where}/{RUN} cannot be read ({error.strerror}); mend that") from error
    except (NotAsWritten, Nonsense) as error:
        raise BadOutput(
            f"{place.where}/{RUN} is damaged or was edited ({error}); "
            "make verify with REPAIR=1 restores it from its copy"
        ) from error
    return run


def _require_kinds(run: dict[str, Any]) -> None:
    """Raise Nonsense where what is read of run.json again is not what is written there."""
    last = run.get("last_call", {})
    if not isinstance(run.get("settings", {}), dict) or not isinstance(last, dict):
        raise Nonsense("its settings, or its last_call, are no object")
    warnings = last.get("warnings", [])
    if not isinstance(warnings, list) or not all(isinstance(each, str) for each in warnings):
        raise Nonsense("the warnings of its last_call are no texts")


def write_run(place: Place, run: dict[str, Any]) -> None:
    """Replace run.json."""
    write_sealed(place, RUN, run)


def catalog_counts(catalog: Catalog) -> dict[str, Any]:
    """What run.json says of the catalog: its slides by status, its tiles by magnification."""
    statuses = Counter(str(row["status"]) for row in catalog.slides(["status"]))
    return {"slides": dict(sorted(statuses.items())), "tiles": catalog.count_tiles()}


def sweep(place: Place, catalog: Catalog) -> None:
    """Remove everything of slides that have no committed row, or failed."""
    if place.staging is not None:
        remove_tree(place.staging)
        place.staging.mkdir()
    rows = catalog.slides(["slide_id", "status"])
    committed = {row["slide_id"] for row in rows if row["status"] != "failed"}
    for folder, ending in PLACES.values():
        for found in place.names(folder):
            slide_id = slide_of(found, ending)
            if slide_id is not None and slide_id not in committed:
                place.remove(f"{folder}/{found}")


def _require_ours(place: Place) -> None:
    names = place.names("")
    if RUN not in names and any(not name.startswith(".") for name in names):
        raise BadOutput(f"OUT {place.where} holds other files and no {RUN}; name a new or an empty folder")
