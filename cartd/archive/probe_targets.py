"""Files that the archive has: a probe for one of them shows whether the archive is available."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from twisted.logger import Logger

from cartd.errors import CartdError

MAX_REMEMBERED = 2
"""Ids: two, so that for any file that fails there is another one."""

log = Logger()


class StagedFiles(Protocol):
    """Knows the files that were staged; the store implements it."""

    async def recently_staged_file(self, other_than: str) -> str | None: ...


class ProbeTargets:
    """Remember the files that succeeded last; before the first success, ask the store for one."""

    def __init__(self, store: StagedFiles) -> None:
        self._store = store
        self._succeeded: OrderedDict[str, int] = OrderedDict()
        self.successes = 0
        """How many successes there were so far."""

    def record_success(self, archive_id: str) -> None:
        """The archive has answered a request for this file."""
        self.successes += 1
        self._remember(archive_id, self.successes)

    def succeeded_since(self, successes: int, *, other_than: str) -> bool:
        """Whether, after so many successes, there was one for another file."""
        return any(at > successes for known, at in self._succeeded.items() if known != other_than)

    async def find(self, *, other_than: str) -> str | None:
        """Return the id of another file that the archive has, or had when it was staged, or None.

        If the database fails, none is known.
        """
        for known in reversed(self._succeeded):
            if known != other_than:
                return known
        try:
            known_to_store = await self._store.recently_staged_file(other_than)
        except CartdError as error:
            log.warn("Cannot look up a file to probe the archive with: {error}", error=error)
            return None
        if known_to_store is not None:
            self._remember(known_to_store, 0)
        return known_to_store

    def _remember(self, archive_id: str, at: int) -> None:
        self._succeeded[archive_id] = at
        self._succeeded.move_to_end(archive_id)
        if len(self._succeeded) > MAX_REMEMBERED:
            self._succeeded.popitem(last=False)
