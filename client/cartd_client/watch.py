"""Watches a cart: by the event stream, else by long polling, else by HEAD.

Strategy: the event stream of cartd (server-sent events) tells of a change within two seconds.
Where it is full, or a proxy does not let it pass, the status document is polled with ``Prefer:
wait``.  A Pacifica Cartd has neither; there, HEAD is polled.  A stream that breaks off is opened
again, and continues with the present status.
"""

from __future__ import annotations

import http
import re
import time
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from cartd_client.errors import (
    CartFailed,
    InvalidResponse,
    NoSuchCart,
    NotSupported,
    ServiceUnavailable,
    WaitTimeout,
)
from cartd_client.model import Status
from cartd_client.transport import Response, Transport, error_of, parse_json, quote_segment

LONG_POLL = 30
"""Seconds that the service is asked to hold a response."""
MIN_INTERVAL = 1.0
"""Seconds between two requests at least, whatever the service does."""
MAX_INTERVAL = 10.0
"""Seconds between two requests at most, where the service does not hold a response."""
EVENT_SILENCE = 40.0
"""Seconds of silence after which a stream counts as broken; the service sends comments."""
MAX_EVENT = 4 << 20
"""Bytes of an event."""
_ID = re.compile(rb"[!-~]{0,200}")
"""An id that can be sent back in a header."""
_NO_STREAM = frozenset(
    {
        http.HTTPStatus.TOO_MANY_REQUESTS,
        http.HTTPStatus.INTERNAL_SERVER_ERROR,
        http.HTTPStatus.SERVICE_UNAVAILABLE,
    }
)
"""With these, the status document may still be there."""
_NUMBERS = {
    ("files", "total"): "X-Pacifica-Files-Total",
    ("files", "staged"): "X-Pacifica-Files-Staged",
    ("files", "failed"): "X-Pacifica-Files-Failed",
    ("bytes", "total"): "X-Pacifica-Bytes-Total",
    ("bytes", "staged"): "X-Pacifica-Bytes-Staged",
    ("download", "length"): "X-Pacifica-Tar-Length",
}

_pause = time.sleep


@dataclass(frozen=True)
class Event:
    """A server-sent event."""

    name: str
    data: bytes
    id: str | None
    """The last id that the stream has had, as a client sends it in ``Last-Event-ID``."""


class EventParser:
    """Parses an event stream (HTML standard, section 9.2): bytes in, events out."""

    def __init__(self) -> None:
        self.last_id: str | None = None
        self._rest = b""
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False

    def feed(self, part: bytes) -> Iterator[Event]:
        """Yield the events that ``part`` completes; raise InvalidResponse if one is too large."""
        if self._after_cr and part:
            part = part[1:] if part.startswith(b"\n") else part
            self._after_cr = False
        if part:
            self._after_cr = part.endswith(b"\r")
        *lines, self._rest = (
            (self._rest + part).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        )
        if len(self._rest) + self._size > MAX_EVENT:
            raise InvalidResponse(f"An event of the service has more than {MAX_EVENT} bytes")
        for line in lines:
            event = self._line(line)
            if event is not None:
                yield event

    def _line(self, line: bytes) -> Event | None:
        if not line:
            event = Event(self._name or "message", b"\n".join(self._data), self.last_id)
            found = bool(self._data)
            self._name, self._data, self._size = "", [], 0
            return event if found else None
        key, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if key == b"data":
            self._size += len(value)
            self._data.append(value)
        elif key == b"event":
            self._name = value.decode(errors="replace")
        elif key == b"id" and _ID.fullmatch(value):
            self.last_id = value.decode() or None
        return None


def status(transport: Transport, uid: str, deadline: float | None = None) -> Status:
    """Return the status of a cart now; raise NoSuchCart."""
    try:
        answer = transport.request("GET", _path(uid), deadline=deadline)
        return Status.from_document(answer.json())
    except NotSupported:
        return head(transport, uid, deadline)


def head(transport: Transport, uid: str, deadline: float | None = None) -> Status:
    """Return the status of a cart as HEAD tells it, as every Cartd does; raise NoSuchCart."""
    ok = (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.INTERNAL_SERVER_ERROR)
    answer = transport.request("HEAD", quote_segment(uid), ok=ok, deadline=deadline)
    found = answer.headers.get("X-Pacifica-Status")
    message = answer.headers.get("X-Pacifica-Message", "")
    if answer.status == http.HTTPStatus.NOT_FOUND:
        raise NoSuchCart(message or f"There is no cart {uid}", status=answer.status, cart=uid)
    if found is None:
        if answer.status >= http.HTTPStatus.BAD_REQUEST:
            raise error_of(answer)
        raise InvalidResponse(f"{transport.url} is no Cartd: HEAD has no X-Pacifica-Status")
    document: dict[str, Any] = {"uid": uid, "status": found, "message": message}
    for (group, key), name in _NUMBERS.items():
        value = answer.headers.get(name, "")
        if value.isascii() and value.isdigit() and len(value) < 20:
            document.setdefault(group, {})[key] = int(value)
    failed = document.get("files", {}).get("failed")
    if found == "error":
        document["outcome"] = "failed"
    elif found == "ready":
        document["outcome"] = "partial" if failed else "complete"
    return Status.from_document(document)


