"""How well frozen embeddings tell labelled tiles apart: nearest neighbours and a linear model, on tiles held out.

Groups of tiles, slides or cases, are never divided between what is learnt from and what is judged on.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pretrain.backbone import Backbone
from pretrain.colour import normalise
from pretrain.devices import send
from pretrain.errors import BadTask
from pretrain.randomness import uniforms

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
PENALTIES = tuple(10.0**power for power in range(-5, 3))  # of the linear model's weights
_LIMIT, _GROUPS = 10, 11  # purposes of random numbers
_HELD_OUT = 1 / 3


@dataclass(frozen=True)
class Task:
    """Labelled tiles, n of them, all of one size.

    `images`: each an encoded JPEG or PNG. `labels`: (n,) int64 numbers into `classes`. `groups`: (n,) int64, the slide
    or case. `train`: (n,) bool, false where held out; `divided` where the table says so. `mpp`: (n,) float32 um/px, NaN
    where it is not known.
    """

    name: str
    images: Sequence[bytes]
    labels: Ints
    classes: tuple[str, ...]
    groups: Ints
    train: Bools
    mpp: NDArray[np.float32]
    divided: bool = False


@dataclass(frozen=True)
class Score:
    """Balanced accuracy on the held-out tiles, 0 to 1, NaN if a feature was not finite; and the tiles on each side."""

    task: str
    knn: float
    linear: float
    train: int
    test: int


def load_task(spec: str, limit: int = 0, seed: int = 0) -> Task:
    """The tiles of a Parquet file: `path.parquet`, or `path.parquet:labels` for labels that are not in `label`.

    `labels`: a column, or an expression over the columns in DuckDB's SQL (`... as name` names the task), null for rows
    to leave out, as in `atlas.parquet:if(stain = 'HE', organ, null) as organ`.
    Columns: `image` (encoded bytes), labels (rows without are left out), and if there `group` (else each tile is one),
    `split` ("train" or "test"; else groups with about a third of the tiles are held out), `mpp`. Classes that cannot be
    on both sides are left out. `limit`: most tiles a side, drawn by `seed` in every class; 0 for all. Raises BadTask.
    """
    path, column, file = _open(spec)
    whole = file.read([name for name in file.schema_arrow.names if name != "image"])
    table = {name: whole[name].to_pylist() for name in {"group", "split", "mpp"} & set(whole.column_names)}
    if named := re.fullmatch(r"(.+)\s+as\s+(\w+)", column, re.DOTALL | re.IGNORECASE):
        expression, column = named.groups()
    else:
        expression = column
    table[column] = _labels(path, expression, whole)
    rows = np.flatnonzero([value is not None for value in table[column]])
    table = {name: [values[row] for row in rows] for name, values in table.items()}
    names, labels = np.unique(table[column], return_inverse=True)
    hashes = [hashlib.blake2b(str(name).encode()).hexdigest() for name in table.get("group", rows)]
    groups = np.unique(hashes, return_inverse=True)[1]  # numbered alike in whatever order the rows are
    train = _split(path, table["split"], groups) if "split" in table else ~_hold_out(groups, labels)
    both = np.intersect1d(labels[train], labels[~train])
    if len(both) < 2:
        raise BadTask(f"{path}: fewer than 2 classes of {column} are on both sides; add groups, or name another column")
    if limit and limit < len(both):
        raise BadTask(f"{path}: a limit of {limit} tiles is less than one of each of {len(both)} classes; allow more")
    keep = np.flatnonzero(np.isin(labels, both))
    keep = keep[_limited(labels[keep], train[keep], limit or len(keep), seed)]
    labels, classes = np.searchsorted(both, labels[keep]), tuple(str(name) for name in names[both])
    name = path.stem if column == "label" else f"{path.stem}:{column}"
    mpp = np.array(table.get("mpp", [None] * len(rows)), np.float32)[keep]
    images = _images(path, file, rows[keep])
    return Task(name, images, labels, classes, groups[keep], train[keep], mpp, "split" in table)


def decode_tiles(images: Sequence[bytes], patch_px: int) -> Tensor:
    """Encoded tiles of one size (else BadTask) -> (b, 3, h, w) float32 in [0, 1], their middle in whole patches."""
    decoded = [_decode(image) for image in images]
    if len({pixels.shape for pixels in decoded}) > 1:
        raise BadTask("tiles are of several sizes; make them one size")
    height, width = decoded[0].shape[:2]
    h, w = height // patch_px * patch_px, width // patch_px * patch_px
    if not (h and w):
        raise BadTask(f"tiles of {width} x {height} px are smaller than a patch of {patch_px} px; use larger tiles")
    top, left = (height - h) // 2, (width - w) // 2
    pixels = np.stack([tile[top : top + h, left : left + w] for tile in decoded])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)


def embed(
    backbone: Backbone, task: Task, device: torch.device, batch: int = 64, autocast: torch.dtype | None = None
) -> Tensor:
    """(n, 2 D) float32 on the CPU: class token and mean patch token of each tile's middle.

    `autocast`: the type that matrices are multiplied in, None for the weights' own. Compiled blocks run as they are
    written, since each size of tile and of last batch would be compiled anew. Raises BadTask.
    """
    training, rows = backbone.training, []
    cast = torch.autocast(device.type, autocast, enabled=autocast is not None)
    backbone.eval()
    try:
        with torch.no_grad(), cast, torch.compiler.set_stance("force_eager"):
            for first in range(0, len(task.images), batch):
                tiles = decode_tiles(task.images[first : first + batch], backbone.settings.patch_px)
                rows.append(backbone([normalise(send(tiles, device))])[0].embedding.float())
    finally:
        backbone.train(training)
    return torch.cat(rows).cpu()


def colour_statistics(task: Task) -> Tensor:
    """(n, 12) float32: mean, standard deviation, 10th and 90th percentile of red, green and blue, all in [0, 1]."""
    rows = []
    for image in task.images:
        levels = np.sort(_decode(image).reshape(-1, 3).T.copy(), kind="stable")  # for bytes, a radix sort
        tenth = levels.shape[1] // 10
        rows.append(np.concatenate([levels.mean(1), levels.std(1), levels[:, tenth], levels[:, -1 - tenth]]) / 255)
    return torch.from_numpy(np.stack(rows)).float()


def balanced_accuracy(predicted: Ints, labels: Ints, classes: int) -> float:
    """Mean recall of the classes that `labels` has; both (n,) int64, below `classes`."""
    count = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[predicted == labels], minlength=classes)
    return float((right[count > 0] / count[count > 0]).mean())


def knn(features: Tensor, task: Task, k: int = 20, temperature: float = 0.07) -> float:
    """Balanced accuracy of the vote of the k nearest train tiles, each worth exp(cosine / temperature).

    `features`: (n, F), centred here by the mean of the train tiles. Wu et al. 2018, arXiv 1805.01978, section 3.4.
    """
    train, labels = torch.from_numpy(task.train), torch.from_numpy(task.labels)
    rows = functional.normalize(features.float() - features[train].float().mean(0), dim=1)
    predicted = []
    for part in torch.split(rows[~train], 256):
        likeness, nearest = (part @ rows[train].T).topk(min(k, int(train.sum())), dim=1)
        votes = torch.zeros(len(part), len(task.classes))
        votes.scatter_add_(1, labels[train][nearest], torch.exp(likeness / temperature))
        predicted.append(votes.argmax(1))
    return balanced_accuracy(torch.cat(predicted).numpy(), task.labels[~task.train], len(task.classes))


def linear(features: Tensor, task: Task, penalties: Sequence[float] = PENALTIES) -> float:
    """Balanced accuracy of multinomial logistic regression on features (n, F), standardised by the train tiles.

    Minimises the mean cross entropy, every class of equal weight, + penalty / 2 |W|^2; the intercept is free. Where
    there are several penalties, groups of the train side are held out to choose one (tiles where groups cannot put
    every class on both sides), the strongest among equals; the model is then fitted to the whole train side.
    """
    rows, test = np.flatnonzero(task.train), np.flatnonzero(~task.train)
    ordered = sorted(set(penalties), reverse=True)
    if len(ordered) > 1:
        labels = task.labels[rows]
        held = _hold_out(task.groups[rows], labels)
        if not np.array_equal(np.unique(labels[held]), np.unique(labels[~held])):
            held = _hold_out(np.arange(len(rows)), labels)
        guesses = _predictions(features, task, rows[~held], rows[held], ordered)
        scores = [balanced_accuracy(guess, labels[held], len(task.classes)) for guess in guesses]
        ordered = [ordered[int(np.argmax(scores))]]
    (predicted,) = _predictions(features, task, rows, test, ordered)
    return balanced_accuracy(predicted, task.labels[test], len(task.classes))


def score(features: Tensor, task: Task) -> Score:
    """Both judgements of features (n, F), wherever they come from."""
    judged = [judge(features, task) if features.isfinite().all() else np.nan for judge in (knn, linear)]
    return Score(task.name, judged[0], judged[1], int(task.train.sum()), int((~task.train).sum()))


def probe(
    backbone: Backbone, tasks: Sequence[Task], device: torch.device, autocast: torch.dtype | None = None
) -> list[Score]:
    """Embed and judge every task."""
    return [score(embed(backbone, task, device, autocast=autocast), task) for task in tasks]


def _open(spec: str) -> tuple[Path, str, pq.ParquetFile]:
    """Path, column of the labels, and the open file."""
    name, _, column = spec.partition(".parquet:")
    path, column = Path(f"{name}.parquet" if column else spec), column or "label"
    try:
        file = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise BadTask(f"{path}: is no Parquet file; name one, as path.parquet or path.parquet:column") from error
    if "image" not in (has := file.schema_arrow.names):
        raise BadTask(f"{path}: has no column image, only {', '.join(has)}; add it, with encoded tiles")
    return path, column, file


def _labels(path: Path, labels: str, table: pa.Table) -> list[Any]:
    """The column, or the expression's values; DuckDB has no access to anything but these rows."""
    if labels in table.column_names:
        return table[labels].to_pylist()  # type: ignore[no-any-return]
    with duckdb.connect(":memory:", config={"enable_external_access": "false"}) as connection:
        connection.register("tiles", table.append_column("_row", pa.array(range(len(table)), pa.int64())))
        try:
            found = connection.execute(f"SELECT ({labels}\n) FROM tiles ORDER BY _row").fetchall()  # noqa: S608
        except duckdb.Error as error:
            has = ", ".join(table.column_names)
            raise BadTask(f"{path}: has no column {labels}, and it is no expression over {has}; name one") from error
    return [row[0] for row in found]


