"""Results of requests to the archive: the state of a file, or an ArchiveError.

Strategy: an error that may be transient is ``retryable`` (5xx, 408, 425, 429, and responses that
are not in the archive's own form, which may come from a proxy); an error that would repeat is not
(4xx, values out of range).  An error that may concern the whole archive is an ``outage`` (502, 503,
504).  So is an archive that did not begin to respond, in time and in HTTP: it would not have
responded for another file either.  So is a certificate that does not verify, although an immediate
retry is useless.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import quote, unquote, urlsplit

from OpenSSL import SSL
from twisted.internet import error
from twisted.web.client import RequestTransmissionFailed, ResponseFailed
from twisted.web.http_headers import Headers

from cartd.archive.tls import CertificateRejected
from cartd.errors import CartdError, Problem, one_line


class ArchiveError(CartdError):
    """A request to the archive failed.

    ``retryable``: the same request may succeed later.  ``retry_after``: seconds to wait, if the
    archive asked for that.  ``outage``: the archive as a whole may be unavailable.
    ``unavailable``: it has answered so (502, 503, 504), which may concern this file alone.
    ``missing``: a response with status 500 has a trace, which says that the archive has no such
    file, or that the device that should hold it is missing.  ``needs_explanation``: it was the
    response to a HEAD, which has no body for a trace.
    """

    problem = Problem.ARCHIVE_REFUSED

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
        problem: Problem | None = None,
    ) -> None:
        super().__init__(message)
        if problem is not None:
            self.problem = problem
        elif missing:
            self.problem = Problem.FILE_NOT_IN_ARCHIVE
        elif outage:
            self.problem = Problem.ARCHIVE_UNAVAILABLE
        self.retryable = retryable
        self.retry_after = retry_after
        self.outage = outage
        self.unavailable = unavailable
        self.missing = missing
        self.needs_explanation = needs_explanation


MAX_SIZE = 1 << 50
"""Bytes (1 PiB); a larger size is an error."""

MAX_TIME = 253_402_300_799
"""The last second of the year 9999, where HTTP dates end (RFC 9110, section 5.6.7)."""

MAX_PARSED_RETRY_AFTER = 86_400.0
"""Seconds; a longer ``Retry-After`` is read as this."""

MAX_QUOTED = 40
"""Characters of a malformed value in a message."""

_RETRYABLE_4XX = frozenset({408, 425, 429})
_UNAVAILABLE = frozenset({502, 503, 504})
"""Statuses of a proxy whose server is unavailable, and of such a server (RFC 9110, 15.6)."""
_NO_FILE = frozenset({404, 410})
_SLASH_REJECTIONS = frozenset({400, 403, 404})
"""Statuses of web servers that reject an encoded slash, like Apache (AllowEncodedSlashes)."""
_MEDIA = b"X-Pacifica-File-Storage-Media"
_UNIX_TIME = re.compile(r"-?[0-9]{1,15}(\.[0-9]*)?")
_LENGTH = re.compile(r"[0-9]{1,30}")
_ID_NUMBER = re.compile(r"[0-9]{1,30}")
_SECONDS = re.compile(r"[0-9]{1,9}")
_NO_SUCH_FILE = re.compile(r"No such file or directory: (['\"])([^'\"]*[^'\"/])\1")
"""Python's message for a missing file (ENOENT), with its name."""


@dataclass(frozen=True, slots=True)
class FileState:
    """State of a file in the archive: bytes, Unix time in seconds, whether it is on disk."""

    size: int
    mtime: int
    on_disk: bool
    retry_after: float | None = None
    """Seconds of a Retry-After header, if there is one."""


def read_state(headers: Headers, now: float) -> FileState:
    """Parse the headers of ``HEAD /ID``, as Pacifica's Archive Interface writes them.

    ``now`` is a Unix time.

    Raises :class:`ArchiveError`, which names the header that is missing or malformed.  Any
    storage medium but ``disk`` is taken for a tape.
    """
    media = header_values(headers, _MEDIA)
    if not media:
        raise ArchiveError(
            f"the archive's response has no {_MEDIA.decode()} header", retryable=True
        )
    return FileState(
        size=_size(_single(headers, b"X-Content-Length")),
        mtime=_time(_single(headers, b"Last-Modified")),
        on_disk=media[-1].lower() == "disk",
        retry_after=retry_after(headers, now),
    )


def named_file(headers: Headers) -> str:
    """Return the file that the response to a HEAD names; empty if it names none."""
    return (header_values(headers, b"X-Pacifica-File") or [""])[-1]


def names_file(named: str, archive_id: str) -> bool:
    """Whether ``named`` names the file of this id as Pacifica's Archive Interface does.

    Such a name is a path that ends in the id or, if the site is configured so, in its hexadecimal.
    """
    name = unquote(named).rpartition("/")[2]
    hexadecimal = f"{int(archive_id):x}" if _ID_NUMBER.fullmatch(archive_id) else archive_id
    return name in ("", archive_id.rpartition("/")[2], hexadecimal, f"file.{hexadecimal}")


