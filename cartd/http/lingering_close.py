"""Lingering close: closes a connection so that the client can still read the last response.

Closing a socket with unread bytes resets the connection, and the client's system may then discard
the response before the client has read it (RFC 9112, section 9.6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, ISSLTransport, ITCPTransport

LINGER_TIMEOUT = 2.0
"""Seconds for which input is ignored before the connection is aborted."""


def lingering_close(transport: Any, call_later: Callable[..., IDelayedCall]) -> IDelayedCall:
    """Close the sending side; abort the connection if the client does not close it in time.

    The caller must ignore all further input, and cancel the returned call, which aborts the
    connection, when the connection is lost.
    """
    if ITCPTransport.providedBy(transport) and not ISSLTransport.providedBy(transport):
        transport.loseWriteConnection()
    else:
        transport.loseConnection()
    return call_later(LINGER_TIMEOUT, transport.abortConnection)
