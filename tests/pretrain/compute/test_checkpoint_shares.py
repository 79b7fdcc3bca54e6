"""Processes that hold the same tensors each copy and write a part of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import distributed
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.compute.distributed import Spread, World, Writer, finish, load, own_share
from pretrain.compute.pretended import pretended
from tests.support.training import in_processes
from wsi_prep.errors import BadOption


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 9))
def test_every_tensor_is_of_one_process_and_none_has_much_more_than_another(sizes, processes):
    tensors = {f"t{number}": torch.zeros(size) for number, size in enumerate(sizes)}
    shares = [own_share(tensors, process, processes) for process in range(processes)]
    assert sorted(name for share in shares for name in share) == sorted(tensors)
    loads = [sum(tensor.numel() for tensor in share.values()) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


@given(st.lists(st.integers(1, 1000), max_size=20), st.sampled_from([1, 2, 4, 8]))
def test_each_shard_of_several_copies_is_written_once_and_the_copies_take_turns(sizes, shards):
    count = 8
    with pretended(count):
        mesh = Spread("hsdp", shards, torch.float32).mesh(World(0, count, torch.device("cpu")))
        tensors = {f"t{n}": distribute_tensor(torch.zeros(size * shards), mesh) for n, size in enumerate(sizes)}
        if mesh.ndim == 2:
            tensors = {name: t.redistribute(placements=[Replicate(), Shard(0)]) for name, t in tensors.items()}
        else:
            tensors = {name: t.redistribute(placements=[Shard(0)]) for name, t in tensors.items()}
        shares = [own_share(tensors, process, count) for process in range(count)]
    for shard in range(shards):
        written = [name for process in range(shard, count, shards) for name in shares[process]]
        assert sorted(written) == sorted(tensors)
    loads = [sum(tensors[name].numel() for name in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0) * shards


def test_groups_must_divide_the_processes_but_a_single_group_needs_not_be_full():
    assert [Spread(mode, 8, torch.float32).shards(16) for mode in ("ddp", "fsdp", "hsdp")] == [1, 16, 8]
    assert Spread("hsdp", 8, torch.float32).shards(3) == 3
    with pytest.raises(BadOption, match=r"12 processes make no whole groups of 8.*compute.shard_group"):
        Spread("hsdp", 8, torch.float32).shards(12)


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
