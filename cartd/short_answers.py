"""Answers that no route gives: a request is refused before it is whole, or before it is sent."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from twisted.internet.interfaces import IAddress

from cartd import refusals
from cartd.errors import error_body

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
    """The whole answer, after which the connection is of no use any more; it is logged.

    Whoever refuses something, but the routes themselves, gets it here, even if the client cannot be
    answered any more.  ``method`` and ``target`` are as the client has sent them, if it has.
    """
    refusals.note(code, message, limit, peer=peer, method=method, target=target)
    body = error_body(code, message, limit)
    if code in COMES_AGAIN:
        headers = [*headers, (b"Retry-After", RETRY_AFTER.encode())]
    more = b"".join(b"%s: %s\r\n" % header for header in headers)
    return (
        b"HTTP/1.1 %d %s\r\nConnection: close\r\n%s"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (code, HTTPStatus(code).phrase.encode(), more, len(body), body)
    )
