"""How often the stain classifier is right: confusion, balanced accuracy and calibration, as Markdown."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from wsi_prep.stain.classify import SURE
from wsi_prep.stain.fit.fit import HeldOut, calibrated
from wsi_prep.stain.network import CLASSES

_BINS = 10


def confusion(truth: NDArray[np.int64], guess: NDArray[np.int64]) -> NDArray[np.int64]:
    """(3, 3) counts of CLASSES: true by guessed."""
    table = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    np.add.at(table, (truth, guess), 1)
    return table


def balanced_accuracy(truth: NDArray[np.int64], guess: NDArray[np.int64]) -> float:
    """Mean over the true classes that there are of the share guessed right."""
    return float(np.mean([(guess[truth == stain] == stain).mean() for stain in np.unique(truth)]))


def calibration_error(probabilities: NDArray[np.float64], truth: NDArray[np.int64], bins: int = _BINS) -> float:
    """Mean gap between the confidence of the best guess and how often it is right, over `bins` of confidence (ECE)."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[place == b].sum() - right[place == b].sum()) for b in np.unique(place)]
    return float(sum(gaps) / len(truth))


def section(title: str, judged: HeldOut, *, name_wrong: bool) -> list[str]:
    """Lines of Markdown on pictures that were held out."""
    probabilities = calibrated(judged)
    guess, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    he_truth, he_guess = (judged.truth == 0).astype(np.int64), (guess == 0).astype(np.int64)
    sure = confidence >= SURE
    lines = [f"### {title}: {len(guess)} of {len(set(judged.cases))} cases", ""]
    lines += [
        f"| true \\ called | {' | '.join(CLASSES)} | of these UNKNOWN |",
        "| --- " * (len(CLASSES) + 2) + "|",
    ]
    for number, row in enumerate(confusion(judged.truth, guess)):
        unsure = int((~sure & (judged.truth == number)).sum())
        lines.append(f"| {CLASSES[number]} | " + " | ".join(map(str, row)) + f" | {unsure} |")
    right = guess == judged.truth
    lines += [
        "",
        f"H&E against not H&E {balanced_accuracy(he_truth, he_guess):.3f}, three classes "
        f"{balanced_accuracy(judged.truth, guess):.3f} (balanced accuracies, every picture called). "
        f"{sure.mean():.1%} have a confidence of {SURE:g} or more, {right[sure].mean():.1%} of those are right. "
        f"Calibration error {calibration_error(probabilities, judged.truth):.3f}.",
        "",
    ]
    if name_wrong:
        doubtful = np.flatnonzero(~right | ~sure)
        lines += [f"- {judged.names[i]}: {CLASSES[guess[i]]} {confidence[i]:.2f}" for i in doubtful] + [""]
    return lines


def reliability(judged: HeldOut) -> list[str]:
    """Lines of Markdown: how often calls of each confidence are right."""
    probabilities = calibrated(judged)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == judged.truth
    lines = ["| confidence | pictures | mean confidence | right |", "| --- | --- | --- | --- |"]
    for low, high in ((0.0, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 0.95), (0.95, 0.99), (0.99, 1.01)):
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
