"""The public data sets, in the layouts that they come in, become tasks with their authors' splits and labels."""

import csv
import gzip
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pretrain.errors import BadTask
from pretrain.evaluation.datasets import DATASETS, read_tasks
from pretrain.evaluation.judge import judge
from pretrain.evaluation.probe import ridge
from tests.support.datasets import colour, named, numbers, picture, sides
from tests.support.labelled_tiles import encoded


def write_csv(path, rows, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def pcam(folder, meta=True):
    for begin, side in ((0, "train"), (20, "valid"), (28, "test")):
        count = {"train": 20, "valid": 8, "test": 6}[side]
        stem = folder / f"camelyonpatch_level_2_split_{side}"
        pixels = np.stack([np.broadcast_to(colour(begin + n), (96, 96, 3)) for n in range(count)])
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file["x"] = pixels
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = (np.arange(count) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)
        if meta:
            write_csv(folder / f"{stem.name}_meta.csv", [{"wsi": f"{side}_{n // 4}"} for n in range(count)])


@pytest.mark.parametrize("meta", [True, False])
def test_pcam(tmp_path, meta):
    pcam(tmp_path, meta)
    (task,) = read_tasks(f"pcam:{tmp_path}")
    assert numbers(task) == list(range(34))
    assert sides(task) == ["train"] * 20 + ["valid"] * 8 + ["test"] * 6
    assert named(task) == ["normal", "tumour"] * 17
    assert len(np.unique(task.groups)) == (5 + 2 + 2 if meta else 34)
    assert task.grouped == meta
    assert bool(task.notes) != meta
    assert task.divided
    assert task.px == 224


def test_pcam_of_which_a_side_has_no_slides_or_too_few_is_said(tmp_path):
    pcam(tmp_path)
    file = tmp_path / "camelyonpatch_level_2_split_valid_meta.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    with pytest.raises(BadTask, match="has 7 rows for 8 tiles"):
        read_tasks(f"pcam:{tmp_path}")
    file.unlink()
    (task,) = read_tasks(f"pcam:{tmp_path}")
    assert not task.grouped
    assert "slides are told by camelyonpatch_level_2_split_valid_meta.csv" in task.notes[0]


def test_pcam_that_is_still_packed_is_said(tmp_path):
    pcam(tmp_path)
    file = tmp_path / "camelyonpatch_level_2_split_valid_x.h5"
    Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    with pytest.raises(BadTask, match=r"valid_x.h5.gz: .* gunzip") as caught:
        read_tasks(f"pcam:{tmp_path}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("name", "train"), [("crc", "NCT-CRC-HE-100K"), ("crc-nonorm", "NCT-CRC-HE-100K-NONORM")])
def test_crc_learns_from_one_archive_and_is_judged_on_the_other(tmp_path, name, train):
    for archive, begin in (("NCT-CRC-HE-100K", 0), ("NCT-CRC-HE-100K-NONORM", 100), ("CRC-VAL-HE-7K", 200)):
        for kind, tissue in enumerate(("ADI", "MUC", "TUM")):
            for n in range(4):
                picture(tmp_path / archive / tissue / f"{tissue}-{n:08d}.tif", begin + 4 * kind + n)
    (task,) = read_tasks(f"{name}:{tmp_path}")
    first = 0 if name == "crc" else 100
    assert task.classes == ("ADI", "MUC", "TUM")
    assert numbers(task) == [*range(first, first + 12), *range(200, 212)]
    assert named(task) == (["ADI"] * 4 + ["MUC"] * 4 + ["TUM"] * 4) * 2
    assert sides(task) == ["train"] * 12 + ["test"] * 12
    assert not task.grouped


def test_wilds_divides_by_hospital_and_not_by_its_column(tmp_path):
    rows = []
    for n in range(40):
        center = n % 5
        patient, node = f"{20 * center + 4:03d}", n % 3
        where = {"patient": patient, "node": node, "x_coord": 32 * n, "y_coord": 96}
        rows.append(
            {"": n, **where, "tumor": n // 5 % 2, "slide": 10 * center + node, "center": center, "split": n // 10 % 2}
        )
        name = f"patient_{patient}_node_{node}"
        picture(tmp_path / f"camelyon17_v1.0/patches/{name}/patch_{name}_x_{32 * n}_y_96.png", n)
    write_csv(tmp_path / "camelyon17_v1.0/metadata.csv", rows)
    for folder in (tmp_path, tmp_path / "camelyon17_v1.0"):
        (task,) = read_tasks(f"wilds:{folder}")
        expected = [
            (n, {1: "valid", 2: "test"}.get(row["center"], "train"), ("normal", "tumour")[row["tumor"]])
            for n, row in enumerate(rows)
            if row["center"] in (1, 2) or row["split"] == 0
        ]
        assert list(zip(numbers(task), sides(task), named(task), strict=True)) == expected
        slide = np.array([rows[n]["slide"] for n, _, _ in expected])
        np.testing.assert_array_equal(np.unique(task.groups, return_index=True)[1].size, np.unique(slide).size)


def test_tils_counts_no_tile_twice(tmp_path):
    rows = []
    for n in range(24):
        part, study = ("train", "val", "test")[n % 3], ("acc", "brca")[n % 2]
        label = ("til-negative", "til-positive")[n // 6 % 2]
        barcode = f"TCGA-{part}-{n // 12}"
        path = f"images-tcga-tils/{study}/{part}/{label}/{barcode}_{n}.png"
        picture(tmp_path / "TCGA-TILs" / path, n)
        row = {"partition": part, "study": study, "barcode": barcode, "label": label, "path": path, "md5": "0"}
        rows += [row, {**row, "study": "pancancer", "path": path.replace(study, "pancancer")}]
    write_csv(tmp_path / "TCGA-TILs/images-tcga-tils-metadata.csv", rows)
    (task,) = read_tasks(f"tils:{tmp_path}")
    assert numbers(task) == list(range(24))
    assert sides(task) == ["train", "valid", "test"] * 8
    assert named(task) == (["til-negative"] * 6 + ["til-positive"] * 6) * 2
    assert len(np.unique(task.groups)) == 6


def test_mhist(tmp_path):
    rows = []
    for n in range(12):
        picture(tmp_path / "images" / f"MHIST_{n}.png", n)
        votes = {"Majority Vote Label": ("HP", "SSA")[n % 2], "Number of Annotators who Selected SSA (Out of 7)": n % 8}
        rows.append({"Image Name": f"MHIST_{n}.png", **votes, "Partition": ("train", "test")[n // 8]})
    write_csv(tmp_path / "annotations.csv", rows)
    (task,) = read_tasks(f"mhist:{tmp_path}")
    assert numbers(task) == list(range(12))
    assert named(task) == ["HP", "SSA"] * 6
    assert sides(task) == ["train"] * 8 + ["test"] * 4


def midog(folder, cases=True):
    """Four images whose pixels hold their own place, two events each; boxes are corners."""
    annotations, place = [], np.indices((300, 400)).astype(np.uint8)
    for number in (1, 2, 3, 4):
        rgba = np.stack([place[1] // 2, place[0] // 2, np.full((300, 400), number), np.full((300, 400), 255)], axis=2)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgba.astype(np.uint8)).save(folder / f"images/00{number}.tiff")
        for kind, (x, y) in ((1, (200.0, 150.0)), (2, (-5.5, 290.0))):
            box = [x - 25, y - 25, x + 25, y + 25]
            annotations.append({"bbox": box, "category_id": kind, "image_id": number, "labels": [1], "id": number})
    told = {
        "images": [{"id": n, "file_name": f"00{n}.tiff", "width": 400, "height": 300} for n in range(1, 6)],
        "categories": [{"id": 1, "name": "mitotic figure"}, {"id": 2, "name": "not mitotic figure"}],
        "annotations": annotations[::2] + annotations[1::2],
    }
    (folder / "databases").mkdir()
    (folder / "databases/MIDOG++.json").write_text(json.dumps(told))
    if cases:
        rows = [{"Slide": n, "Dataset": ("train", "train", "test", "test")[n - 1], "Tumor": "x"} for n in range(1, 5)]
        write_csv(folder / "datasets_xvalidation.csv", rows, delimiter=";")


def test_midog_cuts_windows_around_the_corners_middle(tmp_path):
    midog(tmp_path)
    (task,) = read_tasks(f"midog:{tmp_path}")
    assert named(task) == ["mitotic figure", "not mitotic figure"] * 4
    assert sides(task) == ["train"] * 4 + ["test"] * 4
    np.testing.assert_array_equal(task.groups == task.groups[0], [True] * 2 + [False] * 6)
    whole = np.asarray(Image.open(tmp_path / "images/003.tiff").convert("RGB"))
    np.testing.assert_array_equal(task.tiles.read(4), whole[150 - 112 : 150 + 112, 200 - 112 : 200 + 112])
    edge = task.tiles.read(5)  # its middle is beyond the left edge, and near the lower one
    left, top = round(-5.5 - 112 + 0.5), 290 - 112
    np.testing.assert_array_equal(edge[: 300 - top, -left:], whole[top:, : 224 + left])
    assert (edge[:, :-left] == 255).all()
    assert (edge[300 - top :] == 255).all()


def test_midog_without_a_table_of_cases_is_divided_by_image(tmp_path):
    midog(tmp_path, cases=False)
    (task,) = read_tasks(f"midog:{tmp_path}")
    assert not task.divided
    assert "datasets_xvalidation.csv is missing" in task.notes[0]
    assert not set(task.groups[task.train]) & set(task.groups[task.test])


def dlbcl(folder):
    rows = []
    for patient in range(12):
        rows.append(
            {
                "patient_id": f"{13900 + patient}.0",
                "HANS": ("0.0", "1.0", "")[patient % 3],
                "Follow-up Status": ("0", "1.0")[patient % 2],
            }
        )
        for stain, begin in (("HE", 0), ("BCL6", 100)):
            for n in range(2):
                picture(folder / f"Patches/{stain}/{13900 + patient}/{n}.png", begin + 2 * patient + n)
    write_csv(folder / "clinical_data_cleaned.csv", rows)


def test_dlbcl_tells_a_clinical_column_from_a_stain(tmp_path):
    dlbcl(tmp_path)
    (task,) = read_tasks(f"dlbcl:{tmp_path}")
    assert numbers(task) == list(range(24))
    assert named(task) == ["0", "0", "1", "1"] * 6
    assert not set(task.groups[task.train]) & set(task.groups[task.test])
    (task,) = read_tasks(f"dlbcl:{tmp_path}:HANS@BCL6")
    assert task.name == "dlbcl:HANS@BCL6"
    assert task.notes == ("4 patients without HANS skipped",)
    assert numbers(task) == [100 + 2 * patient + n for patient in range(12) if patient % 3 < 2 for n in range(2)]
    with pytest.raises(BadTask, match="no CD10, only BCL6, HE"):
        read_tasks(f"dlbcl:{tmp_path}:HANS@CD10")


def hest(folder, sparse, rng):
    """Three samples of one organ; spots in another order in the table of counts than among the tiles."""
    genes, samples = [f"g{n}" for n in range(5)], {}
    for number in range(3):
        codes = [f"AAA{number}-{n}" for n in range(20)]
        with h5py.File(_made(folder / f"IDC/patches/S{number}.h5"), "w") as file:
            file["img"] = np.stack([np.broadcast_to(colour(20 * number + n), (8, 8, 3)) for n in range(20)])
            file["barcode"] = np.array([[code.encode()] for code in codes])
            file["coords"] = np.zeros((20, 2))
        counts = rng.poisson(5, (25, 8)).astype(np.float32)
        order = rng.permutation(20)
        index = [codes[n] for n in order] + [f"other-{n}" for n in range(5)]
        variables = ["x", "g3", "g0", "y", "g4", "g1", "g2", "z"]
        with h5py.File(_made(folder / f"IDC/adata/S{number}.h5ad"), "w") as file:
            file["obs/_index"] = np.array([name.encode() for name in index])
            file["obs"].attrs["_index"] = "_index"
            file["var/gene"] = np.array([name.encode() for name in variables])
            file["var"].attrs["_index"] = "gene"
            if sparse:
                at = counts > 0
                file["X/data"], file["X/indices"] = counts[at], np.nonzero(at)[1].astype(np.int32)
                file["X/indptr"] = np.concatenate([[0], at.sum(1).cumsum()]).astype(np.int32)
                file["X"].attrs["encoding-type"] = "csr_matrix"
            else:
                file["X"] = counts
        samples[number] = np.array(
            [[counts[index.index(code), variables.index(gene)] for gene in genes] for code in codes]
        )
    (folder / "IDC/var_50genes.json").write_text(json.dumps({"genes": genes}))
    for fold, test in enumerate((2, 0)):
        for side in ("train", "test"):
            chosen = [n for n in range(3) if (n == test) == (side == "test")]
            paths = [{"patches_path": f"patches/S{n}.h5", "expr_path": f"adata/S{n}.h5ad"} for n in chosen]
            rows = [{"sample_id": f"S{n}", **of_one} for n, of_one in zip(chosen, paths, strict=True)]
            write_csv(folder / f"IDC/splits/{side}_{fold}.csv", rows)
    return samples


def _made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("sparse", [True, False])
def test_hest_takes_counts_by_barcode_and_gene(tmp_path, sparse):
    samples = hest(tmp_path, sparse, np.random.default_rng(0))
    (task,) = read_tasks(f"hest:{tmp_path}")
    assert task.name == "hest:IDC"
    assert task.notes == ("the paper's figure is of 10 organs, here of 1",)
    assert numbers(task) == list(range(60))
    np.testing.assert_allclose(task.targets, np.log1p(np.concatenate([samples[n] for n in range(3)])), rtol=1e-6)
    group = np.arange(60) // 20
    for (train, test), held in zip(task.folds, (2, 0), strict=True):
        np.testing.assert_array_equal(train, group != held)
        np.testing.assert_array_equal(test, group == held)


def test_ridge_is_hests_protocol_in_scikit_learn(tmp_path):
    """Its code: StandardScaler, PCA of 256, Ridge with alpha 100 / (256 x targets) and no intercept."""
    import torch
    from scipy.stats import pearsonr
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(1)
    hest(tmp_path, True, rng)
    (task,) = read_tasks(f"hest:{tmp_path}")
    x = rng.normal(size=(60, 30)) @ rng.normal(size=(30, 30)) + 3
    x[:, 4] = 7.0
    for components in (256, 12):
        found = [_ridge(x, task, train, test, components) for train, test in task.folds]
        for (train, test), values in zip(task.folds, found, strict=True):
            few = min(components, train.sum(), x.shape[1])
            reduce = make_pipeline(StandardScaler(), PCA(n_components=few, svd_solver="full")).fit(x[train])
            alpha = 100 / (few * task.targets.shape[1])
            model = Ridge(solver="lsqr", alpha=alpha, fit_intercept=False, max_iter=10000, tol=1e-10)
            guess = model.fit(reduce.transform(x[train]), task.targets[train]).predict(reduce.transform(x[test]))
            expected = [pearsonr(guess[:, n], task.targets[test][:, n]).statistic for n in range(5)]
            np.testing.assert_allclose(values, expected, atol=1e-4)
    row = judge(task, "made", torch.from_numpy(x))[0]
    assert (row.judge, row.metric, row.folds) == ("ridge", "Pearson r", 2)
    assert row.value == pytest.approx(np.mean([_ridge(x, task, *fold, 256).mean() for fold in task.folds]))


def _ridge(x, task, train, test, components):
    import torch

    return ridge(torch.from_numpy(x), task, train, test, components)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_missing_data_set_is_one_line_with_where_to_get_it(tmp_path, name):
    for spec in (f"{name}:{tmp_path / 'none'}", f"{name}:{tmp_path}", name):
        with pytest.raises(BadTask) as caught:
            read_tasks(spec)
        line = str(caught.value)
        assert len(line.splitlines()) == 1
        assert DATASETS[name].source in line


def test_a_barcode_without_counts_is_said_even_if_it_is_a_genes_name(tmp_path):
    hest(tmp_path, True, np.random.default_rng(0))
    with h5py.File(tmp_path / "IDC/patches/S0.h5", "r+") as file:
        file["barcode"][0, 0] = b"g3"
    with pytest.raises(BadTask, match="has no g3"):
        read_tasks(f"hest:{tmp_path}")


def test_labels_that_pcam_has_not_are_said(tmp_path):
    pcam(tmp_path)
    with h5py.File(tmp_path / "camelyonpatch_level_2_split_valid_y.h5", "r+") as file:
        file["y"][0] = 7
    with pytest.raises(BadTask, match=r"valid_y\.h5"):
        read_tasks(f"pcam:{tmp_path}")


def test_an_image_beyond_what_memory_holds_is_said(tmp_path, monkeypatch):
    from pretrain.data import labelled as tiles

    midog(tmp_path)
    (task,) = read_tasks(f"midog:{tmp_path}")
    monkeypatch.setattr(tiles, "_MOST_PX", 1000)
    with pytest.raises(BadTask, match=r"001\.tiff"):
        task.tiles.read(0)


def test_a_path_that_leads_out_of_the_data_set_is_refused(tmp_path):
    rows = [{"Image Name": "../../secret.png", "Majority Vote Label": "HP", "Partition": "train"}]
    write_csv(tmp_path / "annotations.csv", rows)
    (tmp_path / "images").mkdir()
    with pytest.raises(BadTask, match="outside"):
        read_tasks(f"mhist:{tmp_path}")


def test_a_set_at_several_magnifications_is_a_task_each(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for n in range(24):
        picture(tmp_path / "own" / ("20x", "10x")[n // 12] / ("a", "b")[n % 2] / f"{n}.png", n)
    columns = {"image": [encoded(np.full((8, 8, 3), n, np.uint8)) for n in range(24)], "label": list("ab") * 12}
    pq.write_table(pa.table(columns), tmp_path / "own/5x.parquet")
    tasks = read_tasks(str(tmp_path / "own"))
    assert [task.name for task in tasks] == ["own:20x", "own:10x", "own:5x"]
    assert [len(task.labels) for task in tasks] == [12, 12, 24]
    columns["magnification"] = ["20x"] * 12 + ["5x"] * 12
    pq.write_table(pa.table(columns), tmp_path / "both.parquet")
    tasks = read_tasks(str(tmp_path / "both.parquet"))
    assert [(task.name, len(task.labels)) for task in tasks] == [("both:20x", 12), ("both:5x", 12)]
