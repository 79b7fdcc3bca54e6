"""How well frozen embeddings tell labelled tiles apart: nearest neighbours, a linear model, and ten examples a class.

Patients, slides or cases are never divided between what is learnt from and what is judged on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pretrain.compute.randomness import Purpose, uniforms
from pretrain.data.labelled import Pixels, Tiles, read_batches
from pretrain.evaluation.scores import balanced_accuracy
from pretrain.evaluation.tasks import Ints, Regression, Task, hold_out
from pretrain.features.embedder import Inference, embed_tiles, of_backbone
from pretrain.model.backbone import Backbone

Scores = NDArray[np.float32]
PENALTIES = tuple(10.0**power for power in range(-5, 3))  # of the linear model's weights
SHOTS, EPISODES = 10, 50
_ROWS = 8192  # that are multiplied at once


@dataclass(frozen=True)
class Score:
    """Balanced accuracy on the held-out tiles, 0 to 1, NaN if a feature was not finite; and the tiles on each side."""

    task: str
    knn: float
    linear: float
    train: int
    test: int


def embed(backbone: Backbone, task: Task, inference: Inference) -> Tensor:
    """(n, 2 D) float32 on the CPU: class token and mean patch token of each tile's middle. Raises BadTask."""
    return embed_tiles(of_backbone(backbone), task.tiles, task.px, inference)


def colour_statistics(tiles: Tiles) -> Tensor:
    """(n, 12) float32: mean, standard deviation, 10th and 90th percentile of red, green and blue, all in [0, 1]."""
    return torch.from_numpy(np.stack([row for rows in read_batches(tiles, 64, 2, _colours) for row in rows]))


def _colours(tile: Pixels) -> Any:
    levels = np.sort(tile.reshape(-1, 3).T.copy(), kind="stable")  # for bytes, a radix sort
    tenth = levels.shape[1] // 10
    row = np.concatenate([levels.mean(1), levels.std(1), levels[:, tenth], levels[:, -1 - tenth]]) / 255
    return row.astype(np.float32)


def knn(features: Tensor, task: Task, k: int = 20, temperature: float = 0.07) -> Ints:
    """Classes of the tiles judged on, by the vote of the k nearest train tiles, each worth exp(cosine / temperature).

    `features`: (n, F), centred here by the mean of the train tiles. Wu et al. 2018, arXiv 1805.01978, section 3.4.
    """
    train, labels = torch.from_numpy(task.train), torch.from_numpy(task.labels)
    rows = _directions(features, train)
    known = rows[train]
    predicted = []
    for part in torch.split(rows[torch.from_numpy(task.test)], 256):
        likeness, nearest = (part @ known.T).topk(min(k, len(known)), dim=1)
        votes = torch.zeros(len(part), len(task.classes))
        votes.scatter_add_(1, labels[train][nearest], torch.exp(likeness / temperature))
        predicted.append(votes.argmax(1))
    return torch.cat(predicted).numpy()


def shared_neighbours(features: Tensor, others: Tensor, k: int = 10) -> float:
    """The share of each tile's k nearest tiles that two models have in common, 0 to 1; k / (n - 1) is chance.

    `features`, `others`: (n, F) and (n, G) of the same tiles, each centred; by cosine. Huh et al. 2024, arXiv
    2405.07987, section 3. NaN where a feature is not finite.
    """
    if not (features.isfinite().all() and others.isfinite().all()):
        return float("nan")
    every = torch.ones(len(features), dtype=torch.bool)
    one, other = _directions(features, every), _directions(others, every)
    k = min(k, len(one) - 1)
    common = 0
    for part in torch.split(torch.arange(len(one)), 1024):
        nearest = []
        for rows in (one, other):
            likeness = rows[part] @ rows.T
            likeness[torch.arange(len(part)), part] = -torch.inf
            nearest.append(likeness.topk(k, dim=1).indices)
        common += int((nearest[0][:, :, None] == nearest[1][:, None]).sum())
    return common / (k * len(one))


