"""What it means that the archive has not answered, or not to the end: Twisted's errors in words.

Strategy: whoever did not begin to answer, in time and in HTTP, would not have answered for another
file either: an ``outage``.  A certificate that does not verify is one too, though asking again at
once is of no use.
"""

from __future__ import annotations

from collections.abc import Iterator

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error
from twisted.web.client import (
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
)

from cartd.archive.answers import ArchiveError
from cartd.wording import clean


def failure(raised: BaseException, *, begun: bool = False) -> ArchiveError | None:
    """The error for what Twisted raised, or none if that is no failure of the archive's.

    ``begun`` says whether the head of an answer had arrived.
    """
    leaves = tuple(_leaves(raised))
    for types, sentence, retryable in _CAUSES:
        if any(isinstance(leaf, types) for leaf in leaves):
            return ArchiveError(sentence, retryable=retryable, outage=True)
    for leaf in leaves:
        if isinstance(leaf, SSL.Error):
            return _tls_failure(leaf)
        if isinstance(leaf, error.ConnectError):
            message = f"the archive cannot be reached: {clean(str(leaf))}"
            return ArchiveError(message, retryable=True, outage=True)
    if any(isinstance(leaf, _LOST) for leaf in leaves):
        when = "in the middle of its answer" if begun else "before it answered"
        message = f"the archive broke the connection {when}"
        return ArchiveError(message, retryable=True, outage=not begun)
    if isinstance(raised, _WRAPPERS):
        return ArchiveError("the archive's answer is not HTTP", retryable=True, outage=not begun)
    return None


def silence(seconds: float) -> ArchiveError:
    """The error for an answer that did not begin in time."""
    message = f"the archive did not answer within {seconds:g} seconds"
    return ArchiveError(message, retryable=True, outage=True)


_WRAPPERS = (ResponseFailed, RequestTransmissionFailed, RequestGenerationFailed)

_LOST = (error.ConnectionDone, error.ConnectionLost, error.ConnectionClosed)

_CAUSES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, bool], ...] = (
    (VerificationError, "the archive's certificate is for another host", False),
    (error.DNSLookupError, "the archive's host name cannot be resolved", True),
    (error.ConnectionRefusedError, "the archive refuses the connection", True),
    (
        (error.TimeoutError, error.TCPTimedOutError),
        "the archive did not accept the connection in time",
        True,
    ),
)


def _leaves(raised: BaseException) -> Iterator[BaseException]:
    if isinstance(raised, _WRAPPERS):
        for reason in raised.reasons:
            yield from _leaves(reason.value)
    else:
        yield raised


def _tls_failure(raised: SSL.Error) -> ArchiveError:
    if "certificate verify failed" in str(raised):
        message = "the archive's certificate is not trusted or has expired"
        return ArchiveError(message, retryable=False, outage=True)
    message = "the archive and cartd cannot agree on TLS"
    return ArchiveError(message, retryable=True, outage=True)
