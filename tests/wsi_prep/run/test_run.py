"""`make shards` as a user calls it: real slides of every kind of trouble, a real Dask cluster, real files."""

import json
import shutil
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from distributed import LocalCluster

from pipelines.shards import main
from sample_slides.coordinates import coordinate_slide as make_coordinate_slide
from wsi_prep.format.jpeg import decode_tile

pytestmark = [pytest.mark.usefixtures("shared_dask"), pytest.mark.slow]


def shards(slides, out, *more):
    return main(["--slides", str(slides), "--out", str(out), "--workers", "2", *map(str, more)])


def rows(out, table="slides"):
    return pq.read_table(out / "catalog" / table).to_pylist()


def fluorescence(path):
    rng = np.random.default_rng(0)
    pixels = (rng.random((1600, 1600, 3)) ** 8 * 60).astype(np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", resolution=(40_000, 40_000), resolutionunit=3)


def damaged(slide, path):
    """A copy whose level 0 has zeros where some of its tiles were."""
    shutil.copy(slide, path)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with path.open("r+b") as file:
        for offset, count in places[5:20]:
            file.seek(offset)
            file.write(b"\0" * count)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, he_slide, nompp_slide):
    """Good and bad slides together, run once: (slides folder, out folder, exit code, what was printed)."""
    slides, out = tmp_path_factory.mktemp("cohort"), tmp_path_factory.mktemp("out") / "shards"
    for site in ("site a", "sité_b"):
        (slides / site).mkdir()
        shutil.copy(nompp_slide, slides / site / "slide.tiff")
    shutil.copy(he_slide, slides / "Größe 1 µm.svs")
    for name in ("nompp", "zero", "nan", "huge", "coarse"):
        shutil.copy(nompp_slide, slides / f"{name}.tiff")
    damaged(nompp_slide, slides / "damaged.tiff")
    fluorescence(slides / "fluorescence.tif")
    make_coordinate_slide(slides / "small.tiff", 300, 300, 0.25)
    tifffile.imwrite(
        slides / "glass.tif",
        np.full((2000, 2000, 3), 243, np.uint8),
        tile=(256, 256),
        photometric="rgb",
        resolution=(40_000, 40_000),
        resolutionunit=3,
    )
    (slides / "text.svs").write_text("dear colleague")
    (slides / "empty.svs").write_bytes(b"")
    (slides / "cut.svs").write_bytes(he_slide.read_bytes()[:200_000])
    (slides / "manifest.csv").write_text(
        "slide,mpp,institution,patient\n"
        "site a/slide.tiff,0.5,north,secret-patient-7\nsité_b/slide.tiff,0.5,,\n"
        "zero.tiff,0,,\nnan.tiff,nan,,\nhuge.tiff,400,,\ncoarse.tiff,4,,\ndamaged.tiff,0.5,,\nelsewhere.svs,0.5,,\n",
        encoding="utf-8",
    )
    key = slides.parent / "key"
    key.write_text("a secret that is long enough")
    code = shards(slides, out, "--manifest", slides / "manifest.csv", "--patient-key", key)
    return slides, out, code


def test_each_slide_gets_its_own_verdict_and_none_ends_the_run(cohort):
    _, out, code = cohort
    verdicts = {
        row["slide_id"].rsplit("-", 1)[0] + "/" + row["file"]: (row["status"], row["error_type"]) for row in rows(out)
    }
    assert {name.split("/")[1]: verdict for name, verdict in verdicts.items()} == {
        "Größe 1 µm.svs": ("ok", None),
        "slide.tiff": ("ok", None),
        "nompp.tiff": ("excluded", "MissingMpp"),
        "zero.tiff": ("excluded", "ImplausibleMpp"),
        "nan.tiff": ("excluded", "ImplausibleMpp"),
        "huge.tiff": ("excluded", "ImplausibleMpp"),
        "coarse.tiff": ("excluded", "TooCoarse"),
        "fluorescence.tif": ("excluded", "NotBrightField"),
        "small.tiff": ("empty", None),
        "glass.tif": ("empty", None),
        "damaged.tiff": ("failed", "DamagedSlide"),
        "text.svs": ("failed", "UnreadableSlide"),
        "empty.svs": ("failed", "UnreadableSlide"),
        "cut.svs": ("failed", "DamagedSlide"),
    }
    assert len(rows(out)) == 15
    assert code == 3


