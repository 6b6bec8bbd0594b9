"""Working ahead, grouping and finishing behind: order, bounds, errors; the functions count."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from reproduce.pipeline import Behind, ahead, grouped


def slow_square(n: int) -> int:
    time.sleep(0.002 * (n % 3))
    return n * n


@pytest.mark.parametrize("threads", [1, 3])
def test_ahead_keeps_the_order(threads: int) -> None:
    assert list(ahead(slow_square, range(20), threads, 5)) == [n * n for n in range(20)]
    assert list(ahead(slow_square, [], threads, 5)) == []


def test_ahead_is_bounded_and_stops_when_nobody_asks() -> None:
    begun: list[int] = []
    taken = ahead(begun.append, iter(range(1000)), 2, 4)
    for asked in range(1, 4):
        next(taken)
        assert len(begun) <= asked + 4
    taken.close()  # type: ignore[attr-defined]
    assert len(begun) <= 7
    assert threading.active_count() < 20


def test_ahead_raises_where_the_result_is_taken() -> None:
    taken = ahead(lambda n: 1 // n, [1, 1, 0, 1], 2, 3)
    assert [next(taken), next(taken)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(taken)


def test_groups_are_full_or_the_oldest() -> None:
    words = ["a1", "b1", "a2", "c1", "c2", "b2", "d1", "e1", "d2", "a3"]
    found = list(grouped(words, lambda word: word[0], 2, 3))
    # three wait: a1 b1 | a2 makes a full | c2 makes c full | b2 makes b full | d1 e1 | d2 makes d full
    assert found == [["a1", "a2"], ["c1", "c2"], ["b1", "b2"], ["d1", "d2"], ["e1"], ["a3"]]
    assert list(grouped("abcd", lambda word: word, 2, 3)) == [["a"], ["b"], ["c"], ["d"]]
    assert list(grouped("aab", lambda word: 0, 1, 4)) == [["a"], ["a"], ["b"]]


def test_grouping_holds_no_more_than_it_may() -> None:
    given = 0

    def items() -> Iterator[int]:
        nonlocal given
        for n in range(100):
            given += 1
            yield n

    out = 0
    for group in grouped(items(), lambda n: n % 50, 4, 8):
        assert given - out <= 8
        out += len(group)
    assert out == 100


def test_behind_keeps_order_and_bound() -> None:
    now, most, lock = 0, 0, threading.Lock()

    def work(n: int) -> int:
        nonlocal now
        time.sleep(0.002 * (n % 3))
        with lock:
            now -= 1
        return n

    with Behind[int](2, 3) as behind:
        for n in range(20):
            with lock:
                now += 1
                most = max(most, now)
            behind.put(work, n)
    assert behind.results == list(range(20))
    assert most <= 4  # three and the one that `put` holds back


def test_behind_raises_and_begins_nothing_more() -> None:
    begun = []

    def work(n: int) -> None:
        begun.append(n)
        if n == 1:
            raise OSError("disk full")

    def give(numbers: range) -> None:
        with Behind[None](1, 2) as behind:
            for n in numbers:
                behind.put(work, n)

    with pytest.raises(OSError, match="disk full"):
        give(range(100))
    assert len(begun) <= 4
    with pytest.raises(OSError, match="disk full"):
        give(range(1, 2))  # only the end of the context can tell
    with pytest.raises(KeyboardInterrupt), Behind[None](1, 9):
        raise KeyboardInterrupt
