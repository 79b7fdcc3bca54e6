"""SLIDES and MANIFEST in an object store, over HTTP: the same tiles as from a disk, and no byte more than they need."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile

from pipelines.shards import main
from tests.support.dicom_wsi import write_dicom_slide
from tests.support.mrxs_wsi import write_mrxs
from tests.support.object_server import BUCKET
from tests.support.undisturbed import TIMINGS
from wsi_prep.errors import BadManifest, NoSlides, StoreFailed
from wsi_prep.slides.find.found import fingerprint
from wsi_prep.slides.find.sources import find_slides

AT = f"s3://{BUCKET}"


@pytest.fixture
def server(object_server):
    object_server.clear()
    return object_server


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, he_slide, nompp_slide):
    """One slide of each way to be read: in place, as a file, as a file with its folder, as files together; and bad."""
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "site a").mkdir()
    shutil.copy(nompp_slide, folder / "site a" / "Größe 1 µm.tiff")
    pixels = tifffile.imread(nompp_slide, key=0)
    write_mrxs(folder / "mirax.mrxs", pixels[: 6 * 256, : 6 * 256], 0.5, 1, 1, 8, 8)
    (folder / "dicom").mkdir()
    write_dicom_slide(folder / "dicom", [pixels, np.ascontiguousarray(pixels[::4, ::4])], 0.5)
    opaque = np.dstack(
        [pixels, np.full(pixels.shape[:2], 255, np.uint8)]
    )  # OpenSlide takes it, our own reader does not
    tifffile.imwrite(folder / "alpha.tif", opaque, tile=(256, 256), photometric="rgb", extrasamples=["unassalpha"])
    (folder / "text.svs").write_text("dear colleague")
    (folder / "empty.svs").write_bytes(b"")
    (folder / "README").write_text("no slide")
    (folder / "cut.tiff").write_bytes(nompp_slide.read_bytes()[:200_000])
    rows = ["site a/Größe 1 µm.tiff,lung", "mirax.mrxs,skin", "dicom,colon"]
    (folder / "manifest.csv").write_text("slide,tissue\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


def shards(slides, out, scheduler, *more):
    call = ["--slides", str(slides), "--out", str(out), "--assume-mpp", "0.5", "--mags", "10x 5x"]
    return main([*call, "--scheduler", scheduler, *map(str, more)])


def tables(out, *, without=()):
    """Both tables by the file's name, without timings and what depends on where a slide lies."""
    slides = {row["slide_id"]: row for row in pq.read_table(out / "catalog/slides").to_pylist()}
    tiles = pq.read_table(out / "catalog/tiles").to_pylist()
    plain = {
        row["file"]: {k: v for k, v in row.items() if k not in without and not k.startswith(TIMINGS)}
        for row in slides.values()
    }
    kept = ("magnification", "index", "crc32", "x0", "y0", "tissue_fraction", "focus")
    return plain, {(slides[tile["slide_id"]]["file"], *(tile[name] for name in kept)) for tile in tiles}


def test_slides_in_a_store_give_the_tiles_that_they_give_on_a_disk(server, cohort, scheduler, tmp_path, capsys):
    server.upload(cohort, "cohort/")
    cache = tmp_path / "cache"
    manifest = ("--manifest", f"{AT}/cohort/manifest.csv")
    near = shards(cohort, tmp_path / "near", scheduler, "--manifest", cohort / "manifest.csv")
    far = shards(f"{AT}/cohort", tmp_path / "far", scheduler, *manifest, "--cache", cache)
    assert near == far == 3
    elsewhere = {"slide_id", "fingerprint", "bytes", "digests"}  # a store's metadata holds the id
    slides, tiles = tables(tmp_path / "far", without=elsewhere)
    assert (slides, tiles) == tables(tmp_path / "near", without=elsewhere)
    assert {name: row["status"] for name, row in slides.items()} == {
        "Größe 1 µm.tiff": "ok",
        "mirax.mrxs": "ok",
        "dicom": "ok",
        "alpha.tif": "ok",
        "text.svs": "failed",
        "empty.svs": "failed",
        "cut.tiff": "failed",
    }
    assert slides["mirax.mrxs"]["tissue"] == "skin"
    assert {path.name for path in cache.iterdir()} <= {"admission.lock"}
    capsys.readouterr()
    shards(f"{AT}/cohort/*.mrxs", tmp_path / "far", scheduler, *manifest, "--cache", cache)
    assert "nothing to do" in capsys.readouterr().out


