"""Tiles over HTTP with 20 ms added to every answer, against the local disk; the server has a core of its own."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
from obstore.store import from_url

from pretrain.data.index import open_index
from pretrain.data.loader import Loader, LoaderSettings
from pretrain.data.sampler import Sampler, SamplingSettings
from tests.benchmarks.cohort import Cohort
from tests.benchmarks.measure import Figure, Run, compare, memory, on_cores
from tests.benchmarks.servers import start

_DELAY_MS, _BUCKET = 20, "bench"
_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}


def run(cohort: Cohort, repeats: int) -> list[Figure]:
    """moto, then a plain range server: loader on one core, server on the other, local on the same one core."""
    figures = []
    for kind in ("moto", "plain server"):
        with on_cores(1):
            folder = [str(cohort.shards)] if kind != "moto" else []
            server, url = start(kind.split()[0], str(_DELAY_MS), *folder)
        try:
            os.environ.update(_CREDENTIALS, AWS_ENDPOINT_URL=url)
            if kind == "moto":
                _upload(cohort.shards, url)
            figures += _against_local(cohort, kind, repeats)
        finally:
            server.kill()
            server.wait()
    return figures


def _against_local(cohort: Cohort, kind: str, repeats: int) -> list[Figure]:
    part = f"{kind}, {_DELAY_MS} ms"
    at = [f"s3://{_BUCKET}"]
    index = open_index(at, cohort.folder / f"index of {kind}")
    sampler = Sampler(index, SamplingSettings(batch=cohort.batch))
    with on_cores(0):
        local = Loader(cohort.sampler(), LoaderSettings(threads=1))
        remote = Loader(sampler, LoaderSettings(threads=1, requests=128))
        with local, remote:
            contestants = {
                "requests alone, 128 at once": _requests(cohort),
                "loader": _epoch(remote, cohort),
                "loader, local": _epoch(local, cohort),
            }
            rates = compare(part, contestants, repeats)
            before = memory()["rss"]
            peak = max(memory()["rss"] for _ in remote.batches(0, 3 * cohort.steps))
            assert not remote.bad.bad, remote.bad.named
    target = 0.7
    return [
        *rates.figures(),
        rates.ratio("loader", "loader, local", target),
        rates.ratio("loader", "requests alone, 128 at once"),
        Figure(part, f"memory grown over {3 * cohort.steps} batches more", f"{peak - before:.0f} MB of {before:,.0f}"),
    ]


def _epoch(loader: Loader, cohort: Cohort) -> Run:
    return lambda: sum(len(batch.pixels) for batch in loader.batches(0, cohort.steps))


def _requests(cohort: Cohort) -> Run:
    """What the server and the client library do without decoding."""
    store = _store(os.environ["AWS_ENDPOINT_URL"])
    drawn = cohort.drawn()
    pool = ThreadPoolExecutor(128)

    def go() -> int:
        found = pool.map(lambda at: obstore.get_range(store, at.path, start=at.offset, length=at.nbytes), drawn)
        return sum(1 for _ in found)

    return go


def _store(url: str) -> obstore.store.ObjectStore:
    return from_url(f"s3://{_BUCKET}", endpoint=url, client_options={"allow_http": True})


def _upload(folder: Path, url: str) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket=_BUCKET)
    store = _store(url)
    files = [path for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: obstore.put(store, str(path.relative_to(folder)), path), files))
