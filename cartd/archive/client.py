"""Client of the archive that holds the files: Pacifica's Archive Interface over HTTP, by treq.

Strategy: a body is not buffered here.  Its consumer gets a push producer that passes pauses on to
the socket.  A body ends in exactly one way (complete, lost, stalled, too slow, rejected by the
consumer, cancelled), and :meth:`_BodyReceiver._end` is the only place that reports it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from http.cookiejar import CookieJar
from typing import Any
from urllib.parse import quote

from hyperlink import EncodedURL, URLParseError
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IConsumer, IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IPolicyForHTTPS, IResponse
from zope.interface import implementer

from cartd import __version__
from cartd.archive.http_agent import Agent, Pool
from cartd.archive.http_messages import Request
from cartd.archive.responses import (
    MAX_QUOTED,
    ArchiveError,
    FileState,
    error_response,
    header_values,
    named_file,
    names_file,
    read_state,
    response_timeout,
    retry_after,
    transport_error,
)
from cartd.errors import ConfigError, one_line
from cartd.metrics import UNEXPOSED, Metrics
from cartd.tracing import trace_fields

MAX_REDIRECTS = 5

_REDIRECTS = {
    "HEAD": frozenset({301, 302, 303, 307, 308}),
    "GET": frozenset({301, 302, 303, 307, 308}),
    # 303 would turn a POST into a GET (RFC 9110, section 15.4.4), which recalls nothing.
    "POST": frozenset({301, 302, 307, 308}),
}

_PLAIN_ID = re.compile("[0-9A-Za-z_~-]+")
"""Ids that need no percent-encoding."""

_NO_COOKIES = CookieJar()
"""Otherwise treq makes an empty one for each request."""

_HEADERS = Headers({b"User-Agent": [f"cartd/{__version__}".encode()]})


class ArchiveClient:
    """Requests the state of a file, its recall from tape, and its bytes.

    ``base_url`` is ``http:`` or ``https:`` and may have a path.  ``now`` returns Unix time, for a
    Retry-After that is a date.  ``head_timeout``: seconds until the head of a response must have
    come, connecting included.  ``stall_timeout``: seconds without a byte of a body after which it
    is aborted.  ``min_rate``: bytes a second that a file must come with on the average of some
    minutes (0: any).  All three requests raise :class:`ArchiveError`; each may be cancelled, which
    closes its connection at once.  A request keeps its connection until its body has ended.
    """

    def __init__(
        self,
        client: HTTPClient,
        base_url: str,
        clock: IReactorTime,
        *,
        now: Callable[[], float],
        head_timeout: float,
        stall_timeout: float,
        min_rate: float = 0.0,
        metrics: Metrics = UNEXPOSED,
    ) -> None:
        self._client = client
        self._requests = metrics.archive_requests
        self._seconds = metrics.archive_seconds
        self._base = _base(base_url)
        self._clock = clock
        self._now = now
        self._head_timeout = head_timeout
        self._stall_timeout = stall_timeout
        self._min_rate = min_rate

    async def status(self, archive_id: str) -> FileState:
        """``HEAD /ID``: return the file's size and time, and whether it is on disk.

        Pacifica's archive interface, run with threads, may describe another file that is requested
        at the same time.  If a response names a file in an unknown way, the request is repeated.
        """
        headers = (await self._request("HEAD", archive_id)).headers
        named = named_file(headers)
        if not names_file(named, archive_id):
            headers = (await self._request("HEAD", archive_id)).headers
            again = named_file(headers)
            if again != named and not names_file(again, archive_id):
                raise ArchiveError("the archive described another file", retryable=True)
        return read_state(headers, self._now())

    async def explain(self, archive_id: str, failed: ArchiveError) -> ArchiveError:
        """Return why a HEAD failed that ``needs_explanation``: the response to a GET has a body.

        Return ``failed`` itself if that says no more.  The file that a GET sends is not read.
        """
        try:
            await self._excerpt(await self._request("GET", archive_id))
        except ArchiveError as error:
            return error if error.missing else failed
        return failed

    async def stage(self, archive_id: str) -> float | None:
        """``POST /ID``: recall the file from tape to disk.  Any 2xx accepts.

        Return the seconds of a ``Retry-After`` in the response, if it has one.
        """
        response = await self._request("POST", archive_id)
        await self._excerpt(response)
        return retry_after(response.headers, self._now())

    async def fetch(self, archive_id: str, sink: IConsumer) -> None:
        """``GET /ID``: write the file's bytes to ``sink``.

        The sink gets a push producer while bytes come, and must check their number and hash: a
        server may declare neither.  An exception of its ``write`` ends the transfer and is raised;
        ``stopProducing`` ends it as a cancel does.
        """
        response = await self._request("GET", archive_id)
        wrong = _unusable_response(response)
        if wrong is not None:
            await self._excerpt(response)
            raise wrong
        await receive(response, sink, self._clock, self._stall_timeout, self._min_rate)

    async def _request(self, method: str, archive_id: str) -> IResponse:
        """Return the first response that is 2xx; follow redirects within the same server."""
        url = self._base + _segment(archive_id)
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._response_head(method, url)
            if 200 <= response.code < 300:
                return response
            body = await self._excerpt(response)
            if response.code not in _REDIRECTS[method]:
                now = self._now()
                raise error_response(method, archive_id, response.code, response.headers, body, now)
            url = _redirected(url, response.headers)
        raise ArchiveError(
            f"the archive redirects more than {MAX_REDIRECTS} times", retryable=False
        )

    async def _response_head(self, method: str, url: str) -> IResponse:
        reactor: Any = self._clock
        pending: Deferred[Any] = self._client.request(
            method,
            _ParsedURL(url),
            headers=_HEADERS,
            cookies=_NO_COOKIES,
            allow_redirects=False,
            unbuffered=True,
            reactor=reactor,
        )
        expired, began, code = False, self._clock.seconds(), "none"

        def expire() -> None:
            nonlocal expired
            expired = True
            pending.cancel()

        timer = self._clock.callLater(self._head_timeout, expire)
        try:
            response: IResponse = await pending
            code = str(response.code)
            return response
        except CancelledError:
            if not expired:
                raise
            raise response_timeout(self._head_timeout) from None
        except Exception as error:
            known = transport_error(error, url=url)
            if known is None:
                raise
            raise known from error
        finally:
            if timer.active():
                timer.cancel()
            self._requests.inc(method, code)
            self._seconds.observe(self._clock.seconds() - began, method)

    async def _excerpt(self, response: IResponse) -> bytes:
        return await excerpt(response, self._clock, self._head_timeout)


async def explained_status(archive: ArchiveClient, archive_id: str) -> FileState:
    """As :meth:`ArchiveClient.status`; a failure without a reason is explained by a GET."""
    try:
        return await archive.status(archive_id)
    except ArchiveError as error:
        if not error.needs_explanation:
            raise
        raise await archive.explain(archive_id, error) from error


class _ParsedURL(EncodedURL):
    """A URL that holds only its text: treq needs no more of it, and would parse a plain string.

    Building one from its parts, and the text from that, costs a tenth of a whole request.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def to_uri(self) -> EncodedURL:
        return self

    def to_text(self, with_password: bool = False) -> str:
        return self._text


