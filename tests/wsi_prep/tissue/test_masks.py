"""Masks that people give: which slide they belong to, what becomes of its tiles, and which cannot be used."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import openslide
import pyarrow.parquet as pq
import pytest
import tifffile

from pipelines.interchange import main as interchange
from pipelines.shards import main
from tests.support.masked import encoded, prepared
from tests.support.mrxs_wsi import write_mrxs
from tests.support.outlines import SQUARE, feature
from tests.support.textures import texture
from wsi_prep.errors import BadMask, BadOption
from wsi_prep.slides.find.found import SlideSource
from wsi_prep.tissue.masks import MaskFile, find_masks, read_mask


def source(slide_id, name):
    return SlideSource(slide_id, f"/slides/{name}", name, (f"/slides/{name}",))


def test_masks_belong_to_slides_by_id_or_name(tmp_path):
    for name in ("a-01.geojson", "b.svs.png", "c.geojson", "d.GEOJSON", "stray.geojson", ".e.geojson", "f.txt"):
        (tmp_path / name).write_text(name)
    slides = [
        source(f"{n}-01", f"{n}.{ending}")
        for n, ending in zip("abcde", ["svs", "svs", "ome.tif", "x", "y"], strict=True)
    ]
    masks, notes = find_masks(str(tmp_path), Path("/elsewhere"), slides)
    assert {slide: Path(mask.path).name for slide, mask in masks.items()} == {
        "a-01": "a-01.geojson",
        "b-01": "b.svs.png",
        "c-01": "c.geojson",
        "d-01": "d.GEOJSON",
    }
    assert len({mask.digest for mask in masks.values()}) == 4
    assert notes[0] == "MASKS gives the tissue of 4 of 5 slides"
    assert notes[1].endswith("stray.geojson")


@pytest.mark.parametrize(
    ("files", "said"), [(["a.geojson"], "fits 2 slides"), (["a-02.geojson", "a-02.png"], "keep one")]
)
def test_a_name_that_leaves_a_doubt_ends_the_call(tmp_path, files, said):
    for name in files:
        (tmp_path / name).write_text("x")
    with pytest.raises(BadOption, match=said):
        find_masks(str(tmp_path), Path("/elsewhere"), [source("a-01", "a.svs"), source("a-02", "a.svs")])


def geojson(out):
    (file,) = (out / "tissue").glob("*.geojson")
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def detected(he_slide, tmp_path_factory):
    out = tmp_path_factory.mktemp("detected")
    row, tiles = prepared(he_slide, out)
    assert (row["status"], row["tissue_source"]) == ("ok", "detected")
    assert 0.8 < row["tissue_certainty"] <= 1
    return row, tiles, geojson(out)


def test_the_exported_mask_gives_the_same_slide(he_slide, detected, tmp_path):
    row, tiles, document = detected
    again, same = prepared(he_slide, tmp_path, document)
    assert (again["tissue_source"], again["tissue_certainty"]) == ("mask", None)
    assert again["tissue_mm2"] == row["tissue_mm2"]
    assert same == tiles
    assert geojson(tmp_path) == document
    assert again["config_hash"] != row["config_hash"]


def test_half_of_a_mask_gives_half_of_the_tiles(he_slide, detected, tmp_path):
    row, tiles, document = detected
    middle = row["width"] // 2
    right = [
        [middle, -10],
        [row["width"] + 10, -10],
        [row["width"] + 10, row["height"] + 10],
        [middle, row["height"] + 10],
    ]
    document = {**document, "features": [*document["features"], feature(right, name="Ignore*")]}
    _, half = prepared(he_slide, tmp_path, document)
    left = {key for key, tile in tiles.items() if tile["x0"] + tile["span0"] <= middle}
    kept = {key for key, tile in tiles.items() if tile["x0"] + 0.65 * tile["span0"] < middle + 40}
    assert left <= half.keys() <= kept
    assert 0.35 < len(half) / len(tiles) < 0.6


def test_a_picture_is_a_mask_over_the_whole_slide(he_slide, tmp_path):
    picture = np.zeros((340, 660), np.uint8)
    picture[:, :330] = 255
    row, tiles = prepared(he_slide, tmp_path, cv2.imencode(".png", picture)[1].tobytes(), "mask.png")
    assert row["tissue_mm2"] == pytest.approx(3300 * 3400 * 0.25**2 * 1e-6, rel=0.01)
    assert {(name, col) for name, _, col in tiles} == {("20x", n) for n in range(4)} | {("10x", 0), ("10x", 1)}


@pytest.mark.parametrize(
    ("mask", "name", "said"),
    [
        (b"{", "mask.geojson", "not JSON"),
        ([feature([[x + 50_000, y] for x, y in SQUARE])], "mask.geojson", "nothing of it lies on the slide"),
        (b"\x89PNG\r\n\x1a\n", "mask.png", "no PNG"),
        (cv2.imencode(".png", np.full((66, 66), 255, np.uint8))[1].tobytes(), "mask.png", "proportions"),
        (cv2.imencode(".png", np.ones((34, 66), np.uint8))[1].tobytes(), "mask.png", "highest value is 1"),
        (cv2.imencode(".png", np.full((34, 66), 255, np.uint8))[1].tobytes()[:60], "mask.png", "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\x7f\xff\xff\xff" * 2 + bytes(9), "mask.png", "is enough"),
    ],
)
def test_a_bad_mask_fails_its_slide_in_one_line(he_slide, tmp_path, mask, name, said):
    row, _ = prepared(he_slide, tmp_path, mask, name)
    assert (row["status"], row["error_type"]) == ("failed", "BadMask")
    assert said in row["error"]
    assert row["error"].startswith(f"mask {row['slide_id']}.")
    assert not list(tmp_path.glob("stores/*"))


@pytest.mark.parametrize(("scale", "seen"), [(1, ""), (0.25, "lies on bare glass"), (1 / 3200, "px of level 0")])
def test_outlines_in_another_frame_are_said(tmp_path, scale, seen):
    """In um, or as shares of the slide: they fall on glass, or on a single pixel."""
    slide = tmp_path / "slide.tif"
    pixels = np.full((3200, 3200, 3), 243, np.uint8)
    pixels[1600:] = texture(0, 1600, 3200)
    resolution = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(slide, pixels, tile=(256, 256), photometric="rgb", compression="zlib", metadata=None, **resolution)
    square = [[x * scale, y * scale] for x, y in ((0, 1600), (3200, 1600), (3200, 3200), (0, 3200))]
    row, _ = prepared(slide, tmp_path / "out", [feature(square)])
    assert seen in (row["warning"] or "") + (row["error"] or "")
    assert (row["status"] == "ok") == (scale > 0.01)
    assert ("bare glass" in (row["warning"] or "")) == (scale == 0.25)


def test_a_mask_that_changed_since_the_run_began_is_not_taken(tmp_path):
    """The row would bear the mark of another mask than its tiles are of."""
    file = tmp_path / "mask.geojson"
    file.write_text("[]")
    mask = MaskFile(str(file), "0" * 32, file.name)
    with pytest.raises(BadMask, match="it changed during the run"):
        read_mask(mask, None, None)
    with file.open("r+b") as huge:
        huge.truncate(65 * 2**20)
    with pytest.raises(BadMask, match="larger than 64 MiB"):
        read_mask(mask, None, None)
    file.unlink()
    with pytest.raises(BadMask, match="it is missing"):
        read_mask(mask, None, None)


def test_a_private_run_names_no_mask(tmp_path):
    for name in ("S19-004 DOE.svs.geojson", "S19-005 ROE.geojson"):
        (tmp_path / name).write_text("no json")
    found = [source("0123abcd", "S19-004 DOE.svs")]
    masks, notes = find_masks(str(tmp_path), Path("/elsewhere"), found, private=True)
    (tmp_path / "S19-004 DOE.svs.geojson").write_text("changed since")
    with pytest.raises(BadMask) as raised:
        read_mask(masks["0123abcd"], None, None)
    assert str(raised.value).startswith("mask 0123abcd: ")
    assert "holds 1 file named after no slide" in notes[-1]
    assert not any("S19" in text for text in [*notes, str(raised.value)])


ANNOTATIONS = {"type": "FeatureCollection", "features": []}


@pytest.mark.parametrize(
    ("mask", "name"),
    [(ANNOTATIONS, "mask.geojson"), ([], "mask.geojson"), (encoded(np.zeros((34, 66), np.uint8)), "mask.png")],
)
def test_a_mask_that_draws_nothing_is_called_empty(he_slide, tmp_path, mask, name):
    row, _ = prepared(he_slide, tmp_path, mask, name)
    called = name.replace("mask", row["slide_id"])
    assert (row["status"], row["error"]) == ("empty", f"the given mask {called} is empty")


def test_bounds_are_taken_off_for_qupath_and_put_back(he_slide, tmp_path):
    """MRXS: QuPath opens it where its bounds begin, so what it shows and writes counts from there."""
    with openslide.OpenSlide(he_slide) as slide:
        pixels = np.asarray(slide.read_region((1500, 40), 0, (1792, 1792)))[..., :3]
    slide = tmp_path / "slides/case.mrxs"
    slide.parent.mkdir()
    write_mrxs(slide, pixels, 0.25, left=3, top=2, across=14, down=12)
    row, tiles = prepared(slide, tmp_path / "out")
    assert (row["bounds_x0"], row["bounds_y0"]) == (768, 512)
    assert tiles
    assert interchange(["--shards", str(tmp_path / "out"), "--kind", "qupath", "--to", str(tmp_path / "to")]) == 0
    (exported,) = (tmp_path / "to").iterdir()
    document = json.loads(exported.read_text())
    assert exported.stem == row["slide_id"]
    whole, shown = (
        np.array(d["features"][0]["geometry"]["coordinates"][0]) for d in (geojson(tmp_path / "out"), document)
    )
    np.testing.assert_allclose(whole - shown, np.broadcast_to([768, 512], whole.shape), atol=0.11)
    from_qupath = [{**f, "id": "5d0c"} for f in document["features"]]  # as it saves them: a list, and no member of ours
    for number, mask in enumerate((document, from_qupath, geojson(tmp_path / "out"))):
        again, same = prepared(slide, tmp_path / f"again{number}", mask)
        assert same == tiles
        assert again["tissue_mm2"] == row["tissue_mm2"]


@pytest.fixture
def pair(shared_dask, tmp_path, nompp_slide):
    """Slides a and b, an empty MASKS folder, and a call of make shards on them."""
    for name in ("a", "b"):
        (tmp_path / "slides").mkdir(exist_ok=True)
        shutil.copy(nompp_slide, tmp_path / "slides" / f"{name}.tiff")
    (tmp_path / "masks").mkdir()

    def call(*more):
        arguments = [
            "--slides",
            tmp_path / "slides",
            "--out",
            tmp_path / "out",
            "--workers",
            "1",
            "--assume-mpp",
            "0.5",
        ]
        return main([*map(str, arguments), *map(str, more)])

    return tmp_path, call


def states(out):
    return {
        r["file"][0]: (r["status"], r["tissue_source"], r["tiles_20x"])
        for r in pq.read_table(out / "catalog/slides").to_pylist()
    }


def test_masks_redo_their_own_slides_and_nothing_else(pair, capsys):
    folder, call = pair
    out, masks = folder / "out", folder / "masks"
    assert call() == 0
    before = states(out)
    stores = {p.parent.name[0]: p.stat().st_mtime_ns for p in out.glob("stores/*/zarr.json")}
    (masks / "a.geojson").write_text(json.dumps([feature([[0, 0], [1700, 0], [1700, 1000], [0, 1000]])]))
    (masks / "nobody.geojson").write_text("[]")
    capsys.readouterr()
    assert call("--masks", masks) == 0
    assert "MASKS gives the tissue of 1 of 2 slides" in capsys.readouterr().out
    after = states(out)
    assert after["a"][:2] == ("ok", "mask")
    assert 0 < after["a"][2] < before["a"][2]
    assert after["b"] == before["b"] == ("ok", "detected", before["b"][2])
    again = {p.parent.name[0]: p.stat().st_mtime_ns for p in out.glob("stores/*/zarr.json")}
    assert again["b"] == stores["b"]
    assert again["a"] != stores["a"]

    capsys.readouterr()
    assert call("--masks", masks) == 0
    printed = capsys.readouterr().out
    assert "nothing to do" in printed
    assert "nobody.geojson" in printed
    assert call() == 2
    assert "MASKS=" in capsys.readouterr().err

    (masks / "b.tiff.geojson").write_text("{broken")
    (masks / "a.geojson").write_text(json.dumps([feature([[0, 0], [1700, 0], [1700, 600], [0, 600]])]))
    assert call("--masks", masks) == 3
    assert "b.tiff.geojson" in capsys.readouterr().out
    last = states(out)
    assert last["b"][0] == "failed"
    assert 0 < last["a"][2] < after["a"][2]


def test_masks_that_cannot_be_had_end_the_call(pair, capsys):
    folder, call = pair
    (folder / "out/tissue").mkdir(parents=True)
    for masks, said in ((folder / "nowhere", "is no folder"), (folder / "out/tissue", "lies in OUT")):
        assert call("--masks", masks) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error
