"""Error responses, to requests and to input that is no complete request; logs rejections."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.web.http import datetimeToString
from twisted.web.server import NOT_DONE_YET, Request

from cartd.errors import error_body, reason_phrase
from cartd.http.access_log import log_rejection
from cartd.http.headers import NO_STORE, escape_header
from cartd.http.request_limits import EarlyResponse

Headers = Sequence[tuple[bytes, bytes]]
"""Names and values."""
RETRY_AFTER = "2"
"""Seconds after which a client may retry."""
STATUS_HEADER = b"X-Pacifica-Status"
RETRYABLE = frozenset({429, 503})
"""Statuses that get a Retry-After header."""


def serialize_error(
    peer: IAddress | None,
    code: int,
    message: str,
    limit: str | None = None,
    headers: Headers = (),
    *,
    method: bytes = b"",
    target: bytes = b"",
    logged: bool = True,
) -> bytes:
    """Return a complete HTTP response that closes the connection, and log the rejection.

    For input that is no complete request.  ``method`` and ``target`` are as received; empty if
    they were not.  ``logged``: whether the rejection log gets a line.

    Pacifica's clients read the status of a cart from two headers of every response to HEAD.  These
    are also set while the method is unknown, as it may be HEAD.
    """
    if logged:
        log_rejection(code, message, limit, peer=peer, method=method, target=target)
    body = b"" if code == HTTPStatus.NO_CONTENT else error_body(code, message, limit)
    if code in RETRYABLE:
        headers = [*headers, (b"Retry-After", RETRY_AFTER.encode())]
    date = (b"Date", datetimeToString())
    headers = [date, (b"Cache-Control", NO_STORE.encode()), *headers]
    if body:
        length = b"%d" % len(body)
        content = [(b"Content-Type", b"application/json"), (b"Content-Length", length)]
        headers = [*headers, *content]
    if method in (b"HEAD", b"") and code >= HTTPStatus.BAD_REQUEST:
        headers = [*headers, *_status_headers(message)]
    if method == b"HEAD":
        body = b""
    fields = b"".join(b"%s: %s\r\n" % header for header in headers)
    name = reason_phrase(code).encode()
    return b"HTTP/1.1 %d %s\r\nConnection: close\r\n%s\r\n%s" % (code, name, fields, body)


def prepare_error(
    request: Request, code: int, message: str, limit: str | None = None, *, logged: bool = True
) -> bytes:
    """Set status and headers of an error response; return its body."""
    if logged:
        peer = request.getClientAddress()
        log_rejection(code, message, limit, peer=peer, method=request.method, target=request.uri)
    body = error_body(code, message, limit)
    request.setResponseCode(code, reason_phrase(code).encode() or None)
    request.setHeader(b"Cache-Control", NO_STORE)
    request.setHeader(b"Content-Type", b"application/json")
    request.setHeader(b"Content-Length", b"%d" % len(body))
    if code in RETRYABLE:
        request.setHeader(b"Retry-After", RETRY_AFTER.encode())
    if request.method == b"HEAD" and not request.responseHeaders.hasHeader(STATUS_HEADER):
        for name, value in _status_headers(message):
            request.setHeader(name, value)
    return body


def _status_headers(message: str) -> Headers:
    return [(STATUS_HEADER, b"error"), (b"X-Pacifica-Message", escape_header(message).encode())]


def respond(request: Request, early: EarlyResponse) -> Any:
    """Send ``early`` as the response; return what a resource's ``render`` has to return."""
    for name, value in early.headers:
        request.setHeader(name, value)
    if early.code == HTTPStatus.NO_CONTENT:
        request.setResponseCode(early.code)
        request.finish()  # otherwise Twisted adds Content-Length, which 204 must not have
        return NOT_DONE_YET
    body = prepare_error(request, early.code, early.message, early.limit)
    # Twisted logs a line if a response to HEAD has a body.
    return b"" if request.method == b"HEAD" else body