def test_light_on_black_has_been_looked_at_and_what_cannot_be_opened_has_not(cohort):
    seen = {row["file"]: (row["stain"], row["stain_source"], row["stain_pixels"]) for row in rows(cohort[1])}
    assert seen["fluorescence.tif"] == ("UNKNOWN", "pixels", "UNKNOWN")  # its noise is grey in the mean
    assert seen["slide.tiff"] == ("HE", "pixels", "HE")
    assert seen["text.svs"] == (None, None, None)


def test_every_reason_is_one_line(cohort):
    for row in rows(cohort[1]):
        if row["status"] != "ok":
            assert row["error"]
            assert "\n" not in row["error"]
            assert "Traceback" not in row["error"]


def test_slides_of_one_name_are_both_kept(cohort):
    same = [row for row in rows(cohort[1]) if row["file"] == "slide.tiff"]
    assert len({row["slide_id"] for row in same}) == 2
    assert [row["tiles_20x"] > 0 for row in same] == [True, True]
    assert {(row["institution"], row["institution_source"]) for row in same} == {
        ("north", "manifest"),
        ("unknown", "unknown"),
    }


def test_patients_are_keyed_hashes(cohort):
    _slides, out, _ = cohort
    (keyed,) = [row["patient_key"] for row in rows(out) if row["patient_key"]]
    assert len(keyed) == 32
    everything = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    assert b"secret-patient-7" not in everything
    assert b"long enough" not in everything


def test_a_slide_that_failed_leaves_nothing_but_its_row(cohort):
    _, out, _ = cohort
    kept = {row["slide_id"] for row in rows(out) if row["status"] == "ok"}
    assert {p.name.removesuffix(".zarr") for p in (out / "stores").iterdir()} == kept
    assert list((out / ".staging").iterdir()) == []
    failed = {row["slide_id"] for row in rows(out) if row["status"] == "failed"}
    assert not failed & {p.stem for p in (out / "overlays").iterdir()}


def test_a_tile_by_its_offset_is_what_zarr_stores(cohort):
    _, out, _ = cohort
    tiles = rows(out, "tiles")
    assert len(tiles) > 150
    arrays = {name: zarr.open(out / name, mode="r") for name in {t["array"] for t in tiles}}
    for tile in tiles:
        data = (out / tile["shard"]).read_bytes()[tile["offset"] : tile["offset"] + tile["nbytes"]]
        assert zlib.crc32(data) == tile["crc32"]
    for tile in tiles[::7]:
        data = (out / tile["shard"]).read_bytes()[tile["offset"] : tile["offset"] + tile["nbytes"]]
        assert np.array_equal(arrays[tile["array"]][tile["index"]], decode_tile(data))
    counts = {name: sum(t["array"] == name for t in tiles) for name in arrays}
    assert {name: array.shape[0] for name, array in arrays.items()} == counts


def test_the_catalog_agrees_with_itself(cohort):
    _, out, _ = cohort
    tiles = rows(out, "tiles")
    for row in rows(out):
        for mag in ("5x", "10x", "20x", "40x"):
            of_slide = [t for t in tiles if t["slide_id"] == row["slide_id"] and t["magnification"] == mag]
            assert len(of_slide) == row[f"tiles_{mag}"]
            assert all(t["tissue_fraction"] >= 0.65 - 1e-6 for t in of_slide)
            assert [t["index"] for t in of_slide] == list(range(len(of_slide)))
            assert all(t["x0"] + t["span0"] <= row["width"] + 0.5 for t in of_slide)
            assert all(t["y0"] + t["span0"] <= row["height"] + 0.5 for t in of_slide)
    run = json.loads((out / "run.json").read_text())
    assert run["slides"] == {"ok": 3, "excluded": 6, "empty": 2, "failed": 4}
    assert sum(run["tiles"].values()) == len(tiles)


def test_few_files_are_left(cohort):
    _, out, _ = cohort
    for row in rows(out):
        if row["status"] == "ok":
            store = [p for p in (out / "stores" / f"{row['slide_id']}.zarr").rglob("*") if p.is_file()]
            magnifications = sum(row[f"tiles_{m}"] > 0 for m in ("5x", "10x", "20x", "40x"))
            assert len(store) == 1 + 2 * magnifications
            assert row["files"] == len(store) + 2
            assert row["bytes"] == sum(p.stat().st_size for p in store)
    assert len(list((out / "catalog").rglob("*.parquet"))) == 2


