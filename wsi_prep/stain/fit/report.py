"""How often the stain classifier is right, by case, with intervals, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wsi_prep.stain.classify import DISAGREES, SURE
from wsi_prep.stain.fit.fit import HeldOut, calibrated, even_weights
from wsi_prep.stain.model import CLASSES

_DRAWS = 1000
_LIMITS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.01)

Figure = Callable[[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]], float]
"""A figure of truth (n,), probabilities (n, 3), and what each picture weighs, (n,)."""


def confusion(truth: NDArray[np.int64], guess: NDArray[np.int64]) -> NDArray[np.int64]:
    """(3, 4) counts of CLASSES: true by guessed, the last column those that are none of them (-1)."""
    table = np.zeros((len(CLASSES), len(CLASSES) + 1), np.int64)
    np.add.at(table, (truth, guess), 1)
    return table


def balanced_accuracy(
    truth: NDArray[np.int64], right: NDArray[np.bool_], weight: NDArray[np.float64] | None = None
) -> float:
    """Mean over the true classes that there are of the share that is right, each picture counting its weight."""
    weight = np.ones(len(truth)) if weight is None else weight
    return float(np.mean([np.average(right[truth == s], weights=weight[truth == s]) for s in np.unique(truth)]))


def called(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n,) places in CLASSES, -1 where the confidence is below SURE: what `classify_stain` says."""
    return np.where(probabilities.max(axis=1) >= SURE, probabilities.argmax(axis=1), -1)


def he_or_not(truth: NDArray[np.int64], probabilities: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Balanced accuracy of H&E against all else; UNKNOWN is wrong."""
    call = called(probabilities)
    return balanced_accuracy(np.minimum(truth, 1), (call >= 0) & ((call == 0) == (truth == 0)), weight)


def three_classes(truth: NDArray[np.int64], probabilities: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Balanced accuracy of the three classes; UNKNOWN is wrong."""
    return balanced_accuracy(truth, called(probabilities) == truth, weight)


def best_guess(truth: NDArray[np.int64], probabilities: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Balanced accuracy of the three classes, every picture called its likeliest."""
    return balanced_accuracy(truth, probabilities.argmax(axis=1) == truth, weight)


def right_from(least: float) -> Figure:
    """The figure: of the pictures with at least this confidence, the share that is right; nan where there are none."""

    def figure(truth: NDArray[np.int64], probabilities: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
        sure = probabilities.max(axis=1) >= least
        return float((probabilities.argmax(axis=1) == truth)[sure].mean()) if sure.any() else float("nan")

    return figure


def interval(figure: Figure, judged: HeldOut, probabilities: NDArray[np.float64]) -> tuple[float, float, float]:
    """A figure, and its 95 % interval: cases are drawn again with replacement, within each class (bootstrap)."""
    rng = np.random.default_rng(0)
    units: list[list[NDArray[np.int64]]] = []
    for stain in np.unique(judged.truth):
        here = judged.truth == stain
        units.append([np.flatnonzero(here & (judged.cases == case)) for case in sorted(set(judged.cases[here]))])
    drawn = []
    for _ in range(_DRAWS):
        sets = [group[i] for group in units for i in rng.integers(0, len(group), len(group))]
        weight = np.concatenate([np.full(len(rows), 1 / len(rows)) for rows in sets])
        rows = np.concatenate(sets)
        drawn.append(figure(judged.truth[rows], probabilities[rows], weight))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return figure(judged.truth, probabilities, even_weights(judged)), float(low), float(high)


def calibration_error(probabilities: NDArray[np.float64], truth: NDArray[np.int64], bins: int = 10) -> float:
    """Mean gap between the confidence of the best guess and how often it is right, over `bins` of confidence (ECE)."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[place == b].sum() - right[place == b].sum()) for b in np.unique(place)]
    return float(sum(gaps) / len(truth))


def section(title: str, judged: HeldOut, *, name_wrong: bool) -> list[str]:
    """Lines of Markdown on pictures that were held out."""
    probabilities = calibrated(judged)
    call = called(probabilities)
    lines = [f"### {title}: {len(call)} of {len(set(judged.cases))} cases", ""]
    lines += [f"| true \\ called | {' | '.join(CLASSES)} | UNKNOWN |", "| --- " * (len(CLASSES) + 2) + "|"]
    lines += [
        f"| {name} | {' | '.join(map(str, row))} |"
        for name, row in zip(CLASSES, confusion(judged.truth, call), strict=True)
    ]
    lines += ["", "| by case | | 95 % |", "| --- | --- | --- |"]
    for name, figure in (
        ("H&E against not, UNKNOWN is wrong", he_or_not),
        ("three classes, UNKNOWN is wrong", three_classes),
        ("three classes, every picture called", best_guess),
        (f"right of those with {DISAGREES:g} or more", right_from(DISAGREES)),
        ("right of those with 0.9 or more", right_from(0.9)),
        ("right of those with 0.6 or more", right_from(0.6)),
        (f"right of those with {SURE:g} or more", right_from(SURE)),
    ):
        found, low, high = interval(figure, judged, probabilities)
        lines.append(f"| {name} | {found:.3f} | {low:.3f} to {high:.3f} |")
    lines += [f"| calibration error | {calibration_error(probabilities, judged.truth):.3f} | |", ""]
    if name_wrong:
        guess, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
        wrong = np.flatnonzero(call != judged.truth)
        lines += [f"- {judged.names[i]}: {CLASSES[guess[i]]} {confidence[i]:.2f}" for i in wrong] + [""]
    return lines


def reliability(judged: HeldOut) -> list[str]:
    """Lines of Markdown: how often calls of each confidence are right."""
    probabilities = calibrated(judged)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == judged.truth
    lines = ["| confidence | pictures | mean confidence | right |", "| --- | --- | --- | --- |"]
    for low, high in pairwise(_LIMITS):
        here = (confidence >= low) & (confidence < high)
        if here.any():
            limits = f"{low:g} to {min(high, 1.0):g}"
            lines.append(f"| {limits} | {here.sum()} | {confidence[here].mean():.3f} | {right[here].mean():.3f} |")
    return [*lines, ""]


def by_recipe(judged: HeldOut) -> list[str]:
    """Lines of Markdown: how often each recipe's pictures are called rightly."""
    guess = judged.logits.argmax(axis=1)
    counts = Counter(judged.names.tolist())
    lines = ["| stain | class | pictures | HE | IHC | SPECIAL |", "| --- | --- | --- | --- | --- | --- |"]
    for name in sorted(counts, key=lambda n: (judged.truth[judged.names == n][0], n)):
        own = judged.names == name
        shares = [f"{(guess[own] == stain).mean():.2f}" for stain in range(len(CLASSES))]
        lines.append(f"| {name} | {CLASSES[judged.truth[own][0]]} | {own.sum()} | {' | '.join(shares)} |")
    return [*lines, ""]