def _base(base_url: str) -> str:
    """Return the URL below which files are, with its final slash.

    Raises :class:`ConfigError` if it is invalid.
    """
    try:
        url = EncodedURL.from_text(base_url).to_uri()
    except (URLParseError, ValueError) as error:
        raise ConfigError("the archive's url cannot be parsed") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError("the archive's url must begin with http:// or https:// and a host")
    if url.userinfo or url.query or url.fragment:
        raise ConfigError("the archive's url must not have a user, a query or a fragment")
    path = url.path[:-1] if url.path and not url.path[-1] else url.path
    text = url.replace(path=(*path, ""), rooted=True).to_text()
    try:
        Request(b"HEAD", text.encode("ascii"), _HEADERS)
    except ValueError as error:
        raise ConfigError("the archive's url has no valid host and port") from error
    return text


def _segment(archive_id: str) -> str:
    """Percent-encode all but unreserved characters (RFC 3986, section 2.3), and dot segments."""
    if _PLAIN_ID.fullmatch(archive_id):
        return archive_id
    if not archive_id:
        raise ArchiveError("an empty id names no file", retryable=False)
    if archive_id in (".", ".."):
        return archive_id.replace(".", "%2E")
    try:
        return quote(archive_id, safe="")
    except UnicodeEncodeError as error:
        raise ArchiveError("the id is not valid Unicode", retryable=False) from error