def test_a_second_run_tries_failures_again_and_does_nothing_else(cohort, capsys):
    slides, out, _ = cohort
    before = {p: p.stat().st_mtime_ns for p in (out / "stores").rglob("*")}
    assert shards(slides, out, "--manifest", slides / "manifest.csv", "--patient-key", slides.parent / "key") == 3
    printed = capsys.readouterr().out
    assert "15 slides, 11 of them done before: 2 empty, 6 excluded, 4 failed, 3 ok" in printed
    assert "failed    text.svs  UnreadableSlide: no reader takes this file" in printed
    assert "note: the manifest names 1 slide that was not found: elsewhere.svs" in printed
    assert {p: p.stat().st_mtime_ns for p in (out / "stores").rglob("*")} == before


@pytest.fixture
def two(tmp_path, nompp_slide):
    """Two small slides with a manifest: (slides folder, out folder, manifest)."""
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in ("a.tiff", "b.tiff"):
        shutil.copy(nompp_slide, slides / name)
    (slides / "m.csv").write_text("slide,mpp,tissue\na.tiff,0.5,lung\nb.tiff,0.5,skin\n")
    return slides, tmp_path / "out", slides / "m.csv"


def test_what_is_done_is_not_done_again(two, capsys):
    slides, out, manifest = two
    assert shards(slides, out, "--manifest", manifest) == 0
    times = {row["file"]: row["seconds"] for row in rows(out)}
    capsys.readouterr()
    assert shards(slides, out, "--manifest", manifest) == 0
    assert "nothing to do: 2 slides are already done" in capsys.readouterr().out

    # another scale in the manifest redoes that slide; another description redoes none
    manifest.write_text("slide,mpp,tissue\na.tiff,0.5,colon\nb.tiff,1.0,skin\n")
    assert shards(slides, out, "--manifest", manifest) == 0
    after = {row["file"]: row for row in rows(out)}
    assert after["a.tiff"]["seconds"] == times["a.tiff"]
    assert (after["a.tiff"]["tissue"], after["b.tiff"]["tiles_20x"]) == ("colon", 0)
    assert after["b.tiff"]["tiles_10x"] > 0

    # so does another content
    shutil.copy(slides / "b.tiff", slides / "a.tiff")
    (slides / "a.tiff").write_bytes((slides / "a.tiff").read_bytes() + b"\0")
    assert shards(slides, out, "--manifest", manifest) == 0
    assert {row["file"]: row["fingerprint"] for row in rows(out)}["a.tiff"] != after["a.tiff"]["fingerprint"]
    assert len(rows(out, "tiles")) == sum(row[f"tiles_{m}"] for row in rows(out) for m in ("5x", "10x", "20x", "40x"))


def test_other_settings_need_another_folder_or_redo(two, capsys):
    slides, out, manifest = two
    assert shards(slides, out, "--manifest", manifest, "--mags", "10x") == 0
    before = sorted(p.name for p in out.rglob("*") if p.is_file())
    assert shards(slides, out, "--manifest", manifest, "--mags", "20x 10x") == 2
    message = capsys.readouterr().err
    assert "made with other settings (plan.magnifications was ['10x'], now ['20x', '10x'])" in message
    assert "REDO=1" in message
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == before
    assert shards(slides, out, "--manifest", manifest, "--mags", "20x 10x", "--redo") == 0
    assert {t["magnification"] for t in rows(out, "tiles")} == {"10x", "20x"}


def test_tiles_can_be_limited(two):
    slides, out, manifest = two
    assert shards(slides, out, "--manifest", manifest, "--max-tiles", "20x=3") == 0
    assert [row["tiles_20x"] for row in rows(out)] == [3, 3]


def test_missing_scale_can_be_assumed_on_request(two):
    slides, out, _ = two
    assert shards(slides, out, "--assume-mpp", "0.5") == 0
    assert {(row["status"], row["mpp_source"]) for row in rows(out)} == {("ok", "assumed")}


def test_a_running_cluster_can_be_named(two):
    slides, out, manifest = two
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1") as cluster:
        code = shards(slides, out, "--manifest", manifest, "--scheduler", cluster.scheduler_address)
    assert code == 0
    assert [row["status"] for row in rows(out)] == ["ok", "ok"]


def wrong(capsys, *arguments):
    """The one line that a wrong call prints."""
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.strip()
    assert "\n" not in line
    assert "Traceback" not in line
    return line


