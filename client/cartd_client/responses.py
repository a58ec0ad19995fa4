"""Answers of the service: bodies with limits, JSON, and the errors that they stand for."""

from __future__ import annotations

import email.utils
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, NewConnectionError

from cartd_client.errors import (
    CartChanged,
    CartFailed,
    ClientError,
    InvalidResponse,
    NoSuchCart,
    NotAllowed,
    NotSupported,
    RequestRejected,
    ServiceUnavailable,
    WaitTimeout,
)

MAX_DOCUMENT = 32 << 20
"""Bytes of an answer that is read as a whole."""
DOCUMENT_TIMEOUT = 300.0
"""Seconds in which such an answer must be complete."""
MAX_RETRY_AFTER = 3600.0
"""Seconds of ``Retry-After`` that are obeyed at most."""
CHUNK = 1 << 16
_MAX_ERROR = 1 << 18
"""Bytes of the body of an error that are read."""


class Response:
    """An answer whose head has arrived.  Close it, or read it to its end."""

    def __init__(self, raw: urllib3.BaseHTTPResponse, url: str, deadline: float | None) -> None:
        self._raw = raw
        self._deadline = deadline
        self._body: bytes | None = None
        self.url = url
        """The URL that was answered, after redirects."""
        self.status = raw.status
        self.headers: Mapping[str, str] = raw.headers
        """Names are compared without regard to case."""

    def __enter__(self) -> Response:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def read(self, limit: int = MAX_DOCUMENT) -> bytes:
        """Return the body; the same again when called again.

        :raises InvalidResponse: it has more than ``limit`` bytes.
        :raises ServiceUnavailable: it is not complete, or not within ``DOCUMENT_TIMEOUT``.
        :raises WaitTimeout: it is not complete at the deadline of the request.
        """
        if self._body is None:
            end = time.monotonic() + DOCUMENT_TIMEOUT
            if self._deadline is not None:
                end = min(end, self._deadline)
            parts: list[bytes] = []
            length = 0
            for part in self._parts(CHUNK, end):
                length += len(part)
                if length > limit:
                    self.close()
                    raise InvalidResponse(f"{self.url}: the answer has more than {limit} bytes")
                parts.append(part)
            self._body = b"".join(parts)
        return self._body

    def stream(self, size: int = CHUNK) -> Iterator[bytes]:
        """Yield the body in parts as they arrive, of up to ``size`` bytes.

        A body that ends before its declared length is an error.

        :raises ServiceUnavailable: the connection broke, or was silent for ``READ_TIMEOUT``.
        :raises WaitTimeout: the body is not complete at the deadline of the request.
        """
        return self._parts(size, self._deadline)

    def json(self, limit: int = MAX_DOCUMENT) -> Any:
        """Return the body as JSON; raise InvalidResponse, and what :meth:`read` raises."""
        return parse_json(self.read(limit), self.url)

    def close(self) -> None:
        """Drop the rest of the body, and its connection unless the body was read to its end."""
        self._raw.close()
        self._raw.release_conn()

    def abort(self) -> None:
        """End a read that another thread waits for: it raises ServiceUnavailable, or ends."""
        with suppress(OSError, ValueError, RuntimeError):
            self._raw.shutdown()

    def _parts(self, size: int, deadline: float | None) -> Iterator[bytes]:
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self.abort()

        timer: threading.Timer | None = None
        if deadline is not None:
            timer = threading.Timer(max(0.0, deadline - time.monotonic()), expire)
            timer.daemon = True
            timer.start()
        try:
            while True:
                part = self._raw.read1(size)
                if not part:
                    break
                yield part
            if expired.is_set():
                raise self._late(deadline)
        except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            self.close()
            if expired.is_set():
                raise self._late(deadline) from error
            raise ServiceUnavailable(
                f"{self.url}: the answer broke off: {reason(error)}"
            ) from error
        finally:
            if timer is not None:
                timer.cancel()

    def _late(self, deadline: float | None) -> ClientError:
        if deadline == self._deadline:
            return WaitTimeout("The time has passed")
        return ServiceUnavailable(
            f"{self.url}: the answer is not complete after {DOCUMENT_TIMEOUT:.0f} s"
        )


def parse_json(text: bytes, url: str) -> Any:
    """Return the value; raise InvalidResponse for anything that is no JSON in UTF-8."""
    try:
        return _decoder.decode(text.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidResponse(f"{url}: the answer is not JSON: {reason(error)}") from error


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_reject_constant)


def reason(error: BaseException) -> str:
    """Return the reason of a failure in a few words, without objects of the libraries."""
    inner: BaseException = error
    while True:
        found = getattr(inner, "reason", None) or inner.__cause__
        if not isinstance(found, BaseException):
            break
        inner = found
    text = getattr(inner, "strerror", None) or str(inner)
    if isinstance(inner, NewConnectionError):
        text = text.rpartition(": ")[2]
    return text or type(inner).__name__


def error_of(response: Response) -> ClientError:
    """Return the error that an answer of status 400 or above stands for; reads and closes it."""
    with response:
        problem, detail = _problem(response)
    status = response.status
    name = str(problem.get("type", "")).rpartition("/")[2] if problem else ""
    message = detail or f"{response.url}: the service answers {status} {_phrase(status)}"
    kind = _kind(status, name, response)
    if kind is ServiceUnavailable:
        return ServiceUnavailable(
            message,
            problem=problem,
            status=status,
            retry_after=parse_retry_after(response.headers.get("Retry-After")),
        )
    return kind(message, problem=problem, status=status)


_BY_STATUS: dict[int, type[ClientError]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: NoSuchCart,
    405: NotSupported,
    407: NotAllowed,
    408: ServiceUnavailable,
    412: CartChanged,
    425: ServiceUnavailable,
    429: ServiceUnavailable,
    501: NotSupported,
}


_WITHOUT_INTERFACE = frozenset({400, 404, 405, 415, 500, 501})
"""What a Pacifica Cartd answers at ``/-/``, for which it has no method: cartd sends a problem."""


def _kind(status: int, name: str, response: Response) -> type[ClientError]:
    if not name and status in _WITHOUT_INTERFACE and "/-/" in response.url:
        return NotSupported
    if name == "not-found":
        return NotSupported
    if status == http.HTTPStatus.INTERNAL_SERVER_ERROR and (
        name == "cart-failed" or (not name and response.headers.get("X-Pacifica-Status") == "error")
    ):
        return CartFailed
    return _BY_STATUS.get(status, ServiceUnavailable if status >= 500 else RequestRejected)


def _problem(response: Response) -> tuple[dict[str, Any] | None, str]:
    """Return the problem document, if the answer is one, and the message in the answer."""
    message = str(response.headers.get("X-Pacifica-Message", ""))
    try:
        document = response.json(_MAX_ERROR)
    except ClientError:
        return None, message
    if not isinstance(document, dict):
        return None, message
    for key in ("detail", "message", "title"):
        if isinstance(document.get(key), str) and document[key]:
            message = document[key]
            break
    is_problem = "problem+json" in response.headers.get("Content-Type", "")
    return (document if is_problem else None), message


def parse_retry_after(value: str | None, now: float | None = None) -> float | None:
    """Return the seconds of a ``Retry-After``, 0 to ``MAX_RETRY_AFTER``; None if it is invalid."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), MAX_RETRY_AFTER)
    try:
        when = email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return max(0.0, min(when - (time.time() if now is None else now), MAX_RETRY_AFTER))


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return ""
