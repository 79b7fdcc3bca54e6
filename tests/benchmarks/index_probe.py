"""Run by index_scale.py in a process of its own: opens an index, draws from it, and prints what that cost as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

_BATCH, _WORLD, _BATCHES = 4096, 64, 100


def main() -> None:
    folder, started = Path(sys.argv[1]), float(sys.argv[2])
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from pretrain.data.index import Index
    from pretrain.data.loader import Loader  # the trainer has it, and torch with it, in memory too
    from pretrain.data.parts import open_part
    from pretrain.data.sampler import Sampler, SamplingSettings
    from pretrain.data.sources import LocalFolder
    from tests.benchmarks.measure import memory

    assert Loader
    found = {"import": time.time() - started}

    def note(when: str) -> None:
        found.update({f"{name} {when}": value for name, value in memory().items() if name != "peak"})

    note("import")
    began = time.perf_counter()
    source = LocalFolder(str(folder))
    index = Index([(source, open_part(part)) for part in sorted(folder.iterdir())])
    found["open"] = time.perf_counter() - began
    note("open")
    began = time.perf_counter()
    sampler = Sampler(index, SamplingSettings(batch=_BATCH))
    found["sampler"] = time.perf_counter() - began
    note("sampler")
    for tile in sampler.draw(0).share(0, _WORLD).tile:
        index.address(int(tile))
    found["first"] = time.time() - started
    began = time.perf_counter()
    draws = [sampler.draw(step) for step in range(1, 1 + _BATCHES)]
    found["draws/s"] = _BATCH * _BATCHES / (time.perf_counter() - began)
    began = time.perf_counter()
    for tile in draws[0].tile:
        index.address(int(tile))
    found["addresses/s"] = _BATCH / (time.perf_counter() - began)
    began = time.perf_counter()
    found["number of strata"] = len(sampler.strata)
    found["strata"] = time.perf_counter() - began
    note("end")
    found["peak"] = memory()["peak"]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
