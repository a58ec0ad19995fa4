"""The bytes of a download in order, by one request or several ranges at once.

A connection that breaks is replaced, from the byte at which it broke, with ``If-Range``: parts of
two versions are never joined.  What a server, or a proxy before it, says of the part that it sends
must fit to what was asked for, or it is an error: a part of the wrong place is not written.

Memory is bounded: the parts that wait for their turn have at most ``MAX_WINDOW`` bytes, and half a
per cent of the download, which is what a killed client fetches again.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Any

from cartd_client.errors import (
    CartChanged,
    InvalidResponse,
    RequestRejected,
    ServiceUnavailable,
)
from cartd_client.transport import Response, Transport

MAX_WINDOW = 16 << 20
MIN_PART = 16 << 10
MAX_PART = 512 << 10
MIN_RANGE = 32 << 10
MAX_RANGE = 8 << 20
FIRST_RANGE = 256 << 10
MAX_JOBS = 32
MAX_EMPTY = 20
"""Answers in a row without a byte, after which a server is taken for broken."""


class CannotResume(ServiceUnavailable):
    """The download broke off, and the service cannot continue one: it has to start over."""


class RateLimit:
    """A token bucket, for several threads."""

    def __init__(self, rate: float | None) -> None:
        """``rate``: bytes per second; None: no limit."""
        self._rate = rate
        self._lock = threading.Lock()
        self._free = time.monotonic()

    def part(self, size: int) -> int:
        """Return up to ``size``: what to read at once, so that the pace is even."""
        return size if self._rate is None else max(1, min(size, int(self._rate / 8)))

    def take(self, count: int, stopped: threading.Event) -> None:
        """Wait until ``count`` more bytes may have arrived."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now - 0.25) + count / self._rate
            delay = self._free - now
        if delay > 0:
            stopped.wait(delay)


@dataclass(frozen=True)
class _Answer:
    """A checked answer."""

    response: Response
    skip: int
    """Bytes at the beginning of its body that were not asked for: a proxy, or the service,
    ignored the range."""


