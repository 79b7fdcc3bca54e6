"""Processes that train together: the only file that knows their group. One process is a group of one."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from pretrain.compute.tensor_files import FLOATS, check_safetensors
from pretrain.errors import ProcessDied
from wsi_prep.errors import BadOption, first_line
from wsi_prep.untrusted.own_folder import own_folder

DEVICES = ("cpu", "cuda")
MODES = ("ddp", "fsdp", "hsdp")
SHARDED = MODES[1:]
_OF_GLOO = "gloo/transport"
"""In what it says of a connection that broke."""

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


@dataclass(frozen=True)
class World:
    """One process among those that train together: `rank` of `size`, and its `device`."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what there is only one of."""
        return self.rank == 0

    @property
    def first_here(self) -> bool:
        """Whether this is the process that writes what every machine needs one of."""
        return first_here()


@contextlib.contextmanager
def world(device: str = "") -> Iterator[World]:
    """Join the processes that torchrun started, or be alone. `device`: "cpu", "cuda", or "" for what there is.

    Raises ProcessDied where another process does not answer any more.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in DEVICES:
        raise BadOption(f"device {kind!r} is not known; choose {' or '.join(DEVICES)}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise BadOption("torch finds no GPU; install a CUDA build of torch, or ask for device cpu")
    chosen = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")  # TF32 for the products that stay out of bfloat16
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    if _all_here():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
        number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        meeting = dist.FileStore(str(_meeting_file()), count)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=meeting, rank=number, world_size=count, timeout=timedelta(minutes=10))
    elif "TORCHELASTIC_RUN_ID" in os.environ or "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, timeout=timedelta(minutes=10))
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
    except RuntimeError as error:
        if size() > 1 and (isinstance(error, dist.DistError) or _OF_GLOO in str(error)):
            raise ProcessDied("another process of this run has ended, and its own lines say why") from None
        raise
    finally:
        dist.destroy_process_group()


def of_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def first_here() -> bool:
    """Whether this is the first process of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def _all_here() -> bool:
    """Whether torchrun started all processes on this machine, so that they need not meet on the network."""
    known = os.environ
    return "TORCHELASTIC_RUN_ID" in known and known.get("LOCAL_WORLD_SIZE") == known.get("WORLD_SIZE")


def _meeting_file() -> Path:
    """Where the processes of one torchrun tell each other their addresses: nobody else can read or change it."""
    started = (os.environ["TORCHELASTIC_RUN_ID"], os.getppid(), os.environ.get("TORCHELASTIC_RESTART_COUNT"))
    name = hashlib.sha256(repr(started).encode()).hexdigest()[:16]
    return own_folder(Path(tempfile.gettempdir())) / f"meeting-{name}"


def group_ranks(arguments: Iterable[Any]) -> list[int]:
    """Which processes take part in a collective operation with these arguments, in order."""
    for each in arguments:
        if isinstance(each, torch.ScriptObject):
            with contextlib.suppress(RuntimeError, TypeError):  # of another class: the kind of sum
                return sorted(dist.get_process_group_ranks(dist.ProcessGroup.unbox(each)))
    return [*range(size())]


def rank() -> int:
    """Number of this process; 0 where there is no group."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes; 1 where there is no group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_sum(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place; carries no gradient."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def all_mean(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean over all processes of single numbers."""
    packed = torch.stack([value.detach().float().reshape(()) for value in values.values()])
    return dict(zip(values, (all_sum(packed) / size()).unbind(), strict=True))


def gather(rows: Tensor) -> Tensor:
    """(B, ...) of every process -> (size * B, ...), rank after rank; gradients flow back to every process's rows.

    The backward pass sums what the losses of all processes say of one's rows, so that the mean over processes of the
    gradients is the gradient of the mean of their losses.
    """
    return _Gather.apply(rows) if size() > 1 else rows  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(_context: object, rows: Tensor) -> Tensor:
        everyone = rows.new_empty((size() * len(rows), *rows.shape[1:]))
        dist.all_gather_into_tensor(everyone, rows.contiguous())
        return everyone

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> Tensor:
        gradient = all_sum(gradient.contiguous().clone())
        each = len(gradient) // size()
        return gradient[rank() * each : (rank() + 1) * each]


class Flag:
    """A yes that any process may say and all learn of at the same step, one step later, without waiting for it."""

    def __init__(self) -> None:
        self._pending: tuple[Any, Tensor] | None = None

    def said(self, mine: bool) -> bool:
        """Tell the others, and return whether anyone had said so at the last call."""
        before = self._pending
        value = torch.tensor([float(mine)])
        self._pending = (dist.all_reduce(value, async_op=True) if size() > 1 else None, value)
        if before is None:
            return False
        if before[0] is not None:
            before[0].wait()
        return bool(before[1].item())


def wait_for_all() -> None:
    """Wait until every process is here, for days if need be: torchrun ends all of them when one dies."""
    if size() > 1:
        patient = dist.new_group(backend="gloo", timeout=timedelta(days=30))
        dist.barrier(patient)
        dist.destroy_process_group(patient)


def agree(mine: bool) -> bool:
    """Whether any process says so; waits for all."""
    return bool(all_sum(torch.tensor([float(mine)])).item())


