"""Hash sums that threads compute while their bytes are written to the disk."""

from __future__ import annotations

import hashlib
import os
import threading
from functools import lru_cache
from queue import SimpleQueue
from typing import Any, Union

INLINE = 32 << 10
"""Up to so many bytes, a sum costs less than handing the bytes to a thread."""
MAX_QUEUED = 16 << 20
"""Bytes that may wait for the threads; then :meth:`Hasher.update` waits."""

Data = Union[bytes, memoryview]


@lru_cache(maxsize=64)
def is_known(algorithm: str | None) -> bool:
    """Whether this Python computes sums of the algorithm, of a fixed length."""
    if not algorithm or algorithm not in hashlib.algorithms_available:
        return False
    try:
        return bool(_new(algorithm).digest_size)
    except ValueError:
        return False


def _new(algorithm: str) -> Any:
    # The constructors by name take a third of the time of hashlib.new().
    constructor = getattr(hashlib, algorithm, None) if algorithm in _GUARANTEED else None
    if constructor is not None:
        return constructor(usedforsecurity=False)
    return hashlib.new(algorithm, usedforsecurity=False)


_GUARANTEED = frozenset(hashlib.algorithms_guaranteed)


class HashPool:
    """Threads that compute sums; the bytes of one sum are always of one thread."""

    def __init__(self, threads: int | None = None) -> None:
        self._count = threads or min(4, max(1, (os.cpu_count() or 2) - 1))
        self._queues: list[SimpleQueue[tuple[Hasher, Data | None] | None]] = []
        self._next = 0
        self.changed = threading.Condition()
        self._queued = 0
        self._closed = False

    def new(self, *algorithms: str) -> Hasher:
        """Return a new sum, by all ``algorithms`` at once."""
        return Hasher(self, algorithms)

    def put(self, number: int | None, hasher: Hasher, data: Data | None) -> int:
        """Queue data for the thread ``number`` (None: choose one); return the number."""
        if number is None:
            if len(self._queues) < self._count:
                self._start()
            self._next = number = (self._next + 1) % len(self._queues)
        size = 0 if data is None else len(data)
        with self.changed:
            while self._queued and self._queued + size > MAX_QUEUED and not self._closed:
                self.changed.wait()
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._queued += size
        self._queues[number].put((hasher, data))
        return number

    def close(self) -> None:
        """End the threads; sums that are not complete never are."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        for queue in self._queues:
            queue.put(None)

    def _start(self) -> None:
        queue: SimpleQueue[tuple[Hasher, Data | None] | None] = SimpleQueue()
        self._queues.append(queue)
        threading.Thread(target=self._work, args=(queue,), name="hash", daemon=True).start()

    def _work(self, queue: SimpleQueue[tuple[Hasher, Data | None] | None]) -> None:
        while not self._closed:
            item = queue.get()
            if item is None:
                return
            hasher, data = item
            if data is not None:
                hasher.compute(data)
            with self.changed:
                if data is None:
                    hasher.is_complete = True
                else:
                    self._queued -= len(data)
                self.changed.notify_all()

    def wait(self, hasher: Hasher) -> None:
        """Wait until ``hasher`` is complete; raises :class:`RuntimeError` after a close."""
        with self.changed:
            while not hasher.is_complete:
                if self._closed:
                    raise RuntimeError("the pool is closed")
                self.changed.wait()


class Hasher:
    """The sums of one file.  Used by one thread, apart from :meth:`sums`."""

    __slots__ = ("_hashes", "_pool", "_thread", "is_complete")

    def __init__(self, pool: HashPool, algorithms: tuple[str, ...]) -> None:
        self._pool = pool
        self._hashes = [(algorithm, _new(algorithm)) for algorithm in algorithms]
        self._thread: int | None = None
        self.is_complete = False

    def update(self, data: Data) -> None:
        """Add bytes, which must not change afterwards; waits while too many are queued."""
        if self._thread is None and len(data) <= INLINE:
            self.compute(data)
        else:
            self._thread = self._pool.put(self._thread, self, data)

    def finish(self) -> None:
        """Note that there are no more bytes."""
        if self._thread is None:
            self.is_complete = True
        else:
            self._pool.put(self._thread, self, None)

    def compute(self, data: Data) -> None:
        """Add bytes at once, in the calling thread."""
        for _, state in self._hashes:
            state.update(data)

    def sums(self) -> dict[str, str]:
        """Wait for the sums; return them in hex, by algorithm."""
        if not self.is_complete:
            self._pool.wait(self)
        return {algorithm: state.hexdigest() for algorithm, state in self._hashes}
