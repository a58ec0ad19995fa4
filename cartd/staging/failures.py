"""The files of one cart that cannot be fetched, while all others are staged.

Strategy: a bad file does not prevent attempts of the others, so that the user gets a complete list
of errors and only those files have to be fetched later.  But the cart is aborted if most of its
files fail: a million failures for the same reason load the archive and tell nothing new.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from cartd.errors import CartdError
from cartd.staging.batcher import Batcher
from cartd.staging.retry import FileFailed

MAX_FAILED_FILES = 1000
"""Number of failed files at which the cart is aborted."""
MAX_FAILED_IF_MOST_FAIL = 100
"""The same if more files have failed than succeeded in this phase (states, or bytes)."""


class FilesFailed(CartdError):
    """Some files of a cart could not be staged; the store has their positions and causes."""


class Failures:
    """Counts successes and failures; ``record`` writes positions and causes to the store."""

    def __init__(
        self,
        record: Callable[[Sequence[tuple[int, str]]], Awaitable[None]],
        now: Callable[[], float],
    ) -> None:
        self._unwritten: Batcher[tuple[int, str]] = Batcher(record, now)
        self._positions: set[int] = set()
        self._first: FileFailed | None = None
        """The failure with the lowest position in the manifest."""
        self._succeeded = 0
        self._failed = 0

    def __contains__(self, position: int) -> bool:
        return position in self._positions

    def __bool__(self) -> bool:
        return bool(self._positions)

    def begin_phase(self) -> None:
        """Begin the next phase: earlier successes tell nothing about it."""
        self._succeeded = self._failed = 0

    def record_success(self) -> None:
        self._succeeded += 1

    async def add(self, failed: FileFailed) -> None:
        """Record a failure; it is raised at the end, by :meth:`check`.

        :raises FileFailed: the volume failed, so that every other file would fail, too.
        :raises FilesFailed: too many files have failed; the cart is aborted.
        """
        if failed.is_volume_error:
            raise failed
        self._positions.add(failed.position)
        self._failed += 1
        if self._first is None or failed.position < self._first.position:
            self._first = failed
        await self._unwritten.add((failed.position, failed.cause))
        if len(self._positions) >= MAX_FAILED_FILES or self._failed >= max(
            MAX_FAILED_IF_MOST_FAIL, self._succeeded
        ):
            await self.flush()
            raise FilesFailed(f"{self._summary()}; the rest was not tried")

    async def flush(self) -> None:
        await self._unwritten.flush()

    async def check(self) -> None:
        """Raise :class:`FilesFailed` if any file has failed."""
        await self.flush()
        if self._first is not None:
            raise FilesFailed(self._summary())

    def _summary(self) -> str:
        others = len(self._positions) - 1
        if not others:
            return str(self._first)
        files = "1 other file" if others == 1 else f"{others} other files"
        return f"{self._first}; {files} failed too"
