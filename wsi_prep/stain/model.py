"""The classifier of stains: a linear one over `stain_features`, whose weights come with the package."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from wsi_prep.errors import BadStainModel
from wsi_prep.stain.features import COUNT, FEATURE_VERSION

MODEL_FILE = Path(__file__).with_name("stain.safetensors")
"""The weights that `pipelines.fit_stain` wrote."""

CLASSES = ("HE", "IHC", "SPECIAL")
"""What the classifier tells apart, in the order of its outputs."""

MOST_UNUSUAL = 5.0
"""Standard deviations beyond which a feature counts no further, so that no single odd number decides."""


@dataclass(frozen=True)
class StainModel:
    """Multinomial logistic regression, and how far a picture is from all that it was fitted to; float32.

    `mean`, `scale`: (COUNT,) of the features; `slope` (COUNT, 3), `bias` (3,). `whitening` (COUNT, COUNT) makes usual
    features uncorrelated and of spread 1. `temperature` divides the outputs, so that probabilities are as often right
    as they say (Guo et al., ICML 2017). `farthest`: the distance beyond which a picture is like nothing known.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    slope: NDArray[np.float32]
    bias: NDArray[np.float32]
    whitening: NDArray[np.float32]
    temperature: float = 1.0
    farthest: float = float("inf")

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(..., 3) outputs before the temperature, of (..., COUNT) features."""
        return np.asarray(self._usual(features) @ self.slope + self.bias, dtype=np.float64)

    def distance(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(...) Mahalanobis distance of (..., COUNT) features from those fitted to, by the root of their number."""
        return np.asarray(np.sqrt(((self._usual(features) @ self.whitening) ** 2).mean(axis=-1)), dtype=np.float64)

    def _usual(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(np.clip((features - self.mean) / self.scale, -MOST_UNUSUAL, MOST_UNUSUAL), dtype=np.float32)

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(..., 3) probabilities of CLASSES."""
        return softmax(self.logits(features) / self.temperature)

    def save(self, file: Path) -> None:
        """Write the weights, and which features they are for."""
        tensors = {name: np.ascontiguousarray(getattr(self, name), np.float32) for name in _TENSORS}
        # one entry: of several, safetensors writes any first, and the file would differ from time to time
        file.write_bytes(save(tensors, {"made_for": _made_for()}))


_TENSORS = ("mean", "scale", "slope", "bias", "whitening", "temperature", "farthest")


def _made_for() -> str:
    return f"version {FEATURE_VERSION} of the features and {' '.join(CLASSES)}"


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def read_stain_model(file: Path) -> StainModel:
    """The weights in `file`; raises BadStainModel where there are none, or where they are for other features."""
    try:
        with safe_open(file, framework="numpy") as weights:
            about = weights.metadata() or {}
            tensors = {name: weights.get_tensor(name) for name in _TENSORS}
    except (OSError, SafetensorError) as error:
        raise BadStainModel(f"{file} holds no weights for stains ({error}); make fit-stain writes them") from error
    if about.get("made_for") != _made_for():
        raise BadStainModel(
            f"{file} is for {about.get('made_for', 'something else')}, where the code has {_made_for()}; "
            "make fit-stain writes it again"
        )
    shapes = {"mean": (COUNT,), "scale": (COUNT,), "slope": (COUNT, len(CLASSES)), "bias": (len(CLASSES),)}
    for name, shape in {**shapes, "whitening": (COUNT, COUNT), "temperature": (1,), "farthest": (1,)}.items():
        if tensors[name].shape != shape or not np.isfinite(tensors[name]).all():
            raise BadStainModel(f"{file} has no {name} of {shape} numbers; make fit-stain writes it again")
    numbers = {name: float(tensors[name][0]) for name in ("temperature", "farthest")}
    return StainModel(**{**tensors, **numbers})


@functools.cache
def packaged_model() -> StainModel:
    """The weights that come with the package, read once a process."""
    return read_stain_model(MODEL_FILE)
