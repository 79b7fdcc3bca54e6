"""Fitting the stain classifier, with whole cases or laboratories held out to judge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression

from wsi_prep.errors import UsageError
from wsi_prep.stain.features import COUNT, HUE_PLACES, HUES
from wsi_prep.stain.fit.examples import Example
from wsi_prep.stain.model import CLASSES, MOST_UNUSUAL, StainModel, softmax

_STRENGTH = 25.0
"""How little the weights are held back (C of scikit-learn, where all examples together weigh 1)."""

_HUES_ALIKE = 1.0
"""How many hues apart weights are still alike (standard deviation)."""

_FOLDS = 20
_LEAST_SPREAD = 0.02
"""Variance below which a direction of the features is taken for noise."""

_BEYOND = 1.25
"""How much farther than every held-out slide a picture is that is like nothing known."""


@dataclass(frozen=True)
class HeldOut:
    """Pictures that a classifier saw of which no case was fitted to.

    `truth` (n,) places in CLASSES, `logits` (n, 3) before any temperature, `distances` (n,) from what was fitted to,
    `cases`, `laboratories` and `names` (n,).
    """

    truth: NDArray[np.int64]
    logits: NDArray[np.float64]
    distances: NDArray[np.float64]
    cases: NDArray[np.str_]
    laboratories: NDArray[np.str_]
    names: NDArray[np.str_]

    def only(self, kept: NDArray[np.bool_]) -> HeldOut:
        """Those that are `kept`, (n,)."""
        origins = self.cases[kept], self.laboratories[kept], self.names[kept]
        return HeldOut(self.truth[kept], self.logits[kept], self.distances[kept], *origins)


def fit(examples: Sequence[Example]) -> StainModel:
    """Multinomial logistic regression over the examples, in which each class weighs the same; its temperature is 1.

    Raises UsageError where a class has no example.
    """
    features = np.array([example.features for example in examples], np.float64)
    mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-3)
    usual = np.clip((features - mean) / scale, -MOST_UNUSUAL, MOST_UNUSUAL)
    stains = np.array([CLASSES.index(example.stain) for example in examples])
    counts = np.bincount(stains, minlength=len(CLASSES))
    if not counts.all():
        raise UsageError(f"there is too little tissue to fit to: HE, IHC and SPECIAL have {counts.tolist()} pictures")
    weight = 1.0 / (len(CLASSES) * counts[stains])
    alike = _alike()
    fitted = LogisticRegression(C=_STRENGTH, max_iter=500).fit(usual @ alike, stains, sample_weight=weight)
    spread, axes = np.linalg.eigh((usual * weight[:, None]).T @ usual)
    whitening = axes / np.sqrt(spread + _LEAST_SPREAD)
    numbers = {
        "mean": mean,
        "scale": scale,
        "slope": alike @ fitted.coef_.T,
        "bias": fitted.intercept_,
        "whitening": whitening,
    }
    tensors = {name: np.asarray(tensor, dtype=np.float32) for name, tensor in numbers.items()}
    return StainModel(tensors["mean"], tensors["scale"], tensors["slope"], tensors["bias"], tensors["whitening"])


def _alike() -> NDArray[np.float64]:
    """(COUNT, COUNT): the root of how much the weights of two features are expected to be alike.

    Those of hues are by how near they are: another scanner or laboratory shifts a dye to the hues beside its own.
    """
    apart = np.abs(np.arange(HUES)[:, None] - np.arange(HUES))
    apart = np.minimum(apart, HUES - apart)
    expected = np.eye(COUNT)
    for hues in HUE_PLACES:
        expected[hues, hues] = np.exp(-0.5 * (apart / _HUES_ALIKE) ** 2)
    spread, axes = np.linalg.eigh(expected)
    return np.asarray(axes * np.sqrt(np.maximum(spread, 0)) @ axes.T)


def hold_out(fitted_to: Sequence[Example], judged: Sequence[Example], *, by_laboratory: bool = False) -> HeldOut:
    """Every judged picture by a classifier that was fitted without its case, or laboratory, in the order given.

    Several cases are held out at once, in at most 20 parts.
    """
    part = _parts([*fitted_to, *judged], by_laboratory)
    logits, distances = np.empty((len(judged), len(CLASSES))), np.empty(len(judged))
    own = np.array([part[_held_together(example, by_laboratory)] for example in judged])
    for number in sorted(set(own.tolist())):
        model = fit([e for e in fitted_to if part[_held_together(e, by_laboratory)] != number])
        held = own == number
        features = np.array([e.features for e, h in zip(judged, held, strict=True) if h])
        logits[held], distances[held] = model.logits(features), model.distance(features)
    return HeldOut(
        np.array([CLASSES.index(example.stain) for example in judged]),
        logits,
        distances,
        np.array([example.case for example in judged]),
        np.array([example.laboratory for example in judged]),
        np.array([example.name for example in judged]),
    )


def _held_together(example: Example, by_laboratory: bool) -> str:
    return example.laboratory if by_laboratory else example.case


def _parts(examples: Sequence[Example], by_laboratory: bool) -> dict[str, int]:
    """The part in which each case (laboratory) is held out; those of other stains than H&E are few: spread first."""
    rare = {_held_together(e, by_laboratory) for e in examples if e.stain != "HE"}
    common = {_held_together(e, by_laboratory) for e in examples} - rare
    return {name: place % _FOLDS for names in (rare, common) for place, name in enumerate(sorted(names))}


def fit_temperature(judged: HeldOut) -> float:
    """The temperature at which the true classes are likeliest, every class and every case counting the same."""
    weight = even_weights(judged)

    def loss(log_temperature: float) -> float:
        probabilities = softmax(judged.logits / np.exp(log_temperature))
        true = probabilities[np.arange(len(judged.truth)), judged.truth]
        return float(-(weight * np.log(np.maximum(true, 1e-12))).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-4.0, 3.0), method="bounded").x))


def calibrated(judged: HeldOut) -> NDArray[np.float64]:
    """(n, 3) probabilities, those of each case at the temperature of all other cases."""
    probabilities = np.empty_like(judged.logits)
    for case in sorted(set(judged.cases)):
        own = judged.cases == case
        probabilities[own] = softmax(judged.logits[own] / fit_temperature(judged.only(~own)))
    return probabilities


def even_weights(judged: HeldOut) -> NDArray[np.float64]:
    """(n,) that add up to 1, the same for each class, and within a class for each case."""
    weight = np.zeros(len(judged.truth))
    groups = sorted({(int(stain), str(case)) for stain, case in zip(judged.truth, judged.cases, strict=True)})
    for stain, case in groups:
        own = (judged.truth == stain) & (judged.cases == case)
        weight[own] = 1.0 / (own.sum() * sum(group[0] == stain for group in groups))
    return np.asarray(weight / weight.sum())


def calibrate(model: StainModel, judged: HeldOut) -> StainModel:
    """The model with the temperature, and the distance of what is like nothing known, of held-out pictures."""
    return replace(model, temperature=fit_temperature(judged), farthest=_BEYOND * float(judged.distances.max()))
