"""The checks of secrets: slow by intention, so never many of them at once."""

from __future__ import annotations

import os
from collections import Counter

from twisted.internet.interfaces import IReactorTime

from cartd.auth.secret_hash import SecretHash
from cartd.concurrency import Turns
from cartd.errors import TooMany, Unavailable
from cartd.shield import shielded
from cartd.threads import RunsInThread

AT_ONCE = min(4, max(1, (os.cpu_count() or 1) // 2))
"""Half of the processors: the rest is for those who are known."""
MOST_OF_ONE = 32
"""Secrets from one address that wait or are being checked."""
MOST = 128
"""The same, from all addresses."""


class Checks:
    """Has secrets compared in threads, in turns of the addresses that they come from."""

    def __init__(self, threads: RunsInThread, clock: IReactorTime, at_once: int = AT_ONCE) -> None:
        self._threads = threads
        self._turns = Turns(lambda: at_once, clock)
        self._from: Counter[str] = Counter()

    async def matches(self, kept: SecretHash, secret: bytes, peer: str) -> bool:
        """Whether ``kept`` was made of ``secret``.

        :raises TooMany: ``peer`` has too many under way.
        :raises Unavailable: all together have.
        """
        if self._from[peer] >= MOST_OF_ONE:
            raise TooMany("Too many secrets from this address are being checked; ask again later")
        if self._from.total() >= MOST:
            raise Unavailable("Too many secrets are being checked; ask again later")
        self._from[peer] += 1
        try:
            async with self._turns.turn(peer):
                # The place is not free before the thread is, even if nobody waits any more.
                return await shielded(self._threads.run(kept.matches, secret))
        finally:
            self._from[peer] -= 1
            if not self._from[peer]:
                del self._from[peer]