def _redirected(text: str, headers: Headers) -> str:
    """Return the target of a redirect (RFC 9110, 10.2.2); raise if that is another server."""
    location = (header_values(headers, b"Location") or [""])[0]
    if not location:
        raise ArchiveError("the archive redirects without a Location", retryable=True)
    url = EncodedURL.from_text(text)
    try:
        target = url.click(location)
    except (URLParseError, ValueError, NotImplementedError) as error:
        # The last one for "http:x", which RFC 3986 (section 5.2.2) leaves open.
        raise ArchiveError(
            f"the archive redirects to an invalid URL: {one_line(location)}", retryable=False
        ) from error
    if _origin(target) != _origin(url):
        raise ArchiveError(
            f"the archive redirects to another server, which is not followed: {one_line(location)}",
            retryable=False,
        )
    return target.replace(fragment="").to_uri().to_text()


def _origin(url: EncodedURL) -> tuple[str, str, str, int | None]:
    return url.scheme, url.userinfo, url.host.lower(), url.port


def _unusable_response(response: IResponse) -> ArchiveError | None:
    """Return why a 2xx response to a GET is not the file, or None if it is."""
    if response.code != 200:
        message = f"the archive answered {response.code} to GET instead of 200"
        return ArchiveError(message, retryable=True)
    encodings = ",".join(header_values(response.headers, b"Content-Encoding"))
    if encodings.lower() not in ("", "identity"):
        shown = one_line(encodings.lower(), MAX_QUOTED)
        message = f"the archive sent the file with an unrequested Content-Encoding: {shown}"
        return ArchiveError(message, retryable=False)
    return None


EXCERPT_LIMIT = 16 * 1024
"""Bytes of an error body that are read; a longer one costs its connection."""

RATE_WINDOW = 300.0
"""Seconds over which the minimum rate is averaged: networks have bad minutes."""


def receive(
    response: IResponse,
    sink: IConsumer,
    clock: IReactorTime,
    stall_timeout: float,
    min_rate: float = 0.0,
) -> Deferred[None]:
    """Write the body of ``response`` to ``sink``; fire when all of it is written.

    Fails with a retryable :class:`ArchiveError` if the body is cut short (by its own framing: the
    declared length or the last chunk), if no byte comes for ``stall_timeout`` seconds while the
    sink does not pause, or if fewer than ``min_rate`` bytes a second come on the average of some
    minutes; and with whatever ``sink.write`` raises.  A body that only the end of the connection
    delimits counts as complete: the sink must know its length.  Unless the body is complete, the
    connection is dropped at once, also by a cancel.
    """
    body = _BodyReceiver(sink, clock, stall_timeout, min_rate)
    response.deliverBody(body)
    body.wait()
    return body.done


async def excerpt(response: IResponse, clock: IReactorTime, timeout: float) -> bytes:
    """Return the first 16 KiB of an error body, or as much as came in ``timeout``.

    The connection is reusable if the body was short and complete, and is dropped otherwise.
    """
    sink = _Excerpt()
    done = receive(response, sink, clock, timeout)
    done.addTimeout(timeout, clock)
    with suppress(_ExcerptCompleteError, ArchiveError, TimeoutError):
        await done
    return b"".join(sink.pieces)


