"""The names that are for everybody: each is there, has an example that runs, and gives what `make shards` gives."""

import contextlib
import doctest
import importlib
import inspect
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

import wsi_prep
from tests.support.paths import ROOT
from wsi_prep.errors import BadCatalog, BadOption

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
WITHOUT = {"MAGNIFICATIONS", "TILE_PX", "SlideError", "WsiPrepError"}
"""Constants, and errors that nobody raises by themselves."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, he_slide, shared_dask):
    """A slide, and its shards, as the examples name them."""
    folder = tmp_path_factory.mktemp("public")
    shutil.copy(he_slide, folder / "slide.svs")
    with contextlib.chdir(folder):
        wsi_prep.run_shards(wsi_prep.RunRequest("slide.svs", "shards"))
    return folder


def examples(name):
    thing = getattr(wsi_prep, name)
    module = importlib.import_module(thing.__module__)
    tests = doctest.DocTestFinder(recurse=False).find(thing, name, module, vars(wsi_prep) | vars(module))
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("name", sorted(set(wsi_prep.__all__) - WITHOUT))
def test_the_example_of_each_name_runs(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (example,) = examples(name)
    example.globs.update({each: getattr(wsi_prep, each) for each in wsi_prep.__all__})
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(example).failed == 0


def test_a_notebook_gives_the_tiles_that_make_shards_gives(folder):
    with wsi_prep.open_catalog(str(folder / "shards")) as catalog:
        rows = catalog.ask("SELECT * FROM tiles WHERE magnification = '10x'").read_all().to_pylist()
    wanted = {(row["x0"], row["y0"]): wsi_prep.read_tile(folder / "shards", row).astype(int) for row in rows}
    with wsi_prep.open_slide(folder / "slide.svs") as slide:
        plan = wsi_prep.plan_tiles(slide, settings=wsi_prep.PlanSettings(("10x",)))
        found = {(int(plan.x0[n]), int(plan.y0[n])): pixels for n, pixels in slide.tiles(plan)}
    assert found.keys() == wanted.keys()
    for place, pixels in found.items():
        assert np.corrcoef(pixels.ravel(), wanted[place].ravel())[0, 1] > 0.97  # one of them went through JPEG
        assert np.abs(pixels.mean(axis=(0, 1)) - wanted[place].mean(axis=(0, 1))).max() < 1


def test_reading_is_in_the_frame_of_level_0(folder):
    with wsi_prep.open_slide(folder / "slide.svs") as slide:
        fine = slide.read(2000, 1000, 400, 400)
        coarse = slide.read(2000, 1000, 100, 100, level=1)
        means = fine.reshape(100, 4, 100, 4, 3).mean(axis=(1, 3))
        assert np.abs(means - coarse).mean() < 6
        white = slide.read(slide.info.width0, 0, 8, 8)
    assert (white == 255).all()


def test_mistakes_are_one_line(folder):
    with wsi_prep.open_slide(folder / "slide.svs") as slide, pytest.raises(BadOption, match="mask of"):
        wsi_prep.plan_tiles(slide, np.ones((3, 3), bool))
    row = {"slide_id": "../x", "magnification": "20x", "index": 0, "offset": 0, "nbytes": 10, "crc32": 0}
    with pytest.raises(BadCatalog):
        wsi_prep.read_tile(folder / "shards", row)


def test_what_the_readme_shows_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})  # noqa: S102 - our own words
    assert cv2.imread("slide.png").shape[0] > 100


def test_every_name_is_found_by_help_and_is_imported_when_used():
    assert set(wsi_prep.__all__) <= set(dir(wsi_prep))
    assert all(inspect.getdoc(getattr(wsi_prep, name)) for name in wsi_prep.__all__)
    code = "import sys, wsi_prep; assert not {'numpy', 'dask', 'cv2', 'wsi_prep.notebook'} & set(sys.modules)"
    code += "; from wsi_prep import open_slide, plan_tiles, show; assert 'dask' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError):
        wsi_prep.no_such_name  # noqa: B018
