"""What a cohort will take, against sums by hand and another library's bootstrap."""

import json
import re

import numpy as np
import pytest
from scipy.stats import bootstrap

from pipelines.plan import main, number
from tests.support.shard_folders import add_row, add_slide
from wsi_prep.curation.assumptions import Assumptions
from wsi_prep.curation.estimate import NAMES, REST, estimate, read_sample
from wsi_prep.errors import BadCatalog, BadOption
from wsi_prep.output.folder import write_run
from wsi_prep.storage.select import open_storage


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Eight slides with tiles, of 100 to 800 s, and two without."""
    out = tmp_path_factory.mktemp("sample")
    for n in range(1, 9):
        add_slide(out, n, {"20x": n, "5x": 1}, seconds=100.0 * n, bytes=50_000 * n, files=7)
    add_row(out, "empty-1", status="empty", seconds=10.0, bytes=0, files=2)
    add_row(out, "failed-1", status="failed", seconds=30.0, bytes=0, files=0)
    add_row(out, "gone-1", status="excluded", error_type="Forgotten", seconds=0.0, bytes=0, files=0)
    return out


def test_a_cohort_is_so_many_times_the_mean_slide(sample):
    found = estimate(read_sample(sample), 1_000_000, Assumptions(workers=100, busy=0.5, slide_gb=2, egress_gb=0.01))
    total = {name: value.estimate for name, value in found.total.items()}
    assert total["tiles"] == pytest.approx(1e6 * (36 + 8) / 10)
    assert total["core_hours"] == pytest.approx(1e6 * 3640 / 10 / 3600)
    assert total["storage_tb"] == pytest.approx(1e6 * 50_000 * 36 / 10 / 1e12)
    assert total["objects"] == pytest.approx(1e6 * (8 * 7 + 2) / 10 + 2 * 20)
    assert total["wall_days"] == pytest.approx(total["core_hours"] / 100 / 0.5 / 24)
    assert total["read_tb"] == pytest.approx(2000)
    gigabits = (2000 + total["storage_tb"]) * 8000
    assert total["network_gbit_s"] == pytest.approx(gigabits / (total["wall_days"] * 86_400))
    money = total["core_hours"] * 0.04 + total["storage_tb"] * 23 * 12 + total["objects"] / 1000 * 0.005 + 2e6 * 0.01
    assert total["cost"] == pytest.approx(money)


def test_magnifications_and_the_rest_add_up_to_the_total(sample):
    found = estimate(read_sample(sample), 1000, Assumptions())
    assert list(found.by_magnification) == [*NAMES, REST]
    for name in ("tiles", "core_hours", "storage_tb"):
        parts = sum(of[name].estimate for of in found.by_magnification.values())
        assert parts == pytest.approx(found.total[name].estimate)
    assert sum(of["objects"].estimate for of in found.by_magnification.values()) + 2 == pytest.approx(
        found.total["objects"].estimate
    )
    assert found.by_magnification["40x"]["cost"].estimate == 0
    assert found.by_magnification[REST]["core_hours"].estimate == pytest.approx(1000 * 40 / 10 / 3600)
    assert found.by_magnification["20x"]["objects"].estimate == pytest.approx(1000 * 8 * 2 / 10)


def test_intervals_are_those_of_another_bootstrap(sample):
    seconds = np.array([100.0 * n for n in range(1, 9)] + [10.0, 30.0])
    theirs = bootstrap((seconds,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1))
    ours = estimate(read_sample(sample), 3600, Assumptions()).total["core_hours"]
    assert ours.low == pytest.approx(theirs.confidence_interval.low, rel=0.05)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, rel=0.05)


def test_slides_that_are_all_alike_leave_no_doubt(tmp_path):
    for n in range(3):
        add_row(tmp_path, f"s-{n}", status="empty", seconds=36.0, bytes=0, files=2)
    total = estimate(read_sample(tmp_path), 100, Assumptions(speed=2.0)).total
    assert (total["core_hours"].low, total["core_hours"].high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_the_command_prints_what_it_assumes_and_writes_everything(sample, tmp_path, capsys):
    to = tmp_path / "plan.json"
    call = ["--slides", "3100000", "--sample", str(sample), "--to", str(to), "--workers", "250", "--tb-month", "20"]
    assert main(call) == 0
    printed = capsys.readouterr().out
    for told in (
        "3,100,000 slides, from 10 slides of",
        "  WORKERS=250: ",
        "  TB_MONTH=20: ",
        "a sample of 10 slides is small",
    ):
        assert told in printed
    plan = json.loads(to.read_text())
    assert plan["assumptions"]["workers"] == 250
    assert plan["total"]["tiles"]["estimate"] == pytest.approx(3.1e6 * 4.4)
    assert set(plan["by_magnification"]) == {*NAMES, REST}


def test_a_slides_size_is_the_samples_unless_another_is_given(sample, tmp_path, capsys):
    for n, size in enumerate((1e9, 2e9, None)):
        add_row(tmp_path, f"s-{n}", status="empty", seconds=36.0, bytes=0, files=2, source_bytes=size and int(size))

    def planned(where, *more):
        assert main(["--slides", "100", "--sample", str(where), "--to", str(tmp_path / "plan.json"), *more]) == 0
        plan = json.loads((tmp_path / "plan.json").read_text())
        return plan["assumptions"]["slide_gb"], plan["total"]["read_tb"]["estimate"], capsys.readouterr().out

    gb, tb, printed = planned(tmp_path)
    assert (gb, tb) == (1.5, pytest.approx(0.15))
    assert "SLIDE_GB=1.5: mean size of a slide's file, in GB; the mean of 2 slides of the sample" in printed
    gb, tb, printed = planned(tmp_path, "--slide-gb", "0.5")
    assert (gb, tb) == (0.5, pytest.approx(0.05))
    assert "SLIDE_GB=0.5: mean size of a slide's file, in GB; given" in printed
    gb, tb, printed = planned(sample)
    assert (gb, tb) == (1.0, pytest.approx(0.1))
    assert "SLIDE_GB=1: mean size of a slide's file, in GB; a guess: the sample's rows do not say" in printed


def test_time_is_shown_in_hours_too_and_money_with_its_currency(sample, tmp_path, capsys):
    call = ["--slides", "36000", "--sample", str(sample), "--workers", "10", "--busy", "1", "--to"]
    assert main([*call, str(tmp_path / "plan.json"), "--currency", "EUR"]) == 0
    printed = capsys.readouterr().out
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["total"]["wall_hours"]["estimate"] == pytest.approx(364)
    assert plan["currency"] == "EUR"
    assert "364 hours" in printed
    assert "15.2 days" in printed
    money = [line for line in printed.splitlines() if line.strip().startswith("cost")]
    assert len(money) == 5
    assert all(" EUR " in line for line in money)


@pytest.mark.slow
def test_a_small_cohort_is_told_in_minutes_and_gb_and_magnifications_of_nobody_are_not(tmp_path, capsys):
    for n in range(4):
        add_slide(tmp_path, n, {"20x": 5}, seconds=36.0, bytes=2_000_000, files=3, source_bytes=500_000_000)
    call = ["--slides", "100", "--sample", str(tmp_path), "--workers", "10", "--busy", "1"]
    write_run(open_storage(tmp_path), {"settings": {"plan": {"magnifications": ["20x", "10x"]}}})
    assert main(call) == 0
    lines = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert ["work", "1 core-hours"] in lines
    assert ["wall time", "6 minutes"] in lines
    assert ["storage", "200 MB"] in lines
    assert ["slides read", "50 GB"] in lines
    assert [line[0] for line in lines if line[0] in (*NAMES, REST)] == ["20x", "10x", REST]
    assert main(["--slides", "2,400", *call[2:]]) == 0
    assert re.search(r"wall time +2.4 hours", capsys.readouterr().out)


def test_wrong_calls_take_one_line(sample, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    cases = [
        (["--slides", "0", "--sample", sample], "SLIDES 0 is not a number of slides"),
        (["--slides", sample, "--sample", sample], f"SLIDES={sample} is not a number: here it is how many slides the "),
        (["--slides", "-3", "--sample", sample], "SLIDES=-3 is not a number: here it is how many slides the cohort"),
        (["--slides", "9", "--sample", tmp_path / "none"], "holds no catalog/slides"),
        (["--slides", "9", "--sample", sample, "--busy", "1.5"], "busy in (0, 1]"),
        (["--slides", "9", "--sample", sample, "--slide-gb", "nan"], "slide_gb nan is not a number from 0 on"),
    ]
    for call, said in cases:
        assert main([str(word) for word in call]) == 2
        assert said in capsys.readouterr().err
    add_row(tmp_path / "one", "s-1", status="empty", seconds=1.0)
    with pytest.raises(BadCatalog, match="a sample needs at least 2"):
        read_sample(tmp_path / "one")
    with pytest.raises(BadOption):
        Assumptions(workers=0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (12.345, "12.3"),
        (999.9, "1,000"),
        (1234567, "1,230,000"),
        (2.72e-5, "< 0.001"),
        (0.0099, "0.0099"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text
