"""PathoROB's sets in the layout that they are published in, and its index by loops from the paper's definition."""

import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pretrain.errors import BadTask
from pretrain.evaluation.datasets import read_tasks
from pretrain.evaluation.robustness.figures import CLASSES, INDEX, index_rows
from tests.support.datasets import colour, numbers
from tests.support.labelled_tiles import encoded

COLUMNS = ("subset", "slide_id", "patch_id", "biological_class", "medical_center")


def tile_rows(classes, hospitals, slides=3, tiles=2, subset="ID"):
    """A row a tile, in order; a slide is of one class."""
    return [
        dict(zip(COLUMNS, (subset, f"{kind}-{place}-{slide}", str(tile), kind, place), strict=True))
        for kind in classes
        for place in hospitals
        for slide in range(slides)
        for tile in range(tiles)
    ]


def publish(folder, rows, files=1):
    """As Hugging Face has it: images as bytes and path, in one file or several."""
    (folder / "data").mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(rows)), files)):
        images = [
            {"bytes": encoded(np.broadcast_to(colour(n), (10, 10, 3)).copy()), "path": f"{n}.png"}
            for n in part.tolist()
        ]
        columns = {name: [rows[n][name] for n in part] for name in COLUMNS[1:]}
        file = folder / "data" / f"train-{number:05d}-of-{files:05d}.parquet"
        pq.write_table(pa.table({"image": images, **columns}), file)


