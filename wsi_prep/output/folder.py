"""The output folder of a run: whose it is, what it was made with, and what a killed run left in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from wsi_prep.errors import BadOutput, UsageError, refusal
from wsi_prep.format.layout import PLACES, is_slide_id
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.sealed_json import NotAsWritten, read_sealed, write_sealed
from wsi_prep.output.terms import PATIENT_KEY, Terms
from wsi_prep.output.tombstone import TOMBSTONE, Tombstone, read_tombstone
from wsi_prep.storage.atomic import MOVING, remove_tree
from wsi_prep.storage.base import Storage
from wsi_prep.untrusted.small_json import Nonsense

RUN = "run.json"
CALL = "call.sh"
"""A script that repeats the last call; in no private output."""

WORKING = "working"
"""Field of run.json while a call works: how many slides it has to do, how many there were, and since when."""

FORGOTTEN = "forgotten"
"""Field of run.json: how many hashes of patients and slides the tombstone has."""


@contextlib.contextmanager
def held_output(storage: Storage, terms: Terms, token: str, *, take_over: bool = False) -> Iterator[None]:
    """Around a run: `storage`, made if missing, is locked against a second one; what it holds is not changed by this.

    Raises BadOutput where the folder cannot be written, holds something else or is in use, and OtherConfiguration where
    it was made on other terms.
    """
    _require_ours(storage)
    storage.create()
    with storage.locked(token, take_over=take_over):
        terms.require_kept(storage.where, read_run(storage))
        if terms.patient_key is None:  # run.json of an earlier version does not say
            terms.require_patient_key(storage.where, _has_patients(storage))
        yield


def _has_patients(storage: Storage) -> bool:
    keys = Catalog(storage).table(["patient_key"])["patient_key"]
    return bool(pc.any(pc.not_equal(keys, "")).as_py())


def begin(storage: Storage, terms: Terms, *, patients: bool = False) -> Catalog:
    """While it is held: the catalog of `storage`, swept of half-made slides, and the terms in its run.json.

    `patients`: whether any slide's patient gets a key.
    """
    catalog = Catalog(storage)
    with writing(storage):
        before = read_run(storage)
        settings = terms.settings if not before or terms.redo else before.get("settings", {})
        key = {PATIENT_KEY: terms.patient_key} if patients else {}
        write_run(storage, {**before, "settings": settings, **terms.named, **key})
        catalog.create()
        catalog.recover()
        sweep(storage, catalog)
    return catalog


@contextlib.contextmanager
def writing(storage: Storage) -> Iterator[None]:
    """Around the client's own writing into `storage`: what the system refuses becomes BadOutput."""
    try:
        yield
    except UsageError:
        raise
    except OSError as error:
        why = refusal(error)
        raise BadOutput(
            f"OUT {storage.where} cannot be written ({why}); finished slides are kept: fix this and try again"
        ) from error


