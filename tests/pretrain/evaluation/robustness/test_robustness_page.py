"""What evaluate shows of a table with hospitals: in the terminal, in the table of figures and on the page."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.evaluate import main
from pretrain.evaluation.judge import EvaluationRow
from pretrain.evaluation.robustness.figures import BOTH, CHANCE, CLASSES, DROP, INDEX, INDEX_CHANCE, READ, STEPS
from pretrain.evaluation.robustness.plot import SIDE, site_plots
from pretrain.evaluation.tasks import load_tasks
from tests.support.released_weights import CONFIG, folder_of, released
from tests.support.tinted_cohort import write_tinted

NAN = float("nan")


@pytest.fixture(scope="module")
def tinted(tmp_path_factory):
    """A table of tiles of two classes at two hospitals, and a model."""
    folder = tmp_path_factory.mktemp("tinted")
    write_tinted(folder / "tinted.parquet", 56, classes=2, sites=2, slides=4, tiles=6)
    (folder / "model").mkdir()
    folder_of(folder / "model", released().state_dict(), {"config.json": CONFIG})
    return folder


def evaluated(tinted, to, *more, tasks="tinted.parquet"):
    words = ["--model", str(tinted / "model"), "--tasks", str(tinted / tasks), "--to", str(to), "--cache", str(to)]
    return main([*words, *more])


@pytest.mark.slow
def test_figures_are_in_the_table_on_the_page_and_in_the_terminal(tinted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pretrain.evaluation.robustness.confounded.DRAWS", 1)
    assert evaluated(tinted, tmp_path) == 0
    said = capsys.readouterr()
    rows = pq.read_table(tmp_path / "figures.parquet").to_pylist()
    of_site = [row for row in rows if row["judge"] == "by institution"]
    assert {row["features"] for row in of_site} == {"colours alone", "model"}
    expected = {INDEX, INDEX_CHANCE, CLASSES, BOTH, DROP, READ, CHANCE, *STEPS}
    assert {row["metric"] for row in of_site} == expected
    colours = {row["metric"]: row for row in of_site if row["features"] == "colours alone" and row["chosen"]}
    assert colours[INDEX]["value"] < 0.02
    assert colours[READ]["value"] == 1
    assert [colours[metric]["k"] for metric in (INDEX, CLASSES, BOTH, DROP)] == [11, 11, 11, 0]
    assert {row["k"] for row in of_site if row["metric"] == INDEX} == {1, 3, 5, 7, 9, 11, 21, 31, 41}
    assert "robustness to where a tile is from" in said.out
    page = (tmp_path / "figures.html").read_text()
    assert "tinted: classes and institution" in page
    assert "robustness index, 11 neighbours" in page
    assert "robustness index, 21 neighbours" not in page
    square = re.search(r'translate\(([\d.]+) ([\d.]+)\)"><rect', page)  # colours: the site is told, to the right
    assert float(square[1]) == SIDE


@pytest.mark.slow
def test_another_column_can_be_the_site(tinted, tmp_path, capsys):
    table = pq.read_table(tinted / "tinted.parquet").take([n for n in range(96) if n % 6 < 3])
    pq.write_table(table.rename_columns({"institution": "source"}), tinted / "source.parquet")
    assert evaluated(tinted, tmp_path, tasks="source.parquet") == 0
    assert not [r for r in pq.read_table(tmp_path / "figures.parquet").to_pylist() if r["judge"].startswith("by ")]
    assert "<h3>" not in (tmp_path / "figures.html").read_text()
    assert "robustness" not in capsys.readouterr().out
    assert evaluated(tinted, tmp_path, "--site", "source", tasks="source.parquet") == 0
    metrics = {
        r["metric"] for r in pq.read_table(tmp_path / "figures.parquet").to_pylist() if r["judge"] == "by source"
    }
    assert metrics == {INDEX, INDEX_CHANCE, CLASSES, BOTH, READ, CHANCE}
    assert "source: no performance drop: across at hospital 0 has 12 tiles of 4 slides" in (
        " ".join(capsys.readouterr().out.split())
    )
    assert evaluated(tinted, tmp_path, "--site", "hospital", tasks="source.parquet") == 2
    assert "has no column hospital, only source, label, group; name one of these as the site" in (
        " ".join(capsys.readouterr().err.split())
    )


def test_the_site_as_the_label_is_no_site(tinted, tmp_path):
    assert evaluated(tinted, tmp_path, tasks="tinted.parquet:institution") == 0
    assert not [r for r in pq.read_table(tmp_path / "figures.parquet").to_pylist() if r["judge"].startswith("by ")]


def rows_of(name, site, classes, index):
    ends = (NAN, NAN, 1, 0, 0)
    return [
        EvaluationRow("t", name, "linear", "balanced accuracy", classes, 0.0, *ends),
        EvaluationRow("t", name, "by site", READ, site, 0.0, *ends),
        EvaluationRow("t", name, "by site", CHANCE, 0.25, 0.0, *ends),
        EvaluationRow("t", name, "by site", INDEX_CHANCE, 0.4, 0.0, *ends),
        *(EvaluationRow("t", name, "by site", INDEX, index, 0.0, *ends, k=k, chosen=k == 3) for k in (1, 3)),
    ]


def test_points_stand_where_their_figures_say():
    (plot,) = site_plots([*rows_of("colours alone", 1.0, 0.5, 0.0), *rows_of("m, untrained", 0.5, 0.75, NAN)])
    assert [(p.kind, float(p.x), float(p.y)) for p in plot.points] == [
        ("square", SIDE, SIDE / 2),
        ("hollow", SIDE / 2, SIDE / 4),
    ]
    assert plot.points[0].figures == ("1.000", "0.500", "0.000")
    assert plot.points[1].figures == ("0.500", "0.750", "")
    assert plot.points[0].curve == f"0.0,{SIDE:.1f} {SIDE:.1f},{SIDE:.1f}"
    assert plot.points[1].curve == ""
    assert float(plot.chance) == SIDE / 4
    assert float(plot.blind) == pytest.approx(0.6 * SIDE)


def test_a_model_whose_site_was_not_read_has_no_point():
    assert site_plots([row for row in rows_of("m", 0.5, 0.5, 0.5) if row.metric != READ]) == []


def test_a_site_for_no_table_is_refused(tinted, tmp_path, capsys):
    assert evaluated(tinted, tmp_path, "--site", "source", tasks="model") == 2
    assert "a site is a column of a table, and none of TASKS is one" in " ".join(capsys.readouterr().err.split())


def test_patients_and_images_as_hugging_face_has_them_are_read(tinted, tmp_path):
    table = pq.read_table(tinted / "tinted.parquet")
    plain = table["image"].to_pylist()
    images = pa.array([{"bytes": image, "path": "x.png"} for image in plain])
    patients = [None if n < 6 else f"patient {n // 12}" for n in range(96)]
    table = table.set_column(0, "image", images).append_column("patient_id", pa.array(patients))
    pq.write_table(table, tmp_path / "other.parquet")
    (task,) = load_tasks(str(tmp_path / "other.parquet"))
    assert list(task.tiles.images) == plain
    owners = task.owners.tolist()
    assert len(set(owners)) == 9  # a slide whose patient is not known, and eight patients
    assert len(set(owners[:6])) == len(set(owners[6:12])) == len(set(owners[12:24])) == 1
    assert owners[0] != owners[6]
