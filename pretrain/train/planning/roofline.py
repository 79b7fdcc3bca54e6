"""How long a step takes: each operation by its FLOPs or its bytes, whichever takes longer; collectives beside them."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.train.planning import ledger as parts
from pretrain.train.planning.assumptions import PlanAssumptions
from pretrain.train.planning.gpus import Gpu
from pretrain.train.planning.ledger import Collective
from pretrain.train.planning.simulate import Simulated

_TF32 = 0.5  # of the bfloat16 rate: float32 products are TF32's, see distributed.world
_COMPILED = (parts.TEACHER, parts.ANCHOR, parts.ACTIVATIONS, parts.BACKWARD)
_LATENCY_S = 20e-6  # of a collective
_GIGA = 1e9


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on each GPU. `products`: operations that the FLOPs of their matrix products bound. `memory`:
    all others. `collectives`: all of them, of which `exposed` is what the GPU waits for. `planning`, `launches`: what
    the host does meanwhile, for the numbers of crops, and to start operations. `flops`: of matrix products.
    """

    products: float
    memory: float
    collectives: float
    exposed: float
    planning: float
    launches: float
    flops: float

    @property
    def host(self) -> float:
        """What the host does, in one thread."""
        return self.planning + self.launches

    @property
    def step(self) -> float:
        """The longer of what the GPU and the host do."""
        return max(self.products + self.memory + self.exposed, self.host)


def step_time(seen: Simulated, gpu: Gpu, compiled: bool, assumed: PlanAssumptions) -> StepTime:
    """Of a simulated step, on GPUs of this kind; `compiled` blocks keep a part of the traffic outside of products."""
    products = memory = flops = launches = 0.0
    for each, count in seen.operations.items():
        fused = assumed.fused if compiled and not each.flops and each.part in _COMPILED else 1.0
        by_flops = each.flops / (gpu.bf16_tflops * 1e12 * assumed.matrix * (_TF32 if each.wide else 1))
        by_bytes = fused * each.nbytes / (gpu.memory_gb_s * _GIGA * assumed.bandwidth)
        if by_flops > by_bytes:
            products += count * by_flops
        else:
            memory += count * by_bytes
        flops += count * each.flops
        launches += count * fused
    collectives = sum(count * exchange_time(each, gpu, assumed) for each, count in seen.collectives.items())
    exposed = max(collectives * (1 - assumed.overlap), collectives - products - memory)
    return StepTime(products, memory, collectives, exposed, seen.planning_s, launches * assumed.launch_us / 1e6, flops)


def exchange_time(collective: Collective, gpu: Gpu, assumed: PlanAssumptions) -> float:
    """Seconds of one collective: a ring over all processes, as fast as its slowest link."""
    others = collective.processes - 1
    if not others:
        return 0.0
    network = gpu.network_gb_s if assumed.network is None else assumed.network
    reach = collective.reach or collective.processes
    slowest = gpu.machine_gb_s if reach <= assumed.per_machine else min(network, gpu.machine_gb_s)
    passes = 2 if collective.kind == "allreduce" else 1
    sent = passes * collective.nbytes * others / collective.processes
    return _LATENCY_S + sent / (slowest * _GIGA * assumed.bandwidth)
