"""Results come in order, so many of them are begun and no more, and errors come in their turn."""

import threading
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_prep.compute.ahead import ahead, prefetch


@given(st.lists(st.integers(), max_size=12), st.integers(1, 3), st.integers(1, 5) | st.none())
def test_each_item_is_worked_on_once_and_results_keep_the_order(items, threads, most):
    seen = []
    lock = threading.Lock()

    def work(item):
        with lock:
            seen.append(item)
        return 2 * item

    assert list(ahead(work, items, threads, most)) == [2 * item for item in items]
    assert sorted(seen) == sorted(items)


def test_a_slow_item_holds_back_the_later_ones():
    later = threading.Event()

    def work(number):
        if number == 0:
            assert later.wait(10)  # until item 1, on the other thread, is through
        else:
            later.set()
        return number

    assert list(ahead(work, range(4), 2)) == [0, 1, 2, 3]


@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 8))
def test_no_more_items_are_taken_than_most_beyond_those_asked_for(threads, most, asked):
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = ahead(abs, items(), threads, most)
    assert [next(results) for _ in range(asked)] == list(range(asked))
    results.close()
    assert len(taken) == (asked - 1 + most if asked else 0)


class Numbered:
    def __init__(self, number):
        self.number = number


def test_closing_begins_nothing_more_and_ends_the_threads():
    begun, let_go = [], threading.Event()

    def items():
        for number in range(10):
            item = Numbered(number)
            if number == 3:
                weakref.finalize(item, let_go.set)
            yield item

    def work(item):
        begun.append(item.number)
        assert item.number == 0 or let_go.wait(10)  # item 1 ends only when item 3, which waits behind it, is dropped
        return item.number

    results = ahead(work, items(), 1, most=5)
    assert next(results) == 0
    results.close()
    assert begun in ([0], [0, 1])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
    assert list(results) == []


def test_an_error_comes_in_the_turn_of_its_item():
    def work(number):
        return 1 // (2 - number)

    results = ahead(work, range(5), 3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_an_error_of_the_items_themselves_reaches_the_user():
    def items():
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(ahead(abs, items(), 2))


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