def test_wrong_calls_say_what_to_do_and_touch_nothing(two, tmp_path, capsys):
    slides, out, manifest = two
    call = ["--slides", slides, "--out", out]
    assert "does not exist" in wrong(capsys, "--slides", tmp_path / "none", "--out", out)
    (tmp_path / "bare").mkdir()
    assert "holds no slide among 0 files" in wrong(capsys, "--slides", tmp_path / "bare", "--out", out)
    assert "'30x' is not known; choose from 40x 20x 10x 5x" in wrong(capsys, *call, "--mags", "30x")
    assert "write a magnification and a count" in wrong(capsys, *call, "--max-tiles", "40x=many")
    assert "not between 0 and 1" in wrong(capsys, *call, "--tissue", "65")
    assert "not between 0.05 and 40" in wrong(capsys, *call, "--assume-mpp", "400")
    assert "JPEG quality 101" in wrong(capsys, *call, "--quality", "101")
    assert "cannot be read" in wrong(capsys, *call, "--patient-key", tmp_path / "none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSI_PREP_PATIENT_KEY", "short")
        assert "$WSI_PREP_PATIENT_KEY has 5 bytes" in wrong(capsys, *call)
    manifest.write_text("slide,tisue\na.tiff,lung\n")
    assert "column 'tisue' is not known" in wrong(capsys, *call, "--manifest", manifest)
    manifest.write_text("slide,mpp\na.tiff,0.5\na.tiff,0.25\n")
    assert "names a.tiff twice" in wrong(capsys, *call, "--manifest", manifest)
    assert not out.exists()


def test_an_output_that_cannot_be_used_is_refused(two, tmp_path, capsys):
    slides, _, _ = two
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.doc").write_text("")
    assert "is a file" in wrong(capsys, "--slides", slides, "--out", tmp_path / "file")
    assert "cannot be written" in wrong(capsys, "--slides", slides, "--out", tmp_path / "file/under")
    assert "holds other files and no run.json" in wrong(capsys, "--slides", slides, "--out", tmp_path / "full")
    assert (tmp_path / "full/thesis.doc").exists()


def test_a_scheduler_that_is_not_there_costs_nothing(two, capsys, monkeypatch):
    slides, out, manifest = two
    monkeypatch.setattr("wsi_prep.compute.jobs._CONNECT_SECONDS", 1)
    assert shards(slides, out, "--manifest", manifest) == 0
    before = rows(out)
    manifest.write_text("slide,mpp,tissue\na.tiff,0.5,lung\nb.tiff,1.0,skin\n")
    capsys.readouterr()
    line = wrong(capsys, "--slides", slides, "--out", out, "--manifest", manifest, "--scheduler", "tcp://127.0.0.1:9")
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in line
    assert rows(out) == before


def test_real_slides_give_what_their_readme_says(real_slides, tmp_path):
    assert shards(real_slides, tmp_path / "out", "--manifest", real_slides / "manifest.csv") == 0
    table = {row["file"]: row for row in rows(tmp_path / "out")}
    assert {row["status"] for name, row in table.items()} == {"ok", "excluded"}
    excluded = {name: row["error_type"] for name, row in table.items() if row["status"] == "excluded"}
    assert excluded == {
        "liver-biopsy_HE_2.5x_nompp.tif": "TooCoarse",
        "camelyon-overview_HE.dcm": "TooCoarse",
        "marrow_special-stain_jpeg2000.dcm": "TooCoarse",
        "fluorescence_TRITC.ndpi": "NotBrightField",
    }
    mpps = {}
    for tile in rows(tmp_path / "out", "tiles"):
        name = next(n for n, row in table.items() if row["slide_id"] == tile["slide_id"])
        mpps.setdefault(name, {}).setdefault(tile["magnification"], set()).add(round(tile["mpp"], 4))
    assert mpps["CMU-1-Small-Region.svs"] == {"20x": {0.499}, "10x": {0.998}}
    assert mpps["net-duodenum_SYN-IHC_40x.svs"] == {"40x": {0.2527}, "20x": {0.5054}, "10x": {1.0108}, "5x": {2.0216}}
    assert mpps["crohn-colon_HE_40x.tiff"] == {"40x": {0.25}, "20x": {0.5}, "10x": {1.0}, "5x": {2.0}}
    assert set(mpps["glycogenosis-liver_HE_20x_nompp.tif"]) == {"20x", "10x", "5x"}
    assert set(mpps["glycogenosis-liver_PASD_10x_nompp.tif"]) == {"10x", "5x"}
