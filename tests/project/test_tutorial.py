"""docs/tutorial.md: each of its blocks is run as it stands, one after the other, on sample slides."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import cv2
import pyarrow.dataset as ds
import pytest

from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
NOT_HERE = ("pip install", "mixmag samples")
"""Blocks that set up what the test has: the environment, and the slides."""


@pytest.fixture(scope="module")
def done(he_slide, nompp_slide, tmp_path_factory):
    """The folder in which all blocks were run, and what each printed, by its last words."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "slides").mkdir()
    shutil.copy(he_slide, folder / "slides" / "he_40x.svs")
    shutil.copy(nompp_slide, folder / "slides" / "he_nompp.tiff")
    program = folder / "bin" / "mixmag"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pipelines.mixmag "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    surrounding = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    said = []
    for kind, block in BLOCKS:
        if not any(words in block for words in NOT_HERE):
            command = ["bash", "-euo", "pipefail"] if kind == "bash" else [sys.executable]
            ran = subprocess.run(
                [*command, "-c", block], cwd=folder, env=surrounding, capture_output=True, text=True, check=False
            )
            assert ran.returncode == 0, (block, ran.stdout, ran.stderr)
            said.append(ran.stdout)
    return folder, said


@pytest.mark.long
def test_every_block_does_what_the_page_says(done):
    folder, (cut, again, overlays, _, answer, _, _, _, rows) = done
    assert "2 slides: 1 excluded, 1 ok" in cut
    assert "2 slides, 1 of them done before: 2 ok" in again
    ids = {row["file"]: row["slide_id"] for row in ds.dataset(folder / "shards/catalog/slides").to_table().to_pylist()}
    assert set(overlays.split()) == {f"{slide}.jpg" for slide in ids.values()}
    assert all(name in (folder / "audit.html").read_text() for name in ("he_40x.svs", "he_nompp.tiff"))
    tiles = ds.dataset(folder / "shards/catalog/tiles").to_table().to_pylist()
    there = {(row["slide_id"], row["magnification"]) for row in tiles}
    assert {magnification for slide, magnification in there if slide == ids["he_nompp.tiff"]} == {"5x", "10x", "20x"}
    assert re.search(rf"HE +40x +{sum(row['magnification'] == '40x' for row in tiles)} ", answer)
    assert cv2.imread(str(folder / "sheet.png")).shape[2] == 3
    assert rows.startswith(f"{sum(row['magnification'] == '20x' for row in tiles)} tiles, ")


def test_the_blocks_that_are_not_run_are_the_first_two():
    skipped = [number for number, (_, block) in enumerate(BLOCKS) if any(words in block for words in NOT_HERE)]
    assert skipped == [0, 1]
