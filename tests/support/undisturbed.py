"""Small slides to run, and what a run of them leaves that must not depend on what happened on the way."""

import shutil

import pyarrow.parquet as pq

TIMINGS = ("seconds", "source_seen")
"""Columns that begin so tell of time: how long it took, and whether a file had been there for a minute."""


def copies(slide, folder, names):
    """So many copies of a slide in a folder, which is made."""
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(slide, folder / f"{name}{slide.suffix}")
    return folder


def tables(out):
    """Both tables of the catalog, sorted, without timings: as lists, so that a row that is there twice counts."""
    found = []
    for name, keys in (("slides", ["slide_id"]), ("tiles", ["slide_id", "array", "index"])):
        rows = pq.read_table(out / "catalog" / name).to_pylist()
        kept = [{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in rows]
        found.append(sorted(kept, key=lambda row: [row[k] for k in keys]))
    return found


def files(out):
    """Every file of the output but the catalog's and run.json, with its content; .staging must be empty."""
    folders = [out / name for name in ("stores", "tissue", "overlays", ".staging")]
    return {p.relative_to(out): p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}


def outcome(out):
    """All that a run leaves, to be compared."""
    return tables(out), files(out)


def committed(out):
    """How many slides have a file of their own in the catalog at this moment."""
    return len([p for p in (out / "catalog/slides").glob("*.parquet") if not p.name.startswith((".", "part-"))])
