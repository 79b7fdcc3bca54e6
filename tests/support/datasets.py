"""Labelled pictures, and what a task says of its sides."""

from __future__ import annotations

import numpy as np
from PIL import Image


def colour(number):
    """A colour that tells a tile from all others, and stays what it is in PNG and in arrays."""
    return np.array([number % 256, number // 256, 99], np.uint8)


def picture(path, number, side=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(colour(number), (side, side, 3)).copy()).save(path)


def numbers(task):
    """Which tile each of a task's is, by its colour in the middle."""
    tiles = [task.tiles.read(n) for n in range(len(task.tiles))]
    return [int(t[t.shape[0] // 2, t.shape[1] // 2] @ np.array([1, 256, 0])) for t in tiles]


def sides(task):
    valid = np.zeros(len(task.labels), bool) if task.valid is None else task.valid
    return ["train" if t else "valid" if v else "test" for t, v in zip(task.train, valid, strict=True)]


def named(task):
    return [task.classes[label] for label in task.labels]
