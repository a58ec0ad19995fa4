"""The body of one file, received from the archive and written to the disk.

Strategy: the reactor collects bytes, a thread hashes and writes them.  While a thread writes one
block, the next is collected; when that is large too, the producer is paused.  So at most two blocks
of a file are in memory, at most one thread works on it, and the order needs no queue.
"""

from __future__ import annotations

from typing import Final, cast

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from cartd.checksum import Checksum
from cartd.deferreds.tasks import uncancellable
from cartd.deferreds.threads import ThreadRunner
from cartd.volume.partial import PartialFile

BLOCK: Final = 1 << 20
"""Bytes that are worth a call in a thread."""
HIGH_WATERMARK: Final = 2 * BLOCK
"""Bytes collected while a thread is busy, at which the producer is paused."""
MAX_PIECES: Final = 1024
"""Pieces that are collected before they are joined: pieces of one byte must not fill the memory."""


@implementer(IConsumer)
class IncomingFile:
    """Consumer of a file's bytes from a push producer; the file appears when it is verified.

    A body of less than a block is written in one call, which ``batch_threads`` may batch with those
    of other files; ``threads`` run all others.  When a call fails (a full disk, a byte too many),
    the producer is stopped at once, and :meth:`finish` raises the error.
    """

    def __init__(
        self,
        partial: PartialFile,
        checksum: Checksum,
        mtime: int | None,
        threads: ThreadRunner,
        batch_threads: ThreadRunner,
    ) -> None:
        self._partial = partial
        self._checksum = checksum
        self._mtime = mtime
        self._threads = threads
        self._batch_threads = batch_threads
        self._producer: IPushProducer | None = None
        self._paused = False
        self._pieces: list[bytes] = []
        self._collected = 0
        self._busy = False
        self._finishing = False
        self._aborted = False
        self._outcome: str | BaseException | None = None
        self._waiters: list[Deferred[None]] = []

    @property
    def failure(self) -> BaseException | None:
        """The error for which the producer was stopped, if any: the cause of a broken transfer."""
        return self._outcome if isinstance(self._outcome, BaseException) else None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        if self._producer is not None:
            raise RuntimeError("a producer is registered already")
        if not streaming:
            raise TypeError("an incoming file takes a push producer")
        self._producer = cast(IPushProducer, producer)
        self._paused = False
        if self._ended:
            producer.stopProducing()

    def unregisterProducer(self) -> None:
        self._producer = None

    def write(self, data: bytes) -> None:
        if self._ended or self._finishing or self._aborted:
            return
        self._pieces.append(data)
        self._collected += len(data)
        if len(self._pieces) >= MAX_PIECES:
            self._pieces = [b"".join(self._pieces)]
        self._advance()
        if self._busy and self._collected >= HIGH_WATERMARK:
            self._pause()

    async def finish(self) -> str:
        """Wait for the writes, verify, commit the file; return the hash in lower-case hex.

        Raises :class:`~cartd.checksum.Mismatch`, :class:`~cartd.errors.NoSpace` or ``OSError``,
        or ``CancelledError`` after :meth:`abort`; then no file is left.  When cancelled, it ends
        only after the thread has ended; a file that was committed by then stays.
        """
        self._finishing = True
        self._advance()
        try:
            await self._end()
        except CancelledError:
            await self.abort()
            raise
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    async def abort(self) -> None:
        """Discard the file unless it is committed already; ends when it has been removed."""
        self._aborted = True
        self._advance()
        await uncancellable(self._end())

    @property
    def _ended(self) -> bool:
        return self._outcome is not None

    def _end(self) -> Deferred[None]:
        if self._ended:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        return waiter

    def _advance(self) -> None:
        """Start the next job, if there is one and no thread is busy."""
        if self._busy or self._ended:
            return
        if self._aborted:
            self._take_pieces()
            if self._partial.started:
                self._start_job(self._threads.run(self._discard))
            else:
                self._partial.discard()  # it has no file yet, but retains its directories
                self._set_outcome(CancelledError())
        elif self._finishing:
            small = not self._partial.started and self._collected < BLOCK
            runner = self._batch_threads if small else self._threads
            self._start_job(runner.run(self._complete, self._take_pieces()))
        elif self._collected >= BLOCK:
            self._start_job(self._threads.run(self._append, self._take_pieces()))

    def _take_pieces(self) -> list[bytes]:
        taken, self._pieces, self._collected = self._pieces, [], 0
        return taken

    def _start_job(self, job: Deferred[str | None]) -> None:
        # This Deferred is never passed out, so it cannot be cancelled: a job always ends.
        self._busy = True
        job.addCallbacks(self._job_done, self._job_failed)

    def _job_done(self, digest: str | None) -> None:
        self._busy = False
        if digest is not None:
            self._set_outcome(digest)
            return
        self._advance()
        if self._collected < HIGH_WATERMARK:
            self._resume()

    def _job_failed(self, failure: Failure) -> None:
        self._busy = False
        self._set_outcome(cast(BaseException, failure.value))

    def _set_outcome(self, outcome: str | BaseException) -> None:
        self._outcome = outcome
        self._take_pieces()
        if self._producer is not None and not isinstance(outcome, str):
            self._producer.stopProducing()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def _pause(self) -> None:
        if self._producer is not None and not self._paused:
            self._paused = True
            self._producer.pauseProducing()

    def _resume(self) -> None:
        if self._producer is not None and self._paused and not self._ended:
            self._paused = False
            self._producer.resumeProducing()

    # The methods below run in threads, one call at a time.

    def _append(self, pieces: list[bytes]) -> None:
        try:
            data = b"".join(pieces)
            self._checksum.update(data)
            self._partial.append(data)
        except BaseException:
            self._partial.discard()
            raise

    def _complete(self, pieces: list[bytes]) -> str:
        try:
            data = b"".join(pieces)  # no copy if there is one piece
            self._checksum.update(data)
            digest = self._checksum.finish()
            self._partial.append(data)
            self._partial.commit(mtime=self._mtime)
        except BaseException:
            self._partial.discard()
            raise
        return digest

    def _discard(self) -> None:
        self._partial.discard()
        raise CancelledError
