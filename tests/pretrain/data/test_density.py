"""Densities of um/px, the settings that give them, and which cells of tiles serve what is drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.sampler import SamplingSettings
from pretrain.data.scales.density import Density
from pretrain.data.scales.served import Served
from wsi_prep.errors import BadOption


def test_a_slide_that_is_a_little_finer_than_all_others_does_not_serve_alone():
    mpp = np.array([0.2375, *[0.2498, 0.2527] * 50, *[0.5] * 200])
    served = Served(mpp, np.ones(len(mpp)), np.ones(len(mpp), int), 1.4)
    assert served.density.at(np.zeros(1))[0] == pytest.approx(0.2498)
    assert (served.alone + served.whole).max() < 3 / 101


def test_a_density_is_what_its_knots_say():
    knots = ((0.25, 2.0), (0.5, 0.0), (1.0, 1.0))
    density = Density(knots, np.log([[0.2, 0.4], [0.6, 2.0]]))
    at = np.linspace(np.log(0.25), 0, 200_001)
    weight = np.interp(at, np.log([m for m, _ in knots]), [w for _, w in knots])
    whole = weight.sum()
    weight[(at > np.log(0.4)) & (at < np.log(0.6))] = 0
    upto = np.cumsum(weight) / weight.sum()
    u = np.array([0.0, 0.01, 0.3, 0.5, 0.77, 0.999])
    assert np.log(density.at(u)) == pytest.approx(np.interp(u, upto, at), abs=2e-4)
    assert density.below(np.log(density.at(u))) == pytest.approx(u, abs=1e-9)
    assert density.share == pytest.approx(weight.sum() / whole, abs=1e-4)
    assert [pytest.approx(each, rel=1e-6) for each in density.missing] == [(0.4, 0.6)]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"density": ((0.5, 1.0),)}, "at least two knots"),
        ({"density": ((0.5, 1.0), (0.5, 2.0))}, "must rise"),
        ({"density": ((1.0, 1.0), (0.5, 2.0))}, "must rise"),
        ({"density": ((0.0, 1.0), (0.5, 2.0))}, "0 um/px in the density is not between"),
        ({"density": ((0.25, -1.0), (0.5, 2.0))}, "weight -1"),
        ({"density": ((0.25, float("nan")), (0.5, 2.0))}, "weight nan"),
        ({"density": ((0.25, 0.0), (0.5, 0.0))}, "every weight"),
        ({"any_mpp": False, "density": ((0.25, 1.0), (0.5, 1.0))}, "only drawn with sampling.any_mpp"),
        ({"alone": 0.9}, "alone 0.9 is not between 1 and 2"),
        ({"alone": 2.1}, "alone 2.1 is not between 1 and 2"),
    ],
)
def test_a_setting_that_is_none_is_refused(wrong, says):
    with pytest.raises(BadOption, match=says) as refused:
        SamplingSettings(**{"batch": 8, "any_mpp": True} | wrong)
    assert "\n" not in str(refused.value)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_is_drawn_is_served(data):
    """Down to the ends of every range, where sums are rounded."""
    cells = data.draw(st.integers(1, 12))
    own = [data.draw(st.sampled_from([0.2375, 0.25, 0.2525, 0.5, 0.505, 1.0, 2.0])) for _ in range(cells)]
    mpp = np.array(own, np.float32).astype(float)
    weight = np.array([data.draw(st.sampled_from([0.0, 1e-6, 1.0, 30.0])) for _ in range(cells)])
    blocks = np.array([data.draw(st.sampled_from([0, 5])) for _ in range(cells)])
    alone = data.draw(st.sampled_from([1.0, 1.4, 1.5312, 2.0]))
    knots = data.draw(st.sampled_from([((0.2, 1.0), (4.0, 1.0)), ((0.25, 0.0), (0.5, 2.0), (2.0, 0.0))]))
    try:
        served = Served(mpp, weight, blocks, alone, knots)
    except BadOption:
        assert not any(knots[0][0] < own * 2 and own < knots[-1][0] for own in mpp[(weight > 0) & (blocks > 0)])
        return
    u = np.array([0.0, 1e-12, 0.25, 0.5, 0.75, 1 - 2.0**-53])
    for wanted in served.density.at(u).astype(np.float32):
        cell, whole = served.choose(np.full(len(u), wanted), u)
        times = float(wanted) / mpp[cell]
        assert (weight[cell] > 0).all()
        assert (times >= 1 - 1e-5).all()
        assert (times[~whole] <= alone + 1e-5).all()
        assert (times[whole] <= 2 + 1e-5).all()
        assert (times[whole] >= alone - 1e-5).all()
        assert (blocks[cell[whole]] > 0).all()
    assert (served.alone + served.whole).sum() == pytest.approx(1)
