"""Slides that several tests share, made once a session; see sample_slides for what is on them."""

import os
import subprocess
from functools import partial
from unittest.mock import patch

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the tests run beside each other, one process a core

from sample_slides import coordinates
from sample_slides.layout import make_layout
from sample_slides.make import CMU, he_svs, make_synthetic, nompp_tiff
from sample_slides.scene import make_scene
from sample_slides.texture import he_stain
from tests.support.paths import REAL, ROOT

# a busy machine is no fault; 60 examples, where 100 are usual, keep the whole check under 20 minutes
hypothesis.settings.register_profile("untimed", deadline=None, max_examples=60)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=15)  # for make test-fast
hypothesis.settings.load_profile("untimed")

MARKED_BY = {
    "slow": {"he_slide", "painted", "coordinate_slide", "real_slides", "cmu_slide"},
    "browser": {"browser"},
    "cluster": {"_dask", "_far_dask", "_stores_dask", "_slurm"},
    "network": {"_object_server"},
}
"""Markers that follow from what a test asks for."""


def pytest_collection_modifyitems(items):
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        asked = {*item.fixturenames, *(value for value in parameters if isinstance(value, str))}
        for marker, fixtures in MARKED_BY.items():
            if fixtures & asked:
                item.add_marker(marker)


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
    return pytest.skip(f"needs {CMU}: make samples")


@pytest.fixture(scope="session")
def _slurm(tmp_path_factory):
    from tests.support.slurm import Slurm

    with Slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def slurm(_slurm):
    """A real SLURM of two nodes, n1 and n2, all of it idle."""
    yield _slurm
    _slurm.tidy()


@pytest.fixture(scope="session")
def _object_server():
    from tests.support.object_server import ObjectServer

    server = ObjectServer()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def object_server(_object_server):
    """A bucket over HTTP, named by the environment as a user would; see object_server.py for how it is made to fail."""
    with patch.dict(os.environ, _object_server.environment):
        yield _object_server
    _object_server.clear()


@pytest.fixture(scope="session")
def _far_dask(_object_server):
    from tests.support.shared_dask import one_worker

    with patch.dict(os.environ, _object_server.environment), one_worker() as address:
        yield address


@pytest.fixture(scope="module")
def scheduler(object_server, _far_dask):
    """The address of a Dask cluster of one worker that reaches the bucket; calls here start none of their own."""
    from tests.support.shared_dask import shared

    with shared(_far_dask):
        yield _far_dask


@pytest.fixture(scope="session")
def _dask():
    from tests.support.shared_dask import one_worker

    with one_worker() as address:
        yield address


@pytest.fixture(scope="module")
def shared_dask(_dask):
    """Calls in this process take one cluster of one worker, the same all session, where each would start its own."""
    from tests.support.shared_dask import shared

    with shared(_dask):
        yield


@pytest.fixture
def own_dask(shared_dask):
    """In spite of shared_dask, calls of this test start their own."""
    from tests.support.shared_dask import not_shared

    with not_shared():
        yield


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