def _split(path: Path, split: Sequence[str], groups: Ints) -> Bools:
    """Which rows the column `split` trains on."""
    train = np.array([side == "train" for side in split], bool)
    if other := set(split) - {"train", "test"}:
        raise BadTask(f"{path}: column split holds {sorted(map(str, other))}; write train or test in every row")
    if shared := len(np.intersect1d(groups[train], groups[~train])):
        raise BadTask(f"{path}: column split has train and test in {shared} groups; put each group on one side")
    return train


def _hold_out(groups: Ints, labels: Ints) -> Bools:
    """(n,) true on the held-out side: whole groups, with as many classes on both sides as can be found.

    Next to that, near a third of all tiles and of each class; a class of a single group does not matter.
    """
    (_, group), (_, label) = (np.unique(values, return_inverse=True) for values in (groups, labels))
    tiles = np.zeros((group.max(initial=-1) + 1, label.max(initial=-1) + 1))
    np.add.at(tiles, (group, label), 1)
    tiles = tiles[:, (tiles > 0).sum(0) > 1]
    if not tiles.size:
        return np.zeros(len(groups), bool)
    held = uniforms(0, _GROUPS, 0, 0, min(4096, 1 + 2**20 // len(tiles)), len(tiles)) < _HELD_OUT
    found = held @ tiles  # (tries, classes)
    both = ((found > 0) & (found < tiles.sum(0))).sum(1)
    miss = np.abs(found / tiles.sum(0) - _HELD_OUT).mean(1) + np.abs(found.sum(1) / tiles.sum() - _HELD_OUT)
    return held[np.lexsort((miss, -both))[0]][group]  # type: ignore[no-any-return]


def _limited(labels: Ints, train: Bools, limit: int, seed: int) -> Ints:
    """At most `limit` rows of each side, by chance, the first of each class before any second."""
    kind = 2 * labels + train
    order = np.lexsort((uniforms(seed, _LIMIT, 0, 0, len(labels), 1)[:, 0], kind))
    place = np.arange(len(order)) - np.searchsorted(kind[order], kind[order])
    order = order[np.argsort(place / np.bincount(kind)[kind[order]], kind="stable")]
    return np.sort(np.concatenate([order[train[order] == side][:limit] for side in (True, False)]))


def _images(path: Path, file: pq.ParquetFile, rows: Ints) -> list[bytes]:
    """The encoded tiles of these rows, whose headers are looked at."""
    images: list[bytes] = []
    for part in file.iter_batches(1024, columns=["image"]):
        images += part.column(0).take(rows[rows < len(part)]).to_pylist()
        rows = rows[rows >= len(part)] - len(part)
    try:
        sizes = {Image.open(io.BytesIO(image)).size for image in images}
    except (OSError, TypeError, Image.DecompressionBombError) as error:
        raise BadTask(f"{path}: column image has rows that hold no JPEG or PNG; leave them out") from error
    if len(sizes) > 1:
        raise BadTask(f"{path}: tiles are of several sizes, {sorted(sizes)} px; make them one size")
    return images


def _decode(image: bytes) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 RGB."""
    try:
        if image[:2] == b"\xff\xd8":
            return imagecodecs.jpeg8_decode(image, outcolorspace="RGB")
        return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    except (OSError, ValueError, RuntimeError, SyntaxError) as error:
        raise BadTask("a tile is no readable JPEG or PNG; write it anew, or leave it out") from error


def _predictions(features: Tensor, task: Task, rows: Ints, judged: Ints, penalties: Sequence[float]) -> Iterator[Ints]:
    """Classes of the tiles `judged`, by a model fitted to `rows` with each penalty, best from the strongest on.

    On the principal axes, each scaled by its curvature, L-BFGS finds the same minimum in far fewer steps.
    """
    x, y = features.double(), torch.from_numpy(task.labels)[rows]
    mean, std = x[rows].mean(0), x[rows].std(0, correction=0)
    x = (x - mean) / torch.where(std > 1e-6 * mean.abs(), std, torch.inf)  # what is constant becomes 0
    variance, axes = torch.linalg.eigh(x[rows].T @ x[rows] / len(rows))
    x = torch.cat([x @ axes, torch.ones(len(x), 1)], dim=1)
    weight = 1 / torch.bincount(y, minlength=len(task.classes)).clamp_min(1).double()
    model = torch.zeros(x.shape[1], len(task.classes), dtype=x.dtype)
    for penalty in penalties:
        scale = (torch.cat([variance.clamp_min(0), torch.ones(1)]) / 4 + penalty).rsqrt()[:, None]
        model = scale * _minimum(x[rows] * scale.T, y, weight, penalty * scale.square(), model / scale)
        yield (x[judged] @ model).argmax(1).numpy()


def _minimum(x: Tensor, y: Tensor, weight: Tensor, penalty: Tensor, start: Tensor) -> Tensor:
    """(F + 1, C): the model, intercept last and not penalised, of least loss."""
    model = start.clone().requires_grad_()
    steps = torch.optim.LBFGS([model], max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        model.grad = None
        value = functional.cross_entropy(x @ model, y, weight) + (penalty * model.square())[:-1].sum() / 2
        value.backward()  # type: ignore[no-untyped-call]
        return value

    steps.step(loss)  # type: ignore[no-untyped-call]
    return model.detach()
