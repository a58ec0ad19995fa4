"""The recall of a cart's files from tape: announce all, poll each with backoff, fetch once.

Strategy: a tape library schedules recalls best when it knows all of them, so every file is
announced as early as possible, and again only after hours, in case that the archive has lost the
request.  The duration of a recall is unknown: each file is polled with exponential backoff, so the
number of polls grows with the logarithm of its wait, independently of other files.  A rate limit,
shared fairly, bounds the polls of all carts together.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from cartd.archive import FileState
from cartd.deferreds.tasks import both, for_each
from cartd.errors import Unavailable
from cartd.model import Cart, CartFile
from cartd.staging.context import StagingContext
from cartd.staging.recall_queue import RecallQueue
from cartd.staging.retry import FileFailed

PAGE = 500
"""Rows of due files read at a time."""
PROGRESS_INTERVAL = 60.0
"""Minimum seconds between two updates of the number of files on tape that clients see."""

log = Logger()


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
            files = await self._context.store.files_at(self._cart.id, positions)
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
            await self._context.store.record_tape(
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
