"""The events of carts: one watcher polls the store for all open streams of this process.

Strategy: a poll reads the versions of all watched carts in one query; the document of a changed
cart is built and encoded once, and every stream of the cart gets the same bytes.  A stream keeps
only the newest event that its client has not taken, so a slow client costs no memory.  The id of an
event names the cart and its version: a client that comes back needs no log of events, since the
present document replaces all that it has missed.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from msgspec.json import encode
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from cartd.errors import CartNotFound, Stopping, Unavailable
from cartd.model import MAX_UID_LENGTH, UNFINISHED, FileStatus, Viewer, uid_may_be_stored
from cartd.status.document import FailedFile, Status
from cartd.status.documents import failed_file
from cartd.store import Store

POLL_INTERVAL = 0.4
"""Seconds between two polls."""
MIN_INTERVAL = 1.0
"""Seconds between two status events of a cart; with the poll, a change is sent within 1.5 s."""
COMMENT_INTERVAL = 15.0
"""Seconds of silence after which a stream gets a comment: proxies close a silent connection."""
REFRESH_INTERVAL = 15.0
"""Seconds after which the document of an unchanged cart is built again: others change its place in
the queue, and time changes its estimate."""
FAILURE_INTERVAL = 15.0
"""Seconds until the next poll after an unexpected failure."""
MAX_DURATION = 900.0
"""Seconds after which a stream is closed, for its client to reconnect.  So a client that has lost
its access loses the stream, and one that no longer reads does not keep it for ever."""
MAX_FAILURES = 100
"""Failed files of a cart that are reported, the first ones of the manifest."""
BATCH = 50
"""Carts whose documents are built at a time."""
SLICE = 5
"""Streams that are written to before the reactor handles other events."""

RETRY = b"retry: 3000\n\n"
"""Tells the client to reconnect after so many milliseconds."""
COMMENT = b":\n\n"
OUTAGE_COMMENT = b": the database is unavailable\n\n"

_EVENT_ID = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")

log = Logger()


class Documents(Protocol):
    """What the events use of :class:`cartd.status.documents.StatusDocuments`."""

    async def for_carts(self, cart_ids: Sequence[int]) -> dict[int, Status]:
        """Return the documents of these carts by their ids; unknown ids lack."""


class EventId(NamedTuple):
    """The id of an event.  Carts that are posted under one uid may have the same versions."""

    cart_id: int
    version: int

    def __str__(self) -> str:
        return f"{self.cart_id}-{self.version}"


def parse_event_id(text: str | None) -> EventId | None:
    """Return what ``text`` stands for; None if it is not the id of an event."""
    found = None if text is None else _EVENT_ID.fullmatch(text)
    return None if found is None else EventId(int(found[1]), int(found[2]))


class Subscription:
    """The events of one stream that its client has not taken yet: at most the newest status.

    Use :meth:`Events.subscribe` to get one.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.taken_at = clock.seconds()
        """When the client last got something."""
        self.ends_at = self.taken_at + MAX_DURATION
        self._files: list[bytes] = []
        self._status = b""
        self._comment = b""
        self._complete = False
        """Whether ``_status`` is the last event."""
        self._closed = False
        self._paused = False
        self._wakeup: Deferred[None] | None = None

    @property
    def paused(self) -> bool:
        """Whether the client has not received what was taken before."""
        return self._paused

    @property
    def closed(self) -> bool:
        """Whether it was closed, so that the client should reconnect."""
        return self._closed

    def pause(self) -> None:
        """Hold back events until :meth:`resume`."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._wake()

    def offer(self, files: Sequence[bytes], status: bytes, *, last: bool = False) -> None:
        """Replace the status that was not taken, and add events of failed files.

        Failures beyond ``MAX_FAILURES`` are dropped; the status counts them.
        """
        self._files += files[: MAX_FAILURES - len(self._files)]
        self._status, self._complete = status, last
        self._wake()

    def comment(self, text: bytes) -> None:
        """Offer a comment, which is dropped if anything else is offered."""
        self._comment = text
        self._wake()

    def close(self) -> None:
        """End the events at once, whether or not the client has taken the last one."""
        self._closed = True
        self._wake()

    async def next(self) -> bytes | None:
        """Wait for the next events and take them; None after the last, or once it is closed."""
        while not self._closed:
            data = b"".join((*self._files, self._status)) or self._comment
            if data and not self._paused:
                self._files, self._status, self._comment = [], b"", b""
                self.taken_at = self._clock.seconds()
                return data
            if self._complete and not data:
                break
            self._wakeup = Deferred()
            try:
                await self._wakeup
            finally:
                self._wakeup = None
        return None

    def _wake(self) -> None:
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is not None:
            wakeup.callback(None)


@dataclass(slots=True)
class _Watched:
    """A cart that has streams."""

    id: EventId
    """That of its newest event."""
    data: bytes
    """Its document."""
    failed: int
    """The number of its failed files."""
    reported: frozenset[int]
    """The positions of the failed files that are known."""
    next_at: float
    """When the next status event may be sent."""
    refresh_at: float
    subscriptions: set[Subscription] = field(default_factory=set)

    @property
    def event(self) -> bytes:
        return _event(b"status", self.data, self.id)


class Events:
    """Watches carts and hands their events to subscriptions, at most ``limit`` of them."""

    def __init__(
        self, store: Store, documents: Documents, clock: IReactorTime, *, limit: int
    ) -> None:
        self._store = store
        self._documents = documents
        self._clock = clock
        self._limit = limit
        self._count = 0
        self._open: set[Subscription] = set()
        self._watched: dict[int, _Watched] = {}
        self._stopped = False
        self._outage = False
        self._timer: IDelayedCall | None = None
        self._poll_at = 0.0
        self._offered = 0
        """Events handed over, of all carts."""
        self._polling: Deferred[None] | None = None

    @property
    def count(self) -> int:
        """The number of open streams."""
        return self._count

    @asynccontextmanager
    async def subscribe(
        self, viewer: Viewer, uid: str, seen: EventId | None
    ) -> AsyncIterator[Subscription | None]:
        """Yield the events of the newest cart of ``uid`` that ``viewer`` may see.

        The first is there at once.  None if there will be none: the cart is finished, and ``seen``,
        the id of the last event that the client has, is that of its end.

        :raises CartNotFound: there is no such cart.
        :raises Unavailable: the service is stopping, or the limit is reached.
        """
        self._check_limit()
        self._count += 1
        try:
            cart_id = await self._find(viewer, uid)
            finished = await self._watch(cart_id, uid)
            if finished is None:
                with self._joined(cart_id) as subscription:
                    yield subscription
            elif (last := EventId(cart_id, finished.version)) == seen:
                yield None
            else:
                with self._opened() as subscription:
                    event = _event(b"end", encode(finished), last)
                    subscription.offer([], event, last=True)
                    yield subscription
        finally:
            self._count -= 1

    def stop(self) -> None:
        """End all streams at once, and reject new ones."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._polling is not None:
            self._polling.cancel()
        for subscription in list(self._open):
            subscription.close()

    def _check_limit(self) -> None:
        if self._stopped:
            raise Stopping("The service is stopping; try again later")
        if self._count >= self._limit:
            raise Unavailable(
                f"The limit of {self._limit} event streams is reached (server.max_event_streams);"
                " poll the status document instead, or retry later",
                limit="server.max_event_streams",
            )

    async def _find(self, viewer: Viewer, uid: str) -> int:
        found = uid_may_be_stored(uid)
        cart = await self._store.carts.newest_for(viewer, uid) if found else None
        if cart is None:
            raise _not_found(uid)
        return cart.id

    async def _watch(self, cart_id: int, uid: str) -> Status | None:
        """Watch the cart from now on; if it is finished, return its document instead."""
        if cart_id in self._watched:
            return None
        document = (await self._documents.for_carts([cart_id])).get(cart_id)
        if document is None:
            raise _not_found(uid)
        if document.status not in UNFINISHED:
            return document
        failures = await self._failures(cart_id) if document.files.failed else []
        now = self._clock.seconds()
        watched = _Watched(
            EventId(cart_id, document.version),
            encode(document),
            document.files.failed,
            frozenset(failure.position for failure in failures),
            now + MIN_INTERVAL,
            now + REFRESH_INTERVAL,
        )
        self._watched.setdefault(cart_id, watched)
        return None

    @contextmanager
    def _joined(self, cart_id: int) -> Iterator[Subscription]:
        """Yield a subscription to a watched cart; the last one ends the watch."""
        watched = self._watched[cart_id]
        with self._opened() as subscription:
            subscription.offer([], watched.event)
            watched.subscriptions.add(subscription)
            try:
                yield subscription
            finally:
                watched.subscriptions.discard(subscription)
                if not watched.subscriptions and self._watched.get(cart_id) is watched:
                    del self._watched[cart_id]

    @contextmanager
    def _opened(self) -> Iterator[Subscription]:
        subscription = Subscription(self._clock)
        self._open.add(subscription)
        if self._stopped:
            subscription.close()
        elif self._timer is None:
            self._timer = self._clock.callLater(POLL_INTERVAL, self._tick)
        try:
            yield subscription
        finally:
            self._open.discard(subscription)

    # --- the watcher

    def _tick(self) -> None:
        """Send comments, and poll unless the last poll still waits for the database."""
        self._timer = None
        now = self._clock.seconds()
        for subscription in list(self._open):
            if now >= subscription.ends_at:
                subscription.close()
            elif now - subscription.taken_at >= COMMENT_INTERVAL:
                subscription.comment(OUTAGE_COMMENT if self._outage else COMMENT)
        if self._open:
            self._timer = self._clock.callLater(POLL_INTERVAL, self._tick)
        if self._watched and self._polling is None and now >= self._poll_at:
            polling = self._polling = Deferred.fromCoroutine(self._poll())
            polling.addBoth(self._polled)

    def _polled(self, _: None) -> None:
        self._polling = None

    async def _poll(self) -> None:
        try:
            await self._send_changes()
        except CancelledError:
            pass
        except Unavailable:
            if not self._outage:
                self._outage = True
                for subscription in list(self._open):
                    subscription.comment(OUTAGE_COMMENT)
        except Exception:
            self._poll_at = self._clock.seconds() + FAILURE_INTERVAL
            log.failure("Watching carts failed; retrying in {s:g} s", s=FAILURE_INTERVAL)
        else:
            self._outage = False

    async def _send_changes(self) -> None:
        versions = await self._store.statuses.versions(list(self._watched))
        now = self._clock.seconds()
        due = [
            cart_id
            for cart_id, watched in self._watched.items()
            if now >= watched.next_at
            and (versions.get(cart_id) != watched.id.version or now >= watched.refresh_at)
        ]
        for start in range(0, len(due), BATCH):
            batch = due[start : start + BATCH]
            documents = await self._documents.for_carts(batch)
            for cart_id in batch:
                await self._send(cart_id, documents.get(cart_id))

    async def _send(self, cart_id: int, document: Status | None) -> None:
        """Send what has changed of a cart; without a document, it no longer exists."""
        watched = self._watched.get(cart_id)
        if watched is None:
            return  # its clients have left
        if document is None:
            del self._watched[cart_id]
            for subscription in list(watched.subscriptions):
                subscription.close()
            return
        new: list[bytes] = []
        if document.files.failed != watched.failed:
            failures = await self._failures(cart_id)
            new = [
                _event(b"file", encode(failure))
                for failure in failures
                if failure.position not in watched.reported
            ]
            watched.reported = frozenset(failure.position for failure in failures)
            watched.failed = document.files.failed
        data, now = encode(document), self._clock.seconds()
        changed = data != watched.data
        watched.id, watched.data = EventId(cart_id, document.version), data
        watched.refresh_at = now + REFRESH_INTERVAL
        if document.status not in UNFINISHED:
            # A stream that is opened from now on gets the last event by itself.
            self._watched.pop(cart_id, None)
            event = _event(b"end", data, watched.id)
            await self._hand_over(watched.subscriptions, new, event, last=True)
        elif changed:
            watched.next_at = now + MIN_INTERVAL
            await self._hand_over(watched.subscriptions, new, watched.event, last=False)

    async def _hand_over(
        self, subscriptions: Iterable[Subscription], new: list[bytes], event: bytes, *, last: bool
    ) -> None:
        for subscription in list(subscriptions):
            subscription.offer(new, event, last=last)
            self._offered += 1
            if not self._offered % SLICE:
                await self._yield()

    async def _yield(self) -> None:
        """Let the reactor handle other events."""
        waiting: Deferred[None] = Deferred()
        call = self._clock.callLater(0, waiting.callback, None)
        try:
            await waiting
        finally:
            if call.active():
                call.cancel()

    async def _failures(self, cart_id: int) -> list[FailedFile]:
        files = await self._store.statuses.files(
            cart_id, status=FileStatus.ERROR, limit=MAX_FAILURES
        )
        return [failed_file(file) for file in files]


def _event(name: bytes, data: bytes, event_id: EventId | None = None) -> bytes:
    """Encode an event; ``data`` is JSON, which contains no line break."""
    line = b"" if event_id is None else f"id: {event_id}\n".encode()
    return b"%sevent: %s\ndata: %s\n\n" % (line, name, data)


def _not_found(uid: str) -> CartNotFound:
    return CartNotFound(f"No cart with uid {uid[:MAX_UID_LENGTH]} found")
