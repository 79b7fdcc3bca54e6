"""Plans: times by hand, the nearest settings among all that there are, and what a GPU's memory says before a run."""

from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.model.recompute import MODES
from pretrain.train.planning import ledger, plan, preflight, simulate
from pretrain.train.planning.assumptions import PlanAssumptions
from pretrain.train.planning.gpus import GPUS, Gpu, gpu_named
from pretrain.train.planning.ledger import Collective, Operation
from pretrain.train.planning.plan import Plan, changes, nearest
from pretrain.train.planning.preflight import require_fit
from pretrain.train.planning.roofline import exchange_time, step_time
from pretrain.train.planning.simulate import Simulated
from pretrain.train.recipe.overrides import changed
from pretrain.train.recipe.recipes import recipe
from wsi_prep.errors import BadOption

GPU = Gpu("made", memory_gb=10, bf16_tflops=100, memory_gb_s=1000, machine_gb_s=100, network_gb_s=10)
PLAIN = PlanAssumptions(matrix=1, bandwidth=1, fused=0.5, overlap=1, launch_us=0)
SMALL = changed(recipe("debug"), ["backbone.width=48", "backbone.depth=2", "sampling.batch=32"])


def seen(operations=(), collectives=(), planning=0.0, peak=0):
    return Simulated(
        {}, {ledger.BACKWARD: {ledger.ACTIVATIONS: peak}}, dict(operations), dict(collectives), 0, planning
    )


def test_an_operation_takes_as_long_as_its_flops_or_its_bytes():
    product = Operation(10**12, 10**9, wide=False, part=ledger.ACTIVATIONS, round=1)
    wide = replace(product, wide=True)
    thin = replace(product, flops=10**10)
    other = replace(product, flops=0, nbytes=4 * 10**9)
    cases = {product: (0.01, 0), wide: (0.02, 0), thin: (0, 0.001), other: (0, 0.004)}
    for each, (by_flops, by_bytes) in cases.items():
        found = step_time(seen({each: 3}), GPU, compiled=False, assumed=PLAIN)
        assert (found.products, found.memory) == pytest.approx((3 * by_flops, 3 * by_bytes))
    compiled = step_time(seen({other: 1, product: 1}), GPU, compiled=True, assumed=PLAIN)
    assert (compiled.products, compiled.memory) == pytest.approx((0.01, 0.002))
    slow = step_time(seen({product: 1, other: 1}), GPU, False, replace(PLAIN, matrix=0.5, bandwidth=0.25))
    assert (slow.products, slow.memory) == pytest.approx((0.02, 0.016))


@pytest.mark.parametrize(
    ("kind", "processes", "seconds"),
    [
        ("allreduce", 8, 2 * 7 / 8 * 0.01),
        ("allgather", 8, 7 / 8 * 0.01),
        ("reduce_scatter", 2, 1 / 2 * 0.01),
        ("allgather", 16, 15 / 16 * 0.1),
        ("allreduce", 1, 0),
    ],
)
def test_a_collective_is_a_ring_over_the_slowest_link(kind, processes, seconds):
    assert exchange_time(Collective(kind, 10**9, processes, 1), GPU, PLAIN) == pytest.approx(seconds, abs=1e-4)


def test_processes_that_do_not_lie_beside_each_other_meet_on_the_network():
    """One of each of two machines of eight."""
    apart = Collective("allreduce", 10**9, 2, 1, reach=9)
    assert exchange_time(apart, GPU, PLAIN) == pytest.approx(2 * 1 / 2 * 0.1, abs=1e-4)


def test_what_is_not_hidden_is_waited_for_and_so_is_the_host():
    product = {Operation(10**12, 0, False, ledger.ACTIVATIONS, 1): 1}  # 10 ms
    gather = {Collective("allgather", 10**9, 8, 1): 1}  # 8.75 ms
    half = replace(PLAIN, overlap=0.5)
    assert step_time(seen(product, gather), GPU, False, half).step == pytest.approx(0.01 + 0.004375, abs=1e-4)
    many = {Collective("allgather", 10**9, 8, 1): 4}
    assert step_time(seen(product, many), GPU, False, PLAIN).step == pytest.approx(0.035, abs=1e-3)
    assert step_time(seen(product, gather, planning=0.2), GPU, False, PLAIN).step == pytest.approx(0.2)
    started = step_time(seen(product), GPU, False, replace(PLAIN, launch_us=1e5))
    assert (started.host, started.step) == pytest.approx((0.1, 0.1))


def test_no_more_checkpoints_are_kept_than_are_made():
    operation = Operation(50 * 10**12, 0, False, ledger.ACTIVATIONS, 1)
    for hours in ("1e-300", "0.001"):
        chosen = changed(
            SMALL, ["schedule.steps=1000", "saving.every=10", "saving.keep=2", f"saving.keep_hours={hours}"]
        )
        assert Plan(chosen, 1, GPU, PLAIN, seen({operation: 1})).checkpoints == 102


def test_a_plan_adds_up():
    operation = Operation(50 * 10**12, 0, False, ledger.ACTIVATIONS, 1)  # half a second
    assumed = replace(PLAIN, price=2.0, per_machine=8, core_tiles=4)
    chosen = changed(SMALL, ["schedule.steps=172800", "saving.keep=2", "saving.keep_hours=6"])
    made = Plan(chosen, 16, GPU, assumed, seen({operation: 1}))
    assert (made.time.step, made.tiles, made.tiles_per_s, made.peak_share) == pytest.approx((0.5, 2, 64, 1))
    assert (made.days, made.gpu_hours, made.cost) == pytest.approx((1, 384, 768))
    assert (made.machines, made.loader_cores, made.checkpoints) == (2, 8, 6)
    for alone, cores in ((1.0, 48), (2.0, 8), (2**0.5, 28)):  # four tiles cost as much as six
        any_mpp = changed(chosen, ["sampling.any_mpp=true", f"sampling.alone={alone}"])
        assert replace(made, recipe=any_mpp).loader_cores == pytest.approx(cores)


