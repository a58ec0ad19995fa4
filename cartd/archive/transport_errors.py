"""What it means that the archive has not answered, or not to the end: Twisted's errors in words.

Strategy: whoever did not begin to answer, in time and in HTTP, would not have answered for another
file either: an ``outage``.  A certificate that does not verify is one too, though asking again at
once is of no use.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from OpenSSL import SSL
from twisted.internet import error
from twisted.web.client import (
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
)

from cartd.archive.certificates import CertificateRejected
from cartd.archive.responses import ArchiveError
from cartd.text import one_line


def transport_error(
    raised: BaseException, *, url: str = "", begun: bool = False
) -> ArchiveError | None:
    """The error for what Twisted raised, or none if that is no failure of the archive's.

    ``url`` is what was asked for, and ``begun`` says whether the head of an answer had arrived.
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
        when = "in the middle of its answer" if begun else "before it answered"
        message = f"the archive broke the connection {when}"
        return ArchiveError(message, retryable=True, outage=not begun)
    if isinstance(raised, _WRAPPERS):
        return ArchiveError("the archive's answer is not HTTP", retryable=True, outage=not begun)
    return None


def response_timeout(seconds: float) -> ArchiveError:
    """The error for an answer that did not begin in time."""
    message = f"the archive did not answer within {seconds:g} seconds"
    return ArchiveError(message, retryable=True, outage=True)


_WRAPPERS = (ResponseFailed, RequestTransmissionFailed, RequestGenerationFailed)

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
    """What came of a handshake: OpenSSL's last word on it, or the archive's (RFC 8446, 6.2)."""
    host = urlsplit(url).hostname
    who = f"the archive ({host})" if host else "the archive"
    [*_, (_, _, word)] = (raised.args[0] if raised.args else ()) or [("", "", "no reason given")]
    for words, sentence, retryable in _HANDSHAKES:
        if any(known in word for known in words):
            message = sentence.format(who=who, word=one_line(word.rpartition("alert ")[2]))
            return ArchiveError(message, retryable=retryable, outage=True)
    message = f"{who} and cartd cannot agree on TLS: {one_line(word)}"
    return ArchiveError(message, retryable=True, outage=True)


_OWN = "archiveinterface.cert_file"

_HANDSHAKES = (
    (
        ("unsupported protocol", "alert protocol version"),
        "{who} speaks no TLS that is new enough: cartd takes 1.2 and newer",
        False,
    ),
    (
        ("wrong version number", "packet length too long", "http request"),
        "{who} does not speak TLS on this port: its url may have to begin with http:",
        True,
    ),
    (
        ("alert certificate required",),
        f"{{who}} wants to see a certificate of cartd's, and {_OWN} names none",
        False,
    ),
    (
        ("alert handshake failure",),
        f"{{who}} and cartd cannot agree on TLS: it may want to see a certificate ({_OWN})",
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
        f"{{who}} refuses the certificate that cartd shows ({_OWN}): {{word}}",
        False,
    ),
)
