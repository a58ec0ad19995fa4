"""Answers that are errors: to a request, or to what did not become one.  Refusals are logged."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from twisted.internet.interfaces import IAddress
from twisted.web.server import Request

from cartd.errors import error_body
from cartd.server import refusals
from cartd.server.caching import NO_STORE

Headers = Sequence[tuple[bytes, bytes]]
"""Names and values."""
RETRY_AFTER = "2"
"""Seconds after which a client may ask again for what is not ready, or refused for the moment."""
COMES_AGAIN = frozenset({429, 503})
"""The statuses that pass."""


def refusal(
    peer: IAddress | None,
    code: int,
    message: str,
    limit: str | None = None,
    headers: Headers = (),
    *,
    method: bytes = b"",
    target: bytes = b"",
) -> bytes:
    """The whole answer to what is no request yet, or never will be one; then comes the end.

    It is got here even if the client cannot be answered any more.  ``method`` and ``target`` are as
    the client has sent them, if it has.
    """
    refusals.note(code, message, limit, peer=peer, method=method, target=target)
    body = error_body(code, message, limit)
    if code in COMES_AGAIN:
        headers = [*headers, (b"Retry-After", RETRY_AFTER.encode())]
    more = b"".join(b"%s: %s\r\n" % header for header in headers)
    return (
        b"HTTP/1.1 %d %s\r\nConnection: close\r\nCache-Control: %s\r\n%s"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (code, HTTPStatus(code).phrase.encode(), NO_STORE.encode(), more, len(body), body)
    )


def error(request: Request, code: int, message: str, limit: str | None = None) -> bytes:
    """Make the answer to ``request`` an error, and give its body."""
    peer = request.getClientAddress()
    refusals.note(code, message, limit, peer=peer, method=request.method, target=request.uri)
    body = error_body(code, message, limit)
    request.setResponseCode(code)
    request.setHeader(b"Cache-Control", NO_STORE)
    request.setHeader(b"Content-Type", b"application/json")
    request.setHeader(b"Content-Length", b"%d" % len(body))
    if code in COMES_AGAIN:
        request.setHeader(b"Retry-After", RETRY_AFTER.encode())
    return body
