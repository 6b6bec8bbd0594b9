"""Work on many items at once: prepared ahead in threads, put together by kind, finished behind in threads.

Every queue is bounded, so memory does not grow with the number of items. Results keep the order in which
the work was given. What a thread raises, the one who waits for its result gets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(function: Callable[[T], R], items: Iterable[T], threads: int, most: int) -> Iterator[R]:
    """`map` in so many threads, in order; at most `most` results, made or in the making, wait to be taken."""
    pool = ThreadPoolExecutor(threads)
    coming: deque[Future[R]] = deque()
    try:
        for item in items:
            if len(coming) == most:
                yield coming.popleft().result()
            coming.append(pool.submit(function, item))
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def grouped(items: Iterable[T], kind: Callable[[T], Hashable], most: int, held: int) -> Iterator[list[T]]:
    """Lists of up to `most` items of one kind. While `held` items wait, the oldest go with what they have."""
    waiting: dict[Hashable, list[T]] = {}
    for item in items:
        key = kind(item)
        group = waiting.setdefault(key, [])
        group.append(item)
        if len(group) == most:
            yield waiting.pop(key)
        elif sum(map(len, waiting.values())) >= held:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


class Behind(Generic[R]):
    """Context: finishes what it is given in threads, at most `most` things at a time unfinished.

    `put` waits while there are as many; it and the end of the context raise what a thread raised, after
    which nothing more is begun. `results` are in the order of the calls.
    """

    def __init__(self, threads: int, most: int) -> None:
        self.results: list[R] = []
        self._most = most
        self._pool = ThreadPoolExecutor(threads)
        self._coming: deque[Future[R]] = deque()

    def put(self, function: Callable[..., R], *arguments: Any) -> None:
        """Have `function(*arguments)` run in a thread."""
        while self._coming and (len(self._coming) >= self._most or self._coming[0].done()):
            self.results.append(self._coming.popleft().result())
        self._coming.append(self._pool.submit(function, *arguments))

    def __enter__(self) -> Behind[R]:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            while self._coming and kind is None:
                self.results.append(self._coming.popleft().result())
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
