"""Fixtures of the object stores that tests here share."""

import contextlib
import os
from unittest.mock import patch

import pytest

from tests.support.shared_dask import one_worker, shared
from tests.support.stores import Amazon, azure, google
from wsi_prep.slides.fetch.object_files import _kind_of_files


@pytest.fixture(scope="session")
def _stores(_object_server, tmp_path_factory):
    """Each kind that runs here by its name, of the others why not."""
    with contextlib.ExitStack() as running:
        found = {"s3": Amazon(_object_server)}
        for kind, start in (("az", azure), ("gs", google)):
            try:
                found[kind] = running.enter_context(start(tmp_path_factory.mktemp(kind)))
            except pytest.skip.Exception as why:
                found[kind] = str(why)
        yield found


@pytest.fixture(scope="session")
def _stores_dask(_stores):
    """The address of a cluster of one worker that reaches all of them."""
    every = {k: v for store in _stores.values() if not isinstance(store, str) for k, v in store.environment.items()}
    with patch.dict(os.environ, every), one_worker() as address:
        yield address


@pytest.fixture(scope="module", params=["s3", "az", "gs"])
def store_of_kind(request, _stores):
    """One bucket, named by the environment as a user would."""
    found = _stores[request.param]
    if isinstance(found, str):
        pytest.skip(found)
    with patch.dict(os.environ, found.environment):
        yield found
    found.clear()


@pytest.fixture
def store(store_of_kind):
    """The same, empty. What has been opened under another environment, as no process of a user's has, is let go."""
    store_of_kind.clear()
    _kind_of_files.cache_clear()
    return store_of_kind


@pytest.fixture(scope="module")
def worker(_stores_dask):
    """Calls in this process take that cluster."""
    with shared(_stores_dask):
        yield _stores_dask