def test_a_private_run_names_no_slide_whatever_goes_wrong(server, cohort, nompp_slide, scheduler, tmp_path):
    names = ("Doe Jane ü.tiff", "Doe Jane ü.ndpi", "Doe Jane ü/S19-0044.svs")
    for name in names:
        server.client.upload_file(str(nompp_slide), BUCKET, name)
        server.fail("GET", name, 500)
    (tmp_path / "key").write_text("a secret that is long enough")
    out = tmp_path / "out"
    assert shards(AT, out, scheduler, "--private", "--id-key", tmp_path / "key", "--cache", tmp_path / "cache") == 3
    rows = pq.read_table(out / "catalog/slides").to_pylist()
    assert [(row["status"], row["error_type"]) for row in rows] == [("failed", "StoreFailed")] * 3
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    for word in (b"Doe", b"Jane", b"S19-0044", b"%20"):
        assert word not in everything


def test_a_slide_that_does_not_fit_the_cache_fails_alone(server, cohort, scheduler, tmp_path, capsys):
    server.upload(cohort, "cohort/")
    more = ("--cache", tmp_path / "cache", "--cache-gb", "0.00001")
    (tmp_path / "list.csv").write_text(f"slide\n{AT}/cohort/mirax.mrxs\n{AT}/cohort/site a/Größe 1 µm.tiff\n")
    assert shards(tmp_path / "list.csv", tmp_path / "out", scheduler, *more) == 3
    assert "failed    mirax.mrxs  NoRoom: a copy of it takes" in capsys.readouterr().out


def test_a_tiled_slide_is_read_in_place_and_no_more_of_it_than_its_tiles(server, he_slide, scheduler, tmp_path):
    server.client.upload_file(str(he_slide), BUCKET, "he.svs")
    server.requests.clear()
    assert main(["--slides", f"{AT}/he.svs", "--out", str(tmp_path / "out"), "--scheduler", scheduler]) == 0
    fetched = [r for r in server.requests if r.method == "GET" and r.path.endswith("/he.svs")]
    needed = needed_bytes(he_slide, tmp_path / "out")
    assert sum(r.sent for r in fetched) <= 1.3 * needed
    assert len(fetched) < 250


