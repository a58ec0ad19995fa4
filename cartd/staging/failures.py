"""The files of one cart that cannot be had, while the others are staged all the same.

Strategy: one bad file keeps no other from being tried, so that whoever mends the cart learns of all
that is wrong with it, and has only that left to fetch.  But a cart is not tried to its end when
nothing comes of it: a million files that all fail for the same reason are a load for the archive
and tell nothing new.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from cartd.errors import CartdError
from cartd.staging.batcher import Batcher
from cartd.staging.retry import FileFailed

MAX_FAILED_FILES = 1000
"""Failed files after which no more are tried."""
MAX_FAILED_IF_MOST_FAIL = 100
"""The same for a cart of which more has failed than gone well since its states, or bytes, are
asked for."""


class FilesFailed(CartdError):
    """Some files of a cart could not be staged; the store knows which, and why."""


class Failures:
    """Told of each file how it went; ``record`` writes positions and causes to the store."""

    def __init__(
        self,
        record: Callable[[Sequence[tuple[int, str]]], Awaitable[None]],
        now: Callable[[], float],
    ) -> None:
        self._unwritten: Batcher[tuple[int, str]] = Batcher(record, now)
        self._positions: set[int] = set()
        self._first: FileFailed | None = None
        """The one of them that the manifest names first."""
        self._succeeded = 0
        self._failed = 0

    def __contains__(self, position: int) -> bool:
        return position in self._positions

    def __bool__(self) -> bool:
        return bool(self._positions)

    def begin_phase(self) -> None:
        """From now on something else is asked for: that the last went well tells nothing of it."""
        self._succeeded = self._failed = 0

    def record_success(self) -> None:
        self._succeeded += 1

    async def add(self, failed: FileFailed) -> None:
        """Keep a failure for the end.

        :raises FileFailed: it is of the volume, and every other file would fail as well.
        :raises FilesFailed: so many have failed that the rest is not tried.
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
        """At the end: raises :class:`FilesFailed` if any file has failed."""
        await self.flush()
        if self._first is not None:
            raise FilesFailed(self._summary())

    def _summary(self) -> str:
        others = len(self._positions) - 1
        if not others:
            return str(self._first)
        files = "1 other file" if others == 1 else f"{others} other files"
        return f"{self._first}; {files} failed too"
