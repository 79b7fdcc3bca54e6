"""A group of processes of which only the first is there, to plan with."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

_MODULE, _OF_TORCH = "torch.distributed.fsdp._fully_shard._fsdp_param", "_chunk_with_empty"


@contextlib.contextmanager
def pretended(processes: int) -> Iterator[None]:
    """As the first of so many processes, of which there are no others: what is sent is lost, and nothing waits."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: PLC0415 - it registers the backend

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        with warnings.catch_warnings(), _quick_shards():  # torch's own, which a real run shows
            warnings.simplefilter("ignore")
            yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _quick_shards() -> Iterator[None]:
    """Where FSDP cuts a parameter, one empty tensor stands for all processes that get nothing of it.

    It makes one for each, though it takes its own alone: many minutes, where there are 65,536 processes. Where another
    torch does it otherwise, nothing is changed.
    """
    try:
        module = importlib.import_module(_MODULE)
        before = getattr(module, _OF_TORCH)
    except (ImportError, AttributeError):
        yield
        return
    setattr(module, _OF_TORCH, _cut)
    try:
        yield
    finally:
        setattr(module, _OF_TORCH, before)


def _cut(tensor: Tensor, num_chunks: int, dim: int) -> list[Tensor]:
    parts = list(torch.chunk(tensor, num_chunks, dim=dim))
    return [*parts, *[parts[0].new_empty(0)] * (num_chunks - len(parts))]
