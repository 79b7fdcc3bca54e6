"""Tiles that are left out because somebody asked for it: what is stored, counted and said of them."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from pipelines.calls.shards import ShardsCall
from pipelines.shards import build_request, main
from tests.support.real_tiles import prepared
from wsi_prep.errors import BadOption
from wsi_prep.format.jpeg import decode_tile
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.records import FORMAT_VERSION
from wsi_prep.run.task import PrepareSettings
from wsi_prep.tiles.filters import TileFilter, parse_filters, say_lost, where_of
from wsi_prep.tiles.plan import PlanSettings
from wsi_prep.tiles.quality import MEASURES
from wsi_prep.untrusted.sql import Condition

COARSE = PlanSettings(magnifications=("20x", "10x", "5x"))


@pytest.fixture(scope="module")
def unfiltered(he_slide, tmp_path_factory):
    """The folder, row and tiles of a run without a filter."""
    out = tmp_path_factory.mktemp("unfiltered")
    return out, *prepared(he_slide, out, PrepareSettings(plan=COARSE))


def jpeg_of(out, tile):
    with (out / tile["shard"]).open("rb") as shard:
        shard.seek(tile["offset"])
        return shard.read(tile["nbytes"])


def place(tile):
    return tile["magnification"], tile["row"], tile["col"]


def middle(tiles, magnification, measure):
    return float(np.median([tile[measure] for tile in tiles if tile["magnification"] == magnification]))


def test_the_store_holds_what_passes_and_counts_the_rest(he_slide, tmp_path, unfiltered):
    whole, row, tiles = unfiltered
    least = middle(tiles, "20x", "focus")
    white = middle(tiles, "10x", "white") + 0.02
    expected = [t for t in tiles if (t["magnification"] != "20x" or t["focus"] >= least) and t["white"] < white]
    assert 0 < len(expected) < len(tiles)
    filters = parse_filters(f"focus@20x>={least!r}, white < {white!r}")
    filtered, kept = prepared(he_slide, tmp_path, PrepareSettings(plan=COARSE, filters=filters))
    assert [place(tile) for tile in kept] == [place(tile) for tile in expected]
    for mine, theirs in zip(kept, expected, strict=True):
        assert jpeg_of(tmp_path, mine) == jpeg_of(whole, theirs)
        assert [mine[name] for name in MEASURES] == [theirs[name] for name in MEASURES]
    counts = {name: sum(t["magnification"] == name for t in kept) for name in ("40x", "20x", "10x", "5x")}
    assert {name: filtered[f"tiles_{name}"] for name in counts} == counts
    assert filtered["tiles_filtered"] == len(tiles) - len(kept)
    assert row["tiles_filtered"] == 0
    assert filtered["config_hash"] != row["config_hash"]
    for name in {tile["magnification"] for tile in kept}:
        of_name = [tile for tile in kept if tile["magnification"] == name]
        assert [tile["index"] for tile in of_name] == list(range(len(of_name)))
        array = zarr.open(tmp_path / of_name[0]["array"], mode="r")
        assert array.shape == (len(of_name), 392, 392, 3)
        for tile in (of_name[0], of_name[-1]):
            assert np.array_equal(array[tile["index"]], decode_tile(jpeg_of(tmp_path, tile)))


def test_a_condition_for_a_stain_is_for_its_slides_alone(he_slide, tmp_path, unfiltered):
    """The pixels of he_slide are H&E's."""
    _, row, tiles = unfiltered
    assert row["stain"] == "HE"
    least = middle(tiles, "20x", "focus")
    expected = [place(t) for t in tiles if t["magnification"] != "20x" or t["focus"] >= least]
    kept = {}
    for stain in ("HE", "IHC"):
        filters = parse_filters(f"focus@20x:{stain}>={least!r}")
        kept[stain] = prepared(he_slide, tmp_path / stain, PrepareSettings(plan=COARSE, filters=filters))
    assert [place(tile) for tile in kept["HE"][1]] == expected
    assert kept["HE"][0]["tiles_filtered"] == len(tiles) - len(expected) > 0
    assert [place(tile) for tile in kept["IHC"][1]] == [place(tile) for tile in tiles]
    assert kept["IHC"][0]["tiles_filtered"] == 0


