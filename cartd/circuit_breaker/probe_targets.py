"""Which files the archive has given well, so that another that it refuses can be told from all."""

from __future__ import annotations

from collections import OrderedDict

from twisted.logger import Logger

from cartd.errors import CartdError
from cartd.store import Store

KEPT = 2
"""Ids: whichever file is in question, there is another."""

log = Logger()


class Witness:
    """Remembers the files that were answered last; before any was, it looks into the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._answered: OrderedDict[str, int] = OrderedDict()
        self.answers = 0
        """How many good answers there were so far."""

    def answered(self, archive_id: str) -> None:
        """The archive has answered well for this file."""
        self.answers += 1
        self._remember(archive_id, self.answers)

    def answered_since(self, answers: int, *, other_than: str) -> bool:
        """Whether, after so many answers, there was one for another file."""
        return any(at > answers for known, at in self._answered.items() if known != other_than)

    async def find(self, *, other_than: str) -> str | None:
        """The id of another file that the archive has, or had when it was staged, if one is known.

        Trouble with the database only means that none is.
        """
        for known in reversed(self._answered):
            if known != other_than:
                return known
        try:
            known_to_store = await self._store.recently_staged_file(other_than)
        except CartdError as error:
            log.warn("No file is known that the archive has: {error}", error=error)
            return None
        if known_to_store is not None:
            self._remember(known_to_store, 0)
        return known_to_store

    def _remember(self, archive_id: str, at: int) -> None:
        self._answered[archive_id] = at
        self._answered.move_to_end(archive_id)
        if len(self._answered) > KEPT:
            self._answered.popitem(last=False)
