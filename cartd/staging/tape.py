"""The recall of a cart's files from tape: announce all, poll each with backoff, fetch once.

Strategy: a tape library schedules recalls best when it knows all of them, so every file is
announced as early as possible, and again only after hours, in case that the archive has lost the
request.  The duration of a recall is unknown: each file is polled with exponential backoff, so the
number of polls grows with the logarithm of its wait, independently of other files.  A rate limit,
shared fairly, bounds the polls of all carts together.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from heapq import heappop, heappush

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from cartd.archive import FileState
from cartd.archive.retry import FileFailed
from cartd.deferreds.tasks import both, for_each
from cartd.errors import Unavailable
from cartd.model import Cart, CartFile
from cartd.staging import StagingContext

log = Logger()

PAGE = 500
"""Rows of due files read at a time."""
PROGRESS_INTERVAL = 60.0
"""Minimum seconds between two updates of the number of files on tape that clients see."""
INITIAL_WAIT = 1.0
MAX_WAIT = 600.0
"""Seconds between two polls of a file: they double from the first wait to the maximum."""
MAX_POLL_RETRY_AFTER = 3600.0
"""Seconds of a Retry-After that are honoured before a file is polled again."""

_MAX_POLLS = 254


class TapeRecall:
    """Recalls the files of a cart: ``announce`` requests a recall, ``poll`` checks for it.

    ``announce`` returns the archive's Retry-After in seconds, if any; ``poll`` returns the state of
    a file that is still on tape, and None when it was recalled and fetched.  If one of them raises
    :class:`FileFailed`, ``failed`` is called with it and the file is skipped; any other exception
    aborts the cart.
    """

    def __init__(
        self,
        context: StagingContext,
        cart: Cart,
        holder: str,
        *,
        announce: Callable[[CartFile], Awaitable[float | None]],
        poll: Callable[[CartFile], Awaitable[FileState | None]],
        failed: Callable[[FileFailed], Awaitable[None]],
        window: Callable[[], int],
    ) -> None:
        self._context = context
        self._cart = cart
        self._holder = holder
        self._announce_once = announce
        self._poll_once = poll
        self._failed = failed
        self._window = window
        self.queue = RecallQueue(cart.files_total)
        self._woken: Deferred[None] | None = None
        self._progress_recorded_at = 0.0

    async def run(self, unstaged: Callable[[], AsyncIterator[CartFile]]) -> None:
        """Recall and fetch all files marked in :attr:`queue`; ``unstaged`` iterates over rows."""
        if not self.queue.remaining:
            if self._cart.tape_files:  # recorded by an earlier process
                await self._record_progress()
            return
        await self._record_progress()
        await both(self._announce_all(unstaged()), self._poll_all())
        await self._record_progress()

    async def _announce_all(self, unstaged: AsyncIterator[CartFile]) -> None:
        async def on_tape() -> AsyncIterator[CartFile]:
            async for file in unstaged:
                if file.position in self.queue:
                    yield file

        await for_each(on_tape(), self._announce, self._window)

    async def _announce(self, file: CartFile) -> None:
        try:
            retry_after = await self._announce_and_record(file)
        except FileFailed as failed:
            await self._fail(failed)
        else:
            self._add(file, retry_after)

    async def _fail(self, failed: FileFailed) -> None:
        self.queue.done()
        self._wake()
        await self._failed(failed)

    async def _announce_and_record(self, file: CartFile) -> float | None:
        retry_after = await self._announce_once(file)
        self.queue.record_announced(file.position, self._now())
        return retry_after

    async def _poll_all(self) -> None:
        await for_each(self._due_files(), self._poll, self._window)

    async def _due_files(self) -> AsyncIterator[CartFile]:
        """Yield each file when its poll is due, until no file remains."""
        while self.queue.remaining:
            positions = self.queue.pop_due(self._now(), self._context.share(self._cart, PAGE))
            if not positions:
                await self._pause()
                continue
            files = await self._context.store.carts.files_at(self._cart.id, positions)
            self.queue.done(len(positions) - len(files))  # the others have been staged
            for file in files:
                await self._context.poll_limiter.acquire(self._cart.owner)
                yield file

    async def _poll(self, file: CartFile) -> None:
        waited = self.queue.since_announced(file.position, self._now())
        try:
            if waited >= self._context.recall_retry_interval:
                await self._announce_and_record(file)
            state = await self._poll_once(file)
        except FileFailed as failed:
            await self._fail(failed)
            return
        if state is None:
            self._context.metrics.recall_seconds.observe(waited)
            self.queue.done()
            self._wake()
            if self._now() - self._progress_recorded_at >= PROGRESS_INTERVAL:
                await self._record_progress()
        else:
            self._add(file, state.retry_after)

    async def _record_progress(self) -> None:
        """Record how many files are on tape, for the cart's clients."""
        self._progress_recorded_at = self._now()
        try:
            await self._context.store.progress.record_tape(
                self._cart.id, self._holder, self.queue.remaining, now=self._context.now()
            )
        except Unavailable as error:
            log.debug("Number of files on tape not recorded: {error}", error=error)

    def _add(self, file: CartFile, retry_after: float | None) -> None:
        before = self.queue.next_due()
        due = self.queue.add(file.position, self._now(), retry_after)
        if before is None or due < before:
            self._wake()

    async def _pause(self) -> None:
        """Wait until the next file is due or :meth:`_wake` is called."""
        woken = self._woken = Deferred()
        due = self.queue.next_due()
        timer = None
        if due is not None:
            timer = self._context.clock.callLater(max(due - self._now(), 0.0), self._wake)
        try:
            await woken
        finally:
            self._woken = None
            if timer is not None and timer.active():
                timer.cancel()

    def _wake(self) -> None:
        woken, self._woken = self._woken, None
        if woken is not None:
            woken.callback(None)

    def _now(self) -> float:
        return self._context.clock.seconds()