def test_another_stain_in_the_manifest_makes_other_tiles_only_where_a_condition_asks_for_one():
    def mark(text, stain):
        return PrepareSettings(filters=parse_filters(text)).config_hash(0.25, None, stain)

    assert mark("focus>=0.1", "HE") == mark("focus>=0.1", None)
    assert len({mark("focus:IHC>=0.1", stain) for stain in ("HE", "IHC", None)}) == 3
    assert PrepareSettings().config_hash(0.25, None, "HE") == PrepareSettings().config_hash(0.25)


def test_a_stain_is_written_behind_measure_and_magnification():
    assert parse_filters("focus@20x:ihc >= 0.25, pen:HE<=0.02") == (
        TileFilter("focus", ">=", 0.25, "20x", "IHC"),
        TileFilter("pen", "<=", 0.02, None, "HE"),
    )
    for condition in parse_filters("focus@20x:IHC>=0.25 pen:HE<=0.02"):
        assert parse_filters(str(condition)) == (condition,)


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_a_slide_that_loses_most_of_its_tiles_says_so(he_slide, tmp_path, unfiltered, share):
    tiles = unfiltered[2]
    limit = float(np.quantile([tile["saturation"] for tile in tiles], share))
    settings = PrepareSettings(plan=COARSE, filters=(TileFilter("saturation", ">", limit),))
    row, kept = prepared(he_slide, tmp_path, settings)
    assert row["status"] == "ok"
    lost = len(tiles) - len(kept)
    if share < 0.5:
        assert row["warning"] is None
    else:
        assert row["warning"].startswith(f"{lost} of {len(tiles)} tiles with tissue do not pass the filter saturation>")


def test_a_slide_that_loses_all_is_empty_and_leaves_no_store(he_slide, tmp_path):
    settings = PrepareSettings(plan=COARSE, filters=parse_filters("focus>=1"))
    row, tiles = prepared(he_slide, tmp_path, settings)
    assert (row["status"], tiles, row["bytes"]) == ("empty", [], 0)
    assert row["error"] == f"all {row['tiles_filtered']} tiles with tissue fail focus>=1.0"
    assert not list(tmp_path.glob("stores/*"))
    assert list(tmp_path.glob("overlays/*.jpg"))


def test_of_several_conditions_each_says_how_many_tiles_fail_it(he_slide, tmp_path, unfiltered):
    tiles = unfiltered[2]
    sharp = float(np.quantile([t["focus"] for t in tiles if t["magnification"] == "20x"], 0.9))
    white = middle(tiles, "20x", "white")
    failing = {
        f"white>{white!r}": sum(not t["white"] > white for t in tiles),
        f"focus@20x>={sharp!r}": sum(t["magnification"] == "20x" and not t["focus"] >= sharp for t in tiles),
    }
    lost = sum(not t["white"] > white or (t["magnification"] == "20x" and not t["focus"] >= sharp) for t in tiles)
    assert len(tiles) / 2 < lost < len(tiles)
    each = ", ".join(f"{n} fail {name}" for name, n in sorted(failing.items(), key=lambda item: -item[1]))
    text = f"focus@20x>={sharp!r} white>{white!r} pen<=1"
    row, kept = prepared(he_slide, tmp_path, PrepareSettings(plan=COARSE, filters=parse_filters(text)))
    assert len(kept) == len(tiles) - lost
    names = f"focus@20x>={sharp!r} white>{white!r} pen<=1.0"
    assert row["warning"] == f"{lost} of {len(tiles)} tiles with tissue do not pass the filter {names}: {each}"


