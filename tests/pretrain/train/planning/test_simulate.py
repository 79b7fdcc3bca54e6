"""A simulated step against a real one on the CPU: memory by torch's own allocator, FLOPs by the settings."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from pretrain.compute.distributed import World
from pretrain.compute.randomness import Places
from pretrain.learning.guide import supposed_fields, supposed_labels
from pretrain.model.backbone import Backbone
from pretrain.model.guide import HIDDEN
from pretrain.model.network import Network
from pretrain.train.learner import Learner
from pretrain.train.planning import ledger
from pretrain.train.planning import simulate as simulation
from pretrain.train.planning.simulate import simulate, simulate_whole
from pretrain.train.recipe.flops import step_flops
from pretrain.train.recipe.overrides import changed
from pretrain.train.recipe.recipes import recipe
from tests.support.training import in_processes
from wsi_prep.errors import BadOption

pytestmark = pytest.mark.slow

PLAIN = ["views.colour.jitter=0", "views.colour.grayscale=0", "views.colour.blur=0,0,0"]  # operations of no interest
SIZES = {
    "activations": ["backbone.drop_path=0.25", "sampling.batch=16"],
    "swiglu in bfloat16, recomputed": [
        *("backbone.swiglu=true", "backbone.mlp_ratio=5.5", "backbone.width=192", "backbone.registers=4"),
        *("compute.precision=bf16", "compute.recompute=selective", "sampling.batch=8", *PLAIN),
    ],
    "prototypes by parts": [
        *("objective.head.prototypes=16384", "objective.head.bottleneck=128", "compute.loss_mb=16"),
        *("optim.kind=stable_adamw", "compute.accumulate=2", "sampling.batch=8", "compute.recompute=full", *PLAIN),
    ],
    "anchored": ["objective.gram_weight=2", "sampling.batch=8", *PLAIN],
    "guided": ["guide.institution=0.1", "guide.scanner=0.1", "guide.mpp=0.1", "sampling.batch=8", *PLAIN],
}
GUIDED = ("institution", "scanner", "mpp")
TOGETHER = {"swiglu in bfloat16, recomputed": "fsdp"}


def made(name, *changes):
    return changed(recipe("debug"), ["backbone.depth=2", *SIZES[name], *changes])


@pytest.fixture(scope="module")
def of_one():
    """Each size, by one process."""
    return {name: simulate(made(name), 1) for name in SIZES}


def flops(seen, *without):
    return sum(count * each.flops for each, count in seen.operations.items() if each.part not in without)


class _AsOnGpu(torch.Tensor):
    """Tiles of which a CPU makes views as a GPU would: in one shape every step, masked patches padded."""

    @classmethod
    def __torch_function__(cls, called, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            found = called(*args, **(kwargs or {}))
        return found.as_subclass(cls) if called is torch.Tensor.__getitem__ else found  # a part of the tiles is tiles


def held(recipe, world):
    """Bytes of the CPU's allocator at the peak of a step of a process, and when it is done."""
    share = recipe.sampling.batch // world.size
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        tiles = torch.zeros(share, 3, 392, 392, dtype=torch.uint8).as_subclass(_AsOnGpu)
        learner = Learner(recipe, world, fields=supposed_fields(recipe.guide))
        learner.prepare()
        places = Places(0, 100, np.arange(world.rank * share, (world.rank + 1) * share))
        learner.learn(tiles, places, supposed_labels(recipe.guide, share))
        del tiles
    events = [each for each in told.profiler.kineto_results.events() if each.name() == "[memory]"]
    at = np.cumsum([each.nbytes() for each in sorted(events, key=lambda each: each.start_ns())])
    return {"peak": int(at.max()), "rest": int(at[-1])}


def alone(recipe):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        return held(recipe, World(0, 1, torch.device("cpu")))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", SIZES)
def test_memory_is_that_of_a_real_step(name, of_one):
    real, seen = alone(made(name)), of_one[name]
    assert seen.peak == pytest.approx(real["peak"], rel=0.01)
    assert sum(seen.at_rest.values()) == pytest.approx(real["rest"], rel=0.02)


