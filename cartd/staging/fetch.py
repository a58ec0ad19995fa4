"""Fetching the files of one cart from the archive: states first, then bytes, tape last.

Strategy: a bad file does not prevent attempts of the others, so that the user gets a complete list
of errors and only those files have to be fetched later.  But the cart is aborted if most of its
files fail: a million failures for the same reason load the archive and tell nothing new.

The manifest may permit that some files fail: the cart then becomes ready without them, and is
aborted only if more of them fail.

Updates of files are written to the store in batches, by a :class:`~cartd.deferreds.tasks.Batcher`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from twisted.internet.defer import CancelledError

from cartd.archive import ArchiveError, FileState, explained_status
from cartd.archive.retry import FileFailed
from cartd.checksum import Checksum
from cartd.deferreds.tasks import Batcher, both, for_each
from cartd.errors import CartdError, Problem
from cartd.model import MAX_MISSING, Cart, CartFile, FileFailure, SecondHash
from cartd.staging import StagingContext
from cartd.staging.tape import TapeRecall
from cartd.status.pace import Sample
from cartd.volume.incoming import IncomingFile

T = TypeVar("T")
Staged = tuple[int, str, SecondHash | None]
"""Position, hash and second hash of a staged file; a tuple, as there are millions of them."""
PAGE = 2000
"""Rows read at a time, shared by all carts in staging."""
WINDOW = 128
"""Files in progress at a time, shared by all carts in staging."""
MAX_FAILED_FILES = 1000
"""Number of failed files at which the cart is aborted."""
MAX_FAILED_IF_MOST_FAIL = 100
"""Lower abort threshold, used when failures outnumber successes in the phase."""


class FilesFailed(CartdError):
    """More files of a cart could not be staged than its manifest permits.

    The store has their positions and causes.  ``problem`` is that of the first one.
    """

    def __init__(self, message: str, problem: Problem) -> None:
        super().__init__(message)
        self.problem = problem


class _Cause(NamedTuple):
    """Why a file failed; without the exception, which would keep its frames in memory."""

    message: str
    problem: Problem


class Failures:
    """The files of one cart that cannot be fetched, while all others are staged.

    Counts successes and failures; ``record`` writes positions and causes to the store.
    """

    def __init__(
        self,
        record: Callable[[Sequence[FileFailure]], Awaitable[None]],
        now: Callable[[], float],
        max_failed: int | None = None,
    ) -> None:
        """``max_failed`` is that of the cart: how many files may fail; none if none may."""
        self._unwritten: Batcher[FileFailure] = Batcher(record, now)
        self._max_failed = max_failed
        self._permitted = min(max_failed or 0, MAX_MISSING)
        self._causes: dict[int, _Cause] = {}
        """By position in the manifest."""
        self._succeeded = 0
        self._failed = 0

    def __contains__(self, position: int) -> bool:
        return position in self._causes

    def __len__(self) -> int:
        return len(self._causes)

    @property
    def positions(self) -> list[int]:
        """The positions of the files that have failed, in order."""
        return sorted(self._causes)

    def keep(self, positions: Collection[int]) -> None:
        """Forget all failures but those at ``positions``: the other files are staged."""
        kept = set(positions)
        self._causes = {at: cause for at, cause in self._causes.items() if at in kept}

    def begin_phase(self) -> None:
        """Begin the next phase: reset the counters of successes and failures."""
        self._succeeded = self._failed = 0

    def record_success(self) -> None:
        self._succeeded += 1

    async def add(self, failed: FileFailed) -> None:
        """Record a failure; if too many files fail, it is raised at the end, by :meth:`check`.

        :raises FileFailed: the volume failed, so that every other file would fail, too.
        :raises FilesFailed: too many files have failed; the cart is aborted.
        """
        if failed.is_volume_error:
            raise failed
        self._causes[failed.facts.position] = _Cause(str(failed), failed.problem)
        self._failed += 1
        await self._unwritten.add(failed.facts)
        if len(self) > self._permitted and (
            len(self) >= MAX_FAILED_FILES
            or self._failed >= max(MAX_FAILED_IF_MOST_FAIL, self._succeeded)
        ):
            await self.flush()
            raise self._too_many("; the rest was not tried")

    async def flush(self) -> None:
        await self._unwritten.flush()

    async def check(self) -> None:
        """Raise :class:`FilesFailed` if more files have failed than may."""
        await self.flush()
        if len(self) > self._permitted:
            raise self._too_many("")

    def _too_many(self, rest: str) -> FilesFailed:
        first = self._causes[min(self._causes)]
        return FilesFailed(f"{first.message}{self._others()}{rest}{self._limit()}", first.problem)

    def _others(self) -> str:
        others = len(self) - 1
        if not others:
            return ""
        return f"; {'1 other file' if others == 1 else f'{others} other files'} failed too"

    def _limit(self) -> str:
        """Return which limit is exceeded, for a cart whose files may fail."""
        if self._max_failed is None:
            return ""
        if self._max_failed > MAX_MISSING:
            return f"; at most {MAX_MISSING:,} files may be missing in a partial cart"
        files = "1 file" if self._max_failed == 1 else f"{self._max_failed:,} files"
        return f"; its manifest permits that {files} fail (max_failed)"


class FileFetcher:
    """Fetches the unstaged files of ``cart``; calls ``on_staged`` for each.

    Files that cannot be fetched are added to ``failures``.  Files are read from the store page by
    page, so those that have been staged meanwhile are skipped.
    """

    def __init__(
        self,
        context: StagingContext,
        cart: Cart,
        holder: str,
        on_staged: Callable[[Staged], Awaitable[None]],
        failures: Failures,
    ) -> None:
        self._context = context
        self._cart = cart
        self._holder = holder
        self._on_staged = on_staged
        self._failures = failures
        self._transfers: set[IncomingFile] = set()
        """The files being transferred.  The archive's client aborts slow transfers."""
        self._fetching = False
        self._base_size = self._done_files = self._done_size = 0
        self._left_files = self._left_size = 0
        """What is to be fetched: available files that are neither here nor have failed."""
        self._tape = TapeRecall(
            context,
            cart,
            holder,
            announce=self._announce,
            poll=self._fetch_if_on_disk,
            failed=self._failures.add,
            window=self._window,
        )

    def skip_recall(self, positions: Collection[int]) -> None:
        """Exclude the files at ``positions`` from the recall: they are on the volume."""
        self._tape.queue.unmark(positions)

    def idle(self) -> float:
        """For how many seconds nothing was done, although there was work to do."""
        if self._transfers or self._tape.queue.remaining:
            return 0.0
        return self._context.retry_policy.idle(self._cart.id)

    def sample(self) -> Sample | None:
        """Return what has been transferred and what is left; None before the transfers begin."""
        if not self._fetching:
            return None
        return Sample(
            owner=self._cart.owner,
            base_size=self._base_size,
            done_size=self._done_size,
            done_files=self._done_files,
            left_size=self._left_size,
            left_files=self._left_files,
            fetching=len(self._transfers),
            partial=sum(incoming.received for incoming in self._transfers),
            recalling=self._tape.queue.remaining,
        )

    async def unstaged_pages(self) -> AsyncIterator[list[CartFile]]:
        """Yield pages of files that are not staged, in the order of the manifest."""
        after = -1
        while page := await self._context.store.carts.files(
            self._cart.id, after=after, limit=self._share(PAGE), unstaged=True
        ):
            yield page
            after = page[-1].position

    # File states

    async def query_states(self, base_size: int) -> int:
        """Query the state of every unstaged file; return the total size of the available ones.

        ``base_size`` is that of the staged files.
        """
        cart_id, holder = self._cart.id, self._holder
        states: Batcher[tuple[int, int, int]] = Batcher(
            lambda batch: self._context.store.progress.record_states(cart_id, holder, batch),
            self._context.clock.seconds,
        )
        total = 0

        async def query(file: CartFile) -> None:
            nonlocal total
            try:
                state = await self._with_retries(file, self._state)
            except FileFailed as failed:
                await self._failures.add(failed)
                return
            self._failures.record_success()
            total += state.size
            self._left_files += 1
            if not state.on_disk:
                self._tape.queue.mark(file.position)
            if file.size != state.size or file.mtime is None:
                await states.add((file.position, state.size, state.mtime))

        with self._track_idle_time():
            await for_each(self._unstaged(), query, self._window)
            await states.flush()
        await self._failures.flush()
        self._left_size = total
        self._base_size = base_size
        return total

    @contextmanager
    def _track_idle_time(self) -> Iterator[None]:
        """Measure idle time within the block, in which there are always requests to send."""
        retry_policy = self._context.retry_policy
        retry_policy.begin(self._cart.id)
        try:
            yield
        finally:
            retry_policy.end(self._cart.id)

    async def _with_retries(self, file: CartFile, attempt: Callable[[CartFile], Awaitable[T]]) -> T:
        try:
            return await self._context.retry_policy.call(self._cart, file, lambda: attempt(file))
        except FileFailed:
            if self._fetching:
                self._left_files -= 1
                self._left_size -= file.size or 0
            raise

    async def _state(self, file: CartFile) -> FileState:
        return await explained_status(self._context.archive, file.archive_id)

    # Fetching

    async def fetch(self) -> None:
        """Fetch the files on disk, and the others as soon as they are recalled from tape."""
        self._failures.begin_phase()
        self._fetching = True
        with self._track_idle_time():
            await both(self._fetch_from_disk(), self._tape.run(self._unstaged))

    async def _fetch_from_disk(self) -> None:
        async def fetch(file: CartFile) -> None:
            try:
                await self._fetch(file)
            except FileFailed as failed:
                await self._failures.add(failed)

        await for_each(
            self._unstaged(lambda file: file.position not in self._tape.queue), fetch, self._window
        )

    async def _announce(self, file: CartFile) -> float | None:
        return await self._with_retries(
            file, lambda file: self._context.archive.stage(file.archive_id)
        )

    async def _fetch_if_on_disk(self, file: CartFile) -> FileState | None:
        state = await self._with_retries(file, self._state)
        if not state.on_disk:
            return state
        await self._fetch(file)
        return None

    async def _fetch(self, file: CartFile) -> None:
        staged = await self._with_retries(file, self._fetch_once)
        self._failures.record_success()
        size = file.size or 0
        self._done_files += 1
        self._done_size += size
        self._left_files -= 1
        self._left_size -= size
        await self._on_staged(staged)

    async def _fetch_once(self, file: CartFile) -> Staged:
        assert file.size is not None
        also_type = also_hash = None
        if self._context.also_hash is not None or file.also_hash_type is not None:
            also_type = file.second_hash_type(self._context.also_hash)
        checksum = Checksum(file.hash_type, file.hash_sum, file.size, also_type)
        incoming = self._context.volume.incoming.open(self._cart, file, checksum)
        self._transfers.add(incoming)
        try:
            await self._transfer(file, incoming)
            hash_sum = await incoming.finish()
            self._context.metrics.archive_received.inc(by=file.size)
        finally:
            self._transfers.discard(incoming)
            await incoming.abort()
        self._context.concurrency_limit.record_intact_file()
        if also_type is not None:
            also_hash = SecondHash(also_type, checksum.also_sum() or "")
        return file.position, hash_sum, also_hash

    async def _transfer(self, file: CartFile, incoming: IncomingFile) -> None:
        try:
            await self._context.archive.fetch(file.archive_id, incoming)
        except (ArchiveError, CancelledError):
            # A failing disk or a too long body aborts the transfer: raise that cause.
            if incoming.failure is not None:
                raise incoming.failure from None
            raise

    async def _unstaged(
        self, wanted: Callable[[CartFile], bool] = lambda _: True
    ) -> AsyncIterator[CartFile]:
        async for page in self.unstaged_pages():
            for file in page:
                if wanted(file) and file.position not in self._failures:
                    yield file

    def _window(self) -> int:
        return self._share(WINDOW)

    def _share(self, whole: int) -> int:
        return self._context.share(self._cart, whole)
