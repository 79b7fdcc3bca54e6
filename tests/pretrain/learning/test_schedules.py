"""What each schedule begins with, ends with and does in between."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.learning.schedules import SHAPES, ScheduleSettings, at, same_until
from wsi_prep.errors import BadOption

SETTING = ScheduleSettings(steps=1000, rate=0.004, warmup=0.1, least_rate=1e-6)


def test_warmup_rises_linearly_to_the_scaled_top():
    for batch, top in ((1024, 0.004), (4096, 0.008), (256, 0.002)):
        rates = [at(SETTING, step, batch).rate for step in range(101)]
        assert rates[100] == pytest.approx(top)
        assert rates[0] == pytest.approx(top / 101)
        assert all(b - a == pytest.approx(top / 101) for a, b in itertools.pairwise(rates))
        assert max(at(SETTING, step, batch).rate for step in range(1000)) == rates[100]


def test_the_cosine_ends_at_the_least_rate():
    assert at(SETTING, 550, 1024).rate == pytest.approx((0.004 + 1e-6) / 2)
    assert at(SETTING, 1000, 1024).rate == pytest.approx(1e-6)
    assert at(SETTING, 999, 1024).rate == pytest.approx(1e-6, rel=0.02)
    assert at(SETTING, 1200, 1024).rate == pytest.approx(1e-6)


def test_decay_and_momentum_go_from_first_to_last():
    first, middle, last = (at(SETTING, step, 1024) for step in (0, 500, 1000))
    assert (first.decay, middle.decay, last.decay) == pytest.approx((0.04, 0.12, 0.2))
    assert (first.momentum, middle.momentum, last.momentum) == pytest.approx((0.992, 0.996, 1.0))


def test_temperature_rises_linearly_and_stays():
    values = [at(SETTING, step, 1024).temperature for step in (0, 150, 299, 300, 301, 999)]
    assert values == pytest.approx([0.04, 0.055, 0.0699, 0.07, 0.07, 0.07])
    assert at(ScheduleSettings(temperature_warmup=0.0), 0, 16).temperature == 0.07


def test_prototypes_are_frozen_for_their_share():
    assert sum(at(SETTING, step, 1024).frozen for step in range(1000)) == 10
    assert at(SETTING, 9, 1024).frozen
    assert not at(SETTING, 10, 1024).frozen
    assert not at(ScheduleSettings(frozen=0.0), 0, 1024).frozen


def test_a_constant_rate_falls_in_its_last_share_alone():
    constant = ScheduleSettings(steps=1000, rate=0.004, shape="constant", cooldown=0.2, warmup=0.1)
    values = [at(constant, step, 1024) for step in range(1000)]
    assert values[50].rate == pytest.approx(0.004 * 51 / 101)
    assert {value.rate for value in values[100:801]} == {0.004}
    falls = [a.rate - b.rate for a, b in itertools.pairwise(values[800:])]
    assert falls == pytest.approx([(0.004 - 1e-6) / 200] * 199)
    assert at(constant, 1000, 1024).rate == pytest.approx(1e-6)
    assert len({(value.decay, value.momentum) for value in values}) == 1
    assert (values[0].decay, values[0].momentum) == pytest.approx((0.04, 0.992))


@pytest.mark.parametrize(("steps", "done", "same"), [(4000, 800, True), (4000, 801, True), (4000, 802, False)])
def test_a_longer_constant_rate_is_the_same_until_the_shorter_falls(steps, done, same):
    short = ScheduleSettings(steps=1000, shape="constant", shares_of=1000)
    assert same_until(short, replace(short, steps=steps), done) == same


def test_a_longer_cosine_is_another_one_from_the_first_step():
    short = ScheduleSettings(steps=1000, shares_of=1000)
    assert same_until(short, replace(short, steps=2000), 0)
    assert not same_until(short, replace(short, steps=2000), 2)


shares = st.floats(0, 1)
setting = st.builds(
    ScheduleSettings,
    steps=st.integers(1, 5000),
    shape=st.sampled_from(SHAPES),
    cooldown=shares,
    shares_of=st.one_of(st.just(0), st.integers(1, 5000)),
    rate=st.floats(1e-5, 1),
    least_rate=st.floats(0, 1e-5),
    warmup=shares,
    decay=st.tuples(shares, shares),
    momentum=st.tuples(shares, shares),
    temperature=st.tuples(st.floats(0.02, 1), st.floats(0.02, 1)),
    temperature_warmup=shares,
    frozen=shares,
)


def between(value, ends):
    return min(ends) - 1e-12 <= value <= max(ends) + 1e-12


@given(setting=setting, share=st.floats(0, 1.1), batch=st.integers(1, 10**5))
@settings(max_examples=300, deadline=None)
def test_values_stay_in_range(setting, share, batch):
    step = int(share * setting.steps)
    now = at(setting, step, batch)
    top = setting.rate * math.sqrt(batch / 1024)
    assert now.step == step
    assert between(now.rate, (0, max(top, setting.least_rate)))
    assert between(now.decay, setting.decay)
    assert between(now.momentum, setting.momentum)
    assert between(now.temperature, setting.temperature)


@given(setting=setting, share=st.floats(0, 1), batch=st.integers(1, 10**5))
@settings(max_examples=300, deadline=None)
def test_the_rate_never_jumps(setting, share, batch):
    """Not by more than a step of the warm-up, or the steepest of the cosine, or of the cooldown."""
    step = int(share * (setting.steps - 1))
    top = setting.rate * math.sqrt(batch / 1024)
    warmup = setting.warmup * (setting.shares_of or setting.steps)
    steepest = abs(top - setting.least_rate) * math.pi / 2 / max(setting.steps - warmup, 1)
    if setting.shape == "constant":
        begins = max(setting.steps * (1 - setting.cooldown), warmup)
        steepest = abs(top - setting.least_rate) / max(setting.steps - begins, 1)
    jump = abs(at(setting, step + 1, batch).rate - at(setting, step, batch).rate)
    assert jump <= max(top / (warmup + 1), steepest) * (1 + 1e-6)


@given(setting=setting, batch=st.integers(1, 10**5))
@settings(max_examples=100, deadline=None)
def test_values_are_functions_of_the_step_alone(setting, batch):
    steps = [0, setting.steps // 2, setting.steps]
    assert [at(setting, step, batch) for step in steps] == [at(setting, step, batch) for step in steps[::-1]][::-1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": 0}, "0 steps"),
        ({"shape": "linear"}, "shape 'linear'"),
        ({"cooldown": 1.1}, "cooldown"),
        ({"shares_of": -1}, "shares_of"),
        ({"warmup": 1.1}, "warmup"),
        ({"warmup": float("nan")}, "warmup"),
        ({"temperature_warmup": -0.1}, "temperature_warmup"),
        ({"frozen": 2.0}, "frozen"),
        ({"rate": float("inf")}, "no range"),
        ({"rate": float("nan")}, "no range"),
        ({"rate": 1e-7}, "no range"),
        ({"least_rate": -1e-6}, "no range"),
        ({"momentum": (0.9, 1.1)}, "momentum"),
        ({"temperature": (0.0, 0.07)}, "temperature"),
        ({"temperature": (0.005, 0.07)}, "temperature"),  # e^(1 / 0.005) is no float32: Sinkhorn-Knopp gives NaN
        ({"decay": (-0.1, 0.2)}, "decay"),
        ({"decay": (0.04, float("nan"))}, "decay"),
    ],
)
def test_bad_settings_are_refused(wrong, says):
    with pytest.raises(BadOption, match=says):
        ScheduleSettings(**wrong)
