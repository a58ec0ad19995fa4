"""Requests to one service, repeated while trouble may pass; answers as values or errors.

Knows HTTP, TLS, proxies and problem documents (RFC 9457), and nothing of carts.  A transport may
be used by several threads.

Strategy: an answer of a hostile or broken service must not do harm.  Documents have a limit of
bytes and of time, a ``Retry-After`` is cut to an hour, and the token is sent to the service's own
origin only, wherever a redirect leads.
"""

from __future__ import annotations

import http.client
import random
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import IO, Any, Union
from urllib.parse import quote, unquote, urlencode, urljoin, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import (
    HTTPError,
    InvalidHeader,
    LocationParseError,
    LocationValueError,
    ProxyError,
    SSLError,
)

from cartd_client import __version__
from cartd_client.errors import (
    ClientError,
    InvalidResponse,
    ServiceUnavailable,
    UsageError,
    WaitTimeout,
)
from cartd_client.responses import (
    MAX_RETRY_AFTER,
    Response,
    error_of,
    parse_json,
    parse_retry_after,
    reason,
)

__all__ = [
    "MAX_DELAY",
    "MAX_REDIRECTS",
    "MAX_RETRY_AFTER",
    "READ_TIMEOUT",
    "SERVER_ERROR_TRIES",
    "Backoff",
    "Body",
    "OnRetry",
    "Response",
    "Retry",
    "Transport",
    "error_of",
    "parse_json",
    "parse_retry_after",
    "quote_segment",
    "split_login",
]

CONNECT_TIMEOUT = 20.0
READ_TIMEOUT = 75.0
"""Seconds of silence after which a connection counts as broken.

An event stream is silent for 15 seconds at most, and a long poll for 60.
"""
FIRST_DELAY = 0.5
MAX_DELAY = 60.0
MAX_REDIRECTS = 5
SERVER_ERROR_TRIES = 3
"""How often a request is sent that the service answers with 500, which seldom passes."""
_random = random.SystemRandom()
_sleep = time.sleep

Body = Union[bytes, IO[bytes], None]


@dataclass(frozen=True)
class Retry:
    """A failure after which the request is sent again."""

    attempt: int
    """Failures in a row, 1 for the first."""
    delay: float
    """Seconds until the next attempt."""
    error: ClientError


OnRetry = Callable[[Retry], None]


class Backoff:
    """Waits between attempts at one thing: exponential with jitter, or as the service asks.

    Not to be shared between threads.
    """

    def __init__(
        self,
        retries: int | None = None,
        on_retry: OnRetry | None = None,
        deadline: float | None = None,
    ) -> None:
        """``retries``: attempts in a row after the first, ``None`` without end.

        ``deadline`` is a time of ``time.monotonic``.
        """
        self._retries = retries
        self._on_retry = on_retry
        self._deadline = deadline
        self.attempt = 0
        """Failures in a row."""

    def succeeded(self) -> None:
        """Note progress: the next failure counts as the first."""
        self.attempt = 0

    def failed(self, error: ClientError) -> None:
        """Wait until the next attempt.

        :raises ClientError: ``error`` itself, if there have been as many attempts as permitted.
        :raises WaitTimeout: the deadline is before the next attempt; the wait ends there.
        """
        self.attempt += 1
        if self._retries is not None and self.attempt > self._retries:
            raise error
        asked = getattr(error, "retry_after", None)
        delay = min(FIRST_DELAY * 2 ** min(self.attempt - 1, 16), MAX_DELAY)
        delay *= _random.uniform(0.5, 1)
        if asked is not None:
            delay = max(delay, min(asked, MAX_RETRY_AFTER))
        if self._on_retry is not None:
            self._on_retry(Retry(self.attempt, delay, error))
        if self._deadline is not None and time.monotonic() + delay >= self._deadline:
            _sleep(max(0.0, self._deadline - time.monotonic()))
            raise WaitTimeout(f"The time has passed; the last attempt failed: {error}") from error
        _sleep(delay)


