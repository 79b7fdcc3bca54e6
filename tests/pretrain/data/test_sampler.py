"""The sampler draws what it is asked for, and the same on any number of ranks."""

import numpy as np
import pytest
from scipy import stats

from pretrain.compute.randomness import uniforms
from pretrain.data.sampler import DrawnCounts, Sampler, SamplingSettings
from tests.support.indexes import make_index
from wsi_prep.errors import BadOption

ONE = {"20x": 1.0}


@pytest.fixture
def skewed(tmp_path):
    """Strata of 100,000 tiles and of 10, on many slides and few, at two magnifications."""
    cohort = [("HE", "A", {"20x": 10_000, "5x": 700}) for _ in range(10)]
    cohort += [("IHC", "A", {"20x": 5}), ("IHC", "A", {"20x": 5}), ("HE", "B", {"20x": 900, "5x": 44})]
    return make_index(tmp_path, cohort)


def draws(sampler, steps):
    return [sampler.draw(step) for step in range(steps)]


@pytest.mark.parametrize(("alpha", "batch", "steps"), [(0.0, 8, 25_000), (0.5, 64, 15_625), (1.0, 64, 3_125)])
@pytest.mark.slow
def test_shares_of_magnifications_and_strata(skewed, alpha, batch, steps):
    settings = SamplingSettings(batch=batch, seed=1, mix={"20x": 0.75, "5x": 0.25}, alpha=alpha)
    sampler = Sampler(skewed, settings)
    counts = DrawnCounts(sampler)
    for step in range(steps):
        counts.add(sampler.draw(step).stratum)
    tiles = {("20x", "HE", "A"): 100_000, ("20x", "IHC", "A"): 10, ("20x", "HE", "B"): 900}
    tiles |= {("5x", "HE", "A"): 7_000, ("5x", "HE", "B"): 44}
    total = {mag: sum(n**alpha for key, n in tiles.items() if key[0] == mag) for mag in ("20x", "5x")}
    expected = {k: batch * steps * settings.mix[k[0]] * n**alpha / total[k[0]] for k, n in tiles.items()}
    drawn = {(row["magnification"], row["stain"], row["institution"]): row["drawn"] for row in counts.table()}
    assert drawn.keys() == expected.keys()
    assert sum(drawn.values()) == batch * steps
    # two equal tiles in a batch are drawn anew from their stratum: the shares stay exact
    assert stats.chisquare(list(drawn.values()), [expected[k] for k in drawn]).pvalue > 1e-3


def test_slides_are_drawn_evenly_and_tiles_within_them(tmp_path):
    index = make_index(tmp_path, [("HE", "A", {"20x": n}) for n in (10_000, 1_000, 20_000, 3_000)])
    sampler = Sampler(index, SamplingSettings(batch=100, mix=ONE))
    slides = np.concatenate([d.slide for d in draws(sampler, 2000)])
    tiles = np.concatenate([d.tile for d in draws(sampler, 2000)])
    assert stats.chisquare(np.bincount(slides)).pvalue > 1e-3
    inside = tiles[slides == 3] - 31_000
    assert stats.chisquare(np.histogram(inside, 30, (0, 3000))[0]).pvalue > 1e-3


def test_no_tile_twice_in_a_batch(skewed):
    sampler = Sampler(skewed, SamplingSettings(batch=512, mix={"20x": 0.5, "5x": 0.5}, alpha=0.0))
    for draw in draws(sampler, 50):
        assert len(np.unique(draw.tile)) == 512


def test_a_tile_belongs_to_its_slide_and_mpp(skewed):
    draw = Sampler(skewed, SamplingSettings(batch=256, mix={"20x": 0.5, "5x": 0.5})).draw(3)
    for tile, slide, mpp in zip(draw.tile, draw.slide, draw.mpp, strict=True):
        cell = next(c for c in skewed.cells if c["start"] <= tile < c["start"] + c["count"])
        assert (cell["slide"], cell["mpp"]) == (slide, mpp)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_share_the_same_global_batch(skewed, world):
    sampler = Sampler(skewed, SamplingSettings(batch=64))
    whole = sampler.draw(11)
    shares = [sampler.draw(11).share(rank, world) for rank in range(world)]
    assert np.array_equal(np.concatenate([s.tile for s in shares]), whole.tile)
    assert np.array_equal(np.concatenate([s.position for s in shares]), np.arange(64))


def test_a_step_needs_no_steps_before_it(skewed):
    settings = SamplingSettings(batch=64, seed=5)
    late = Sampler(skewed, settings).draw(1000)
    sampler = Sampler(skewed, settings)
    assert np.array_equal(draws(sampler, 1001)[-1].tile, late.tile)
    assert not np.array_equal(sampler.draw(1001).tile, late.tile)
    assert not np.array_equal(Sampler(skewed, SamplingSettings(batch=64, seed=6)).draw(1000).tile, late.tile)


def test_a_batch_that_does_not_divide_is_refused(skewed):
    with pytest.raises(BadOption, match="does not divide by 3"):
        Sampler(skewed, SamplingSettings(batch=64)).draw(0).share(0, 3)


