"""Lists of carts, and of the files of a cart, by pages.

Strategy: a page continues after a position or an id, so that it costs the same wherever it is, and
nothing is listed twice because something was added.  A cart may have millions of files.  They are
read from the store, and encoded, some hundreds at a time, and the next ones only when the caller
asks for them: so a list takes the memory of one piece and blocks the reactor for some milliseconds.
If many lists are being made, their pieces are smaller, so that all together stay bounded.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

from msgspec import UNSET, UnsetType
from msgspec.json import Encoder

from cartd.checksum import hash_name
from cartd.errors import Forbidden
from cartd.model import Cart, CartFile, CartStatus, FileStatus, Outcome, Viewer
from cartd.status.checksums import encode_lines, line_format
from cartd.status.document import CartList, File, Hash
from cartd.status.documents import StatusDocuments
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


@dataclass(frozen=True, slots=True)
class CartQuery:
    """Which carts are wanted."""

    limit: int
    """At most so many."""
    status: CartStatus | None = None
    """Only those with this status."""
    partial: bool = False
    """Only partial ones."""
    label: str | None = None
    """Only those with this label."""
    owner: str | None = None
    """Only those of this user."""
    before: int | None = None
    """Only those that are older than the cart of this id."""


class CartLists:
    """Lists carts."""

    def __init__(
        self, store: Store, documents: StatusDocuments, *, base: str, without_owner: bool
    ) -> None:
        """``base`` is the beginning of URLs, and ends in ``/``.

        ``without_owner``: whether carts are listed for clients that are not authenticated.
        """
        self._store = store
        self._documents = documents
        self._base = base
        self._without_owner = without_owner

    async def page(self, viewer: Viewer, query: CartQuery) -> CartList:
        """Return a page of the carts that ``viewer`` may see.

        :raises Forbidden: ``viewer`` may not list these carts.
        """
        if viewer.owner is None and not self._without_owner:
            raise Forbidden(
                "Carts are not listed without authentication, as a uid may be a secret; the setting"
                " [page] list permits it"
            )
        if not viewer.sees_all and query.owner not in (None, viewer.owner):
            raise Forbidden("Only an admin may list the carts of other users")
        ids = await self._store.statuses.newest(
            owner=query.owner if viewer.sees_all else viewer.owner,
            status=query.status,
            partial=query.partial,
            label=query.label,
            before=query.before,
            limit=query.limit + 1,
        )
        documents = await self._documents.for_carts(ids[: query.limit])
        found = [documents[cart_id] for cart_id in ids if cart_id in documents]
        return CartList(
            # A cart may have been deleted since its id was read.
            carts=[each for each in found if each.status is not CartStatus.DELETED],
            next=self._next(query, ids[query.limit - 1]) if len(ids) > query.limit else UNSET,
        )

    def _next(self, query: CartQuery, last: int) -> str:
        status = Outcome.PARTIAL if query.partial else query.status
        asked = {"status": status, "label": query.label, "owner": query.owner}
        given = {name: value for name, value in asked.items() if value is not None}
        page = urlencode({**given, "after": last, "limit": query.limit})
        return f"{self._base}-/carts?{page}"


class FileLists:
    """Makes lists of files, as JSON and as checksum files."""

    def __init__(self, store: Store, *, base: str) -> None:
        """``base`` is the beginning of URLs, and ends in ``/``."""
        self._store = store
        self._base = base
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
                end = b'],"next":' + _json.encode(self._next(cart, query, last)) + b"}"
        yield text + end

    async def lines(self, cart: Cart, query: FileQuery) -> AsyncGenerator[bytes, None]:
        """Yield the files as lines of one JSON object each."""
        with self._counted():
            async for files in self._pieces(cart.id, query):
                yield _json.encode_lines(list(map(file_document, files)))

    async def checksums(self, cart: Cart, hash_type: str | None) -> AsyncGenerator[bytes, None]:
        """Yield the staged files as lines of a checksum file; see :func:`line_format`.

        :raises NoCommonHash: not every staged file has the hash ``hash_type``, a canonical name.
        """
        line = line_format(await self._store.statuses.hash_types(cart.id), hash_type)
        with self._counted():
            async for files in self._pieces(cart.id, FileQuery(status=FileStatus.STAGED)):
                yield encode_lines(line, files)

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

    def _next(self, cart: Cart, query: FileQuery, last: int) -> str:
        """Return the URL of the files after the position ``last``, of the same cart only."""
        status = {} if query.status is None else {"status": query.status.value}
        asked = urlencode({**status, "after": last, "limit": query.limit, "cart": cart.id})
        return f"{self._base}-/carts/{quote(cart.uid, safe='')}/files?{asked}"

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


def file_document(file: CartFile) -> File:
    """Return the document of a file."""
    return File(
        position=file.position,
        id=file.archive_id,
        path=file.path,
        size=UNSET if file.size is None else file.size,
        mtime=_time(file.mtime),
        hashtype=hash_name(file.hash_type),
        hashsum=file.hash_sum or UNSET,
        also=_also(file),
        status=file.status,
        error=file.error or UNSET,
        problem=file.problem or UNSET,
    )


def _also(file: CartFile) -> Hash | UnsetType:
    if file.also_hash_type is None or file.also_hash_sum is None:
        return UNSET
    return Hash(hashtype=hash_name(file.also_hash_type), hashsum=file.also_hash_sum)


def _time(seconds: int | None) -> datetime | UnsetType:
    """Return the time; UNSET if it is unknown, or in a year that RFC 3339 cannot express."""
    if seconds is None:
        return UNSET
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return UNSET
