"""Slides that are stored as JPEG of YCbCr, with colours that such JPEGs keep, and exact means of them."""

import cv2
import imagecodecs
import numpy as np
import tifffile

SAMPLINGS = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}


def picture(height, width, seed=0):
    """Smooth, pale colours, whose RGB is not cut off, with edges at odd and even places."""
    rng = np.random.default_rng(seed)
    small = rng.integers(140, 200, (9, 9, 3)).astype(np.uint8)
    pixels = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    for at in range(0, max(height, width), 300):
        pixels[:, at + 101 : at + 160] = (180, 120, 150)
        pixels[at + 37 : at + 90, :] = (130, 140, 180)
    return pixels


def write(path, pixels, sampling="420", quality=75, mpp=0.25, factors=(), change=bytes):
    """As scanners do: each tile a JPEG that says of itself that it is YCbCr. `factors`: reduced levels, too.

    `change` makes the JPEGs that are stored of those that libjpeg writes.
    """
    about = f"Aperio Image Library v11.2.1 \n{pixels.shape[1]}x{pixels.shape[0]} JPEG/YCC|AppMag = 40|MPP = {mpp}"
    stored = {"photometric": "ycbcr", "subsampling": SAMPLINGS[sampling], "compression": "jpeg", "tile": (128, 128)}
    with tifffile.TiffWriter(path) as tiff:
        for factor in (1, *factors):
            height, width = (side // factor for side in pixels.shape[:2])
            cut = pixels[: height * factor, : width * factor]
            level = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA)
            tiles = map(change, _tiles(level, sampling, quality))
            tiff.write(tiles, shape=level.shape, dtype=np.uint8, description=about, metadata=None, **stored)
    return path


def _tiles(pixels, sampling, quality):
    height, width = pixels.shape[:2]
    padded = cv2.copyMakeBorder(pixels, 0, -height % 128, 0, -width % 128, cv2.BORDER_REPLICATE)
    parts = [padded[y : y + 128, x : x + 128].copy() for y in range(0, height, 128) for x in range(0, width, 128)]
    return (imagecodecs.jpeg8_encode(p, level=quality, colorspace="RGB", subsampling=sampling) for p in parts)


def ycc(rgb):
    """Exact Y, Cb, Cr of RGB (ITU-T T.871), each (h, w)."""
    red, green, blue = np.moveaxis(rgb.astype(float), 2, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return luma, (blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128


def area_means(plane, x, y, span_x, span_y, count):
    """(count, count) exact means of a plane over equal parts of a rectangle; fractions of pixels allowed."""
    for axis, start, span in ((0, y, span_y), (1, x, span_x)):
        begin = int(np.floor(start))
        part = plane.take(range(begin, min(int(np.ceil(start + span)) + 1, plane.shape[axis])), axis)
        edges = start - begin + span * np.arange(count + 1) / count
        sums = np.insert(np.cumsum(part, axis=axis, dtype=float), 0, 0, axis=axis)
        whole = np.floor(edges).astype(int)
        share = np.expand_dims(edges - whole, 1 - axis)
        after = np.minimum(whole + 1, sums.shape[axis] - 1)
        at_edges = sums.take(whole, axis) * (1 - share) + sums.take(after, axis) * share
        plane = np.diff(at_edges, axis=axis) * count / span
    return plane


def with_other_tables(jpeg):
    """This JPEG with a quantisation table that libjpeg has at no quality."""
    data = bytearray(jpeg)
    data[data.index(b"\xff\xdb") + 9] += 1
    return bytes(data)
