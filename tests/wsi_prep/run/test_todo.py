"""What a call has to do, against a plain reference that looks at one slide after another."""

import os
import shutil
from itertools import count

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsi_prep.format.records import SLIDE_SCHEMA
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.tombstone import Tombstone
from wsi_prep.run.request import RunRequest, RunSummary
from wsi_prep.run.row import blank_row, manifest_columns
from wsi_prep.run.todo import _LOOKED_AT, asked_for, by_tombstone, not_done
from wsi_prep.slides.find.fingerprint import fingerprint
from wsi_prep.slides.find.found import seen
from wsi_prep.slides.find.sources import look_for_slides
from wsi_prep.storage.select import open_storage

NAMES = ("TCGA-A6-0001-DX1.svs", "TCGA-A6-0002-DX1.svs", "plain.svs", "b/plain.svs", "-odd.svs")
CONTRADICTED = "the pixels look like IHC (0.95) where the manifest says HE"
KEY = b"a secret that is long enough"


def maybe(*values):
    return st.sampled_from([None, *values])


MANIFEST = st.fixed_dictionaries(
    {
        "stain": maybe("HE", "IHC", "UNKNOWN"),
        "institution": maybe("north"),
        "tissue": maybe("skin"),
        "patient": maybe("p1", "p2"),
        "site": maybe("B"),
        "mpp": maybe("0.5"),
    }
)
ROW = st.fixed_dictionaries(
    {
        "there": st.sampled_from([True, True, True, False]),
        "status": st.sampled_from(["ok", "ok", "ok", "empty", "excluded", "failed"]),
        "stain_pixels": maybe("HE", "IHC", "UNKNOWN", ""),
        "stain_pixels_confidence": maybe(0.5, 0.95),
        "warning": maybe("said before", "", "one; two; one", CONTRADICTED),
        "config_hash": maybe("another"),
        "seen": st.sampled_from(["now", "now", "before", None]),
        "fingerprint": maybe("another"),
        "as_told": st.booleans(),
        "file_folder": maybe("b"),
        "error": maybe("a reason"),
        "error_type": maybe("MissingMpp"),
    }
)
CASES = st.fixed_dictionaries(
    {
        "manifest": st.lists(st.none() | MANIFEST, min_size=len(NAMES), max_size=len(NAMES)),
        "before": st.lists(st.none() | MANIFEST, min_size=len(NAMES), max_size=len(NAMES)),
        "rows": st.lists(ROW, min_size=len(NAMES), max_size=len(NAMES)),
        "merged": st.booleans(),
        "again": st.none() | st.tuples(st.integers(0, len(NAMES) - 1), ROW),
    }
)


def tasks_of(folder, manifest, out):
    """The tasks of the slides, by a manifest that says this of each."""
    path = folder / "manifest.csv"
    columns = ("stain", "institution", "tissue", "patient", "site", "mpp")
    lines = [",".join(("slide", *columns))]
    for name, said in zip(NAMES, manifest, strict=True):
        cells = [said[column] or "" for column in columns] if said else []
        if any(cells):
            lines.append(",".join((str(folder / "slides" / name), *cells)))
    path.write_text("\n".join(lines))
    request = RunRequest(str(folder / "slides"), str(out), manifest=str(path), patient_key=KEY)
    found = look_for_slides(request.slides)
    return request, asked_for(request, found, open_storage(request.out), ("token", 0.0))[0]


def earlier_row(task, state):
    """A row that a run may have left of the task's slide."""
    row = blank_row(task)
    row.update({"status": state["status"], "tiles_20x": 7, "tiles_40x": None, "warning": state["warning"]})
    row.update({"stain_pixels": state["stain_pixels"], "stain_pixels_confidence": state["stain_pixels_confidence"]})
    if state["stain_pixels"]:
        row.update({"stain": state["stain_pixels"], "stain_source": "pixels"})
        row.update({"stain_confidence": state["stain_pixels_confidence"]})
    row.update({"error": state["error"], "error_type": state["error_type"], "file_folder": state["file_folder"]})
    if state["as_told"]:
        row.update(manifest_columns(task, row))
    row["fingerprint"] = state["fingerprint"] or fingerprint(task.source)
    row["config_hash"] = state["config_hash"] or task.config_hash
    row["source_seen"] = {"now": seen(task.source), "before": "0" * 16, None: None}[state["seen"]]
    return row


