"""`make peek`: the picture is of the right tiles, and a wrong call is one line."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipelines.peek import main
from tests.support.painted import nuclei
from tests.support.shard_folders import add_slide, grey


def test_the_sheet_shows_every_stratum_and_the_crops(tmp_path, capsys):
    out = tmp_path / "out"
    add_slide(out, 1, {"20x": 3}, stain="HE", patient_key="p")
    add_slide(out, 2, {"20x": 3, "5x": 2}, stain="IHC", patient_key="q")
    sheet = tmp_path / "new" / "sheet.png"
    assert main(["--shards", str(out), "--out", str(sheet), "--index", str(tmp_path / "index")]) == 0
    pixels = np.asarray(Image.open(sheet).convert("RGB"))
    values, counts = np.unique(pixels[(pixels == pixels[..., :1]).all(2)][:, 0], return_counts=True)
    shown = set(values[counts > 4000])  # a tile of the sheet is larger
    tiles = {(1, "20x", 0), (1, "20x", 1), (1, "20x", 2), (2, "20x", 0), (2, "20x", 1), (2, "20x", 2)}
    tiles |= {(2, "5x", 0), (2, "5x", 1)}
    for slide, magnification, index in tiles:
        assert any(abs(int(v) - grey(slide, magnification, index)) <= 1 for v in shown), (slide, magnification, index)
    said = capsys.readouterr()
    assert "8 tiles of 2 slides in 3 strata" in said.out
    assert "no tile at 40x 10x" in said.err


def test_a_tile_that_cannot_be_read_is_named(tmp_path, capsys):
    out = tmp_path / "out"
    slide_id = add_slide(out, 1, {"20x": 3}, patient_key="p")
    shard = out / "stores" / f"{slide_id}.zarr" / "20x" / "c.0.0.0.0"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    options = ["--shards", str(out), "--out", str(tmp_path / "sheet.png"), "--index", str(tmp_path / "index")]
    assert main(options) == 3
    assert f"{slide_id}.zarr/20x[0]: CRC-32 differs" in capsys.readouterr().err


def test_a_wrong_call_is_one_line(tmp_path, capsys):
    options = ["--out", str(tmp_path / "sheet.png"), "--index", str(tmp_path / "index")]
    assert main(["--shards", str(tmp_path / "nothing"), *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    add_slide(tmp_path / "out", 1, {"20x": 1}, patient_key="p")
    assert main(["--shards", str(tmp_path / "out"), "--where", "stian = 'HE'", *options]) == 2
    assert "stian" in capsys.readouterr().err


@pytest.mark.slow
def test_training_commands_need_no_slide_library_and_no_dask():
    code = "import sys, pipelines.peek; print([m for m in ('openslide', 'dask', 'cv2', 'zarr') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_sheet_is_a_png_by_any_name(tmp_path):
    out = tmp_path / "out"
    add_slide(out, 1, {"20x": 3}, patient_key="p")
    assert main(["--shards", str(out), "--out", str(tmp_path / "sheet"), "--index", str(tmp_path / "index")]) == 0
    assert Image.open(tmp_path / "sheet").format == "PNG"


def test_any_um_per_px_is_shown_as_it_is_drawn(tmp_path, capsys):
    out, sheets = tmp_path / "out", [tmp_path / "stored.png", tmp_path / "any.png"]
    add_slide(out, 1, {"20x": 12}, nuclei, patient_key="p")
    for sheet, more in zip(sheets, ([], ["--any-mpp"]), strict=True):
        options = ["--shards", str(out), "--png", str(sheet), "--index", str(tmp_path / "index")]
        assert main([*options, *more]) == 0
    stored, any_mpp = (np.asarray(Image.open(sheet).convert("L")).astype(int) for sheet in sheets)
    assert any_mpp.shape[0] - stored.shape[0] > 6 * 392
    assert "serves 1 to 2 um/px" in " ".join(capsys.readouterr().err.split())
    assert main([*options, "--any-mpp", "--continuous"]) == 2
    assert "exclude each other" in capsys.readouterr().err
