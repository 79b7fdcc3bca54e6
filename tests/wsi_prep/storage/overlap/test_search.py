"""Every pair of near hashes is found, and no other: against a comparison of all with all, bit by bit."""

from dataclasses import replace

import numpy as np
import pytest

from wsi_prep.storage.overlap.likeness import GOOD, PLAIN, UNREADABLE, Likenesses, turned, unpack
from wsi_prep.storage.overlap.near import FALSE_RATE, near_copies, twins
from wsi_prep.storage.overlap.search import ALL_BITS, KEY_BITS, NearTiles


def random_words(rng, count):
    words = rng.integers(0, 1 << 64, (count, 4), np.uint64, endpoint=False)
    words[:, 0] &= ~mean_bit()
    return words


def mean_bit():
    """Where the first word has the mean's bit."""
    return np.packbits(np.eye(1, 64, 0, dtype=np.uint8)).view(np.uint64)[0]


def changed(rng, words, lowest, others):
    """So many of the 63 lowest bits, and of the 192 others, of (4,) words."""
    bits = np.unpackbits(words.view(np.uint8))
    bits[1 + rng.choice(63, lowest, replace=False)] ^= 1
    bits[64 + rng.choice(192, others, replace=False)] ^= 1
    return np.packbits(bits).view(np.uint64)


def slow_pairs(tiles, others):
    found = []
    for n, tile in enumerate(tiles):
        turns = [unpack(turn)[0] for turn in turned(tile[None])]
        for m, other in enumerate(others):
            signs = unpack(other[None])[0]
            for turn in turns:
                differ = turn != signs
                if differ[:8, :8].sum() <= KEY_BITS and differ.sum() <= ALL_BITS:
                    found.append((n, m))
                    break
    return found


@pytest.mark.parametrize("seed", range(4))
def test_all_near_pairs_are_found_and_no_others(seed):
    rng = np.random.default_rng(seed)
    tiles = random_words(rng, 40)
    tiles[5] = tiles[4]  # twice the same
    others = [*random_words(rng, 40)]
    for lowest, more in ((0, 0), (7, 41), (7, 42), (8, 0), (6, 42), (6, 43), (7, 0), (0, 48), (0, 49)):
        for _ in range(6):
            turn = turned(tiles[rng.integers(40)][None])[rng.integers(8), 0]
            others.append(changed(rng, turn, lowest, more))
    others = np.stack(others)
    expected = slow_pairs(tiles, others)
    assert [tuple(pair) for pair in NearTiles(tiles).pairs(others).tolist()] == expected
    assert len(expected) > 20


def test_many_of_one_kind_are_compared_in_bounded_memory(monkeypatch):
    monkeypatch.setattr("wsi_prep.storage.overlap.search._MOST", 50)
    rng = np.random.default_rng(0)
    tile = random_words(rng, 1)[0]
    tiles = np.stack([changed(rng, tile, 1, 2) for _ in range(30)])
    others = np.stack([changed(rng, tile, 2, 3) for _ in range(20)])
    assert [tuple(pair) for pair in NearTiles(tiles).pairs(others).tolist()] == slow_pairs(tiles, others)


def test_nothing_is_near_to_nothing():
    some, none = random_words(np.random.default_rng(0), 3), np.empty((0, 4), np.uint64)
    assert NearTiles(none).pairs(some).shape == NearTiles(some).pairs(none).shape == (0, 2)


def test_copies_are_counted_with_their_slides_and_what_is_not_compared_is_said():
    rng = np.random.default_rng(1)
    words = random_words(rng, 6)
    tiles = Likenesses(words, np.array([GOOD, GOOD, GOOD, PLAIN, UNREADABLE, GOOD], np.uint8))
    others = Likenesses(
        np.stack([words[0], changed(rng, words[1], 3, 9), ~words[2], words[3]]),
        np.array([GOOD, GOOD, GOOD, PLAIN], np.uint8),
    )
    again = Likenesses(words[:1], np.array([GOOD], np.uint8))
    found = near_copies(tiles, [(others, np.array([7, 8, 9, 9])), (again, np.array([3]))])
    assert found.near.tolist() == [0, 1]
    assert found.slides.tolist() == [3, 7, 8]
    assert (found.pairs, found.by_chance) == (4 * 3 + 4, 16 * FALSE_RATE)
    assert (found.others, found.others_plain, found.others_unreadable) == (5, 1, 0)
    assert found.line == (
        "2 of 6 tiles look like tiles in SHARDS, of 3 slides (by chance, fewer than 0.01 would); not compared: "
        "1 plain of it, 1 in SHARDS, 1 unreadable of it, 0 in SHARDS"
    )
    none = near_copies(tiles, [])
    assert none.line.startswith("none of 6 tiles looks like a tile in SHARDS (by chance, fewer than 0.01 would)")
    assert "by chance, up to 2 would" in replace(found, pairs=10**12).line


def test_tiles_that_look_like_those_of_another_slide_are_counted():
    rng = np.random.default_rng(2)
    words = random_words(rng, 6)
    words[1], words[4] = changed(rng, words[0], 1, 1), turned(words[3][None])[5, 0]
    good = Likenesses(words, np.zeros(6, np.uint8))
    assert twins(good, np.array([0, 0, 1, 1, 2, 2])) == 2
    assert twins(good, np.array([0, 1, 1, 1, 2, 2])) == 4
    assert twins(Likenesses(words, np.array([0, 0, 0, 0, PLAIN, 0], np.uint8)), np.array([0, 0, 1, 1, 2, 2])) == 0
