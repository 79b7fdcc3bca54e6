"""The next item is under way while one is used."""

import threading

import pytest

from wsi_prep.compute.prefetch import prefetch


def test_items_come_in_order_and_whole():
    assert list(prefetch(iter(range(5)))) == [0, 1, 2, 3, 4]
    assert list(prefetch(iter(()))) == []


def test_the_next_is_made_while_one_is_used_and_no_more():
    begun = [threading.Event() for _ in range(4)]

    def items():
        for number, event in enumerate(begun):
            event.set()
            yield number

    stream = prefetch(items())
    assert next(stream) == 0
    assert begun[1].wait(10)  # though nobody has asked for it
    assert next(stream) == 1
    stream.close()
    assert not begun[3].is_set()


def test_what_goes_wrong_reaches_the_user_in_its_turn():
    def items():
        yield 1
        raise OSError("gone")

    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(OSError, match="gone"):
        next(stream)