def list_tiles(folder, name, rows):
    (folder / "metadata").mkdir(exist_ok=True)
    with (folder / "metadata" / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def test_camelyon_is_of_the_listed_tiles_that_are_no_ood(tmp_path):
    rows = tile_rows(("normal", "tumor"), ("RUMC", "UMCU")) + tile_rows(("normal",), ("CWZ",), subset="OOD")
    publish(tmp_path / "camelyon", rows, files=2)
    list_tiles(tmp_path, "camelyon.csv", rows[::-1])
    (task,) = read_tasks(f"pathorob:{tmp_path}")
    assert (task.name, task.px, task.notes) == ("pathorob:camelyon", 224, ())
    assert numbers(task) == list(range(24))
    assert task.classes == ("normal", "tumor")
    assert [task.classes[n] for n in task.labels] == [row["biological_class"] for row in rows[:24]]
    (site,) = task.sites
    assert (site.column, site.names, site.k, site.within) == ("institution", ("RUMC", "UMCU"), 11, None)
    assert [site.names[n] for n in site.numbers] == [row["medical_center"] for row in rows[:24]]
    assert len(np.unique(task.groups)) == 12


@pytest.fixture
def pairs(tmp_path):
    """Three classes at three hospitals, of which the list has two choices that share a cell."""
    rows = tile_rows(("a", "b", "c"), ("X", "Y", "Z"), tiles=3)
    publish(tmp_path / "PathoROB-tcga", rows)
    chosen = {"1": ("ab", "XY"), "2": ("bc", "YZ")}
    listed = [
        {**row, "subset": name}
        for name, (kinds, places) in chosen.items()
        for row in rows
        if row["biological_class"] in kinds and row["medical_center"] in places
    ]
    list_tiles(tmp_path, "tcga_2x2.csv", listed)
    return tmp_path, rows, chosen


def test_neighbours_are_sought_within_the_choices_of_the_list(pairs):
    folder, _, chosen = pairs
    (task,) = read_tasks(f"pathorob:{folder}:tcga")
    (site,) = task.sites
    assert site.k == 61
    kinds = np.array([task.classes[n] for n in task.labels])
    places = np.array([site.names[n] for n in site.numbers])
    for (wanted, hospitals), within in zip(chosen.values(), site.within, strict=True):
        expected = np.isin(kinds, list(wanted)) & np.isin(places, list(hospitals))
        np.testing.assert_array_equal(np.sort(within), np.flatnonzero(expected))

    features = np.random.default_rng(0).normal(size=(len(kinds), 5)).astype(np.float32)
    found = {r.metric: r for r in index_rows(task, site, torch.from_numpy(features)) if r.chosen}
    so = os = 0
    accuracy = []
    for within in site.within:
        recall = {kind: [] for kind in set(kinds[within])}
        for tile in within:
            others = [n for n in within if task.groups[n] != task.groups[tile]]
            cosine = features[others] @ features[tile] / np.linalg.norm(features[others], axis=1)
            near = np.array(others)[np.argsort(-cosine)][:61]
            so += ((kinds[near] == kinds[tile]) & (places[near] != places[tile])).sum()
            os += ((kinds[near] != kinds[tile]) & (places[near] == places[tile])).sum()
            recall[kinds[tile]].append(np.bincount(task.labels[near]).argmax() == task.labels[tile])
        accuracy.append(np.mean([np.mean(right) for right in recall.values()]))
    assert found[INDEX].value == pytest.approx(so / (so + os))
    assert found[CLASSES].value == pytest.approx(np.mean(accuracy))


def test_a_limit_keeps_the_choices_in_step(pairs):
    folder, _, chosen = pairs
    (task,) = read_tasks(f"pathorob:{folder}", limit=20)
    assert len(task.labels) == 40
    (site,) = task.sites
    for (wanted, hospitals), within in zip(chosen.values(), site.within, strict=True):
        assert {task.classes[n] for n in task.labels[within]} <= set(wanted)
        assert {site.names[n] for n in site.numbers[within]} <= set(hospitals)


def test_without_the_list_all_tiles_count_and_this_is_said(tmp_path):
    rows = tile_rows(("a", "b", "c"), ("X", "Y"), tiles=1)
    rows = [row for row in rows if (row["biological_class"], row["medical_center"]) != ("c", "Y")]
    publish(tmp_path / "tcga", rows)
    (task,) = read_tasks(f"pathorob:{tmp_path}")
    (note,) = task.notes
    assert note.startswith("metadata/tcga_2x2.csv is missing")
    assert "not those that PathoROB publishes" in note
    (within,) = task.sites[0].within  # the one choice of which no cell is empty
    assert {task.classes[n] for n in task.labels[within]} == {"a", "b"}


def test_every_set_there_is_is_a_task_and_unknown_or_missing_ones_are_refused(tmp_path):
    for name in ("camelyon", "tolkach_esca"):
        publish(tmp_path / name, tile_rows(("a", "b"), ("X", "Y")))
    assert [task.name for task in read_tasks(f"pathorob:{tmp_path}")] == ["pathorob:camelyon", "pathorob:tolkach_esca"]
    assert [task.sites[0].k for task in read_tasks(f"pathorob:{tmp_path}")] == [11, 46]
    for option, said in ((":tcga", "tcga/data holds no .parquet; get the data from"), (":breast", "has no set breast")):
        with pytest.raises(BadTask, match=said) as caught:
            read_tasks(f"pathorob:{tmp_path}{option}")
        assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "none").mkdir()
    with pytest.raises(BadTask, match="holds no"):
        read_tasks(f"pathorob:{tmp_path / 'none'}")


def test_a_list_of_other_tiles_and_a_table_of_other_columns_are_refused(tmp_path):
    rows = tile_rows(("a", "b"), ("X", "Y"))
    publish(tmp_path / "camelyon", rows[1:])
    list_tiles(tmp_path, "camelyon.csv", rows)
    with pytest.raises(BadTask, match="lacks 1 listed tile, as a-X-0, 0"):
        read_tasks(f"pathorob:{tmp_path}")
    file = next((tmp_path / "camelyon/data").iterdir())
    pq.write_table(pq.read_table(file).drop_columns(["medical_center"]), file)
    with pytest.raises(BadTask, match="has no column medical_center"):
        read_tasks(f"pathorob:{tmp_path}")
