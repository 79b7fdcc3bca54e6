"""Slides that several tests share, made once a session; see sample_slides for what is on them."""

import os
import subprocess
from functools import partial

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the tests run beside each other, one process a core

from sample_slides import coordinates
from sample_slides.layout import make_layout
from sample_slides.make import CMU, he_svs, make_synthetic, nompp_tiff
from sample_slides.scene import make_scene
from sample_slides.texture import he_stain
from tests.support.paths import REAL, ROOT


@pytest.fixture(scope="session")
def he_slide(tmp_path_factory):
    """H&E in Aperio's layout, 6600 x 3400 px at 0.25 um/px: two 5x tiles side by side, both mostly tissue."""
    slide = tmp_path_factory.mktemp("he") / "he.svs"
    make_synthetic(slide, partial(he_svs, width=6600, height=3400))
    return slide


@pytest.fixture(scope="session")
def nompp_slide(tmp_path_factory):
    """Generic TIFF, 1700 x 2100 px, drawn at 0.5 um/px but saying so nowhere: one 5x tile."""
    slide = tmp_path_factory.mktemp("nompp") / "nompp.tiff"
    make_synthetic(slide, partial(nompp_tiff, width=1700, height=2100))
    return slide


@pytest.fixture(scope="session")
def coordinate_slide(tmp_path_factory):
    """Pixels tell their position, see sample_slides.coordinates: 6291 x 3411 px at 0.25 um/px, levels x3 and x9."""
    folder = tmp_path_factory.mktemp("coordinates")
    return coordinates.coordinate_slide(folder / "coordinates.tiff", 6291, 3411, 0.25, factors=(3, 9))


@pytest.fixture(scope="session")
def painted():
    """(3400, 3600, 3) pixels of H&E on glass at 0.25 um/px, and the (h, w) mask of its tissue at 8 um/px."""
    layout = make_layout(3600, 3400, 0.25, seed=1, marks=False)
    return make_scene(layout, he_stain(0.25, seed=2), seed=3).paint(0, 0, 3600, 3400), layout.mask


@pytest.fixture(scope="session")
def real_slides():
    """The folder of real slides that lies beside some checkouts."""
    if not REAL.is_dir():
        pytest.skip("needs ../shared/slides, which is not part of the repository")
    return REAL


@pytest.fixture(scope="session")
def cmu_slide():
    """CMU-1-Small-Region.svs, wherever it is."""
    for folder in (REAL, ROOT / "sample_slides"):
        if (folder / CMU).is_file():
            return folder / CMU
    return pytest.skip(f"needs {CMU}: python -m sample_slides.make --only {CMU}")


@pytest.fixture(scope="module")
def object_server():
    """A bucket over HTTP, named by the environment as a user would; see object_server.py for how it is made to fail."""
    from tests.support.object_server import ObjectServer

    server = ObjectServer()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.clear()  # every server of a process shows the same objects
    server.stop()


@pytest.fixture(scope="module")
def scheduler(object_server):
    """The address of a Dask cluster of one worker that reaches the bucket."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1") as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB, where this machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