@implementer(IPushProducer)
class _BodyReceiver(Protocol):
    """Writes one body to a sink, as the producer of that; ``done`` fires when it has ended."""

    transport: Any

    def __init__(
        self, sink: IConsumer, clock: IReactorTime, stall_timeout: float, min_rate: float
    ) -> None:
        self.done: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._sink = sink
        self._clock = clock
        self._stall_timeout = stall_timeout
        self._min_rate = min_rate
        self._window_start = 0.0
        """When the rate was last checked; ``_window_bytes`` have come since then."""
        self._window_bytes = 0
        self._stall_timer: IDelayedCall | None = None
        self._paused = False
        self._ended = False

    def connectionMade(self) -> None:
        self._sink.registerProducer(self, True)

    def wait(self) -> None:
        """Start the stall timeout for a body that did not come together with its head."""
        if not self._ended and not self._paused:
            self._start_stall_timer()

    def dataReceived(self, data: bytes) -> None:
        if self._ended:
            return
        if self._stall_timer is not None:
            self._stall_timer.reset(self._stall_timeout)
            if not self._is_fast_enough(len(data)):
                return
        try:
            self._sink.write(data)
        except Exception:
            self._abort(Failure())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reason.check(ResponseDone, PotentialDataLoss):
            self._end(None)
            return
        known = transport_error(reason.value or ResponseDone(), begun=True)
        self._end(reason if known is None else Failure(known))

    def pauseProducing(self) -> None:
        self._paused = True
        self._stop_stall_timer()
        if not self._ended:
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        if not self._ended:
            self._start_stall_timer()
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """End the transfer: the sink needs no more, or the Deferred was cancelled."""
        self._abort(Failure(CancelledError()))

    def _start_stall_timer(self) -> None:
        if self._stall_timer is None:
            self._stall_timer = self._clock.callLater(self._stall_timeout, self._stalled)
            self._window_start, self._window_bytes = self._clock.seconds(), 0

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None and self._stall_timer.active():
            self._stall_timer.cancel()
        self._stall_timer = None

    def _is_fast_enough(self, came: int) -> bool:
        """Count bytes; no timer is needed, since the stall timer ends a silence."""
        self._window_bytes += came
        seconds = self._clock.seconds() - self._window_start
        if seconds < RATE_WINDOW:
            return True
        if self._window_bytes < self._min_rate * seconds:
            message = f"the archive sent only {self._window_bytes} bytes in {seconds:.0f} seconds"
            self._abort(Failure(ArchiveError(message, retryable=True)))
            return False
        self._window_start, self._window_bytes = self._window_start + seconds, 0
        return True

    def _stalled(self) -> None:
        message = f"the archive sent nothing for {self._stall_timeout:g} seconds"
        self._abort(Failure(ArchiveError(message, retryable=True)))

    def _abort(self, reason: Failure) -> None:
        if not self._ended:
            self.transport.abortConnection()
            self._end(reason)

    def _end(self, reason: Failure | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._stop_stall_timer()
        self._sink.unregisterProducer()
        if reason is None:
            self.done.callback(None)
        else:
            self.done.errback(reason)


class _ExcerptCompleteError(Exception):
    """The excerpt of the body is complete."""


@implementer(IConsumer)
class _Excerpt:
    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self._left = EXCERPT_LIMIT

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        pass

    def unregisterProducer(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.pieces.append(data[: self._left])
        self._left -= len(data)
        if self._left < 0:
            raise _ExcerptCompleteError


IDLE_SECONDS = 30
"""How long an unused connection is kept; most servers close theirs later than that."""


def http_client(
    reactor: Any,
    *,
    connections: int,
    connect_timeout: float,
    policy: IPolicyForHTTPS,
    on_response: Callable[[bool], object] = lambda reusable: None,
) -> tuple[HTTPClient, Pool]:
    """Return a client that keeps up to ``connections`` idle connections, and their pool.

    The caller limits concurrency.  ``on_response`` is called after each request with whether its
    connection is reusable.  ``policy`` says which certificates to accept over ``https:``.  Before
    the reactor stops, ``pool.closeCachedConnections()``.
    """
    pool = Pool(reactor, max_idle=connections, idle_seconds=IDLE_SECONDS, on_response=on_response)
    agent = Agent(reactor, pool, policy, connect_timeout=connect_timeout, more_fields=trace_fields)
    return HTTPClient(agent, cookiejar=NoCookies()), pool


class NoCookies(IndexableCookieJar):
    """A jar that stores and sends no cookies: an archive has no sessions."""

    def add_cookie_header(self, request: Any) -> None:
        pass

    def extract_cookies(self, response: Any, request: Any) -> None:
        pass
