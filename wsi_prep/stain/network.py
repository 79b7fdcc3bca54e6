"""The classifier of stains: a small network over `stain_features`, whose weights come with the package."""

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
"""What the network tells apart, in the order of its outputs."""

MOST_UNUSUAL = 5.0
"""Standard deviations beyond which a feature counts no further, so that no single odd number decides."""


@dataclass(frozen=True)
class StainModel:
    """One hidden layer of rectified units; float32, n the number of hidden units.

    `mean`, `scale`: (COUNT,) of the features; `into` (COUNT, n), `into_bias` (n,), `out` (n, 3), `out_bias` (3,).
    `temperature` divides the outputs, so that probabilities are as often right as they say (Guo et al., ICML 2017).
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    into: NDArray[np.float32]
    into_bias: NDArray[np.float32]
    out: NDArray[np.float32]
    out_bias: NDArray[np.float32]
    temperature: float = 1.0

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(..., 3) outputs before the temperature, of (..., COUNT) features."""
        usual = np.clip((features - self.mean) / self.scale, -MOST_UNUSUAL, MOST_UNUSUAL)
        hidden = np.maximum(usual @ self.into + self.into_bias, 0.0)
        return np.asarray(hidden @ self.out + self.out_bias, dtype=np.float64)

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(..., 3) probabilities of CLASSES."""
        return softmax(self.logits(features) / self.temperature)

    def save(self, file: Path) -> None:
        """Write the weights, and which features they are for."""
        tensors = {name: np.ascontiguousarray(getattr(self, name), np.float32) for name in _TENSORS}
        about = {"features": str(FEATURE_VERSION), "classes": " ".join(CLASSES), "temperature": repr(self.temperature)}
        file.write_bytes(save(tensors, about))


_TENSORS = ("mean", "scale", "into", "into_bias", "out", "out_bias")


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
    if about.get("features") != str(FEATURE_VERSION) or about.get("classes") != " ".join(CLASSES):
        raise BadStainModel(
            f"{file} is for version {about.get('features')} of the features and {about.get('classes')}, "
            f"where the code has {FEATURE_VERSION} and {' '.join(CLASSES)}; make fit-stain writes it again"
        )
    if tensors["mean"].shape != (COUNT,):
        raise BadStainModel(f"{file} is for {len(tensors['mean'])} features, where the code has {COUNT}")
    return StainModel(**tensors, temperature=float(about["temperature"]))


@functools.cache
def packaged_model() -> StainModel:
    """The weights that come with the package, read once a process."""
    return read_stain_model(MODEL_FILE)