def test_the_condition_that_empties_a_slide_is_named():
    one, other = parse_filters("focus@40x>=0.2 pen<=0.02")
    assert say_lost((one,), [1234], 1234, 1234) == "all 1,234 tiles with tissue fail focus@40x>=0.2"
    both = (one, other)
    assert say_lost(both, [0, 1234], 1234, 1234) == "all 1,234 tiles with tissue fail pen<=0.02"
    assert say_lost(both, [30, 1234], 1234, 1234) == (
        "all 1,234 tiles with tissue fail pen<=0.02, 30 fail focus@40x>=0.2 too"
    )
    assert say_lost(both, [1200, 40], 1234, 1234) == (
        "all 1,234 tiles with tissue fail the filter: 1,200 fail focus@40x>=0.2, 40 fail pen<=0.02"
    )


VALUES = st.one_of(st.sampled_from([0.0, 0.1, 0.2, math.nan]), st.floats(0, 1, width=32))


@given(
    st.lists(st.tuples(st.sampled_from(["40x", "20x", "10x", "5x"]), VALUES), max_size=20),
    st.sampled_from([">=", "<=", ">", "<"]),
    st.sampled_from([None, "40x", "5x"]),
    st.sampled_from([0.1, 0.2, 0.5]),
)
def test_failures_are_the_tiles_that_do_not_pass(tiles, sign, magnification, limit):
    condition = TileFilter("pen", sign, limit, magnification)
    measures = np.zeros((len(tiles), len(MEASURES)), np.float32)
    measures[:, MEASURES.index("pen")] = [value for _, value in tiles]
    mag = np.array([[m.name for m in MAGNIFICATIONS].index(name) for name, _ in tiles], np.int8)
    passing = [condition.passes(row.tolist(), name) for row, (name, _) in zip(measures, tiles, strict=True)]
    assert condition.failures(measures, mag) == passing.count(False)


def test_without_a_filter_the_settings_are_as_before():
    settings = PrepareSettings().as_dict()
    assert settings == {
        "format": FORMAT_VERSION,
        "plan": {"magnifications": ["40x", "20x", "10x", "5x"], "tissue_threshold": 0.65, "max_tiles": []},
        "tissue": settings["tissue"],
        "jpeg": {"quality": 90, "subsampling": "420"},
        "reader": "auto",
        "assume_mpp": None,
        "own_quality": True,
    }


def test_conditions_in_another_order_are_the_same_filter():
    one = PrepareSettings(filters=parse_filters("focus>=0.05 pen<=0.02"))
    other = PrepareSettings(filters=parse_filters("pen <= 2e-2,focus>=.05"))
    assert one.as_dict()["filters"] == "focus>=0.05 pen<=0.02"
    assert one.config_hash(None) == other.config_hash(None)
    assert one.config_hash(None) != PrepareSettings().config_hash(None)


def test_a_condition_for_one_magnification_leaves_the_others_alone():
    (condition,) = parse_filters("focus@40x>0.2")
    assert condition == TileFilter("focus", ">", 0.2, "40x")
    measures = dict.fromkeys(MEASURES, 0.0) | {"focus": 0.1}
    assert not condition.passes(list(measures.values()), "40x")
    assert condition.passes(list(measures.values()), "5x")


