"""Errors of the archive: ArchiveError, also for Twisted's exceptions (DNS, TCP, TLS, HTTP).

Strategy: an archive that did not begin to respond, in time and in HTTP, would not have responded
for another file either: an ``outage``.  So is a certificate that does not verify, although an
immediate retry is useless.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from OpenSSL import SSL
from twisted.internet import error
from twisted.web.client import (
    RequestTransmissionFailed,
    ResponseFailed,
)

from cartd.archive.tls import CertificateRejected
from cartd.errors import CartdError
from cartd.text import one_line


class ArchiveError(CartdError):
    """A request to the archive failed.

    ``retryable``: the same request may succeed later.  ``retry_after``: seconds to wait, if the
    archive asked for that.  ``outage``: the archive as a whole may be unavailable.
    ``unavailable``: it has answered so (502, 503, 504), which may concern this file alone.
    ``missing``: a response with status 500 has a trace, which says that the archive has no such
    file, or that the device that should hold it is missing.  ``needs_explanation``: it was the
    response to a HEAD, which has no body for a trace.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool,
        retry_after: float | None = None,
        outage: bool = False,
        unavailable: bool = False,
        missing: bool = False,
        needs_explanation: bool = False,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after
        self.outage = outage
        self.unavailable = unavailable
        self.missing = missing
        self.needs_explanation = needs_explanation


def transport_error(
    raised: BaseException, *, url: str = "", begun: bool = False
) -> ArchiveError | None:
    """Return the error for what Twisted raised, or None if the archive did not cause it.

    ``url`` is that of the request; ``begun``: the head of the response had arrived.
    """
    leaves = tuple(_leaves(raised))
    for types, sentence, retryable in _CAUSES:
        if any(isinstance(leaf, types) for leaf in leaves):
            return ArchiveError(sentence, retryable=retryable, outage=True)
    for leaf in leaves:
        if isinstance(leaf, SSL.Error):
            return _tls_error(leaf, url)
        if isinstance(leaf, CertificateRejected):
            return ArchiveError(str(leaf), retryable=False, outage=True)
        if isinstance(leaf, error.ConnectError):
            message = f"the archive cannot be reached: {one_line(str(leaf))}"
            return ArchiveError(message, retryable=True, outage=True)
    if any(isinstance(leaf, _LOST) for leaf in leaves):
        when = "in the middle of its response" if begun else "before it responded"
        message = f"the archive closed the connection {when}"
        return ArchiveError(message, retryable=True, outage=not begun)
    if isinstance(raised, _WRAPPERS):
        return ArchiveError("the archive's response is not HTTP", retryable=True, outage=not begun)
    return None


def response_timeout(seconds: float) -> ArchiveError:
    """Return the error for a response that did not begin in time."""
    message = f"the archive did not answer within {seconds:g} seconds"
    return ArchiveError(message, retryable=True, outage=True)


_WRAPPERS = (ResponseFailed, RequestTransmissionFailed)

_LOST = (error.ConnectionDone, error.ConnectionLost, error.ConnectionClosed)

_CAUSES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, bool], ...] = (
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


def _tls_error(raised: SSL.Error, url: str) -> ArchiveError:
    """Return the error of a handshake, by OpenSSL's last error or the archive's alert."""
    host = urlsplit(url).hostname
    peer = f"the archive ({host})" if host else "the archive"
    [*_, (_, _, word)] = (raised.args[0] if raised.args else ()) or [("", "", "no reason given")]
    for words, sentence, retryable in _HANDSHAKES:
        if any(known in word for known in words):
            message = sentence.format(peer=peer, word=one_line(word.rpartition("alert ")[2]))
            return ArchiveError(message, retryable=retryable, outage=True)
    message = f"{peer} and cartd cannot agree on TLS: {one_line(word)}"
    return ArchiveError(message, retryable=True, outage=True)


_OWN = "archiveinterface.cert_file"

_HANDSHAKES = (
    (
        ("unsupported protocol", "alert protocol version"),
        "{peer} does not support TLS 1.2 or newer",
        False,
    ),
    (
        ("wrong version number", "packet length too long", "http request"),
        "{peer} does not speak TLS on this port: its url may have to begin with http:",
        True,
    ),
    (
        ("alert certificate required",),
        f"{{peer}} requires a client certificate, and {_OWN} names none",
        False,
    ),
    (
        ("alert handshake failure",),
        f"{{peer}} and cartd cannot agree on TLS: it may require a client certificate ({_OWN})",
        True,
    ),
    (
        (
            "alert bad certificate",
            "alert unsupported certificate",
            "alert certificate revoked",
            "alert certificate expired",
            "alert certificate unknown",
            "alert unknown ca",
            "alert access denied",
        ),
        f"{{peer}} rejects cartd's client certificate ({_OWN}): {{word}}",
        False,
    ),
)
