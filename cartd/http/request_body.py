"""Request bodies: short ones stay in memory, long ones are spooled to temporary files by threads.

The reactor collects chunks; once they are large enough, a thread writes them, one batch at a time,
so that their order needs no queue.  Chunks received meanwhile are collected, and above a high-water
mark the client is paused.  A slow client occupies no thread.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import IO, Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from cartd.deferreds.threads import ThreadRunner

MAX_IN_MEMORY: Final = 16 * 2**10
"""Maximum bytes of a body kept in memory, and minimum bytes of a batch for a thread.  Small, as
thousands of clients may send bodies at a time."""
HIGH_WATER: Final = 64 * 2**10
"""Bytes collected while a thread is busy at which the client is paused."""


class TempFileLimit:
    """Limits the temporary files of all current requests to ``limit`` bytes in total.

    A larger body is accepted if it is the only one.
    """

    def __init__(self, limit: int, threads: ThreadRunner) -> None:
        self.limit = limit
        self.threads = threads
        self.used = 0

    def reserve(self, size: int, own: int = 0) -> bool:
        """Reserve ``size`` bytes beside the ``own`` of a body; return False without space."""
        if self.used > own and self.used + size > self.limit:
            return False
        self.used += size
        return True

    def release(self, size: int) -> None:
        self.used -= size


class SpooledBody:
    """One body: written by the reactor and, when it is complete, read by a worker thread.

    ``pause(True)`` is called when the caller should stop writing, ``pause(False)`` when it may
    continue, and ``failed`` once if the disk reports an error.
    """

    def __init__(
        self,
        space: TempFileLimit,
        pause: Callable[[bool], object],
        failed: Callable[[OSError], object],
    ) -> None:
        self._space = space
        self._pause = pause
        self._on_error = failed
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._size = 0
        self._reserved = 0
        self._on_disk = False
        self._busy = False
        self._paused = False
        self._closed = False
        self._finished: Deferred[None] | None = None
        # Shared with threads, under the lock.
        self._lock = threading.Lock()
        self._file: IO[bytes] = BytesIO()
        self._in_use = False
        self._discarded = False

    def reserve(self, length: int) -> bool:
        """Reserve space for the declared ``length``; return False if there is none."""
        return length <= MAX_IN_MEMORY or self._reserve(length)

    def write(self, data: bytes) -> bool:
        """Append ``data``; return False, without appending, if there is no space."""
        size = self._size + len(data)
        if size > max(self._reserved, MAX_IN_MEMORY) and not self._reserve(size - self._reserved):
            return False
        self._size = size
        self._pending.append(data)
        self._pending_size += len(data)
        if self._size > MAX_IN_MEMORY and self._pending_size >= MAX_IN_MEMORY:
            self._flush()
        if self._busy and self._pending_size >= HIGH_WATER:
            # Repeatedly, as a connection that becomes writable resumes reading.
            self._paused = True
            self._pause(True)
        return True

    def finish(self) -> Deferred[None] | None:
        """End the body; return a Deferred that fires when it can be read, None if it can already.

        The Deferred never fires if the disk reports an error or the body is closed before.
        """
        if self._size <= MAX_IN_MEMORY:
            self._file = BytesIO(b"".join(self._pending))
            self._file.seek(0, os.SEEK_END)
            return None
        self._flush()
        if self._busy:
            self._finished = Deferred()
        return self._finished

    # The interface of a file, for its reader.

    def read(self) -> bytes:
        """Return the rest of the body; blocks.  Raises ``ValueError`` if it is closed."""
        with self._file_in_use() as is_open:
            if not is_open:
                raise ValueError("the body is closed")
            return self._file.read()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        """Release memory, file and reserved space.  Idempotent, may be called at any time."""
        if self._closed:
            return
        self._closed = True
        self._pending.clear()
        if self._on_disk:
            self._space.threads.run(self._discard).addCallback(self._release_space)
        else:
            self._discard()  # of memory alone
            self._release_space(None)

    def _release_space(self, _: None) -> None:
        self._space.release(self._reserved)

    def _reserve(self, size: int) -> bool:
        if not self._space.reserve(size, own=self._reserved):
            return False
        self._reserved += size
        return True

    def _flush(self) -> None:
        if self._busy or self._closed or not self._pending:
            return
        chunks, self._pending, self._pending_size = self._pending, [], 0
        self._busy = self._on_disk = True
        job = self._space.threads.run(self._append, chunks)
        job.addCallbacks(self._on_flushed, self._on_flush_error)

    def _on_flushed(self, _: None) -> None:
        self._busy = False
        if self._closed:
            return
        if self._pending_size >= MAX_IN_MEMORY or self._finished is not None:
            self._flush()
        if self._paused and self._pending_size < HIGH_WATER and self._finished is None:
            self._paused = False
            self._pause(False)
        if self._finished is not None and not self._busy:
            finished, self._finished = self._finished, None
            finished.callback(None)

    def _on_flush_error(self, failure: Failure) -> None:
        self._busy = False
        error = failure.value
        if self._closed:
            return
        self.close()
        if not isinstance(error, OSError):
            failure.raiseException()
        self._on_error(error)

    # The following methods run in threads.

    def _append(self, chunks: list[bytes]) -> None:
        with self._file_in_use() as is_open:
            if not is_open:
                return
            if isinstance(self._file, BytesIO):
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            left = memoryview(b"".join(chunks))
            while left:
                left = left[self._file.write(left) :]

    @contextmanager
    def _file_in_use(self) -> Iterator[bool]:
        """Yield whether the file is open; it stays open while the block runs."""
        with self._lock:
            is_open = self._in_use = not self._discarded
        try:
            yield is_open
        finally:
            with self._lock:
                self._in_use = False
                close = is_open and self._discarded
            if close:
                self._close_file()

    def _discard(self) -> None:
        with self._lock:
            self._discarded = True
            if self._in_use:
                return  # its user closes it
        self._close_file()

    def _close_file(self) -> None:
        with suppress(OSError):
            self._file.close()