@pytest.mark.parametrize(("sign", "passing"), [(">=", (1.0, 2.0)), ("<=", (0.0, 1.0)), (">", (2.0,)), ("<", (0.0,))])
def test_each_operator_compares(sign, passing):
    condition = TileFilter("white", sign, 1.0)
    measures = {value: [value if name == "white" else math.nan for name in MEASURES] for value in (0.0, 1.0, 2.0)}
    assert tuple(value for value, of_tile in measures.items() if condition.passes(of_tile, "5x")) == passing


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("blur>=1", "choose from focus pen dark white saturation"),
        ("focus=0.1", "not understood"),
        ("focus==0.1", "not understood"),
        ("focus!0.1", "not understood"),
        ("focus", "not understood"),
        (">=0.1", "not understood"),
        ("focus>=much", "not understood"),
        ("focus>=nan", "finite"),
        ("focus>=inf", "finite"),
        ("focus@30x>=0.1", "choose from 40x 20x 10x 5x"),
        ("__class__>=0", "choose from focus"),
        ("focus:KI67>=0.1", "choose from HE IHC SPECIAL FLUORESCENCE UNKNOWN"),
        ("focus:IHC@20x>=0.1", "not understood"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(text, says, tmp_path, capsys):
    with pytest.raises(BadOption, match=r"filter|magnification") as refused:
        parse_filters(text)
    assert says in str(refused.value)
    assert main(["--slides", str(tmp_path), "--out", str(tmp_path / "out"), "--filter", text]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_an_operator_is_refused_where_it_is_built():
    with pytest.raises(BadOption, match="choose from >= <= > <"):
        TileFilter("focus", "==", 0.1)


def test_the_call_takes_a_filter(tmp_path):
    assert build_request(ShardsCall(slides="s", out=str(tmp_path))).settings.filters == ()
    request = build_request(ShardsCall(slides="s", out=str(tmp_path), filter="focus>=0.05 pen<=0.02"))
    assert request.settings.filters == (TileFilter("focus", ">=", 0.05), TileFilter("pen", "<=", 0.02))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("focus>=0.25", "focus >= 0.25"),
        ("focus@20x:IHC>=0.25", "magnification <> '20x' OR stain <> 'IHC' OR focus >= 0.25"),
        ("pen<=0.02 focus@40x>0.2", "pen <= 0.02 AND (magnification <> '40x' OR focus > 0.2)"),
    ],
)
def test_a_filter_is_a_condition_on_the_catalog_too(text, where):
    assert where_of(parse_filters(text)) == where


def test_the_condition_chooses_the_tiles_that_a_run_with_the_filter_makes(unfiltered):
    _, row, tiles = unfiltered
    table = pa.Table.from_pylist([tile | {"stain": row["stain"]} for tile in tiles])
    quantile = {name: float(np.quantile([tile[name] for tile in tiles], 0.4)) for name in ("focus", "white")}
    filters = parse_filters(
        f"focus@20x:HE>={quantile['focus'] + 1e-3} focus@10x:IHC>1 white<{quantile['white'] + 1e-3}"
    )
    of_slide = [each for each in filters if each.is_for(row["stain"])]
    measured = [([tile[name] for name in MEASURES], tile["magnification"]) for tile in tiles]
    expected = [n for n, tile in enumerate(measured) if all(each.passes(*tile) for each in of_slide)]
    assert Condition(where_of(filters)).rows(table) == expected
    assert 0 < len(expected) < len(tiles)


@pytest.mark.usefixtures("shared_dask")
def test_a_filter_that_comes_later_is_refused_with_what_does_the_same(nompp_slide, tmp_path, capsys):
    call = ["--slides", str(nompp_slide), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(call) == 0
    capsys.readouterr()
    assert main([*call, "--filter", "focus@20x:HE>=0.25"]) == 2
    said = capsys.readouterr().err
    assert "filters was None, now focus@20x:HE>=0.25" in said
    assert "by WHERE=\"magnification <> '20x' OR stain <> 'HE' OR focus >= 0.25\"" in said
    assert said.count("\n") == 1
    assert main([*call, "--filter", "focus>=0.25", "--quality", "80"]) == 2
    assert "WHERE" not in capsys.readouterr().err


@pytest.mark.usefixtures("shared_dask")
def test_a_run_records_its_filter_and_goes_on_only_with_it(nompp_slide, tmp_path, capsys):
    call = ["--slides", str(nompp_slide), "--out", str(tmp_path / "out"), "--workers", "1", "--assume-mpp", "0.5"]
    assert main([*call, "--filter", "white<=0.9 focus@20x>=0.9"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    (row,) = pq.read_table(tmp_path / "out" / "catalog" / "slides").to_pylist()
    assert row["tiles_filtered"] > 0
    assert f"{row['tiles_filtered']} more skipped by FILTER" in printed
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["settings"]["filters"] == "focus@20x>=0.9 white<=0.9"
    assert run["last_call"]["tiles_filtered"] == row["tiles_filtered"]
    assert main([*call, "--filter", "focus@20x>=0.9 white<=0.9"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(call) == 2
    assert "filters was focus@20x>=0.9 white<=0.9, now None" in " ".join(capsys.readouterr().err.split())