def _one_of_two(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/meeting", 2), rank=rank, world_size=2)
    for number, (name, parallel) in enumerate(TOGETHER.items()):
        real = held(made(name, f"compute.parallel={parallel}"), World(rank, 2, torch.device("cpu")))
        if not rank:
            (folder / str(number)).write_text(json.dumps(real))
    dist.destroy_process_group()


@pytest.mark.long
def test_memory_of_two_processes_is_that_of_real_ones(tmp_path):
    in_processes(_one_of_two, tmp_path)
    for number, (name, parallel) in enumerate(TOGETHER.items()):
        real = json.loads((tmp_path / str(number)).read_text())
        assert simulate(made(name, f"compute.parallel={parallel}"), 2).peak == pytest.approx(real["peak"], rel=0.15)


@pytest.mark.parametrize("name", SIZES)
def test_flops_are_those_of_the_settings(name, of_one):
    """Which do not count crops and colours, what Sinkhorn-Knopp makes again, nor that attention is made again."""
    chosen = made(name)
    found = flops(of_one[name], ledger.VIEWS) / chosen.sampling.batch
    assert 0.97 < found / step_flops(chosen).executed < 1.2


SENT = ("allgather", "reduce_scatter", "allreduce")


@pytest.fixture(scope="module")
def of_four():
    """By one of four processes that share a batch, either way."""
    words = ["sampling.batch=64", *PLAIN]
    return {way: simulate(made("activations", f"compute.parallel={way}", *words), 4) for way in ("ddp", "fsdp")}


def test_a_checkpoint_is_two_networks_two_moments_and_counts(of_one, of_four):
    chosen = made("activations")
    with torch.device("meta"):
        shapes = [p.shape for p in Network.with_heads(chosen.backbone, chosen.objective.head).parameters()]
    expected = 4 * (4 * sum(map(math.prod, shapes)) + len(shapes) + 2 * chosen.objective.head.prototypes)
    assert {seen.checkpoint for seen in (of_one["activations"], *of_four.values())} == {expected}


def test_an_anchor_is_held_and_saved_as_another_backbone(of_one):
    chosen = made("anchored")
    with torch.device("meta"):
        backbone = sum(p.numel() for p in Backbone(chosen.backbone).parameters())
    seen, bare = of_one["anchored"], simulate(made("anchored", "objective.gram_weight=0"), 1)
    assert seen.at_rest[ledger.ANCHOR] == 4 * backbone
    assert seen.checkpoint - bare.checkpoint == 4 * backbone + 4  # and how often it was taken again
    assert ledger.ANCHOR not in bare.at_rest


def test_the_heads_of_a_guide_are_held_learnt_and_saved_but_for_the_moving_mean(of_one):
    """Three linear layers each: two heads of 16 supposed classes, one of a number."""
    chosen, bare = made("guided"), simulate(changed(made("guided"), [f"guide.{name}=0" for name in GUIDED]), 1)
    width, seen, gives = chosen.backbone.width, of_one["guided"], (16, 16, 1)
    layers = [pair for given in gives for pair in ((width, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, given))]
    numbers = sum(inward * outward + outward for inward, outward in layers)
    more = {part: seen.at_rest[part] - bare.at_rest[part] for part in bare.at_rest}
    moments = 4 * (2 * numbers + 2 * len(layers))  # and a count of steps for each weight and each bias
    assert more == {**dict.fromkeys(bare.at_rest, 0), ledger.PARAMETERS: 4 * numbers, ledger.OPTIMIZER: moments}
    assert seen.checkpoint - bare.checkpoint == 4 * numbers + moments
    products = sum(inward * outward for inward, outward in layers)
    crops = chosen.views.crops.global_crops * chosen.sampling.batch
    assert flops(seen) - flops(bare) == 3 * 2 * crops * products  # forward, and both gradients
    assert sum(seen.operations.values()) > sum(bare.operations.values())  # which the host has to start


def test_processes_hold_shards_and_the_same_activations(of_one, of_four):
    alone, shards = of_one["activations"], of_four["fsdp"]
    for part in (ledger.PARAMETERS, ledger.EMA, ledger.OPTIMIZER):
        assert shards.at_rest[part] == pytest.approx(alone.at_rest[part] / 4, rel=0.05)
        assert of_four["ddp"].at_rest[part] == alone.at_rest[part]
    assert shards.at_peak[ledger.ACTIVATIONS] == pytest.approx(alone.at_peak[ledger.ACTIVATIONS], rel=0.1)


@pytest.mark.long
def test_rounds_that_are_alike_are_simulated_once_and_counted_as_often_as_they_are(of_one):
    parted = simulate(made("activations", "compute.accumulate=8"), 1)
    assert flops(parted) == pytest.approx(flops(of_one["activations"]), rel=0.1)
    assert parted.peak < 0.5 * of_one["activations"].peak


def test_copies_in_shards_gather_among_neighbours_and_sum_gradients_among_copies(of_one):
    """Four processes hold two copies, so each holds half of one."""
    words = ["sampling.batch=64", "compute.parallel=hsdp", "compute.shard_group=2", *PLAIN]
    alone, seen = of_one["activations"], simulate(made("activations", *words), 4)
    assert seen.at_rest[ledger.OPTIMIZER] == pytest.approx(alone.at_rest[ledger.OPTIMIZER] / 2, rel=0.05)
    assert seen.checkpoint == alone.checkpoint
    among = {kind: {(each.processes, each.reach) for each in seen.collectives if each.kind == kind} for kind in SENT}
    assert (among["allgather"], among["reduce_scatter"]) == ({(2, 0), (4, 0)}, {(2, 0)})  # features, of all four
    assert (2, 3) in among["allreduce"]
    of_gradients = {each: count for each, count in seen.collectives.items() if each.reach == 3}
    nbytes = sum(each.nbytes * count for each, count in of_gradients.items())
    assert nbytes == pytest.approx(seen.at_rest[ledger.PARAMETERS], rel=0.05)


@pytest.mark.slow
def test_what_is_gathered_ahead_is_held_and_gathered_no_more_often():
    """Of so wide and few blocks, and tiles, the peak is where weights are gathered."""
    sizes = ["backbone.width=256", "backbone.heads=4", "backbone.depth=5", "sampling.batch=4", *PLAIN]
    words = [*sizes, "views.crops.local_crops=1", "compute.parallel=fsdp"]
    seen = {n: simulate(changed(recipe("debug"), [*words, f"compute.gather_ahead={n}"]), 4) for n in (0, 1, 3)}
    gathers = {n: sum(c for each, c in of.collectives.items() if each.kind == "allgather") for n, of in seen.items()}
    assert len({*gathers.values()}) == 1
    assert seen[1].peak == seen[0].peak  # what FSDP does by itself
    block = 4 * 12 * 256**2  # bytes of its matrices
    assert seen[3].peak - seen[1].peak == pytest.approx(2 * block, rel=0.02)


def test_ddp_sends_each_gradient_once_and_fsdp_gathers_each_weight(of_one, of_four):
    nbytes = of_one["activations"].at_rest[ledger.PARAMETERS]
    sent = Counter()
    for way, seen in of_four.items():
        for each, count in seen.collectives.items():
            assert each.processes == 4
            sent[way, each.kind] += count * each.nbytes
    assert sent["ddp", "allreduce"] == pytest.approx(nbytes, rel=0.05)
    assert sent["fsdp", "reduce_scatter"] == pytest.approx(nbytes, rel=0.05)
    assert 2 * nbytes < sent["fsdp", "allgather"] < 3.2 * nbytes  # the teacher's, the student's twice but for heads


@pytest.mark.long
def test_a_deep_network_lies_on_the_line_through_two_shallow_ones(monkeypatch):
    monkeypatch.setattr(simulation, "_DEPTHS", (2, 3))
    deep = made("activations", "backbone.depth=5", "compute.parallel=fsdp", *PLAIN)
    whole, line = simulate_whole(deep, 4), simulate(deep, 4)
    assert line.peak == pytest.approx(whole.peak, rel=0.01)
    assert sum(line.at_rest.values()) == pytest.approx(sum(whole.at_rest.values()), rel=0.001)
    assert line.checkpoint == whole.checkpoint
    for by in ("flops", "nbytes"):
        told = [sum(n * getattr(each, by) for each, n in seen.operations.items()) for seen in (line, whole)]
        assert told[0] == pytest.approx(told[1], rel=0.01)
    told = [sum(n * each.nbytes for each, n in seen.collectives.items()) for seen in (line, whole)]
    assert told[0] == pytest.approx(told[1], rel=0.01)


def test_what_cannot_be_shared_out_is_refused_and_leaves_no_group():
    with pytest.raises(BadOption, match="a batch of 16 does not divide by 5 processes times 1 parts"):
        simulate(made("activations"), 5)
    assert not dist.is_initialized()


def sums(seen):
    """Of a step: what is held, how much is done, and how much is sent."""
    return {
        "peak": seen.peak,
        "rest": sum(seen.at_rest.values()),
        "flops": flops(seen),
        "bytes": sum(count * each.nbytes for each, count in seen.operations.items()),
        "operations": sum(seen.operations.values()),
        "sent": sum(count * each.nbytes for each, count in seen.collectives.items()),
        "checkpoint": seen.checkpoint,
    }


@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.long)])
def test_many_tiles_are_as_if_each_were_simulated(parts):
    sizes = ["backbone.depth=2", "objective.head.prototypes=4096", "compute.loss_mb=8", f"compute.accumulate={parts}"]
    chosen = changed(recipe("debug"), [*sizes, f"sampling.batch={1200 * parts}", *PLAIN])
    line, whole = sums(simulate(chosen, 2)), sums(simulate_whole(chosen, 2))
    assert line == pytest.approx(whole, rel=0.02)
    assert all(line[name] == whole[name] for name in ("rest", "checkpoint"))
    assert line["sent"] == pytest.approx(whole["sent"], rel=1e-6)


class EmptyOnes(TorchFunctionMode):
    """Counts the tensors that are made like others, but empty."""

    made = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.made += func is torch.Tensor.new_empty
        return func(*args, **(kwargs or {}))


def test_shards_of_any_number_of_processes_are_made_as_quickly():
    """FSDP makes an empty tensor a process for each parameter: minutes, where there are very many."""
    made = []
    for processes in (64, 4096):
        chosen = changed(recipe("debug"), ["backbone.depth=1", "compute.parallel=fsdp", f"sampling.batch={processes}"])
        with EmptyOnes() as counted:
            simulate(chosen, processes)
        made.append(counted.made)
    assert made[1] < made[0] + 1000
