"""Fitting the stain classifier, with whole cases held out to judge it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from wsi_prep.stain.fit.examples import REAL, Example
from wsi_prep.stain.network import CLASSES, MOST_UNUSUAL, StainModel, softmax

_NETWORKS, _HIDDEN = 3, 32
_DECAY, _EPOCHS, _BATCH = 0.1, 20, 128
_WEIGHTS = {REAL: 3.0, "no positive cell": 3.0, "H&E, blue": 0.2}
"""What some pictures count, where others count 1: real dyes and blue IHC more, very blue H&E less."""


@dataclass(frozen=True)
class HeldOut:
    """Pictures that a classifier saw of which no case was fitted to.

    `truth` (n,) places in CLASSES, `logits` (n, 3) before any temperature, `cases` and `names` (n,).
    """

    truth: NDArray[np.int64]
    logits: NDArray[np.float64]
    cases: NDArray[np.str_]
    names: NDArray[np.str_]

    def only(self, kept: NDArray[np.bool_]) -> HeldOut:
        """Those that are `kept`, (n,)."""
        return HeldOut(self.truth[kept], self.logits[kept], self.cases[kept], self.names[kept])


def fit(examples: Sequence[Example], seed: int = 0) -> StainModel:
    """The classifier fitted to the examples: the mean of several networks, as one; its temperature is 1."""
    features = np.array([example.features for example in examples], np.float64)
    mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-3)
    usual = np.clip((features - mean) / scale, -MOST_UNUSUAL, MOST_UNUSUAL)
    networks = [_network(usual, examples, seed + number) for number in range(_NETWORKS)]
    tensors = {
        "into": np.concatenate([network.coefs_[0] for network in networks], axis=1),
        "into_bias": np.concatenate([network.intercepts_[0] for network in networks]),
        "out": np.concatenate([network.coefs_[1] for network in networks]) / _NETWORKS,
        "out_bias": np.mean([network.intercepts_[1] for network in networks], axis=0),
    }
    return StainModel(**{k: v.astype(np.float32) for k, v in {"mean": mean, "scale": scale, **tensors}.items()})


def _network(features: NDArray[np.float64], examples: Sequence[Example], seed: int) -> MLPClassifier:
    network = MLPClassifier(
        (_HIDDEN,), alpha=_DECAY, batch_size=min(_BATCH, len(features)), max_iter=_EPOCHS, random_state=seed
    )
    stains = np.array([example.stain for example in examples])
    weight = np.array([_WEIGHTS.get(example.name, 1.0) for example in examples])
    for stain in CLASSES:  # each counts the same in all
        weight[stains == stain] *= len(weight) / (len(CLASSES) * weight[stains == stain].sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a set number of rounds is meant
        network.fit(features, stains, sample_weight=weight)
    assert tuple(network.classes_) == CLASSES
    return network


def hold_out_cases(fitted_to: Sequence[Example], judged: Sequence[Example], seed: int = 0) -> HeldOut:
    """Every judged picture by a classifier that was fitted without its case, in the order given.

    A case that nothing was fitted to is judged by the classifier of all.
    """
    logits = np.empty((len(judged), len(CLASSES)))
    cases = np.array([example.case for example in judged])
    known = {example.case for example in fitted_to}
    groups = [(case,) for case in sorted(set(cases) & known)] + [tuple(sorted(set(cases) - known))]
    for group in filter(None, groups):
        model = fit([example for example in fitted_to if example.case not in group], seed)
        held = np.isin(cases, group)
        logits[held] = model.logits(np.array([e.features for e, h in zip(judged, held, strict=True) if h]))
    truth = np.array([CLASSES.index(example.stain) for example in judged])
    return HeldOut(truth, logits, cases, np.array([example.name for example in judged]))


def fit_temperature(judged: HeldOut) -> float:
    """The temperature at which the true classes are likeliest, every class and every case counting the same."""
    weight = even_weights(judged)

    def loss(log_temperature: float) -> float:
        probabilities = softmax(judged.logits / np.exp(log_temperature))
        true = probabilities[np.arange(len(judged.truth)), judged.truth]
        return float(-(weight * np.log(np.maximum(true, 1e-12))).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-2.0, 3.0), method="bounded").x))


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


def with_temperature(model: StainModel, temperature: float) -> StainModel:
    """The model, calibrated."""
    return replace(model, temperature=temperature)
