"""Lists of the files of a cart, as JSON that is made piece by piece.

Strategy: a cart may have millions of files.  They are read from the store, and encoded, some
hundreds at a time, and the next ones only when the caller asks for them: so a list takes the memory
of one piece and blocks the reactor for some milliseconds.  If many lists are being made, their
pieces are smaller, so that all together stay bounded.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

from msgspec import UNSET, UnsetType
from msgspec.json import Encoder

from cartd.model import Cart, CartFile, FileStatus
from cartd.status.document import File
from cartd.store import Store

PIECE = 500
"""Files that are read and encoded at a time, while there are few lists."""
FULL_PIECES = 32
"""Lists that get whole pieces; more lists divide what these would hold."""
MIN_PIECE = 20

_json = Encoder()


@dataclass(frozen=True, slots=True)
class FileQuery:
    """Which files of a cart are wanted."""

    status: FileStatus | None = None
    """Only those with this status."""
    after: int = -1
    """Only those after this position."""
    limit: int | None = None
    """At most so many; none for all."""


class FileLists:
    """Makes lists of files."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._running = 0

    async def page(self, cart: Cart, query: FileQuery) -> AsyncGenerator[bytes, None]:
        """Yield the pieces of one JSON object with ``files`` and, if there are more, ``next``."""
        text, separator, last = b'{"files":[', b"", query.after
        with self._counted():
            async for files in self._pieces(cart.id, query):
                if separator:
                    yield text
                    text = b""
                text += separator + _json.encode(list(map(file_document, files)))[1:-1]
                separator, last = b",", files[-1].position
            end = b"]}"
            if query.limit is not None and await self._store.statuses.files(
                cart.id, status=query.status, after=last, limit=1
            ):
                end = b'],"next":' + _json.encode(next_page(cart, query, last)) + b"}"
        yield text + end

    async def lines(self, cart: Cart, query: FileQuery) -> AsyncGenerator[bytes, None]:
        """Yield the files as lines of one JSON object each."""
        with self._counted():
            async for files in self._pieces(cart.id, query):
                yield _json.encode_lines(list(map(file_document, files)))

    async def _pieces(self, cart_id: int, query: FileQuery) -> AsyncIterator[list[CartFile]]:
        after, left = query.after, query.limit
        while left is None or left > 0:
            count = self._piece() if left is None else min(self._piece(), left)
            files = await self._store.statuses.files(
                cart_id, status=query.status, after=after, limit=count
            )
            if files:
                yield files
                after = files[-1].position
            if len(files) < count:
                return
            left = None if left is None else left - count

    def _piece(self) -> int:
        return max(PIECE * FULL_PIECES // max(self._running, FULL_PIECES), MIN_PIECE)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


def next_page(cart: Cart, query: FileQuery, last: int) -> str:
    """Return the URL of the files after the position ``last``, of the same cart only."""
    status = {} if query.status is None else {"status": query.status.value}
    asked = {**status, "after": last, "limit": query.limit, "cart": cart.id}
    return f"/-/carts/{quote(cart.uid, safe='')}/files?{urlencode(asked)}"


def file_document(file: CartFile) -> File:
    """Return the document of a file."""
    return File(
        position=file.position,
        id=file.archive_id,
        path=file.path,
        size=UNSET if file.size is None else file.size,
        mtime=_time(file.mtime),
        hashtype=file.hash_type,
        hashsum=file.hash_sum or UNSET,
        status=file.status,
        error=file.error or UNSET,
        problem=file.problem or UNSET,
    )


def _time(seconds: int | None) -> datetime | UnsetType:
    """Return the time; UNSET if it is unknown, or in a year that RFC 3339 cannot express."""
    if seconds is None:
        return UNSET
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return UNSET