def few_shot(features: Tensor, task: Task, shots: int = SHOTS, episodes: int = EPISODES, seed: int = 0) -> Ints:
    """(episodes, tiles judged on): the nearest mean of `shots` train tiles of each class, drawn anew in each episode.

    On directions from the mean of all train tiles: SimpleShot, Wang et al. 2019, arXiv 1911.04623. Every class of every
    episode draws by numbers of its own, a function of `seed`, episode and class: the same tiles for every model.
    """
    rows = _directions(features, torch.from_numpy(task.train))
    test = rows[torch.from_numpy(task.test)]
    of_class = [np.flatnonzero(task.train & (task.labels == number)) for number in range(len(task.classes))]
    predicted = []
    for episode in range(episodes):
        means = []
        for number, known in enumerate(of_class):
            order = np.argsort(uniforms(seed, Purpose.EPISODE, episode, range(len(known)), 1, attempt=number)[:, 0])
            means.append(rows[torch.from_numpy(known[order[:shots]])].mean(0))
        mean = torch.stack(means)
        predicted.append((test @ mean.T - mean.square().sum(1) / 2).argmax(1).numpy())
    return np.stack(predicted)


def linear(features: Tensor, task: Task, penalties: Sequence[float] = PENALTIES) -> Ints:
    """Classes of the tiles judged on, as linear_scores tells them."""
    classes: Ints = linear_scores(features, task, penalties).argmax(1)
    return classes


def linear_scores(features: Tensor, task: Task, penalties: Sequence[float] = PENALTIES) -> Scores:
    """(tiles judged on, C) float32 logits by logistic regression on features (n, F), standardised by the train tiles.

    Minimises the mean cross entropy, every class of equal weight, + penalty / 2 |W|^2; the intercept is free. Where
    there are several penalties, all are tried, and the one that does best on the task's `valid` is taken, the strongest
    among equals. A task without: patients or groups of the train side are held out to choose (tiles where these cannot
    put every class on both sides), and the model is then fitted to all of it.
    """
    rows, test = np.flatnonzero(task.train), np.flatnonzero(task.test)
    ordered = sorted(set(penalties), reverse=True)
    if len(ordered) == 1:
        return next(_fits(features, task, rows, [test], ordered)).guesses[0]
    if task.valid is not None:
        valid = np.flatnonzero(task.valid)
        return _best(task, valid, _fits(features, task, rows, [valid, test], ordered)).guesses[-1]
    labels = task.labels[rows]
    held = hold_out(task.owners[rows], labels)
    if not np.array_equal(np.unique(labels[held]), np.unique(labels[~held])):
        held = hold_out(np.arange(len(rows)), labels)
    chosen = _best(task, rows[held], _fits(features, task, rows[~held], [rows[held]], ordered))
    return next(_fits(features, task, rows, [test], [chosen.penalty])).guesses[0]


def ridge(
    features: Tensor,
    task: Regression,
    train: NDArray[np.bool_],
    test: NDArray[np.bool_],
    components: int = 256,
) -> NDArray[np.float64]:
    """Pearson's r of each target on the test tiles, NaN where one of the two is constant.

    HEST's protocol (Jaume et al. 2024, arXiv 2406.16192, as in its code): features (n, F) standardised by the train
    tiles, their first principal `components`, least squares without intercept with a penalty of
    100 / (components x targets) on the sum of squares.
    """
    x, y = features.double(), torch.from_numpy(task.targets).double()
    known = torch.from_numpy(train)
    mean, std = x[known].mean(0), x[known].std(0, correction=0)
    x = (x - mean) / torch.where(std > 0, std, 1.0)
    variance, axes = torch.linalg.eigh(x[known].T @ x[known])
    components = min(components, int(train.sum()), x.shape[1])
    x = x @ axes[:, -components:]
    penalty = 100 / (components * y.shape[1])
    weights = (x[known].T @ y[known]) / (variance[-components:, None] + penalty)
    return _pearson(x[torch.from_numpy(test)] @ weights, y[torch.from_numpy(test)])


def score(features: Tensor, task: Task) -> Score:
    """Balanced accuracy by neighbours and by a linear model of features (n, F), wherever they come from."""
    test, finite = task.test, bool(features.isfinite().all())
    judged = [
        balanced_accuracy(judge(features, task), task.labels[test], len(task.classes)) if finite else np.nan
        for judge in (knn, linear)
    ]
    return Score(task.name, judged[0], judged[1], int(task.train.sum()), int(test.sum()))


def _directions(features: Tensor, train: Tensor) -> Tensor:
    return functional.normalize(features.float() - features[train].float().mean(0), dim=1)


