"""A request: its body is kept, or refused as soon as it is known that it cannot be taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web.server import Request

from cartd.auth import Guard
from cartd.errors import CartdError
from cartd.model import User
from cartd.server.limits import named
from cartd.server.short_answers import Headers


class LimitedRequest(Request):
    """A request on a :class:`cartd.server.channel.LimitedChannel`."""

    channel: Any
    content: Any
    who: User | None = None
    """Who asks; none where nobody is asked who they are."""
    _received = 0
    _refused = False
    _asking: Deferred[None] | None = None
    """While it is found out who asks; the body waits for that."""
    _whole: tuple[bytes, bytes, bytes] | None = None
    """What came to its end meanwhile."""

    def gotLength(self, length: int | None) -> None:
        guard: Guard | None = self.channel.guard
        if length != 0 and guard is not None:
            self.who = guard.known(self)
            if self.who is None:
                self._ask(guard)
        if length is not None and length > self._most() and not self._refused:
            self._refuse_as_too_long()
        with self._disk():
            super().gotLength(0 if self._refused else length)

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._asking is not None:
            self.channel.hold_body()  # a connection that could be written to again reads, too
        if self._received > self._most() and not self._refused:
            self._refuse_as_too_long()
        if not self._refused:
            with self._disk():
                super().handleContentChunk(data)
                self.content.flush()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self._refused:
            return
        if self._asking is not None:
            self._whole = command, path, version
        else:
            super().requestReceived(command, path, version)

    def _handleStar(self) -> None:
        # Twisted's own answer has no body where it is an error.
        if self.method == b"OPTIONS":
            super()._handleStar()
        else:
            self.render(self.channel.site.getResourceFor(self))

    def connectionLost(self, reason: Failure) -> None:
        self._stop_asking()
        super().connectionLost(reason)

    def waits_for_client(self, waits: bool) -> None:
        if self.channel is not None:
            self.channel.wait_for_client(waits, self.sentLength)

    def _most(self) -> int:
        most: int = self.channel.limits.max_manifest
        return most

    def _ask(self, guard: Guard) -> None:
        """Find out who sends a body; until then no more of it is read than has come already."""
        expects = self.requestHeaders.getRawHeaders(b"expect", [])
        self.requestHeaders.removeHeader(b"expect")  # else it would be told to go on
        self.channel.hold_body()
        asking = Deferred.fromCoroutine(self._admit(guard, expects))
        if not asking.called:
            self._asking = asking

    async def _admit(self, guard: Guard, expects: Sequence[bytes]) -> None:
        try:
            found = await guard.find_out(self)
        except CancelledError:
            return
        self._asking = None
        if isinstance(found, CartdError):
            self._refuse(found.code, str(found), headers=guard.headers(found))
        else:
            self.who = found
        self.channel.go_on(expects if not (self._received or self._refused) else [])
        if self._whole is not None:
            self.requestReceived(*self._whole)

    def _stop_asking(self) -> None:
        if self._asking is not None:
            asking, self._asking = self._asking, None
            asking.cancel()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Around what may meet the disk: a long body is kept in the system's temporary files."""
        try:
            yield
        except OSError as error:
            if self.content is not None:
                with suppress(OSError):
                    self.content.close()
            self.content = BytesIO()
            self._refuse(507, f"The body cannot be kept: {error.strerror}")

    def _refuse_as_too_long(self) -> None:
        limit = named("max_manifest")
        self._refuse(413, f"The body is over {self._most()} bytes ({limit})", limit)

    def _refuse(
        self, code: int, message: str, limit: str | None = None, headers: Headers = ()
    ) -> None:
        """Answer now (for 413, RFC 9110, section 15.5.14), and close when the client has read."""
        self._refused = True
        if self._asking is not None:
            self._stop_asking()
            self.channel.go_on([])
        # No "100 Continue" to a client that asks first.
        self.requestHeaders.removeHeader(b"expect")
        self.channel.refuse(code, message, limit, headers)