class RangeReader:
    """One download; use :meth:`open`, then :meth:`parts`, and :meth:`close`."""

    def __init__(
        self,
        transport: Transport,
        url: str,
        query: Mapping[str, str],
        *,
        jobs: int = 1,
        limit: RateLimit | None = None,
    ) -> None:
        self._transport = transport
        self._url = url
        self._query = dict(query)
        self._jobs = max(1, min(jobs, MAX_JOBS))
        self._limit = limit or RateLimit(None)
        self._stopped = threading.Event()
        self._responses: set[Response] = set()
        self._lock = threading.Lock()
        self._first: _Answer | None = None
        self._first_end: int | None = None
        self._ignores_ranges = False
        self.start = 0
        self.etag: str | None = None
        self.length: int | None = None
        """Bytes of the whole download; None if the service does not say it."""
        self.has_ranges = False
        """Whether the service can continue the download at any byte."""

    def open(self, start: int = 0, etag: str | None = None, length: int | None = None) -> None:
        """Ask for the bytes from ``start`` on, if there are any, and learn the facts.

        :raises CartChanged: the cart has another ETag or length.
        """
        self.start, self.etag, self.length = start, etag, length
        if length is not None and start >= length:
            self.has_ranges = True
            return
        self._first_end = start + FIRST_RANGE if self._jobs > 1 else None
        self._first = self._request(start, self._first_end, is_first=not start)
        if self._first_end is not None and not self.has_ranges and not self._ignores_ranges:
            # Its parts cannot be distinguished from those of another version.
            self._first.response.close()
            self._first = self._request(start, None)

    def parts(self) -> Iterator[bytes]:
        """Yield all bytes from ``start`` on, in order.

        :raises CannotResume: the download broke off, and cannot be continued.
        """
        if self.length is not None and self.start >= self.length:
            return
        if self._jobs == 1 or self.length is None or not self.has_ranges or self._ignores_ranges:
            yield from self._by_one_request()
        else:
            yield from self._by_ranges(self.length)

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of one range, in the calling thread."""
        return self._read(start, end, None)

    def close(self) -> None:
        """End all requests; threads end soon afterwards."""
        self._stopped.set()
        with self._lock:
            responses = tuple(self._responses)
        for response in responses:
            response.abort()
        if self._first is not None:
            self._first.response.close()

    # One request

    def _by_one_request(self) -> Iterator[bytes]:
        window = MAX_WINDOW
        if self.length is not None:
            window = min(window, self.length // 400)
        size = max(MIN_PART, min(MAX_PART, window // 8))
        queue: Queue[bytes | BaseException | None] = Queue(max(2, window // size))

        def fetch() -> None:
            last: BaseException | None = None
            try:
                for part in self._read(self.start, self.length, self._take_first(), size):
                    self._put(queue, part)
            except BaseException as error:
                last = error
            self._put(queue, last)

        threading.Thread(target=fetch, name="fetch", daemon=True).start()
        while True:
            try:
                # With a time-out, Ctrl-C is noticed on Windows, too.
                item = queue.get(timeout=1)
            except Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _put(self, queue: Queue[Any], item: bytes | BaseException | None) -> None:
        while not self._stopped.is_set():
            with suppress(Full):
                queue.put(item, timeout=1)
                return

    # Several ranges

    def _by_ranges(self, length: int) -> Iterator[bytes]:
        ranges = _Ranges(self.start, self._first_end or self.start, length, self._jobs)
        changed = threading.Condition()
        ready: dict[int, list[bytes]] = {}
        failures: list[BaseException] = []

        def fetch_one(number: int) -> None:
            parts = list(self._read(*ranges[number], self._take_first() if number == 0 else None))
            with changed:
                ready[number] = parts
                changed.notify_all()

        def fetch() -> None:
            try:
                while (number := self._next_range(ranges, changed)) is not None:
                    fetch_one(number)
            except BaseException as error:
                with changed:
                    failures.append(error)
                    changed.notify_all()

        for number in range(self._jobs):
            threading.Thread(target=fetch, name=f"fetch-{number}", daemon=True).start()
        for number in range(ranges.count):
            with changed:
                while number not in ready:
                    if failures:
                        raise failures[0]
                    changed.wait(1)
                parts = ready.pop(number)
                ranges.wanted = number + 1
                changed.notify_all()
            yield from parts

    def _next_range(self, ranges: _Ranges, changed: threading.Condition) -> int | None:
        """Return the number of the next range when it is in the window; None at the end."""
        with changed:
            number = ranges.next
            if number >= ranges.count:
                return None
            ranges.next += 1
            while number > ranges.wanted + self._jobs and not self._stopped.is_set():
                changed.wait(1)
        return None if self._stopped.is_set() else number

    # Requests

    def _take_first(self) -> _Answer | None:
        first, self._first = self._first, None
        return first

    def _read(
        self, start: int, end: int | None, answer: _Answer | None, size: int = MAX_PART
    ) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to ``end`` (None: to the end of an unknown length)."""
        backoff = self._transport.backoff()
        at, empty = start, 0
        size = self._limit.part(size)
        while (end is None or at < end) and not self._stopped.is_set():
            before, problem = at, None
            try:
                if answer is None:
                    answer = self._request(at, end)
                for part in self._stream(answer, size, end if end is None else end - at):
                    at += len(part)
                    yield part
                    self._limit.take(len(part), self._stopped)
            except CannotResume:
                raise
            except ServiceUnavailable as error:
                problem = error
            if at == end or self._stopped.is_set() or (end is None and problem is None):
                return
            if at > before:
                backoff.succeeded()
                empty = 0
            elif answer is not None:
                empty += 1
            answer = None
            if problem is not None or at == before:  # else only a part was asked for, or sent
                backoff.failed(self._repeatable(at, problem, empty))

    def _repeatable(
        self, at: int, problem: ServiceUnavailable | None, empty: int
    ) -> ServiceUnavailable:
        """Return the reason of a further request; raise it if there must be none."""
        if not self.has_ranges:
            raise CannotResume(
                f"The download broke off at byte {at:,}, and this service cannot continue one:"
                f" it has to start over ({problem})"
            )
        reason = problem or ServiceUnavailable(f"{self._url}: the answer has no content")
        if empty >= MAX_EMPTY:
            raise reason
        return reason

    def _stream(self, answer: _Answer, size: int, limit: int | None) -> Iterator[bytes]:
        """Yield up to ``limit`` bytes of the body, from where it was asked for."""
        response, skip = answer.response, answer.skip
        with self._lock:
            self._responses.add(response)
        try:
            with response:
                for part in response.stream(size):
                    if self._stopped.is_set():
                        return
                    if skip:
                        skip, part = max(0, skip - len(part)), part[skip:]
                    if limit is not None:
                        part = part[:limit]
                        limit -= len(part)
                    if part:
                        yield part
                    if limit == 0:
                        return
        finally:
            with self._lock:
                self._responses.discard(response)

    def _request(self, start: int, end: int | None, *, is_first: bool = False) -> _Answer:
        """Return the answer that has the bytes from ``start`` on; it may have more."""
        headers = {}
        if start or (end is not None and end != self.length):
            last = "" if end is None else end - 1
            headers["Range"] = f"bytes={start}-{last}"
            if self.etag is not None:
                headers["If-Range"] = self.etag
        try:
            response = self._transport.request(
                "GET", self._url, query=self._query, headers=headers, stream=True
            )
        except RequestRejected as error:
            if error.status == 416:
                raise CartChanged(
                    f"{self._url}: the cart has changed: it has no byte {start:,} any more"
                ) from error
            raise
        try:
            return self._checked(response, start, end, is_first, "Range" in headers)
        except BaseException:
            response.close()
            raise

    def _checked(
        self, response: Response, start: int, end: int | None, is_first: bool, is_range: bool
    ) -> _Answer:
        headers = response.headers
        etag = headers.get("ETag")
        if etag is not None and not re.fullmatch(r'"[\x21\x23-\x7e\x80-\xff]*"', etag):
            etag = None  # a weak one does not identify bytes
        body = _number(headers.get("Content-Length"))
        if headers.get("Content-Encoding", "identity") != "identity":
            raise InvalidResponse(f"{self._url}: the answer is compressed, which was not asked for")
        if response.status == 206:
            length = self._check_part(headers.get("Content-Range", ""), start, end, body)
        elif response.status == 200:
            length = body
        else:
            raise InvalidResponse(f"{self._url}: the service answers {response.status}")
        if is_first and self.etag is None and self.length is None:
            self.etag, self.length = etag, length
            accepts = response.status == 206 or headers.get("Accept-Ranges", "") == "bytes"
            self.has_ranges = etag is not None and length is not None and accepts
        else:
            self._check_same(etag, length, is_whole=response.status == 200)
            self.has_ranges = True
        if response.status == 200 and is_range:
            self._ignores_ranges = True
        return _Answer(response, start if response.status == 200 else 0)

    def _check_same(self, etag: str | None, length: int | None, *, is_whole: bool) -> None:
        if self.etag is None and is_whole:
            raise CannotResume(
                "The download broke off, and this service cannot continue one: it has to start over"
            )
        if etag != self.etag and (etag is not None or is_whole):
            raise CartChanged(
                f"{self._url}: the cart has changed since the download began: its ETag was"
                f" {self.etag}, and is {etag}",
                etag=etag,
            )
        if length is not None and length != self.length:
            raise InvalidResponse(
                f"{self._url}: the download has {length:,} bytes now, and had {self.length:,}"
                " with the same ETag"
            )

    def _check_part(
        self, content_range: str, start: int, end: int | None, body: int | None
    ) -> int | None:
        """Return the length of the whole; the part must be what was asked for, or its beginning."""
        match = re.fullmatch(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", content_range)
        if not match:
            raise InvalidResponse(f"{self._url}: a part without a valid Content-Range")
        first, last = int(match[1]), int(match[2])
        length = None if match[3] == "*" else int(match[3])
        limit = min(end or length or last + 1, length or last + 1)
        if first != start or not first <= last < limit:
            raise InvalidResponse(
                f"{self._url}: asked for the bytes from {start}, the service sends"
                f" {printable_range(content_range)}"
            )
        if body is not None and body != last + 1 - first:
            raise InvalidResponse(
                f"{self._url}: a part of {body} bytes is announced as"
                f" {printable_range(content_range)}"
            )
        return length


class _Ranges:
    """The ranges of a download: the one that is asked for already, and others of one size."""

    def __init__(self, start: int, first_end: int, length: int, jobs: int) -> None:
        window = min(MAX_WINDOW, max(length // 200, jobs * MIN_RANGE))
        self._size = max(MIN_RANGE, min(MAX_RANGE, window // (jobs + 1)))
        self._start = start
        self._first_end = min(first_end, length)
        self._length = length
        self.count = 1 + -(-(length - self._first_end) // self._size)
        self.next = 0
        """The next range to ask for."""
        self.wanted = 0
        """The next range to pass on."""

    def __getitem__(self, number: int) -> tuple[int, int]:
        if number == 0:
            return self._start, self._first_end
        at = self._first_end + (number - 1) * self._size
        return at, min(at + self._size, self._length)


def printable_range(content_range: str) -> str:
    """Return a checked Content-Range for a message."""
    return repr(content_range[:100])


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch("[0-9]{1,19}", text) else None
