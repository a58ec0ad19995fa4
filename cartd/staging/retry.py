"""Trying a file again: how often, after how long, and what is told of it in the end."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from cartd.archive import ArchiveError
from cartd.backoff import as_asked, waits
from cartd.checksum import Mismatch
from cartd.concurrency import Turns
from cartd.errors import CartdError
from cartd.model import Cart, CartFile
from cartd.outage import Outage
from cartd.text import escape
from cartd.tolerance import Tolerance

T = TypeVar("T")
_OF_A_NAME = frozenset(
    {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ENOTDIR, errno.EISDIR}
)
"""Errors of the file system that are about one path only."""
log = Logger()


class FileFailed(CartdError):
    """A file could not be staged; carries which one, for the store.

    That it came ``wrong`` in an earlier try says more of it than that the last one failed.
    """

    def __init__(self, file: CartFile, cause: Exception, wrong: Mismatch | None = None) -> None:
        self.cause = str(cause) if wrong is None else f"{wrong}; at the last try, {cause}"
        super().__init__(
            f"Failed to stage {file.path} (archive id {file.archive_id}): {self.cause}"
        )
        self.position = file.position
        self.of_volume = isinstance(cause, OSError) and cause.errno not in _OF_A_NAME
        """Whether the volume has failed, which would refuse any other file as well."""


class Patience:
    """So many ``tries`` for each request, each in its cart's turn; none counts during an outage.

    What comes wrong is told to ``tolerance``.
    """

    def __init__(
        self,
        tries: int,
        turns: Turns,
        outage: Outage,
        tolerance: Tolerance,
        clock: IReactorTime,
        random: Callable[[], float],
    ) -> None:
        self._tries = tries
        self._turns = turns
        self._outage = outage
        self._tolerance = tolerance
        self._clock = clock
        self._random = random
        self._in_line: Counter[int] = Counter()
        """How many requests of a cart, by its id, wait for their turns."""
        self._ended_at: dict[int, float] = {}
        """When the last request of a cart ended, well or not."""

    def begin(self, cart_id: int) -> None:
        """From now on the cart has something to ask for."""
        self._ended_at[cart_id] = self._clock.seconds()

    def end(self, cart_id: int) -> None:
        self._ended_at.pop(cart_id, None)

    def idle(self, cart_id: int) -> float:
        """For how many seconds nothing was asked for the cart, though nothing was in its way."""
        ended_at = self._ended_at.get(cart_id)
        if ended_at is None or self._in_line[cart_id] or not self._outage.is_open:
            return 0.0
        return self._clock.seconds() - ended_at

    async def with_file(self, cart: Cart, file: CartFile, attempt: Callable[[], Awaitable[T]]) -> T:
        """What ``attempt`` gives, once it works.

        :raises FileFailed: the tries are used up, or the failure is final.
        :raises OutageTooLong: the archive was away for too long.
        """
        pauses = waits(self._tries, self._random)
        answers = paused_at = self._outage.answers
        wrong: list[str] = []
        mismatch: Mismatch | None = None
        while True:
            try:
                answer = await self._in_turn(cart, file, attempt)
            except OSError as error:
                raise FileFailed(file, error) from error
            except Mismatch as error:
                self._judge(wrong, str(error))
                failure: ArchiveError | Mismatch = error
                mismatch = error
            except ArchiveError as error:
                failure = error
            else:
                self._outage.answered(file.archive_id)
                return answer
            if await self._was_suspected(cart, file, failure):
                pauses = waits(self._tries, self._random)
                continue
            pause = next(pauses, None)
            if pause is None and await self._was_away(cart, file, failure, paused_at):
                pauses = waits(self._tries, self._random)
                continue
            paused_at = self._outage.answers
            if pause is not None and getattr(failure, "retryable", True):
                log.info("Trying {path} again: {failure}", path=escape(file.path), failure=failure)
                await self._wait(pause, failure)
            elif await self._is_innocent(cart, file, failure, answers):
                pauses = waits(self._tries, self._random)
            else:
                passes = isinstance(failure, ArchiveError) and failure.retryable
                raise FileFailed(file, failure, mismatch if passes else None) from failure

    async def _in_turn(self, cart: Cart, file: CartFile, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try once, when the archive is there.  A file that waits for that holds no turn."""
        while True:
            await self._outage.wait(cart.id, file.archive_id)
            await self._take_turn(cart)
            try:
                if self._outage.is_open:
                    return await attempt()
            except ArchiveError as error:
                # Before the turn is left, and somebody else asks the same in vain.
                if error.answered:
                    self._outage.refused(file.archive_id, error)
                elif error.outage:
                    self._outage.suspect(file.archive_id, error)
                raise
            finally:
                self._leave_turn(cart)

    async def _take_turn(self, cart: Cart) -> None:
        self._in_line[cart.id] += 1
        try:
            await self._turns.take(cart.id, cart.owner)
        finally:
            self._in_line[cart.id] -= 1
            if not self._in_line[cart.id]:
                del self._in_line[cart.id]

    def _leave_turn(self, cart: Cart) -> None:
        if cart.id in self._ended_at:
            self._ended_at[cart.id] = self._clock.seconds()
        self._turns.leave()

    async def _was_suspected(
        self, cart: Cart, file: CartFile, failure: ArchiveError | Mismatch
    ) -> bool:
        """Whether this failure was one of an archive that was away; then it is back."""
        if isinstance(failure, Mismatch) or not failure.outage:
            return False
        return await self._outage.wait(cart.id, file.archive_id, failed=True)

    async def _was_away(
        self, cart: Cart, file: CartFile, failure: ArchiveError | Mismatch, answers: int
    ) -> bool:
        """The same of one that says "unavailable", and still does at the last try.

        Until then it keeps only its own file waiting.  The file is to blame if others were answered
        since there were so many ``answers``: when it was tried the last time but one.
        """
        if isinstance(failure, Mismatch) or not failure.answered:
            return False
        if self._outage.answered_since(answers, other_than=file.archive_id):
            return False
        self._outage.suspect(file.archive_id, failure)
        return await self._was_suspected(cart, file, failure)

    async def _is_innocent(
        self, cart: Cart, file: CartFile, failure: ArchiveError | Mismatch, answers: int
    ) -> bool:
        """Whether any file would have failed as this one did in the end; then the archive is back.

        What was asked about at its own time, and what the archive says of this file alone, is so
        no more.
        """
        if isinstance(failure, Mismatch) or failure.outage:
            return False
        if not (failure.retryable or failure.missing):
            return False
        return await self._outage.explains(cart.id, file.archive_id, failure, answers)

    async def _wait(self, pause: float, failure: Exception) -> None:
        await deferLater(self._clock, as_asked(pause, getattr(failure, "retry_after", None)))

    def _judge(self, wrong: list[str], how: str) -> None:
        """Find out whose fault it is that a file came wrong, by how it comes the second time."""
        if not wrong and not self._tolerance.was_wrong():
            how = ""
        wrong.append(how)
        if len(wrong) == 2 and wrong[0] == how:
            self._tolerance.was_wrong_again()
