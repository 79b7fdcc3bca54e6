"""Tiles that differ as pictures of tissue do: smooth noise, much at low frequencies and little at high ones."""

import numpy as np


def texture(seed: int, height: int = 392, width: int | None = None) -> np.ndarray:
    """(height, width, 3) uint8 RGB."""
    rng = np.random.default_rng(seed)
    shape = (height, width or height)
    waves = np.hypot(*np.meshgrid(np.fft.fftfreq(shape[0]) * shape[0], np.fft.fftfreq(shape[1]) * shape[1]))
    amplitude = np.where(waves > 0, 1 / np.maximum(waves, 1), 0).T
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=shape)) * amplitude).real
    field = 150 + 40 * field / field.std()
    return np.clip(field[..., None] * [1.0, 0.8, 0.95], 0, 255).astype(np.uint8)