def needed_bytes(slide, out):
    """Of the compressed tiles under the stored tiles at level 0, and of the level that the thumbnail is from."""
    tiles = [t for t in pq.read_table(out / "catalog/tiles").to_pylist() if t["magnification"] == "40x"]
    with tifffile.TiffFile(slide) as tiff:
        level0, *reduced = [level.pages[0] for level in tiff.series[0].levels]
        across = -(-level0.imagewidth // level0.tilewidth)
        wanted = set()
        for tile in tiles:
            for y in range(tile["y0"] // level0.tilelength, -(-(tile["y0"] + 392) // level0.tilelength)):
                for x in range(tile["x0"] // level0.tilewidth, -(-(tile["x0"] + 392) // level0.tilewidth)):
                    wanted.add(y * across + x)
        thumbnail = min(reduced, key=lambda page: page.imagewidth)
        return sum(level0.databytecounts[i] for i in wanted) + sum(thumbnail.databytecounts)


TROUBLE = [
    ("GET", "/he.svs", 503, 3),
    ("GET", "/he.svs", "cut", 5),
    ("GET", "/he.svs", "slow", 1),
    ("HEAD", "/he.svs", 500, 3),
    ("GET", "/mirax/Data", "cut", 2),
    ("GET", "/mirax/Data", 500, 2),
    ("GET", "list-type=2", "cut", 2),
]


def test_a_store_in_trouble_for_a_while_makes_no_difference(server, cohort, he_slide, scheduler, tmp_path):
    server.upload(cohort, "")
    server.client.upload_file(str(he_slide), BUCKET, "he.svs")
    assert shards(f"{AT}/*[xe].[ms]*", tmp_path / "calm", scheduler) == 0
    faults = [server.fail(*trouble) for trouble in TROUBLE]
    assert shards(f"{AT}/*[xe].[ms]*", tmp_path / "out", scheduler) == 0
    assert [fault.met for fault in faults] == [fault.times for fault in faults]
    calm = tables(tmp_path / "calm")
    assert calm[0].keys() == {"he.svs", "mirax.mrxs"}
    assert tables(tmp_path / "out") == calm


def test_folders_globs_and_lists_name_slides(server):
    slides = ("c/a.svs", "c/x/b.tiff", "c/m.mrxs", "c/m/Slidedat.ini", "c/m/deep.tif")
    for key in (*slides, "c/x/notes.txt", "c/out/run.json", "c/", "c/x/"):  # the last are what consoles make of folders
        server.client.put_object(Bucket=BUCKET, Key=key, Body=key.encode())
    server.client.put_object(Bucket=BUCKET, Key="c/out/catalog/x.tif", Body=b"")
    server.client.put_object(Bucket=BUCKET, Key="c/list.csv", Body=f"slide\nx/b.tiff\n{AT}/c/a.svs\n".encode())
    names = {
        f"{AT}/c": ["a.svs", "m.mrxs", "b.tiff"],
        f"{AT}/c/": ["a.svs", "m.mrxs", "b.tiff"],
        AT: ["a.svs", "m.mrxs", "b.tiff"],
        f"{AT}/c/*": ["a.svs", "m.mrxs"],
        f"{AT}/**/*.tiff": ["b.tiff"],
        f"{AT}/c/a.svs": ["a.svs"],
        f"{AT}/c/list.csv": ["a.svs", "b.tiff"],
    }
    found = {where: find_slides(where) for where in names}
    assert {where: [slide.name for slide in slides] for where, slides in found.items()} == names
    assert {slide.path: slide.slide_id for slides in found.values() for slide in slides} == {
        slide.path: slide.slide_id for slide in found[AT]
    }
    (mirax,) = [slide for slide in found[AT] if slide.name == "m.mrxs"]
    assert mirax.files == (f"{AT}/c/m.mrxs", f"{AT}/c/m/Slidedat.ini", f"{AT}/c/m/deep.tif")
    moved = find_slides(f"{AT}/c", id_root=f"{AT}/c")
    assert {slide.slide_id for slide in moved}.isdisjoint(slide.slide_id for slide in found[AT])


def test_a_fingerprint_takes_few_bytes_and_changes_with_the_content(server):
    data = bytes(range(256)) * 20_000
    marks = []
    for body in (data, data, data[:2_000_000] + b"x" + data[2_000_001:], data + b"x"):
        server.client.put_object(Bucket=BUCKET, Key="a.svs", Body=body)
        (slide,) = find_slides(f"{AT}/a.svs")
        server.requests.clear()
        marks.append(fingerprint(slide))
        assert sum(r.sent for r in server.requests if r.method == "GET") <= 2 * 65536
    assert marks[0] == marks[1]
    assert len(set(marks)) == 3


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (f"{AT}/none", "does not exist"),
        (f"{AT}/none.csv", "does not exist"),
        (f"{AT}/c/*.svs", "matches 0 files"),
        (f"{AT}/c", "holds no slide among 1 file"),
    ],
)
def test_nothing_to_do_is_one_clear_line(server, where, message):
    server.client.put_object(Bucket=BUCKET, Key="c/notes.txt", Body=b"")
    with pytest.raises(NoSlides, match=message):
        find_slides(where)


@pytest.mark.parametrize("where", [f"{AT}/c", f"{AT}/c/*.svs", f"{AT}/c/list.csv", f"{AT}/c/a.svs"])
def test_a_store_that_does_not_answer_is_never_taken_for_an_empty_one(server, where, monkeypatch):
    monkeypatch.setattr("wsi_prep.storage.object_client._RETRIES", 1)
    server.client.put_object(Bucket=BUCKET, Key="c/a.svs", Body=b"")
    server.client.put_object(Bucket=BUCKET, Key="c/list.csv", Body=b"slide\na.svs\n")
    server.fail("GET", "", 503)
    server.fail("HEAD", "", 503)
    with pytest.raises(StoreFailed, match="cannot be used") as caught:
        find_slides(where)
    assert "\n" not in str(caught.value)


def test_a_list_of_slides_that_are_not_there_is_refused(server):
    body = f"slide\n{AT}/none.svs\n".encode()
    server.client.put_object(Bucket=BUCKET, Key="list.csv", Body=body)
    with pytest.raises(BadManifest, match=r"names 1 slide that does not exist .line 2: s3://slides/none.svs"):
        find_slides(f"{AT}/list.csv")