def error_response(
    method: str, archive_id: str, code: int, headers: Headers, body: bytes, now: float
) -> ArchiveError:
    """Return the error for a response with an error status; ``now`` is a Unix time."""
    try:
        status = f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        status = str(code)
    said, trace = _explanation(body)
    if code == HTTPStatus.INTERNAL_SERVER_ERROR and _is_missing(trace, archive_id):
        return ArchiveError(
            f"the archive does not have the file ({status} to {method}: no such file or directory)",
            retryable=False,
            missing=True,
        )
    problem = Problem.FILE_NOT_IN_ARCHIVE if code in _NO_FILE else None
    if not said and code in _SLASH_REJECTIONS and "/" in archive_id and not _is_json(headers):
        problem = None
        sent_as = one_line(quote(archive_id, safe=""), MAX_QUOTED)
        said = f"the id is sent as {sent_as}, and a proxy in between may reject %2F"
    return ArchiveError(
        f"the archive answered {status} to {method}" + (f": {said}" if said else ""),
        retryable=not 300 <= code < 500 or code in _RETRYABLE_4XX,
        retry_after=retry_after(headers, now),
        outage=code in _UNAVAILABLE,
        unavailable=code in _UNAVAILABLE,
        needs_explanation=method == "HEAD" and code == HTTPStatus.INTERNAL_SERVER_ERROR,
        problem=problem,
    )


def _is_json(headers: Headers) -> bool:
    """Whether the error comes from the archive itself; a HEAD has no body to tell by."""
    kinds = header_values(headers, b"Content-Type")
    return any(kind.partition(";")[0].strip().lower() == "application/json" for kind in kinds)


def header_values(headers: Headers, name: bytes) -> list[str]:
    """Return the values of a header, of any bytes: Twisted's own decoding is strict UTF-8."""
    raw = headers.getRawHeaders(name) or ()
    return [value.decode("latin-1").strip() for value in raw]


def _single(headers: Headers, name: bytes) -> str:
    found = header_values(headers, name)
    if not found:
        raise ArchiveError(f"the archive's response has no {name.decode()} header", retryable=True)
    if found.count(found[0]) < len(found):
        raise ArchiveError(
            f"the archive's response has several {name.decode()} headers", retryable=True
        )
    return found[0]


def _malformed(name: str, value: str) -> ArchiveError:
    return ArchiveError(
        f"the archive's {name} header is malformed: {one_line(value, MAX_QUOTED)}", retryable=True
    )


def _size(value: str) -> int:
    if not _LENGTH.fullmatch(value):
        raise _malformed("X-Content-Length", value)
    size = int(value)
    if size > MAX_SIZE:
        raise ArchiveError(
            f"the archive's X-Content-Length header is out of range: {value}", retryable=False
        )
    return size


def _time(value: str) -> int:
    """Return a Unix time, 0 for times before 1970, which few formats can express."""
    if _UNIX_TIME.fullmatch(value):
        seconds = float(value)
    else:
        date = _http_date(value)
        if date is None:
            raise _malformed("Last-Modified", value)
        seconds = date
    if seconds > MAX_TIME:
        raise ArchiveError(
            f"the archive's Last-Modified header is out of range: {one_line(value, MAX_QUOTED)}",
            retryable=False,
        )
    return max(0, math.floor(seconds))


def _http_date(value: str) -> float | None:
    """Return the Unix time of an HTTP date in any of the three forms of RFC 9110, 5.6.7."""
    try:
        date = parsedate_to_datetime(value)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def retry_after(headers: Headers, now: float) -> float | None:
    """Return the seconds of a ``Retry-After`` header, at most a day (RFC 9110, 10.2.3)."""
    for value in header_values(headers, b"Retry-After"):
        if _SECONDS.fullmatch(value):
            return min(float(value), MAX_PARSED_RETRY_AFTER)
        date = _http_date(value)
        if date is not None:
            return min(max(0.0, date - now), MAX_PARSED_RETRY_AFTER)
    return None


def _explanation(body: bytes) -> tuple[str, str]:
    """Return the message and the trace of an error body in Pacifica's form; empty if it has none.

    The trace is not cleaned.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    fields = document if isinstance(document, dict) else {}
    message, trace = fields.get("message"), fields.get("traceback")
    return (
        one_line(message) if isinstance(message, str) else "",
        trace if isinstance(trace, str) else "",
    )


def _is_missing(trace: str, archive_id: str) -> bool:
    """Whether a trace ends with the error that the file of this id is missing.

    It may name another file: with threads, Pacifica's archive interface mixes up its requests.
    """
    found = _NO_SUCH_FILE.search(trace.rstrip().rpartition("\n")[2])
    return found is not None and names_file(found[2], archive_id)


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
