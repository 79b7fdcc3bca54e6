"""The public data sets of Virchow2's tile-level tasks, each in the layout that it is downloaded in.

Zimmermann et al. 2024 (arXiv 2408.00738). Where the paper does not say how a set was divided or labelled, what is done
here is said at its reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pretrain.compute.plain_files import read_json
from pretrain.data.labelled import H5Tiles, Regions, TileFiles, open_h5
from pretrain.errors import BadTask
from pretrain.evaluation.class_folders import GroupPattern, image_files
from pretrain.evaluation.csv_rows import csv_rows, inside
from pretrain.evaluation.robustness.pathorob import PATHOROB, read_pathorob
from pretrain.evaluation.segmentation import pannuke
from pretrain.evaluation.segmentation import tasks as masks
from pretrain.evaluation.segmentation.tasks import Segmentation
from pretrain.evaluation.tasks import OFFICIAL, LabelledTiles, Regression, Task, load_tasks, make_task, numbered
from wsi_prep.errors import counted

_MOST_JSON = 256 << 20
_FARTHEST = 1e7  # px from the origin: several times the largest slide
MODEL_PX = 224  # smaller tiles are enlarged to what the paper's models take
AnyTask = Task | Regression | Segmentation


@dataclass(frozen=True)
class Dataset:
    """A data set: how it is read from a folder, with what follows a second colon, and where it is to be had."""

    read: Callable[[Path, str, int, int], list[AnyTask]]
    source: str


def read_tasks(
    spec: str,
    limit: int = 0,
    seed: int = 0,
    px: int = 0,
    pattern: GroupPattern | None = None,
    sites: Sequence[str] | None = None,
) -> list[AnyTask]:
    """The tasks of `name:folder` for a data set of DATASETS, or of a table or folder as tasks.load_tasks takes them.

    The others as there. Raises BadTask, with where to get it, for a data set that is not in the folder.
    """
    name, found, rest = spec.partition(":")
    if not found or name not in DATASETS:
        if not found and name in DATASETS:
            raise BadTask(f"{name}: name its folder, as {name}:/data/{name}; it is to be had from {_source(name)}")
        return list(load_tasks(spec, limit, seed, px, pattern, sites))
    folder, _, option = rest.partition(":")
    if not Path(folder).is_dir():
        raise BadTask(f"{name}: there is no folder {folder}; get the data from {_source(name)}")
    return DATASETS[name].read(Path(folder), option, limit, seed)


def _source(name: str) -> str:
    return DATASETS[name].source


def _need(path: Path, name: str) -> Path:
    if path.exists():
        return path
    raise BadTask(f"{name}: {path} is missing; get the data from {_source(name)}, and unpack them as they come")


def _first(name: str, *paths: Path) -> Path:
    """The first of several places that is there."""
    return next((path for path in paths if path.exists()), None) or _need(paths[0], name)


def _pcam(folder: Path, option: str, limit: int, seed: int) -> list[AnyTask]:
    """PatchCamelyon: three files of tiles and three of labels; slides from the third, where they are there."""
    del option
    tiles, labels, split = [], [], []
    groups, unknown = [], []
    for side in ("train", "valid", "test"):
        name = f"camelyonpatch_level_2_split_{side}"
        tiles.append(_first("pcam", folder / f"{name}_x.h5", folder / f"{name}_x.h5.gz"))
        with open_h5(_first("pcam", folder / f"{name}_y.h5", folder / f"{name}_y.h5.gz"), "y") as opened:
            of_side = np.asarray(opened["y"]).reshape(-1)
        if not np.isin(of_side, (0, 1)).all():
            raise BadTask(f"{folder}/{name}_y.h5: holds labels other than 0 and 1; download it again")
        labels += [("normal", "tumour")[int(label)] for label in of_side]
        split += [side] * len(of_side)
        about = folder / f"{name}_meta.csv"
        slides = [row["wsi"] for row in csv_rows(about, "wsi")] if about.exists() else []
        if about.exists() and len(slides) != len(of_side):
            raise BadTask(f"{about}: has {len(slides)} rows for {len(of_side)} tiles; download it again")
        groups += slides
        unknown += [] if about.exists() else [about.name]
    pixels = H5Tiles.of(tiles, "x")
    if len(pixels) != len(labels):
        raise BadTask(f"{folder}: holds {len(pixels)} tiles with {len(labels)} labels; download it again")
    hint = f"{OFFICIAL}; slides are told by {', '.join(unknown)}"
    found = LabelledTiles(folder, pixels, labels, None if unknown else groups, split, hint)
    return [_official(found, "pcam", limit, seed)]


def _official(told: LabelledTiles, name: str, limit: int, seed: int) -> Task:
    return make_task(name, replace(told, official=True), limit, seed, MODEL_PX)


def _crc(train: str, name: str) -> Callable[[Path, str, int, int], list[AnyTask]]:
    def read(folder: Path, option: str, limit: int, seed: int) -> list[AnyTask]:
        """NCT-CRC-HE: nine tissues; learnt from the one archive, judged on the other's 50 patients.

        Tiles have no patient, so what choices are made on is a part of the training tiles.
        """
        del option
        files: list[Path] = []
        labels: list[str] = []
        split: list[str] = []
        for part, side in ((train, "train"), ("CRC-VAL-HE-7K", "test")):
            for kind in sorted(path for path in _need(folder / part, name).iterdir() if path.is_dir()):
                of_kind = image_files(kind)
                files += of_kind
                labels += [kind.name] * len(of_kind)
                split += [side] * len(of_kind)
        found = LabelledTiles(folder, TileFiles(files), labels, None, split, OFFICIAL)
        return [_official(found, name, limit, seed)]

    return read


def _wilds(folder: Path, option: str, limit: int, seed: int) -> list[AnyTask]:
    """Camelyon17-WILDS: learnt from hospitals 0, 3 and 4, chosen on hospital 1, judged on hospital 2.

    The file's own column `split` divides by chance; the rows that it takes from the training slides (WILDS' id_val)
    are left out.
    """
    del option
    root = folder / "camelyon17_v1.0" if (folder / "camelyon17_v1.0").is_dir() else folder
    rows = csv_rows(
        _need(root / "metadata.csv", "wilds"),
        *("patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split"),
    )
    side = {"1": "valid", "2": "test"}
    rows = [row for row in rows if row["center"] in side or row["split"] == "0"]
    files = []
    for row in rows:
        slide = f"patient_{row['patient'].zfill(3)}_node_{row['node']}"
        name = f"patches/{slide}/patch_{slide}_x_{row['x_coord']}_y_{row['y_coord']}.png"
        files.append(inside(root, name, root / "metadata.csv"))
    labels = [("normal", "tumour")[row["tumor"] == "1"] for row in rows]
    split = [side.get(row["center"], "train") for row in rows]
    found = LabelledTiles(root, TileFiles(files), labels, [row["slide"] for row in rows], split, OFFICIAL)
    return [_official(found, "wilds", limit, seed)]


def _tils(folder: Path, option: str, limit: int, seed: int) -> list[AnyTask]:
    """TCGA-TILs: by the table of files, since the folder `pancancer` shows each of them a second time."""
    del option
    root = folder / "TCGA-TILs" if (folder / "TCGA-TILs").is_dir() else folder
    table = _need(root / "images-tcga-tils-metadata.csv", "tils")
    rows = [
        row for row in csv_rows(table, "partition", "study", "barcode", "label", "path") if row["study"] != "pancancer"
    ]
    files = {inside(root, row["path"], table): row for row in rows}
    labels = [row["label"] for row in files.values()]
    groups = [row["barcode"] for row in files.values()]
    split = [row["partition"] for row in files.values()]
    found = LabelledTiles(root, TileFiles(list(files)), labels, groups, split, OFFICIAL)
    return [_official(found, "tils", limit, seed)]


def _mhist(folder: Path, option: str, limit: int, seed: int) -> list[AnyTask]:
    """MHIST: polyps by the majority of seven pathologists, hyperplastic or sessile serrated."""
    del option
    table = _need(folder / "annotations.csv", "mhist")
    rows = csv_rows(table, "Image Name", "Majority Vote Label", "Partition")
    images = _need(folder / "images", "mhist")
    files = [inside(images, row["Image Name"], table) for row in rows]
    labels = [row["Majority Vote Label"] for row in rows]
    split = [row["Partition"].lower() for row in rows]
    found = LabelledTiles(folder, TileFiles(files), labels, None, split, OFFICIAL)
    return [_official(found, "mhist", limit, seed)]


def _midog(folder: Path, option: str, limit: int, seed: int) -> list[AnyTask]:
    """MIDOG++ (or MIDOG 2021): 224 px around each mitotic figure and each look-alike, at the scanner's resolution.

    Boxes are corners, not widths. Divided by case as the authors' table says, where it is there. The paper moves its
    windows off the centre and leaves some look-alikes out, in a way that it does not say; here all are centred.
    """
    del option
    databases = (folder / "databases" / "MIDOG++.json", folder / "MIDOG++.json", folder / "MIDOG.json")
    table = _first("midog", *databases)
    try:
        told = read_json(table, _MOST_JSON)
        kinds = {kind["id"]: kind["name"] for kind in told["categories"]}
        names = {image["id"]: image["file_name"] for image in told["images"]}
        events = [(mark["image_id"], kinds[mark["category_id"]], mark["bbox"]) for mark in told["annotations"]]
        centres = np.array([[(x0 + x1) / 2, (y0 + y1) / 2] for _, _, (x0, y0, x1, y1) in events], np.float64)
        images = sorted({image for image, _, _ in events})
        named = [str(names[image]) for image in images]
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise BadTask(f"{table}: is no MIDOG database ({error!r}); download it again") from error
    if not (np.abs(centres) < _FARTHEST).all():
        raise BadTask(f"{table}: is no MIDOG database (a mark lies nowhere); download it again")
    place = {image: number for number, image in enumerate(images)}
    where = _need(folder / "images", "midog") if (folder / "images").is_dir() else folder
    files = [_need(inside(where, name, table), "midog") for name in named]
    split = None
    if cases := _first_or_none(folder / "datasets_xvalidation.csv", folder / "databases" / "datasets_xvalidation.csv"):
        told_sides = {int(row["Slide"]): row["Dataset"] for row in csv_rows(cases, "Slide", "Dataset", delimiter=";")}
        if missing := [image for image in images if image not in told_sides]:
            raise BadTask(f"{cases}: has no row of slide {missing[0]}; download it again")
        split = [told_sides[image] for image, _, _ in events]
    at = np.array([place[image] for image, _, _ in events], np.int64)
    order = np.argsort(at, kind="stable")  # an image's windows one after another
    tiles = Regions(files, at[order], centres[order], MODEL_PX)
    labels = [events[n][1] for n in order]
    sides = None if split is None else [split[n] for n in order]
    notes = () if cases else ("datasets_xvalidation.csv is missing: divided here, a third of the images held out",)
    found = LabelledTiles(folder, tiles, labels, at[order].tolist(), sides, OFFICIAL, notes=notes)
    return [_official(found, "midog", limit, seed)]


def _first_or_none(*paths: Path) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _dlbcl(folder: Path, option: str, limit: int, seed: int) -> list[AnyTask]:
    """DLBCL-Morph: a column of the clinical table told from tiles of one stain: `dlbcl:folder:HANS@BCL6`.

    Which label and which split the paper took is not known; by default it is who had died (`Follow-up Status`) from
    H&E, with a third of the patients held out.
    """
    column, _, stain = (option or "Follow-up Status").partition("@")
    root = folder / "DLBCL-Morph" if (folder / "DLBCL-Morph").is_dir() else folder
    table = _need(root / "clinical_data_cleaned.csv", "dlbcl")
    told = {}
    for row in csv_rows(table, "patient_id", column):
        if row[column].strip():
            told[_number(row["patient_id"])] = _number(row[column])
    stains = {path.name: path for path in sorted(_need(root / "Patches", "dlbcl").iterdir()) if path.is_dir()}
    plain = {name.upper().replace("&", ""): name for name in stains}
    chosen = plain.get((stain or "HE").upper().replace("&", ""))
    if chosen is None:
        raise BadTask(f"{root}/Patches: holds no {stain or 'HE'}, only {', '.join(stains)}; name one of them")
    files: list[Path] = []
    labels: list[str] = []
    patients: list[str] = []
    there = sorted(path for path in stains[chosen].iterdir() if path.is_dir())
    labelled = [patient for patient in there if _number(patient.name) in told]
    for patient in labelled:
        of_patient = image_files(patient)
        files += of_patient
        labels += [told[_number(patient.name)]] * len(of_patient)
        patients += [patient.name] * len(of_patient)
    name = "dlbcl" if not option else f"dlbcl:{option}"
    missing = len(there) - len(labelled)
    notes = (f"{counted(missing, 'patient')} without {column} skipped",) if missing else ()
    found = LabelledTiles(root, TileFiles(files), labels, patients, None, OFFICIAL, notes=notes)
    return [_official(found, name, limit, seed)]


def _number(text: str) -> str:
    """A number without the `.0` that tables of floats give it; other text as it is."""
    try:
        return f"{float(text):g}" if float(text) != int(float(text)) else str(int(float(text)))
    except ValueError:
        return text.strip()


def _pathorob(folder: Path, option: str, limit: int, seed: int) -> list[AnyTask]:
    """PathoROB: a task each of its sets, with hospitals, pairs and numbers of neighbours as in its repository."""
    read = read_pathorob(folder, option)
    return [_official(told, f"pathorob:{name}", limit, seed) for name, told in read.items()]


def _segmentation(read: Callable[[Path, int, int], Segmentation]) -> Callable[[Path, str, int, int], list[AnyTask]]:
    return lambda folder, _option, limit, seed: [read(folder, limit, seed)]


_ORGANS = ("IDC", "PRAD", "PAAD", "SKCM", "COAD", "READ", "CCRCC", "HCC", "LUNG", "LYMPH_IDC")


def _hest(folder: Path, option: str, limit: int, seed: int) -> list[AnyTask]:
    """HEST-Benchmark: log of the counts of 50 genes from the tile around each spot, by its folds; an organ a task."""
    del seed
    wanted = option.split(",") if option else [name for name in _ORGANS if (folder / name).is_dir()]
    if not wanted:
        _need(folder / _ORGANS[0], "hest")
    notes = (
        []
        if len(wanted) == len(_ORGANS)
        else [f"the paper's figure is of {len(_ORGANS)} organs, here of {len(wanted)}"]
    )
    notes += ["the limit does not hold for it"] if limit else []
    tasks = [_organ(_need(folder / name, "hest")) for name in wanted]
    return [replace(tasks[0], notes=tuple(notes)), *tasks[1:]]


def _organ(folder: Path) -> Regression:
    genes = _genes(folder / "var_50genes.json")
    samples: dict[str, tuple[Path, Path]] = {}
    folds: list[tuple[set[str], set[str]]] = []
    number = 0
    while (file := folder / "splits" / f"train_{number}.csv").exists():
        sides: list[set[str]] = []
        for part in (file, _need(folder / "splits" / f"test_{number}.csv", "hest")):
            rows = csv_rows(part, "sample_id", "patches_path", "expr_path")
            for row in rows:
                places = (inside(folder, row[name], part) for name in ("patches_path", "expr_path"))
                samples[row["sample_id"]] = (next(places), next(places))
            sides.append({row["sample_id"] for row in rows})
        folds.append((sides[0], sides[1]))
        number += 1
    if not folds:
        _need(folder / "splits" / "train_0.csv", "hest")
    names = sorted(samples)
    targets, owner = [], []
    for place, name in enumerate(names):
        patches, expression = samples[name]
        with open_h5(patches, "img", "barcode") as opened:
            barcodes = [_text(code) for code in np.asarray(opened["barcode"]).reshape(-1)]
        targets.append(_expression(expression, barcodes, genes))
        owner += [place] * len(barcodes)
    group = np.array(owner)
    masks = [
        tuple(np.isin(group, [n for n, name in enumerate(names) if name in side]) for side in sides) for sides in folds
    ]
    return Regression(
        f"hest:{folder.name}",
        H5Tiles.of([samples[name][0] for name in names], "img"),
        np.log1p(np.concatenate(targets)).astype(np.float32),
        genes,
        numbered([names[n] for n in owner]),
        tuple((train, test) for train, test in masks),
        MODEL_PX,
    )


def _genes(file: Path) -> tuple[str, ...]:
    try:
        return tuple(map(str, read_json(_need(file, "hest"), _MOST_JSON)["genes"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadTask(f"{file}: holds no list of genes; download it again") from error


def _expression(file: Path, barcodes: Sequence[str], genes: Sequence[str]) -> NDArray[np.float64]:
    """(n, G) counts of an AnnData file, dense or in compressed rows, in the order of barcodes and genes."""
    with open_h5(file, "X", "obs", "var") as opened:
        rows = {name: number for number, name in enumerate(_index(opened["obs"], file))}
        columns = {name: number for number, name in enumerate(_index(opened["var"], file))}
        if missing := [b for b in barcodes if b not in rows] + [g for g in genes if g not in columns]:
            raise BadTask(f"{file}: has no {missing[0]}, which the tiles or the genes ask for; download it again")
        at, of = np.array([rows[b] for b in barcodes], np.int64), np.array([columns[g] for g in genes], np.int64)
        x = opened["X"]
        if isinstance(x, h5py.Dataset):
            return np.asarray(x[:, :])[at][:, of].astype(np.float64)
        if x.attrs.get("encoding-type") != "csr_matrix":
            raise BadTask(f"{file}: X is neither dense nor a csr_matrix; write it again")
        pointers, columns_of, values = (np.asarray(x[name]) for name in ("indptr", "indices", "data"))
        dense = np.zeros((len(rows), len(of)))
        place = np.full(len(columns), -1)
        place[of] = np.arange(len(of))
        row_of = np.repeat(np.arange(len(rows)), np.diff(pointers))
        wanted = place[columns_of] >= 0
        np.add.at(dense, (row_of[wanted], place[columns_of[wanted]]), values[wanted])
        return dense[at]


def _index(group: h5py.Group, file: Path) -> Iterator[str]:
    """The names of a data frame's rows, as AnnData writes it."""
    key = group.attrs.get("_index", "_index")
    if key not in group:
        raise BadTask(f"{file}: {group.name} has no index; download it again")
    return (_text(name) for name in np.asarray(group[key]).reshape(-1))