def say_working(catalog: Catalog, slides: int, *, times: bool) -> None:
    """Let run.json say that a call has so many slides to do, for those who look on; `times`: since when, too."""
    told: dict[str, object] = {"slides": slides, "known": len(catalog.ids())}
    if times:
        told["since"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    write_run(catalog.storage, {**read_run(catalog.storage), WORKING: told})


def require_held(storage: Storage, token: str) -> None:
    """Raise BadOutput where another run was let take the output over; nothing of it is this one's to change then."""
    if storage.holder() != token:
        raise BadOutput(f"another run has taken over {storage.where}; finished slides are kept")


def read_run(storage: Storage) -> dict[str, Any]:
    """What run.json says, or an empty dictionary; BadOutput where it was changed."""
    try:
        run = read_sealed(storage, RUN)
        _require_kinds(run)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError as error:
        raise BadOutput(f"{storage.where}/{RUN} cannot be read ({error.strerror}); fix this") from error
    except (NotAsWritten, Nonsense) as error:
        raise BadOutput(
            f"{storage.where}/{RUN} is damaged or was edited ({error}); "
            "make verify with REPAIR=1 restores it from its copy"
        ) from error
    return run


def _require_kinds(run: dict[str, object]) -> None:
    """Raise Nonsense where what is read of run.json again is not what is written there."""
    last = run.get("last_call", {})
    if not isinstance(run.get("settings", {}), dict) or not isinstance(last, dict):
        raise Nonsense("its settings, or its last_call, are no object")
    warnings = last.get("warnings", [])
    if not isinstance(warnings, list) or not all(isinstance(each, str) for each in warnings):
        raise Nonsense("the warnings of its last_call are no texts")
    if not isinstance(run.get(FORGOTTEN, 0), int):
        raise Nonsense(f"its {FORGOTTEN} is no number")


def remember(storage: Storage, tombstone: Tombstone) -> None:
    """Let run.json say how much is to be forgotten, so that a tombstone which is lost is missed."""
    run = read_run(storage)
    if run and run.get(FORGOTTEN) != len(tombstone):
        write_run(storage, {**run, FORGOTTEN: len(tombstone)})


def not_remembered(run: Mapping[str, Any], tombstone: Tombstone) -> str:
    """In which way the tombstone is not what run.json says of it, or an empty text; before that was kept, it is."""
    known, there = run.get(FORGOTTEN, 0), len(tombstone)
    if there >= known:
        return ""
    return f"it has {there:,} patients and slides, {RUN} says {known:,}"


def require_remembered(storage: Storage) -> None:
    """Raise BadOutput where forgotten.json is lost, in whole or in part: what is forgotten would be made again."""
    if what := not_remembered(read_run(storage), read_tombstone(storage)):
        raise BadOutput(
            f"{storage.where}/{TOMBSTONE} is missing or outdated ({what}); restore it, or forgotten slides would be "
            "made again. FORGOTTEN_LOST=1 continues without it"
        )


def write_run(storage: Storage, run: dict[str, object]) -> None:
    """Replace run.json."""
    write_sealed(storage, RUN, run)


def write_call(storage: Storage, script: bytes) -> None:
    """Replace the script that repeats the call, where it is another one."""
    if not storage.exists(CALL) or storage.read(CALL) != script:
        storage.write(CALL, script)


def catalog_counts(catalog: Catalog) -> dict[str, object]:
    """What run.json says of the catalog: its slides by status, its tiles by magnification."""
    return {"slides": catalog.count_statuses(), "tiles": catalog.count_tiles()}


def sweep(storage: Storage, catalog: Catalog) -> None:
    """Remove everything of slides that have no committed row, or failed."""
    if storage.staging is not None:
        remove_tree(storage.staging)
        storage.staging.mkdir()
    rows = catalog.table(["slide_id", "status"])
    committed = rows["slide_id"].filter(pc.not_equal(rows["status"], "failed").fill_null(True)).combine_chunks()
    for folder, ending in PLACES.values():
        present = storage.names(folder)
        if not present:
            continue
        names = (name for name in present if name.isascii() and name.endswith(ending))
        found = pa.array((name.removesuffix(ending) for name in names), pa.string())
        gone = found.filter(pc.invert(pc.is_in(found, committed))).to_pylist()
        left = [f"{slide_id}{ending}" for slide_id in gone if is_slide_id(slide_id)]
        for name in [*left, *(name for name in present if name.endswith(MOVING))]:
            storage.remove(f"{folder}/{name}")


def _require_ours(storage: Storage) -> None:
    names = storage.names("")
    if RUN not in names and "catalog" in names:
        copy = "make verify with REPAIR=1 restores it from its copy" if f".{RUN}" in names else "put yours back"
        raise BadOutput(
            f"{storage.where} holds a catalog and no {RUN}, which says what its slides were made with; "
            f"{copy}, or name another OUT"
        )
    if RUN not in names and any(not name.startswith(".") for name in names):
        raise BadOutput(f"OUT {storage.where} holds other files and no {RUN}; name a new or an empty folder")
