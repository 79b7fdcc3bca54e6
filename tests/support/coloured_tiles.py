"""Tiles of two colours, and masks that say where each is."""

import numpy as np
from PIL import Image


def write(file, pixels):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def coloured(folder, slides=6, each=3, px=40, sides=("",), value=1):
    """Tiles with a red square on blue, and masks of it."""
    rng = np.random.default_rng(0)
    for side in sides:
        for slide in range(slides):
            for number in range(each):
                mask = np.zeros((px, px), np.uint8)
                top, left = rng.integers(0, px // 2, 2)
                mask[top : top + px // 2, left : left + px // 2] = value
                pixels = rng.integers(0, 60, (px, px, 3), np.uint8)
                pixels[..., 2] += 120
                pixels[mask > 0] = pixels[mask > 0][:, ::-1]
                place = folder / side
                write(place / "images" / f"{side}{slide}" / f"{number}.png", pixels)
                write(place / "masks" / f"{side}{slide}" / f"{number}.png", mask)
    return folder
