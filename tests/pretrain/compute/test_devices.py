"""What the trainer tells people of their device."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from pretrain.compute.devices import slow_precision

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