def test_an_empty_magnification_is_named_and_the_rest_take_its_share(skewed):
    sampler = Sampler(skewed, SamplingSettings(batch=8))
    assert sampler.warnings == ["no tile at 40x 10x: the other magnifications take their share of the mix"]
    by_mag = {m: sum(r["target"] for r in sampler.strata if r["magnification"] == m) for m in ("20x", "5x")}
    assert by_mag == pytest.approx({"20x": 2 / 3, "5x": 1 / 3})


def test_a_stratum_that_cannot_fill_its_share_is_named(skewed):
    sampler = Sampler(skewed, SamplingSettings(batch=300, mix=ONE, alpha=0.0))
    assert "IHC / A / unknown has 10 tiles where a batch asks for 100" in sampler.warnings[0]
    assert np.sum(sampler.draw(0).stratum == [r["stain"] for r in sampler.strata].index("IHC")) == 10


def test_a_cohort_of_exactly_a_batch_gives_all_of_it(tmp_path):
    index = make_index(tmp_path, [("HE", "A", {"20x": 31}), ("IHC", "A", {"20x": 1})])
    for draw in draws(Sampler(index, SamplingSettings(batch=32, mix=ONE)), 20):
        assert sorted(draw.tile) == list(range(32))


def test_a_batch_larger_than_the_cohort_is_refused(tmp_path):
    index = make_index(tmp_path, [("HE", "A", {"20x": 31, "5x": 500})])
    with pytest.raises(BadOption, match="only 31 tiles can be drawn"):
        Sampler(index, SamplingSettings(batch=32, mix=ONE))


def test_levels_of_strata_can_be_switched_off(skewed):
    plain = Sampler(skewed, SamplingSettings(batch=8, strata=(), mix=ONE))
    assert [row["tiles"] for row in plain.strata if row["target"]] == [100_910]
    by_stain = Sampler(skewed, SamplingSettings(batch=8, strata=("stain",), mix=ONE))
    assert [(r["stain"], r["tiles"]) for r in by_stain.strata if r["target"]] == [("HE", 100_900), ("IHC", 10)]


def test_held_out_slides_are_never_drawn_for_training(tmp_path):
    index = make_index(tmp_path, [("HE", "A", {"20x": 100}) for _ in range(20)])
    seen = {}
    for split in ("train", "held out"):
        sampler = Sampler(index, SamplingSettings(batch=50, mix=ONE, held_out=0.25, split=split))
        seen[split] = set(np.concatenate([d.slide for d in draws(sampler, 40)]).tolist())
    assert seen == {"held out": set(range(5)), "train": set(range(5, 20))}


def test_coverage_is_what_comes_to_pass(skewed):
    sampler = Sampler(skewed, SamplingSettings(batch=64, mix={"20x": 0.75, "5x": 0.25}))
    seen = np.unique(np.concatenate([d.tile for d in draws(sampler, 1000)]))
    assert sampler.expected_coverage(1000) == pytest.approx(len(seen) / skewed.tiles, rel=0.02)


def test_replacement_is_of_the_same_stratum_and_repeatable(skewed):
    sampler = Sampler(skewed, SamplingSettings(batch=64))
    draw = sampler.draw(0)
    first = [sampler.replacement(0, 7, int(draw.stratum[7]), attempt) for attempt in range(6)]
    again = [sampler.replacement(0, 7, int(draw.stratum[7]), attempt) for attempt in range(6)]
    assert {int(d.stratum[0]) for d in first} == {int(draw.stratum[7])}
    assert [int(d.tile[0]) for d in first] == [int(d.tile[0]) for d in again]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"batch": 0}, "a batch of 0 tiles is not between 1"),
        ({"alpha": 1.5}, "alpha 1.5"),
        ({"alpha": float("nan")}, "alpha nan"),
        ({"mix": {"20x": -1.0}}, "share -1.0 of 20x"),
        ({"mix": {"20x": 0.0}}, "every share"),
        ({"mix": {"21x": 1.0}}, "21x"),
        ({"strata": ("colour",)}, "colour"),
        ({"held_out": 1.0}, "held_out 1.0"),
        ({"split": "test"}, "test"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings_are_refused_where_they_are_built(wrong, says):
    with pytest.raises(BadOption, match=says):
        SamplingSettings(**({"batch": 8} | wrong))


def test_random_numbers_do_not_depend_on_how_they_are_cut():
    whole = uniforms(3, 1, 7, range(100), 6)
    assert np.array_equal(
        np.concatenate([uniforms(3, 1, 7, range(37), 6), uniforms(3, 1, 7, range(37, 100), 6)]), whole
    )
    assert stats.kstest(uniforms(3, 1, 7, range(10000), 4).ravel(), "uniform").pvalue > 1e-3
    others = [
        uniforms(4, 1, 7, range(9), 4),
        uniforms(3, 2, 7, range(9), 4),
        uniforms(3, 1, 8, range(9), 4),
        uniforms(3, 1, 7, range(9), 4, 1),
    ]
    assert len({float(u[0, 0]) for u in others} | {whole[0, 0]}) == 5
