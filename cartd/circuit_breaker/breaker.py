"""Whether the archive is there at all: found out by one request at a time, while the others wait.

Strategy: a request that fails as if the archive were away raises a doubt, and from then on nothing
is asked but for a probe: the state of another file, best of one that was answered before.  If that
is answered, the failure was the file's own.  If not, the archive is away; it is probed with growing
waits, each time for another of the waiting files, so that one which alone fails keeps nobody
waiting.  Whatever is answered ends the outage for all, and how long a cart waits has a limit.

An answer that says "unavailable" (502, 503, 504) may be about its file alone: that one is on tape,
or the disk that holds it is away.  So a doubt is raised only when two files in a row were answered
so, unless the last such doubt has just been found wrong; or when one has used up its tries.

An archive that answers, but with nothing but errors (500), is away as well.  That shows only in
comparison: such a doubt is raised when a file has used up its tries (:meth:`Outage.explains`), and
only a good answer ends it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from cartd.archive import ArchiveError
from cartd.backoff import as_asked, endless_waits
from cartd.circuit_breaker.outage_status import WaitingCarts
from cartd.circuit_breaker.probe_targets import Witness
from cartd.circuit_breaker.waiters import WaitingFiles
from cartd.concurrency import Turns
from cartd.model import Cart

REFUSALS = 2
"""Files that must be called unavailable, with no good answer in between, for a doubt."""
TRUST = 30.0
"""Seconds for which they raise no other, after one that was found wrong."""

log = Logger()


@dataclass(slots=True)
class _Doubt:
    """What is known of an archive that may be away."""

    cause: ArchiveError
    since: float
    only: str | None
    """The one file that has failed so far; none if there are several."""
    errors_count: bool
    """Whether an answer that is an error is as bad as none."""
    confirmed: bool = False

    def is_raised_by(self, failure: ArchiveError) -> bool:
        return failure.outage or (self.errors_count and failure.retryable)


class Outage:
    """``ask`` is a HEAD of a file; a cart waits at most ``limit`` seconds.

    ``url`` is the archive's, for the log: clients are told what is wrong, but not where.
    """

    def __init__(
        self,
        ask: Callable[[str], Awaitable[object]],
        turns: Turns,
        witness: Witness,
        carts: WaitingCarts,
        clock: IReactorTime,
        random: Callable[[], float],
        *,
        limit: float,
        url: str,
    ) -> None:
        self._ask = ask
        self._turns = turns
        self._witness = witness
        self._carts = carts
        self._clock = clock
        self._random = random
        self._url = url
        self._waiting = WaitingFiles(carts, clock, limit)
        self._doubt: _Doubt | None = None
        self._probing = False
        self._probes = 0
        self._current: Deferred[None] | None = None
        """What the probing waits for: the end of a pause, or an answer."""
        self._pausing = False
        """Whether a pause is under way that a new file to ask about may end."""
        self._refused: set[str] = set()
        """The files that the archive has called unavailable since its last good answer."""
        self._trusted_until = -inf
        """So long such answers are about their files alone."""

    @property
    def is_open(self) -> bool:
        """Whether files may be asked for."""
        return self._doubt is None

    @property
    def answers(self) -> int:
        """How many good answers there were so far, for :meth:`explains`."""
        return self._witness.answers

    def answered_since(self, answers: int, *, other_than: str) -> bool:
        """Whether, after so many answers, there was a good one for another file."""
        return self._witness.answered_since(answers, other_than=other_than)

    def take_up(self, cart: Cart) -> None:
        """A cart begins; it may have waited before, in another process."""
        self._carts.take_up(cart)

    def answered(self, archive_id: str) -> None:
        """The archive has answered well."""
        self._witness.answered(archive_id)
        self._refused.clear()
        if self.is_open:
            self._carts.end()

    def refused(self, archive_id: str, failure: ArchiveError) -> None:
        """The archive has answered for this file that it is unavailable."""
        if self._doubt is None:
            if self._clock.seconds() < self._trusted_until:
                return
            self._refused.add(archive_id)
            if len(self._refused) < REFUSALS:
                return
            for other in self._refused - {archive_id}:
                self.suspect(other, failure)
            self._refused.clear()
        self.suspect(archive_id, failure)

    def suspect(self, archive_id: str, failure: ArchiveError) -> None:
        """Ask for nothing more until it is known whether the archive is away."""
        if self._doubt is None:
            now = self._clock.seconds()
            self._doubt = _Doubt(failure, now, archive_id, errors_count=not failure.outage)
            return
        self._doubt.errors_count |= not failure.outage
        if archive_id != self._doubt.only:
            self._doubt.only = None

    async def wait(self, cart_id: int, archive_id: str, *, failed: bool = False) -> bool:
        """Wait, if the archive may be away, until it is known to answer; say whether it was away.

        ``failed`` says that the file itself was the reason for a doubt.

        :raises OutageTooLong: the cart has waited for as long as it may.
        """
        was_away = False
        while self._doubt is not None:
            was_away |= await self._told(cart_id, archive_id, failed)
            failed = False
        return was_away

    async def explains(
        self, cart_id: int, archive_id: str, failure: ArchiveError, answers: int
    ) -> bool:
        """Whether not the file is to blame for its last failure, but the archive; then it is back.

        The file is, if another was answered since there were so many ``answers``, or if none is
        known that should be.

        :raises OutageTooLong: the cart has waited for as long as it may.
        """
        if self.answered_since(answers, other_than=archive_id):
            return False
        if await self._witness.find(other_than=archive_id) is None:
            return False
        self.suspect(archive_id, failure)
        return await self.wait(cart_id, archive_id, failed=True)

    async def _told(self, cart_id: int, archive_id: str, failed: bool) -> bool:
        told = self._waiting.join(cart_id, archive_id, failed=failed)
        if not self._probing:
            self._probing = True
            Deferred.fromCoroutine(self._probe_until_it_answers()).addErrback(self._broken)
        elif self._pausing and self._somebody_else_may_know():
            self._pausing = False
            self._interrupt()
        try:
            return await told
        finally:
            if not self._waiting:
                self._interrupt()

    # Probing

    async def _probe_until_it_answers(self) -> None:
        """Goes on for as long as somebody waits."""
        assert self._doubt is not None
        doubt = self._doubt
        self._probes = 0
        pauses = endless_waits(self._random)
        # Those who fail in the same moment, and those who would ask next, are to be there.
        await self._sleep(0)
        witness = await self._witness.find(other_than=doubt.only or "")
        pause = 0.0
        if witness is None and not self._somebody_else_may_know():
            pause = as_asked(next(pauses), doubt.cause.retry_after)
        while True:
            await self._pause(pause)
            if not self._waiting:
                self._forget()
                return
            archive_id = self._next_to_ask(witness)
            try:
                failure = await self._answer(archive_id)
            except CancelledError:
                continue
            if failure is None or not doubt.is_raised_by(failure):
                self._end()
                return
            self._confirm(doubt, archive_id, failure)
            pause = as_asked(next(pauses), failure.retry_after)
            if self._somebody_else_may_know():
                pause = 0.0

    def _somebody_else_may_know(self) -> bool:
        """Whether only one file has failed, and another waits."""
        only_one = self._doubt is not None and self._doubt.only is not None
        return only_one and self._waiting.any_without_failure()

    def _next_to_ask(self, witness: str | None) -> str:
        self._probes += 1
        if witness is not None and self._probes % 2:
            return witness
        return self._waiting.next_to_ask()

    async def _answer(self, archive_id: str) -> ArchiveError | None:
        async def ask() -> None:
            async with self._turns.turn(self):
                await self._ask(archive_id)

        self._current = Deferred.fromCoroutine(ask())
        try:
            await self._current
        except ArchiveError as failure:
            return failure
        finally:
            self._current = None
        self._witness.answered(archive_id)
        return None

    async def _pause(self, seconds: float) -> None:
        """Wait, if anybody does; meanwhile carts whose time is over are told so."""
        end = self._clock.seconds() + seconds
        self._pausing = True
        while self._waiting and self._pausing:
            left, doubt = end - self._clock.seconds(), self._doubt
            if doubt is None or not doubt.confirmed:
                await self._sleep(left)
            else:
                await self._sleep(min(left, self._waiting.seconds_left()))
                self._waiting.end_the_late(doubt.cause)
            if self._clock.seconds() >= end:
                break
        self._pausing = False

    async def _sleep(self, seconds: float) -> None:
        self._current = deferLater(self._clock, max(seconds, 0.0))
        try:
            await self._current
        except CancelledError:
            pass
        finally:
            self._current = None

    def _interrupt(self) -> None:
        if self._current is not None:
            self._current.cancel()

    # What comes of a doubt

    def _confirm(self, doubt: _Doubt, archive_id: str, failure: ArchiveError) -> None:
        if archive_id != doubt.only:
            doubt.only = None
        if not doubt.confirmed:
            doubt.confirmed = True
            doubt.cause = failure
            log.warn(
                "The archive is away, and carts wait for it: {cause} ({url})",
                cause=failure,
                url=self._url,
            )
            self._carts.begin(str(failure), doubt.since)

    def _end(self) -> None:
        was_away = self._doubt is not None and self._doubt.confirmed
        self._refused.clear()
        if not was_away:
            self._trusted_until = self._clock.seconds() + TRUST
        self._log_end("The archive is back after {length:.1f} s")
        self._doubt = None
        self._probing = False
        self._turns.open_slowly()
        self._carts.end()
        self._waiting.tell(was_away)

    def _forget(self) -> None:
        """Nobody wants to know any more; what the store was told is for who takes the carts up."""
        self._log_end("Nothing waits any more for the archive, which was away for {length:.1f} s")
        self._doubt = None
        self._probing = False
        self._carts.forget()

    def _log_end(self, text: str) -> None:
        if self._doubt is not None and self._doubt.confirmed:
            log.info(text, length=self._clock.seconds() - self._doubt.since)

    def _broken(self, failure: Failure) -> None:
        log.failure("Probing the archive failed", failure)
        self._end()