@dataclass(frozen=True)
class Spread:
    """How a network lies on the processes: a whole copy on each (ddp), its units in shards over all of them (fsdp), or
    in shards over each `group` of neighbours, so that there are several copies (hsdp).

    `dtype` is what shards are gathered and computed in; gradients are summed in float32.
    """

    mode: str
    group: int
    dtype: torch.dtype

    def shards(self, processes: int) -> int:
        """Into how many a copy is cut. Raises BadOption where the groups do not divide the processes."""
        if self.mode not in MODES:
            raise BadOption(f"parallel {self.mode!r} is not known; choose from {', '.join(MODES)}")
        if self.mode != "hsdp" or processes <= self.group:
            return processes if self.mode in SHARDED else 1
        if processes % self.group:
            raise BadOption(
                f"{processes} processes make no whole groups of {self.group}, over each of which hsdp cuts a copy: "
                "change compute.shard_group"
            )
        return self.group

    def mesh(self, world: World) -> DeviceMesh:
        """The processes of shards; where there are several copies, (copies, shards)."""
        shards = self.shards(world.size)
        if shards == world.size:
            return init_device_mesh(world.device.type, (world.size,))
        return init_device_mesh(world.device.type, (world.size // shards, shards), mesh_dim_names=("copies", "shards"))


def share_out(network: nn.Module, units: Iterable[nn.Module], spread: Spread, world: World) -> nn.Module:
    """The network, with its `units`, as it is to lie on the processes."""
    spread.shards(world.size)
    if world.size == 1:
        return network
    if spread.mode == "ddp":
        device = [world.device.index] if world.device.type == "cuda" else None
        return DistributedDataParallel(
            network, device_ids=device, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    mesh = spread.mesh(world)
    policy = MixedPrecisionPolicy(param_dtype=spread.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=True)  # the teacher has no backward pass
    return network


def gather_ahead(blocks: Iterable[nn.Module], count: int) -> None:
    """While one of these blocks, which are in shards, is computed, gather the next `count`, backwards the ones before.

    0 leaves it to FSDP, which gathers the next one. Each more holds one more block's weights, for slow networks.
    """
    units: list[Any] = [block for block in blocks if isinstance(block, FSDPModule)]
    for number, unit in enumerate(units if count else []):
        unit.set_modules_to_forward_prefetch(units[number + 1 : number + 1 + count])
        unit.set_modules_to_backward_prefetch(units[max(0, number - count) : number][::-1])


def plain(network: nn.Module) -> nn.Module:
    """The network without the wrapper that ddp puts around it."""
    return network.module if isinstance(network, DistributedDataParallel) else network


@contextlib.contextmanager
def gradients_summed(network: nn.Module, now: bool) -> Iterator[None]:
    """Whether a backward pass inside sums gradients over the processes, or (not `now`) leaves that to a later one."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)
        yield
    elif isinstance(network, DistributedDataParallel) and not now:
        with network.no_sync():
            yield
    else:
        yield


def local(values: Tensor) -> Tensor:
    """What this process holds of a tensor that may be in shards."""
    return values.to_local() if isinstance(values, DTensor) else values


def whole(values: Tensor) -> Tensor:
    """A tensor that may be in shards (or a partial sum), whole."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def fill(values: Tensor, given: Tensor) -> None:
    """Copy a whole tensor, the same in every process, into one that may be in shards; nothing is sent."""
    if isinstance(values, DTensor):
        given = distribute_tensor(given, values.device_mesh, values.placements, src_data_rank=None).to_local()
    local(values).copy_(given)


def copies(values: Tensor) -> int:
    """How many processes hold the same part of a tensor that may be in shards; 1 where it is none."""
    if not isinstance(values, DTensor):
        return 1
    return math.prod(
        size
        for size, placement in zip(values.device_mesh.shape, values.placements, strict=True)
        if placement.is_replicate()
    )


def own_share(tensors: dict[str, Tensor], process: int, processes: int) -> dict[str, Tensor]:
    """What one of some processes writes: its shards, and a part of what others hold too, of nearly equal size."""
    own: dict[str, Tensor] = {}
    loads = [0] * processes
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].nbytes, item[0])):
        held = copies(tensor) if isinstance(tensor, DTensor) else processes
        shards = processes // held  # of a copy, on processes beside each other
        least = min(range(held), key=lambda copy: max(loads[copy * shards : (copy + 1) * shards]))
        for holder in range(least * shards, (least + 1) * shards):
            loads[holder] += tensor.nbytes // shards
        if process // shards == least:
            own[name] = tensor
    return own


class Writer:
    """Writes tensors in the background. Its processes talk in a group of their own, apart from those of training."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")

    def save(self, tensors: dict[str, Tensor], folder: Path) -> Future[object]:
        """Begin to write, each process its share, as safetensors; that share is copied before this returns."""
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        begun: Any = async_save(own_share(tensors, rank(), size()), storage_writer=writer, process_group=self._group)
        return cast("Future[object]", begun)


def finish(begun: Future[object]) -> None:
    """Wait until what a Writer has begun is written; OSError with the reason if it cannot be."""
    try:
        begun.result()
    except CheckpointException as error:  # not an Exception
        raise OSError(_reason(error)) from error


def load(state: dict[str, Tensor], folder: Path) -> None:
    """Fill the tensors in place from what any number of processes has saved; OSError if that cannot be."""
    try:
        reader = HuggingFaceStorageReader(str(folder))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # which is what no_dist says
            load_state(dict(state), storage_reader=reader, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        raise OSError(_reason(error)) from error


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that any number of processes has saved, from the files' headers; only safetensors is
    read. ValueError where a piece is missing or there twice, or is no float.
    """
    for file in folder.glob("*.safetensors"):
        check_safetensors(file)
    found: dict[str, tuple[int, ...]] = {}
    for name, told in HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata.items():
        if not isinstance(told, TensorStorageMetadata) or told.properties.dtype not in FLOATS.values():
            raise ValueError(f"{name} holds no floating-point numbers")
        if sum(math.prod(chunk.sizes) for chunk in told.chunks) != math.prod(told.size):
            raise ValueError(f"{name} is incomplete")
        found[name] = tuple(told.size)
    return found


def _reason(error: CheckpointException) -> str:
    first = next(iter(error.failures.values()))[0]
    return first_line(first)