def _pearson(a: Tensor, b: Tensor) -> NDArray[np.float64]:
    a, b = a - a.mean(0), b - b.mean(0)
    return ((a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()).numpy()


class _Fit(NamedTuple):
    """Logits of each set of tiles, by a linear model of this penalty."""

    penalty: float
    guesses: list[Scores]


def _best(task: Task, judged: Ints, fits: Iterator[_Fit]) -> _Fit:
    """The one whose first guesses, of the tiles `judged`, are best; the first among equals.

    All are looked at: accuracy may stay the same for many penalties and rise after, as where a site's differences are
    far larger than those of the classes.
    """

    def accuracy(fit: _Fit) -> float:
        return balanced_accuracy(fit.guesses[0].argmax(1), task.labels[judged], len(task.classes))

    return max(fits, key=accuracy)


def _fits(
    features: Tensor, task: Task, rows: Ints, judged: Sequence[Ints], penalties: Sequence[float]
) -> Iterator[_Fit]:
    """Models fitted to `rows` with each penalty in turn, each from the one before; their logits of tiles `judged`."""
    x, y = _standardised(features, rows), torch.from_numpy(task.labels)[rows]
    known = _Known.of(x[rows], y, len(task.classes))
    model = torch.zeros(x.shape[1], len(task.classes), dtype=torch.float64)
    intercept = torch.zeros(len(task.classes), dtype=torch.float64)
    for penalty in penalties:
        model, intercept = known.minimum(penalty, model, intercept)
        yield _Fit(penalty, [(x[of] @ model.float() + intercept.float()).numpy() for of in judged])


def _standardised(features: Tensor, rows: Ints) -> Tensor:
    """(n, F) float32: by mean and standard deviation of these rows; what is constant in them becomes 0."""
    known = features[rows]
    parts = [part.double() for part in torch.split(known, _ROWS)]
    mean = torch.stack([part.sum(0) for part in parts]).sum(0) / len(known)
    std = (torch.stack([(part - mean).square().sum(0) for part in parts]).sum(0) / len(known)).sqrt()
    std = torch.where(std > 1e-6 * mean.abs(), std, torch.inf)
    return torch.cat([((part.double() - mean) / std).float() for part in torch.split(features, _ROWS)])


@dataclass(frozen=True)
class _Known:
    """What a linear model is fitted to: rows `x` (n, F) float32 of the classes `y` (n,), of weights (C,) float32.

    `covariance`: (F, F) float64, of the rows, so weighted.
    """

    x: Tensor
    y: Tensor
    weight: Tensor
    covariance: Tensor

    @staticmethod
    def of(x: Tensor, y: Tensor, classes: int) -> _Known:
        """With every class of equal weight."""
        weight = 1 / torch.bincount(y, minlength=classes).clamp_min(1)
        share = weight[y] / weight[y].sum()
        covariance = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        for part, shares in zip(torch.split(x, _ROWS), torch.split(share, _ROWS), strict=True):
            covariance += (part.T @ (part * shares[:, None])).double()
        return _Known(x, y, weight.float(), covariance)

    def minimum(self, penalty: float, model: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """(F, C) weights and (C,) intercepts of least loss, both float64, beginning from others.

        L-BFGS on V, with W = L^-T V and L L^T = covariance / 4 + penalty, which is nearly the curvature. The entropy is
        summed in float64: by float32's noise, line searches took up to 14 times as many evaluations.
        """
        curvature = self.covariance / 4 + penalty * torch.eye(len(self.covariance), dtype=torch.float64)
        root = torch.linalg.cholesky(curvature)
        start = torch.cat([root.T @ model, intercept[None]])
        both = start.clone().requires_grad_()
        steps = torch.optim.LBFGS([both], max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

        def unrolled() -> tuple[Tensor, Tensor]:
            return torch.linalg.solve_triangular(root.T, both[:-1], upper=True), both[-1]

        def loss() -> Tensor:
            both.grad = None
            weights, free = unrolled()
            guessed = self.x @ weights.float() + free.float()
            value = functional.cross_entropy(guessed.double(), self.y, self.weight.double())
            value = value + penalty * weights.square().sum() / 2
            value.backward()  # type: ignore[no-untyped-call]
            return value

        steps.step(loss)  # type: ignore[no-untyped-call]
        weights, free = unrolled()
        return weights.detach(), free.detach()
