"""Processes that hold the same tensors each copy and write a part of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.compute.distributed import Writer, finish, load, own_share
from tests.support.training import in_processes


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 9))
def test_every_tensor_is_of_one_process_and_none_has_much_more_than_another(sizes, processes):
    tensors = {f"t{number}": torch.zeros(size) for number, size in enumerate(sizes)}
    shares = [own_share(tensors, process, processes) for process in range(processes)]
    assert sorted(name for share in shares for name in share) == sorted(tensors)
    loads = [sum(tensor.numel() for tensor in share.values()) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


class Made(TorchDispatchMode):
    """Counts the numbers of all tensors that are made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "empty" in str(func) or "zeros" in str(func) or "clone" in str(func):
            self.numbers += sum(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))
        return out


def _tensors(offset=0.0):
    return {f"layer{number}": torch.full((100, 10 + number), number + offset) for number in range(10)}


def _one_of_two(rank, folder):
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/meeting", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    tensors = _tensors()
    with Made() as made:
        begun = Writer().save(tensors, folder / "step")
    finish(begun)
    whole = sum(tensor.numel() for tensor in tensors.values())
    assert 0.3 * whole < made.numbers < 0.7 * whole, made.numbers
    found = _tensors(0.5)
    load(found, folder / "step")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    distributed.destroy_process_group()


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_copy_and_write_half_each_and_read_all(tmp_path):
    (tmp_path / "step").mkdir()
    in_processes(_one_of_two, tmp_path)
    names = []
    for file in (tmp_path / "step").glob("*.safetensors"):
        with safe_open(file, "pt") as saved:
            names += list(saved.keys())
    assert sorted(names) == sorted(_tensors())
