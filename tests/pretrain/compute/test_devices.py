"""Small arrays on their way to a device, what of a machine is a process's own, and what people are told of it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.compute.devices import gpu_memory, own_cores, pack, send_together, slow_precision, unpack

CPU_INFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(
    not CPU_INFO.exists() or platform.machine() != "x86_64", reason="asks Linux what an x86 processor can do"
)
def test_bfloat16_on_a_processor_without_it_is_said():
    words = set(CPU_INFO.read_text().split())
    has_it = bool(words & {"avx512_bf16", "amx_bf16"}) or {"avx512bw", "avx512vl", "avx512dq"} <= words
    assert bool(slow_precision(torch.device("cpu"), "bf16")) == (not has_it)


def test_nothing_is_said_of_float32_nor_of_a_gpu():
    assert not slow_precision(torch.device("cpu"), "fp32")
    assert not slow_precision(torch.device("cuda"), "bf16")


KINDS = st.sampled_from([np.float32, np.int64, np.bool_, np.float64])
ARRAYS = st.lists(st.tuples(KINDS, st.lists(st.integers(0, 5), max_size=3)), max_size=6)


@given(ARRAYS)
def test_arrays_of_all_kinds_and_shapes_come_back_as_they_were(kinds):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 2**20, shape).astype(kind) for kind, shape in kinds]
    host = [torch.from_numpy(array) for array in arrays]
    packed = pack(host, pinned=False)
    assert packed.dtype == torch.uint8
    for found in (unpack(packed, host), send_together(arrays, torch.device("cpu"))):
        assert [(tensor.dtype, tensor.shape) for tensor in found] == [(tensor.dtype, tensor.shape) for tensor in host]
        assert all(np.array_equal(tensor.numpy(), array) for tensor, array in zip(found, arrays, strict=True))


@pytest.mark.parametrize(("here", "share"), [(None, 1), ("1", 1), ("2", 2), ("100000", 10**6), ("", 1), ("0", 1)])
def test_processes_of_one_machine_share_its_cores(monkeypatch, here, share):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if here is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert own_cores() == max(1, len(os.sched_getaffinity(0)) // share)


def test_memory_of_gpus_is_asked_only_where_they_train(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu_memory("cpu") is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    sizes = {0: 80 << 30, 1: 40 << 30}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=sizes[number]))
    assert gpu_memory("") == gpu_memory("cuda") == 40 << 30
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_memory("") is None
