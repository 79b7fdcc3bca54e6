"""A tile's hash is the signs of its lowest frequencies, and stays nearly the same in copies of it."""

import io
import struct
import zlib

import numpy as np
import pytest
import scipy.fft
from PIL import Image

from tests.support.textures import texture
from wsi_prep.storage.overlap.likeness import (
    GOOD,
    PLAIN,
    UNREADABLE,
    likeness_of_image,
    likeness_of_pixels,
    pack,
    turned,
    unpack,
)
from wsi_prep.storage.overlap.search import ALL_BITS, KEY_BITS, NearTiles


def encoded(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def are_near(one, other):
    return bool(len(NearTiles(one["words"][None]).pairs(other["words"][None])))


def bits(word):
    return [int(bit) for bit in np.unpackbits(np.array([word], np.uint64).view(np.uint8))]


def test_the_bits_are_signs_of_a_cosine_transform_of_means():
    grey = np.random.default_rng(0).integers(0, 256, (64, 96), np.uint8)
    cells = np.array([[grey[2 * y : 2 * y + 2, 3 * x : 3 * x + 3].mean() for x in range(32)] for y in range(32)])
    signs = scipy.fft.dctn(cells, norm="ortho")[:16, :16] > 0
    signs[0, 0] = False
    found = likeness_of_image(encoded(grey))["words"]
    for word, (top, left) in zip(found, ((0, 0), (0, 8), (8, 0), (8, 8)), strict=True):
        assert bits(word) == signs[top : top + 8, left : left + 8].ravel().astype(int).tolist()


def test_the_hash_of_a_turned_tile_is_one_of_eight():
    tile = texture(1, 96)
    found = turned(likeness_of_pixels(tile)["words"][None])[:, 0]
    turns = [np.rot90(each, k) for each in (tile, tile[:, ::-1]) for k in range(4)]
    assert {tuple(likeness_of_pixels(turn)["words"]) for turn in turns} == {tuple(words) for words in found}
    assert len({tuple(words) for words in found}) == 8


def test_signs_are_packed_and_unpacked():
    signs = np.random.default_rng(0).random((5, 16, 16)) < 0.5
    signs[:, 0, 0] = False
    assert (unpack(pack(signs)) == signs).all()


@pytest.mark.parametrize("quality", [70, 85, 95])
@pytest.mark.parametrize("px", [128, 256, 392])
def test_a_copy_is_near_however_it_is_encoded_turned_shifted_and_sized(quality, px):
    for seed in range(5):
        tile = texture(seed, px + 1)
        first = likeness_of_image(encoded(tile[:px, :px], "JPEG", quality=90))
        shifted = encoded(np.rot90(tile[1:, 1:, :], seed % 4), "JPEG", quality=quality)
        smaller = np.asarray(Image.fromarray(tile[:px, :px]).resize((96, 96)))[:, ::-1]
        darker = (tile[:px, :px] * 0.8 + 10).astype(np.uint8)
        for copy in (shifted, encoded(smaller), encoded(darker, "JPEG", quality=quality)):
            assert are_near(first, likeness_of_image(copy))


def test_other_tiles_are_not_near():
    words = np.stack([likeness_of_pixels(texture(seed, 64))["words"] for seed in range(300)])
    pairs = NearTiles(words).pairs(words)
    assert (pairs[:, 0] == pairs[:, 1]).all()
    assert len(pairs) == 300


@pytest.mark.parametrize("grey", [0, 128, 243, 255])
def test_glass_is_plain(grey):
    noise = np.random.default_rng(0).normal(grey, 2, (392, 392, 1)).clip(0, 255).astype(np.uint8)
    shaded = noise * np.linspace(0.99, 1, 392)[:, None, None]
    for tile in (np.full_like(noise, grey), noise, shaded.astype(np.uint8)):
        jpeg = encoded(np.repeat(tile, 3, 2), "JPEG", quality=80)
        assert likeness_of_image(jpeg)["state"] == PLAIN


def test_every_kind_of_png_is_the_same_tile():
    tile = texture(3, 64)
    grey = np.repeat(tile[..., :1], 3, 2)
    expected = likeness_of_pixels(grey)["words"]
    opaque = np.concatenate([grey, np.full((64, 64, 1), 255, np.uint8)], 2)
    for same in (grey, grey[..., 0], opaque, grey[..., 0].astype(np.uint16) * 257):
        assert (likeness_of_image(encoded(same))["words"] == expected).all()
    opaque[:32, :, 3] = 0
    white = grey.copy()
    white[:32] = 255
    assert are_near(likeness_of_image(encoded(opaque)), likeness_of_pixels(white))
    assert not are_near(likeness_of_image(encoded(opaque)), likeness_of_pixels(grey))


def huge_png():
    head = struct.pack(">IIBBBBB", 1 << 20, 1 << 20, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(head)) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(
    "image",
    [
        None,
        b"",
        b"\xff\xd8",
        b"GIF89a",
        b"\x89PNG\r\n\x1a\n",
        huge_png(),
        encoded(texture(0, 64), "JPEG")[:-900],
        encoded(texture(0, 64))[:200],
    ],
    ids=["none", "empty", "jpeg", "gif", "png", "huge", "cut jpeg", "cut png"],
)
def test_what_is_no_image_is_said_and_does_no_harm(image):
    assert likeness_of_image(image)["state"] == UNREADABLE


def test_a_good_tile_is_good_and_one_smaller_than_16_px_is_not_compared():
    assert likeness_of_pixels(texture(0, 64))["state"] == GOOD
    assert likeness_of_pixels(texture(0, 15))["state"] == PLAIN


def test_the_limits_are_those_that_the_page_names():
    assert (KEY_BITS, ALL_BITS) == (7, 48)
