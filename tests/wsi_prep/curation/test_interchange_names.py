"""Coordinates by the names under which CLAM and TRIDENT look for them, and links to the slides by the same names."""

import csv
import subprocess

import h5py
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.interchange import main
from wsi_prep.curation.exchange.slide_names import names_of
from wsi_prep.format.layout import make_slide_id
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.folder import write_run
from wsi_prep.storage.select import open_storage

NAMES = ("a/slide.svs", "b/slide.svs", "b/it's $(mine) `x`.svs", "c/plain.svs", "c/scan.ome.tif", "d/x.svs_old.svs")


def commit(out, slide_id, file, *magnifications):
    """A slide with a tile at each magnification, in the catalog alone."""
    catalog = Catalog(out)
    catalog.create()
    tile = {"mpp": 0.5, "x0": 784, "y0": 0, "span0": 784.0, "row": 0, "col": 1, "index": 0}
    rows = [tile | {"slide_id": slide_id, "magnification": name} for name in magnifications]
    slide = {"slide_id": slide_id, "file": file, "status": "ok" if rows else "failed"}
    slide |= {"width": 9000, "height": 7000, "mpp_x": 0.25, "stain": "HE"}
    catalog.commit(dict.fromkeys(SLIDE_SCHEMA.names) | slide, pa.Table.from_pylist(rows, TILE_SCHEMA))


@pytest.fixture
def cohort(tmp_path):
    """Slides of which two have one name, and others have odd ones; and their rows: the folder of both."""
    for name in NAMES:
        at = tmp_path / "slides" / name
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(name)
        commit(tmp_path / "out", make_slide_id(at.name, str(at)), at.name, "20x")
    return tmp_path


def exported(cohort, kind, *more):
    return main(["--shards", str(cohort / "out"), "--kind", kind, "--to", str(cohort / "to"), *more])


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def link(cohort, folder="slides"):
    """Run the script on a folder of slides; what each link then leads to."""
    done = subprocess.run(
        ["sh", cohort / "to/link_slides.sh", cohort / folder], capture_output=True, text=True, check=False
    )
    at = cohort / "to/slides"
    return done, {each.name: each.read_text() for each in at.iterdir() if each.is_file()}


def test_clam_finds_the_coordinates_and_the_slide_of_each_line_of_its_list(cohort):
    """As extract_features_fp.py does: the list's name cut at the ending, then patches/<stem>.h5 and <stem><ending>."""
    assert exported(cohort, "clam") == 0
    done, linked = link(cohort)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(linked.values()) == set(NAMES)
    lists = {ending: table(cohort / f"to/20x/process_list_{ending}.csv") for ending in ("svs", "tif")}
    lines = table(cohort / "to/20x/process_list_autogen.csv")
    assert len(lines) == len(NAMES) == sum(map(len, lists.values()))
    found = set()
    for ending, rows in lists.items():
        for row in rows:
            stem = row["slide_id"].split(f".{ending}")[0]
            with h5py.File(cohort / f"to/20x/patches/{stem}.h5") as h5:
                assert h5["coords"].attrs["name"] == stem
            found.add(linked[f"{stem}.{ending}"])
    assert found == set(NAMES)
    assert list(lines[0])[:3] == ["slide_id", "process", "status"]
    assert {"it's $(mine) `x`.svs", "plain.svs", "scan.ome.tif"} < {row["slide_id"] for row in lines}
    assert "slide.svs" not in {row["slide_id"] for row in lines}


@pytest.mark.slow
def test_trident_finds_the_coordinates_of_each_slide_of_its_list(cohort):
    """As Processor.py does: the file of the list in the folder of slides, then <stem>_patches.h5."""
    assert exported(cohort, "trident") == 0
    _, linked = link(cohort)
    rows = table(cohort / "to/list_of_wsis.csv")
    assert {linked[row["wsi"]] for row in rows} == set(NAMES)
    for row in rows:
        assert float(row["mpp"]) == 0.25
        stem = row["wsi"].rpartition(".")[0]
        assert (cohort / f"to/20x_392px_0px_overlap/patches/{stem}_patches.h5").is_file()


def test_each_link_leads_to_the_slide_that_its_id_means(cohort):
    assert exported(cohort, "clam", "--where", "file = 'slide.svs'") == 0
    _, linked = link(cohort)
    rows = table(cohort / "to/slides.csv")
    assert {row["slide_id"]: linked[row["link"]] for row in rows} == {
        make_slide_id("slide.svs", str(cohort / "slides" / name)): name for name in ("a/slide.svs", "b/slide.svs")
    }


@pytest.mark.slow
def test_slides_that_moved_are_found_by_their_place_below_the_root(cohort):
    out = cohort / "moved"
    for name in NAMES[:2]:
        commit(out, make_slide_id("slide.svs", name), "slide.svs", "20x")
    write_run(open_storage(str(out)), {"settings": {"ids_below_root": True}})
    (cohort / "slides").rename(cohort / "elsewhere")
    assert main(["--shards", str(out), "--kind", "clam", "--to", str(cohort / "to")]) == 0
    _, linked = link(cohort, "elsewhere")
    assert linked == {f"{make_slide_id('slide.svs', name)}.svs": name for name in NAMES[:2]}


def test_what_is_not_found_or_there_twice_is_said(cohort):
    assert exported(cohort, "clam") == 0
    (cohort / "slides/c/plain.svs").rename(cohort / "slides/c/other.svs")
    (cohort / "slides/a/scan.ome.tif").write_text("another")
    done, linked = link(cohort)
    assert done.returncode == 1
    assert "not found: plain.svs" in done.stderr
    assert "scan.ome.tif is linked already; skipped: " in done.stderr
    assert len(linked) == len(NAMES) - 1


def test_a_slide_that_failed_keeps_its_name_from_others(tmp_path):
    """The name of a slide does not depend on which are exported."""
    commit(tmp_path / "out", "slide-0000000001", "slide.svs", "20x")
    commit(tmp_path / "out", "slide-0000000002", "Slide.tif")
    assert exported(tmp_path, "clam") == 0
    assert [file.name for file in (tmp_path / "to/20x/patches").iterdir()] == ["slide-0000000001.h5"]


def test_private_output_is_exported_by_its_ids_alone(tmp_path):
    slide_id = "0123456789abcdef01234567"
    commit(tmp_path / "out", slide_id, slide_id, "20x")
    assert exported(tmp_path, "clam") == 0
    assert (tmp_path / f"to/20x/patches/{slide_id}.h5").is_file()
    assert table(tmp_path / "to/20x/process_list_autogen.csv")[0]["slide_id"] == slide_id
    assert not (tmp_path / "to/link_slides.sh").exists()


FILES = st.text("aA.sv-é/\n\"'$ \0", min_size=1, max_size=8) | st.sampled_from(["x.svs", "X.svs", "x.tif", "../x.svs"])


@given(files=st.lists(FILES, min_size=1, max_size=6))
def test_whatever_files_are_called_names_are_apart_and_stay_in_their_folder(files):
    by_id = {make_slide_id("any", str(number)): file for number, file in enumerate(files)}
    names = names_of(by_id)
    assert len({name.stem.casefold() for name in names.values()}) == len(files)
    for slide_id, file in by_id.items():
        name = names[slide_id]
        assert (name.slide_id, name.file) == (slide_id, file)
        assert not {"/", "\0", "\n"} & set(name.link)
        assert not name.stem.startswith((".", "-"))
        assert name.stem in {slide_id, slide_id.replace(".", "_")} or name.link == file