@given(st.floats(0, 20), st.floats(0, 0.5), st.floats(0, 5))
def test_a_plan_fits_where_all_that_it_needs_does(peak_gb, fragmentation, reserved_gb):
    assumed = PlanAssumptions(fragmentation=fragmentation, reserved_gb=reserved_gb)
    made = Plan(SMALL, 1, GPU, assumed, seen(peak=int(peak_gb * 1e9)))
    assert made.needed_gb == pytest.approx(peak_gb / (1 - fragmentation) + reserved_gb, abs=1e-6)
    assert made.fits == (made.needed_gb <= 10)


SETTINGS = [(parts, mode, way) for parts in (1, 2, 4, 8) for mode in MODES for way in ("ddp", "fsdp")]
"""That may be tried for 32 tiles in 4 processes, from the nearest on."""


@given(st.lists(st.integers(1, 100), min_size=32, max_size=32), st.integers(1, 100))
def test_the_nearest_settings_are_the_first_that_fit(peaks, room):
    """The leanest settings tell whether anything fits, in so many parts and at all."""
    by_settings = dict(zip(SETTINGS, peaks, strict=True))
    held = sorted((by_settings[parts, "full", "fsdp"] for parts in (1, 2, 4, 8)), reverse=True)
    by_settings |= {(parts, "full", "fsdp"): each for parts, each in zip((1, 2, 4, 8), held, strict=True)}

    def peak(tried, processes):
        assert processes == 4
        compute = tried.compute
        return seen(peak=by_settings[compute.accumulate, compute.recompute, compute.parallel])

    with patch.object(plan, "simulate", peak):
        found = nearest(SMALL, 4, lambda other: other.peak <= room)
    enough = by_settings[8, "full", "fsdp"] <= room and [
        parts for parts in (1, 2, 4, 8) if by_settings[parts, "full", "fsdp"] <= room
    ]
    wanted = enough and next((each for each in SETTINGS if each[0] == enough[0] and by_settings[each] <= room), None)
    if not wanted:
        assert found is None
        return
    made = found[0].compute
    assert (made.accumulate, made.recompute, made.parallel) == wanted
    assert changed(SMALL, changes(SMALL, found[0]).split()) == found[0]


@pytest.mark.parametrize(("room", "way"), [(8, "ddp"), (5, "hsdp"), (2, "fsdp")])
def test_copies_in_shards_are_tried_before_shards_over_all(room, way):
    held = {"ddp": 8, "hsdp": 5, "fsdp": 2}
    with patch.object(plan, "simulate", lambda tried, _: seen(peak=held[tried.compute.parallel])):
        found = nearest(SMALL, 16, lambda other: other.peak <= room)
        assert nearest(changed(SMALL, ["compute.shard_group=3"]), 16, lambda other: other.peak == 5) is None
    assert found[0].compute.parallel == way


@pytest.mark.parametrize(
    ("mode", "memory_gb", "said"),
    [
        ("none", 200, ""),
        ("none", 105, "a step may not fit: by simulation it needs some 111 GB, and this GPU has 105; make "),
        (
            "selective",
            80,
            'a step holds 100 GB by simulation, and this GPU has 80: SET="compute.recompute=lean" fits',
        ),
        (
            "lean",
            64.6,
            "a step holds 70 GB by simulation, and this GPU has 65: take more GPUs, or a smaller s",
        ),
    ],
)
def test_a_run_that_cannot_fit_is_refused_with_what_fits(mode, memory_gb, said, monkeypatch):
    def peak(tried, _processes):
        return seen(peak={"lean": 70, "full": 65}.get(tried.compute.recompute, 100) * 10**9)

    monkeypatch.setattr(plan, "simulate", peak)
    monkeypatch.setattr(preflight, "simulate", peak)
    asked = changed(SMALL, [f"compute.recompute={mode}"])
    try:
        found = require_fit(asked, 1, int(memory_gb * 1e9))
    except BadOption as error:
        found = str(error)
        assert found.endswith("; FORCE=1 tries it as it is")
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_a_check_that_fails_stops_no_run(monkeypatch):
    def broken(*_):
        raise RuntimeError("an operator has no shapes\nmore")

    monkeypatch.setattr(simulate, "simulate_whole", broken)
    assert require_fit(SMALL, 1, 1) == (
        "whether a step fits into the GPU's memory is seen when it is tried (an operator has no shapes)"
    )


def test_gpus_are_known_by_name_and_plausible():
    assert gpu_named("h200").memory_gb == 141
    with pytest.raises(BadOption, match=r"did you mean h100\?"):
        gpu_named("H100")
    with pytest.raises(BadOption, match="choose from a100-40"):
        gpu_named("tpu")
    for gpu in GPUS.values():
        assert gpu.network_gb_s <= gpu.machine_gb_s < gpu.memory_gb_s


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("matrix", 1.5, "matrix 1.5 is a share"),
        ("matrix", 0.0, "matrix must be above 0"),
        ("price", -1.0, "price -1 is not a number from 0 on"),
        ("fragmentation", 1.0, "fragmentation must be below 1"),
        ("network", 0.0, "network must be above 0"),
        ("bandwidth", 1e-320, "bandwidth 9.99989e-321 is below 1e-06"),
        ("launch_us", 1e308, r"launch_us 1e\+308 is above 1e\+12"),
    ],
)
def test_assumptions_that_cannot_be_are_refused(name, value, said):
    with pytest.raises(BadOption, match=said):
        PlanAssumptions(**{name: value})