class Transport:
    """Sends requests to the service at ``url`` and below."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        cacert: str | None = None,
        retries: int | None = None,
        on_retry: OnRetry | None = None,
        *,
        login: tuple[str, str] | None = None,
    ) -> None:
        """``url`` is that of the service, perhaps with a path prefix.

        ``token`` is sent as a bearer token; ``login``, or name and password in ``url``, by HTTP
        Basic if there is no token.  ``cacert`` is a file of certificates to trust instead of the
        system's.  ``retries`` is the number of further attempts after a failure that may pass;
        ``None``: without end.  ``on_retry`` is called before each wait.

        :raises UsageError: the URL, the token or the file of certificates is invalid.
        """
        self.url, found = split_login(url)
        self.retries = retries
        self.on_retry = on_retry
        self._origin = _origin(self.url)
        self._authorization = _authorization(token, login or found)
        self._pool = _pool(self.url, cacert)

    def request(
        self,
        method: str,
        path_or_url: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        stream: bool = False,
        retry: bool = True,
        ok: Collection[int] = (),
        deadline: float | None = None,
        silence: float | None = None,
    ) -> Response:
        """Send a request, and return the answer if its status is below 400 or in ``ok``.

        ``path_or_url`` is a path below the service's URL, already percent-encoded, or a URL.
        A ``body`` that is a file is sent from its current position, in parts, and must be seekable.
        With ``stream`` the body is left to be read by :meth:`Response.stream`; else it has
        arrived.  ``retry`` repeats the request while the trouble may pass.  ``deadline`` is a time
        of ``time.monotonic``.  After ``silence`` seconds without a byte, by default
        ``READ_TIMEOUT``, the connection counts as broken.

        :raises ServiceUnavailable: the trouble has not passed within ``retries``.
        :raises WaitTimeout: the deadline has passed.
        :raises ClientError: another one, of the status of the answer (:func:`error_of`).
        """
        url = self._absolute(path_or_url, query)
        silence = READ_TIMEOUT if silence is None else silence
        backoff = self.backoff(deadline)
        body_start = 0 if body is None or isinstance(body, bytes) else body.tell()
        server_errors = 0
        while True:
            if not (body is None or isinstance(body, bytes)):
                body.seek(body_start)
            try:
                response = self._follow(method, url, headers or {}, body, deadline, silence)
                if response.status >= 400 and response.status not in ok:
                    raise error_of(response)
                if not stream:
                    response.read()
                return response
            except ServiceUnavailable as error:
                server_errors += error.status == http.HTTPStatus.INTERNAL_SERVER_ERROR
                if not retry or server_errors >= SERVER_ERROR_TRIES:
                    raise
                backoff.failed(error)

    def backoff(self, deadline: float | None = None) -> Backoff:
        """Return a new back-off with the transport's ``retries`` and ``on_retry``."""
        return Backoff(self.retries, self.on_retry, deadline)

    def close(self) -> None:
        """Close all idle connections."""
        self._pool.clear()

    def _follow(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body,
        deadline: float | None,
        silence: float,
    ) -> Response:
        """Send the request, and follow redirects of requests without a body."""
        for _ in range(MAX_REDIRECTS + 1):
            response = self._once(method, url, headers, body, deadline, silence)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return response
            response.close()
            target = _redirected(url, location)
            if method not in ("GET", "HEAD"):
                raise InvalidResponse(
                    f"{url}: the service redirects to {target}: use that as the URL of the service"
                )
            url = target
        raise InvalidResponse(f"{url}: more than {MAX_REDIRECTS} redirects")

    def _once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body,
        deadline: float | None,
        silence: float,
    ) -> Response:
        remaining = silence
        if deadline is not None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise WaitTimeout("The time has passed")
        sent = {**_HEADERS, **headers}
        if self._authorization is not None and _origin(url) == self._origin:
            sent["Authorization"] = self._authorization
        if not (body is None or isinstance(body, bytes)):
            sent["Content-Length"] = str(_remaining_length(body))
        try:
            raw = self._pool.request(
                method,
                url,
                body=body,
                headers=sent,
                timeout=urllib3.Timeout(
                    connect=min(CONNECT_TIMEOUT, remaining), read=min(silence, remaining)
                ),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except (LocationParseError, LocationValueError, InvalidHeader) as error:
            raise InvalidResponse(f"{url}: {reason(error)}") from error
        except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeout("The time has passed") from error
            raise _failure(url, error) from error
        return Response(raw, url, deadline)

    def _absolute(self, path_or_url: str, query: Mapping[str, str] | None) -> str:
        is_url = path_or_url.startswith(("http://", "https://"))
        url = path_or_url if is_url else self.url + path_or_url.lstrip("/")
        return f"{url}?{urlencode(query)}" if query else url


_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {
    "User-Agent": f"cartd-client/{__version__}",
    "Accept": "application/problem+json, application/json;q=0.9, */*;q=0.5",
    "Accept-Encoding": "identity",
}


def quote_segment(text: str) -> str:
    """Return ``text`` as one segment of a path."""
    return quote(text, safe="~")


def _redirected(url: str, location: str) -> str:
    """Return the URL to which an answer of ``url`` redirects; raise InvalidResponse."""
    try:
        target = urljoin(url, location)
        scheme, host, _ = _origin(target)
    except ValueError as error:
        raise InvalidResponse(f"{url}: the service redirects to an invalid URL") from error
    if scheme not in ("https", urlsplit(url).scheme) or not host:
        raise InvalidResponse(
            f"{url}: the service redirects to {target}, which is neither HTTPS nor as before"
        )
    return target.partition("#")[0]


def _failure(url: str, error: BaseException) -> ClientError:
    """Return the error for a request without an answer."""
    text = f"{url}: {reason(error)}"
    if isinstance(error, SSLError) or isinstance(getattr(error, "reason", None), SSLError):
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return InvalidResponse(
                f"{url}: the certificate of the service is not trusted: {reason(error)};"
                " name the certificate of your site's authority by --cacert"
            )
        if "EOF" not in str(error):
            return InvalidResponse(f"{url}: no TLS connection is possible: {reason(error)}")
    elif isinstance(error, ProxyError):
        text = f"{url}: the proxy fails: {reason(error)}"
    elif any(hint in str(error) for hint in ("got more than", "BadStatusLine")):
        return InvalidResponse(f"{url}: the answer is not HTTP: {reason(error)}")
    return ServiceUnavailable(text)


def _remaining_length(body: IO[bytes]) -> int:
    here = body.tell()
    end = body.seek(0, 2)
    body.seek(here)
    return end - here


def split_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """Return the URL with a final ``/`` and without name and password, and these."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"The URL of the service is invalid: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            "The URL of the service must begin with https:// or http:// and have a host:"
            f" {parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()!r}"
        )
    if parts.query or parts.fragment:
        raise UsageError("The URL of the service must not have a query or a fragment")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if port is None else f"{host}:{port}"
    login = None
    if parts.username is not None:
        login = (unquote(parts.username), unquote(parts.password or ""))
    return urlunsplit((parts.scheme, netloc, parts.path.rstrip("/") + "/", "", "")), login


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), port


def _authorization(token: str | None, login: tuple[str, str] | None) -> str | None:
    if token:
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise UsageError("The token has characters that no token has")
        return f"Bearer {token}"
    if login is not None:
        return "Basic " + b64encode(":".join(login).encode()).decode()
    return None


def _pool(url: str, cacert: str | None) -> urllib3.PoolManager:
    """Return the pool of connections, through the proxy of the environment if there is one."""
    options: dict[str, Any] = {"maxsize": 16, "block": False}
    if cacert is not None:
        options["ca_certs"] = cacert
        try:
            ssl.create_default_context(cafile=cacert)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"The file of certificates {cacert} cannot be used: {reason(error)}"
            ) from error
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy is None or proxy_bypass(parts.hostname or ""):
        return urllib3.PoolManager(**options)
    try:
        proxy_url, login = split_login(proxy if "://" in proxy else f"http://{proxy}")
        headers = urllib3.make_headers(proxy_basic_auth=":".join(login) if login else None)
        return urllib3.ProxyManager(proxy_url, proxy_headers=headers, **options)
    except UsageError as error:
        raise UsageError(f"The proxy in the environment cannot be used: {error}") from error