def cart_failed(uid: str, last: Status | None) -> CartFailed:
    """Return the error for a cart whose last status is not ready."""
    message = last.message if last is not None else None
    return CartFailed(f"The cart {uid} is in error: {message or 'no reason given'}", cart=uid)


def watch(transport: Transport, uid: str, deadline: float | None = None) -> Iterator[Status]:
    """Yield the status of a cart now and whenever it changes, until it has ended.

    The last one is ready or in error.

    :raises WaitTimeout: it has not ended at ``deadline``, a time of ``time.monotonic``.
    :raises NoSuchCart: there is none, or it was deleted meanwhile.
    """
    last = None
    if deadline is not None and deadline <= time.monotonic():
        last = status(transport, uid)
        yield last
        if last.is_ended:
            return
    try:
        with closing(_Watch(transport, uid, deadline).statuses()) as statuses:
            for current in statuses:
                if current != last:
                    last = current
                    yield current
                if current.is_ended:
                    return
    except WaitTimeout as error:
        known = f": {last.message}" if last is not None and last.message else ""
        raise WaitTimeout(f"The cart {uid} is not ready in time{known}", cart=uid) from error


class _Watch:
    """The ways to follow one cart; each of them yields statuses without an end of its own."""

    def __init__(self, transport: Transport, uid: str, deadline: float | None) -> None:
        self._transport = transport
        self._uid = uid
        self._deadline = deadline
        self._last_id: str | None = None

    def statuses(self) -> Generator[Status, None, None]:
        """Yield statuses, the same ones again, too; the consumer stops after the last."""
        with suppress(NotSupported):
            yield from self._events()
        with suppress(NotSupported):
            yield from self._documents()
        yield from self._heads()

    def _events(self) -> Iterator[Status]:
        """Yield statuses from event streams, one after another.

        Ends if the service has too many streams, or if one has no event: the first is sent at
        once, so a proxy keeps it back.
        """
        backoff = self._transport.backoff(self._deadline)
        while True:
            events = 0
            try:
                with self._open() as answer:
                    try:
                        for current in self._stream(answer):
                            events += 1
                            backoff.succeeded()
                            yield current
                    except ServiceUnavailable:
                        if not events:
                            return
                        raise
            except ServiceUnavailable as error:
                if error.status in _NO_STREAM:
                    return
                backoff.failed(error)
            else:
                # The service closes a stream after some time.
                self._sleep(MIN_INTERVAL)

    def _open(self) -> Response:
        headers = {"Accept": "text/event-stream, application/problem+json;q=0.9"}
        if self._last_id is not None:
            headers["Last-Event-ID"] = self._last_id
        return self._transport.request(
            "GET",
            _path(self._uid) + "/events",
            headers=headers,
            stream=True,
            retry=False,
            deadline=self._deadline,
            silence=EVENT_SILENCE,
        )

    def _stream(self, answer: Response) -> Iterator[Status]:
        if answer.status == http.HTTPStatus.NO_CONTENT:
            yield status(self._transport, self._uid, self._deadline)
            return
        if not answer.headers.get("Content-Type", "").startswith("text/event-stream"):
            raise NotSupported(f"{answer.url}: the answer is no event stream")
        parser = EventParser()
        for part in answer.stream():
            for event in parser.feed(part):
                self._last_id = event.id
                if event.name in ("status", "end"):
                    yield Status.from_document(parse_json(event.data, answer.url))

    def _documents(self) -> Iterator[Status]:
        """Yield statuses from the status document, which the service holds until it changes."""
        etag: str | None = None
        interval = MIN_INTERVAL
        while True:
            headers = {"Prefer": f"wait={self._wait()}"}
            if etag is not None:
                headers["If-None-Match"] = etag
            begun = time.monotonic()
            answer = self._transport.request(
                "GET", _path(self._uid), headers=headers, deadline=self._deadline
            )
            if answer.status == http.HTTPStatus.NOT_MODIFIED and etag is not None:
                interval = min(interval * 1.5, MAX_INTERVAL)
            else:
                interval = MIN_INTERVAL
                etag = answer.headers.get("ETag")
                yield Status.from_document(answer.json())
            held = "Preference-Applied" in answer.headers
            pause = MIN_INTERVAL if held else interval
            self._sleep(pause - (time.monotonic() - begun))

    def _heads(self) -> Iterator[Status]:
        """Yield statuses from HEAD, with pauses."""
        interval = MIN_INTERVAL
        last = None
        while True:
            current = head(self._transport, self._uid, self._deadline)
            yield current
            interval = MIN_INTERVAL if current != last else min(interval * 1.5, MAX_INTERVAL)
            last = current
            self._sleep(interval)

    def _wait(self) -> int:
        if self._deadline is None:
            return LONG_POLL
        return max(1, min(LONG_POLL, int(self._deadline - time.monotonic())))

    def _sleep(self, seconds: float) -> None:
        """Sleep; raise WaitTimeout at the deadline."""
        if self._deadline is not None:
            remaining = self._deadline - time.monotonic()
            if remaining <= seconds:
                _pause(max(0.0, remaining))
                raise WaitTimeout("The time has passed")
        _pause(max(0.0, seconds))


def _path(uid: str) -> str:
    return f"-/carts/{quote_segment(uid)}"
