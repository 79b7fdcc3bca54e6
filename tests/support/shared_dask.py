"""One Dask cluster for many calls: starting one takes longer than a small slide, and is the point of few tests."""

import contextlib
from unittest.mock import patch

from distributed import LocalCluster

from tests.support.paths import ROOT
from wsi_prep.compute import jobs

_STARTED = jobs._started


@contextlib.contextmanager
def one_worker():
    """The address of a cluster of one worker process, which has this process's environment as it is now."""
    where = {"dashboard_address": ":0", "host": "127.0.0.1"}
    with contextlib.chdir(ROOT), LocalCluster(n_workers=1, threads_per_worker=1, **where) as cluster:
        yield cluster.scheduler_address


@contextlib.contextmanager
def shared(address):
    """A call that would start a cluster on this machine takes this one."""

    def started(options, say):
        return _STARTED(options, say) if options.slurm is not None else contextlib.nullcontext((address, None))

    with patch.object(jobs, "_started", started):
        yield


def not_shared():
    """Within it, each call starts its own again."""
    return patch.object(jobs, "_started", _STARTED)
