"""What a step holds and does, seen operation by operation, on real tensors as on those that have shapes alone."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from pretrain.compute import distributed

PARAMETERS, GRADIENTS, OPTIMIZER = "parameters", "gradients", "optimizer"
EMA, TEACHER, ANCHOR = "EMA model", "teacher", "anchor"
GATHERED, VIEWS, ACTIVATIONS, LOSSES = "gathered weights", "tiles and crops", "activations", "losses"
BACKWARD, UPDATE, OTHER = "backward pass", "update", "other"
PARTS = (
    *(PARAMETERS, GRADIENTS, OPTIMIZER, EMA, TEACHER, ANCHOR, GATHERED, VIEWS, ACTIVATIONS, LOSSES, BACKWARD, UPDATE),
    OTHER,
)
"""What memory is for, in the order in which people are told."""

_REGIONS = {
    "views": VIEWS,
    "teacher": TEACHER,
    "anchor": ANCHOR,
    "student": ACTIVATIONS,
    "losses": LOSSES,
    "backward": BACKWARD,
    "update": UPDATE,
}
"""What the loop and the objective call the parts of a step, by record_function."""

_aten, _profiler = torch.ops.aten, torch.ops.profiler
_ENTER, _EXIT = _profiler._record_function_enter_new.default, _profiler._record_function_exit._RecordFunction
_ROWS = {_aten.index.Tensor, _aten.index_select.default, _aten.gather.default}
"""Which read no more than they write."""
_ONLY_MADE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}


def _attention(query: Tensor, key: Tensor, value: Tensor, *_args: object, **_more: object) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


def _attention_backward(*tensors: Any, **_more: object) -> int:
    return int(sdpa_backward_flop_count(*(tensor.shape for tensor in tensors[:4])))  # type: ignore[no-untyped-call]


_FORMULAS = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@dataclass(frozen=True)
class Operation:
    """One kind of operation: FLOPs of a matrix product (0 for all else), bytes read and written, `wide` where the
    product is of float32, and for which part of which round (of `compute.accumulate`) it was.
    """

    flops: int
    nbytes: int
    wide: bool
    part: str
    round: int


@dataclass(frozen=True)
class Collective:
    """One kind of exchange of `nbytes` (of the whole, not of a share) among `processes`.

    `reach`: how many there are from the first to the last of these; 0 where they lie beside each other.
    """

    kind: str
    nbytes: int
    processes: int
    round: int
    reach: int = 0


@dataclass
class _Held:
    nbytes: int
    part: str
    storage: weakref.ref[Any]


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is entered; see Operation and Collective.

    `now`: bytes of living storages by part. `peaks`: the same when most was held while a part was at work.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: Counter[str] = Counter()
        self.peaks: dict[str, Counter[str]] = {}
        self.operations: Counter[Operation] = Counter()
        self.collectives: Counter[Collective] = Counter()
        self._held: dict[int, _Held] = {}
        self._gathered: dict[int, _Held] = {}
        self._total = 0
        self._most: dict[str, int] = {}
        self._regions: list[str] = []
        self._rounds = 0

    @property
    def part(self) -> str:
        """What is made now is for this part."""
        for region in reversed(self._regions):
            if region.startswith("FSDP::") and "post_backward" not in region:
                return GATHERED
            if region in _REGIONS:
                return _REGIONS[region]
        return OTHER

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is _ENTER:
            self._regions.append(args[0])
            self._rounds += args[0] == "views"
        elif func is _EXIT:
            self._regions.pop()
            self._measure_again()
        else:
            tensors = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
            for tensor in tensors:
                self._see(tensor)
            self._count(func, args, kwargs or {}, out, tensors)
        return out

    def assign(self, tensors: Iterable[Tensor], part: str) -> None:
        """Say what these tensors are for."""
        for tensor in tensors:
            self._see(tensor)
            held = self._held.get(_storage(tensor)._cdata)
            if held is not None and held.part != part:
                self._add(held.part, -held.nbytes)
                held.part = part
                self._add(part, held.nbytes)

    def begin(self) -> None:
        """Count work and the peak from here on."""
        self.operations.clear()
        self.collectives.clear()
        self._rounds = 0
        self.peaks.clear()
        self._most.clear()

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta":
            return
        storage = _storage(tensor)
        address, nbytes = storage._cdata, storage.nbytes()
        held = self._held.get(address)
        if held is None:
            gone = weakref.ref(storage, lambda _, address=address: self._gone(address))  # type: ignore[misc]
            self._held[address] = held = _Held(0, self.part, gone)
            if held.part == GATHERED:
                self._gathered[address] = held
        if held.nbytes != nbytes:
            self._add(held.part, nbytes - held.nbytes)
            held.nbytes = nbytes

    def _gone(self, address: int) -> None:
        held = self._held.pop(address)
        self._gathered.pop(address, None)
        self._add(held.part, -held.nbytes)

    def _add(self, part: str, nbytes: int) -> None:
        self.now[part] += nbytes
        self._total += nbytes
        if nbytes > 0 and self._total > self._most.get(during := self.part, 0):
            self._most[during], self.peaks[during] = self._total, self.now.copy()

    def _measure_again(self) -> None:
        """FSDP empties and fills the storages of gathered weights without an operation, but inside named regions."""
        for held in list(self._gathered.values()):
            storage = held.storage()
            if storage is not None and storage.nbytes() != held.nbytes:
                nbytes = storage.nbytes()
                self._add(held.part, nbytes - held.nbytes)
                held.nbytes = nbytes

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, made: Sequence[Tensor]) -> None:
        if func.namespace == "c10d":
            self._exchange(func, args)
            return
        if func.namespace != "aten" or func._overloadpacket.__name__ in _ONLY_MADE or _is_view(func):
            return
        formula = _FORMULAS.get(func._overloadpacket)
        flops = int(formula(*args, **kwargs, out_val=out)) if formula else 0
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        used = {id(each): each for each in ([*made, *made] if func in _ROWS else [*given, *made])}
        nbytes = sum(map(_bytes, used.values())) * (1 + (func in _ROWS))
        wide = bool(flops) and made[0].dtype == torch.float32
        self.operations[Operation(flops, nbytes, wide, self.part, self._rounds)] += 1

    def _exchange(self, func: Any, args: Any) -> None:
        name = func._overloadpacket.__name__.strip("_")
        kind = next((each for each in ("allreduce", "allgather", "reduce_scatter") if each in name), "other")
        tensors = [value for value in tree_leaves(args) if isinstance(value, Tensor)]
        if kind == "reduce_scatter":
            self.assign(tensors[:1], GRADIENTS)
        nbytes = max(map(_bytes, tensors), default=0)
        ranks = distributed.group_ranks(args)
        reach = ranks[-1] - ranks[0] + 1
        apart = reach if reach > len(ranks) else 0
        self.collectives[Collective(kind, nbytes, len(ranks), self._rounds, apart)] += 1


def _own(tensor: Tensor) -> Tensor:
    """What this process holds of it: distributed.local, which takes a millisecond in shards without numbers."""
    own: Tensor = getattr(tensor, "_local_tensor", tensor)
    return own


def _storage(tensor: Tensor) -> Any:
    return _own(tensor).untyped_storage()


def _bytes(tensor: Tensor) -> int:
    own = _own(tensor)
    return min(own.numel() * own.itemsize, own.untyped_storage().nbytes())


def _is_view(func: Any) -> bool:
    """Whether the operation only looks at its input in another way."""
    said = [each.alias_info for each in func._schema.returns]
    return any(info is not None and not info.is_write for info in said)