class RecallQueue:
    """When to poll each file on tape of a cart with ``files_total`` files; times are of one clock.

    A cart may have a million such files, all of them waiting for days.  So each file takes nine
    bytes in arrays, and no object: one for the number of polls, four for the time when it was
    announced, and four for its position in the list of those due in the same second (a calendar
    queue).
    """

    def __init__(self, files_total: int) -> None:
        self._files_total = files_total
        self._marks = bytearray()
        """By position: 0 for a file that never was on tape, else 1 plus the number of polls."""
        self._announced = array("I")
        """By position: the second when it was announced."""
        self._due: dict[int, array[int]] = {}
        """By second: the positions to poll then."""
        self._seconds: list[int] = []
        """A heap of the keys of ``_due``."""
        self.remaining = 0
        """How many files have not been recalled yet."""

    def mark(self, position: int) -> None:
        """Mark the file as on tape; call this before the first :meth:`add`."""
        if not self._marks:
            self._marks = bytearray(self._files_total)
            self._announced = array("I", bytes(4 * self._files_total))
        if not self._marks[position]:
            self._marks[position] = 1
            self.remaining += 1

    def unmark(self, positions: Iterable[int]) -> None:
        """Unmark files that need no recall: they were found on the volume."""
        for position in positions:
            if position in self:
                self._marks[position] = 0
                self.remaining -= 1

    def __contains__(self, position: int) -> bool:
        """Whether the file was on tape at the first query, even if it has been recalled since.

        Such a file is fetched by its poll, never together with the files on disk.
        """
        return bool(self._marks) and self._marks[position] > 0

    def done(self, number: int = 1) -> None:
        """Count ``number`` files as recalled or failed: they need no more polls."""
        self.remaining -= number

    def record_announced(self, position: int, now: float) -> None:
        self._announced[position] = int(now)

    def since_announced(self, position: int, now: float) -> float:
        return now - self._announced[position]

    def add(self, position: int, now: float, retry_after: float | None = None) -> float:
        """Schedule the next poll of the file; return its time.

        ``retry_after``: seconds that the archive asks to wait, if any.
        """
        polls = self._marks[position] - 1
        wait = min(INITIAL_WAIT * 2.0**polls, MAX_WAIT)
        wait = max(wait, min(retry_after or 0.0, MAX_POLL_RETRY_AFTER))
        self._marks[position] = min(polls + 1, _MAX_POLLS) + 1
        second = math.ceil(now + wait)
        if second not in self._due:
            self._due[second] = array("I")
            heappush(self._seconds, second)
        self._due[second].append(position)
        return float(second)

    def next_due(self) -> float | None:
        """Return the time of the next poll; None if none is scheduled."""
        return float(self._seconds[0]) if self._seconds else None

    def pop_due(self, now: float, limit: int) -> list[int]:
        """Remove and return up to ``limit`` due positions, the earliest due, in ascending order."""
        positions: list[int] = []
        while self._seconds and self._seconds[0] <= now and len(positions) < limit:
            due = self._due[self._seconds[0]]
            number = min(limit - len(positions), len(due))
            # From the end, which is cheap: all of them are due.
            positions += due[len(due) - number :]
            del due[len(due) - number :]
            if not due:
                del self._due[heappop(self._seconds)]
        return sorted(positions)