def reference(tasks, rows):
    """What is to do, what is told of the rest, and the rows afterwards: a slide at a time, contents read."""
    summary, todo, after = RunSummary(), [], dict(rows)
    for task in tasks:
        row = rows.get(task.source.slide_id)
        if (
            row is None
            or row["status"] not in ("ok", "empty", "excluded")
            or row["config_hash"] != task.config_hash
            # what was seen last stands for the content
            or (row["source_seen"] != seen(task.source) and row["fingerprint"] != fingerprint(task.source))
            or (row["stain_source"] == "manifest" and task.manifest.stain is None and row["stain_pixels"] is None)
        ):
            todo.append(task)
            continue
        described = {**row, **manifest_columns(task, row)}
        after[task.source.slide_id] = {**described, "source_seen": seen(task.source)}
        summary.done_before += 1
        summary.add(described, now=False)
    return todo, summary, after


def of_catalog(rows):
    """The rows as a Parquet file gives them back."""
    return {row["slide_id"]: row for row in pa.Table.from_pylist(rows, SLIDE_SCHEMA).to_pylist()}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("todo")
    for number, name in enumerate(NAMES):
        path = folder / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 100)
    return folder, count()


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=CASES)
def test_what_is_to_do_and_told_is_what_a_look_at_each_slide_says(slides, case, monkeypatch):
    folder, number = slides
    out = folder / f"out-{next(number)}"
    monkeypatch.setattr("wsi_prep.slides.find.found._YOUNG", -1.0)  # the files are young
    _, before = tasks_of(folder, case["before"], out)
    request, tasks = tasks_of(folder, case["manifest"], out)
    pairs = list(zip(before, case["rows"], strict=True))
    rows = of_catalog([earlier_row(task, state) for task, state in pairs if state["there"]])
    catalog = Catalog(out)
    catalog.create()
    for row in rows.values():
        catalog.commit(row, catalog.no_tiles())
    if case["merged"]:
        catalog.merge()
    told = RunSummary()
    if case["again"]:  # a worker that left the cluster had finished it once more
        at, state = case["again"]
        catalog.merge()
        again = earlier_row(before[at], state)
        catalog.commit(again, catalog.no_tiles())
        if again["slide_id"] not in rows or f"{again['slide_id']}.parquet" > "part-00000.parquet":
            rows |= of_catalog([again])
    todo, expected, after = reference(tasks, rows)
    found = not_done(request, tasks, catalog, told)
    assert list(found) == todo
    assert vars(told) == {**vars(expected), "rows": [only_looked_at(row) for row in expected.rows]}
    if not case["again"]:
        assert {row["slide_id"]: row for row in catalog.slides()} == of_catalog(after.values())
    shutil.rmtree(out)


def only_looked_at(row):
    return {name: row[name] for name in _LOOKED_AT if name != "source_seen"}


@given(patients=st.sets(st.sampled_from(["p1", "p2"])), slides_=st.sets(st.sampled_from(NAMES)))
def test_forgotten_slides_are_those_that_the_tombstone_has_by_patient_or_id(slides, patients, slides_):
    folder, _ = slides
    said = [
        {**dict.fromkeys(("stain", "institution", "tissue", "site", "mpp")), "patient": p} for p in ("p1", "p2", "p1")
    ]
    _, tasks = tasks_of(folder, [*said, None, None], folder / "nowhere")
    keys = {task.patient_key for task in tasks if task.source.name[13:14] in {p[1:] for p in patients}} - {None}
    tombstone = Tombstone().with_more(keys, [t.source.slide_id for t in tasks if t.source.name in slides_])
    kept, forgotten = by_tombstone(tombstone, tasks)
    assert list(forgotten) == [task for task in tasks if tombstone.has(task.source.slide_id, task.patient_key)]
    assert list(kept) == [task for task in tasks if not tombstone.has(task.source.slide_id, task.patient_key)]


def test_a_file_in_another_ones_place_is_seen_though_size_and_times_are_kept(tmp_path):
    path, other = tmp_path / "a.svs", tmp_path / "other"
    path.write_bytes(b"one")
    (source,) = look_for_slides(str(path)).sources
    before, times = seen(source), path.stat()
    assert seen(source) == before is not None
    other.write_bytes(b"two")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync -t leaves it
    other.replace(path)
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert seen(source) != before


def test_young_files_and_files_that_are_gone_have_no_mark_that_stands_for_them(tmp_path):
    (tmp_path / "a.svs").write_bytes(b"one")
    (source,) = look_for_slides(str(tmp_path)).sources
    assert seen(source) is not None
    assert seen(source, settled=True) is None
    (tmp_path / "a.svs").unlink()
    assert seen(source) is None
