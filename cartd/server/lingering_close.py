"""How a connection is ended so that the client can still read the last answer.

To close a socket at once, with bytes in it that nobody has read, resets the connection: then the
system may throw away what the client has not read yet (RFC 9112, section 9.6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, ISSLTransport, ITCPTransport

LINGER_TIMEOUT = 2.0
"""Seconds for which what a refused client sends is read past, so that it sees the answer."""


def lingering_close(transport: Any, call_later: Callable[..., IDelayedCall]) -> IDelayedCall:
    """Tell the client that nothing more comes, and break the connection if it does not close it.

    What is received meanwhile is for the caller to drop.  The call that is given breaks it; it is
    to be cancelled when the connection is lost.
    """
    if ITCPTransport.providedBy(transport) and not ISSLTransport.providedBy(transport):
        transport.loseWriteConnection()
    else:
        transport.loseConnection()
    return call_later(LINGER_TIMEOUT, transport.abortConnection)