def _text(name: object) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


DATASETS = {
    "pcam": Dataset(_pcam, "https://zenodo.org/records/2546921"),
    "crc": Dataset(_crc("NCT-CRC-HE-100K", "crc"), "https://zenodo.org/records/1214456"),
    "crc-nonorm": Dataset(_crc("NCT-CRC-HE-100K-NONORM", "crc-nonorm"), "https://zenodo.org/records/1214456"),
    "wilds": Dataset(_wilds, "https://wilds.stanford.edu (camelyon17)"),
    "tils": Dataset(_tils, "https://zenodo.org/records/6604094"),
    "mhist": Dataset(_mhist, "https://bmirds.github.io/MHIST"),
    "midog": Dataset(_midog, "https://github.com/DeepMicroscopy/MIDOGpp"),
    "dlbcl": Dataset(_dlbcl, "https://www.cancerimagingarchive.net/collection/dlbcl-morphology"),
    "pathorob": Dataset(_pathorob, PATHOROB),
    "masks": Dataset(_segmentation(masks.read_masks), masks.SOURCE),
    "pannuke": Dataset(_segmentation(pannuke.read_pannuke), pannuke.SOURCE),
    "hest": Dataset(_hest, "https://huggingface.co/datasets/MahmoodLab/hest-bench"),
}
