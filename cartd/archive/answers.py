"""What the archive's answers and failures mean: headers to values, everything else to one sentence.

Strategy: what may be over soon is ``retryable`` (the connection, 5xx, 408, 425, 429, and answers
that are not in the archive's own form, since a proxy may stand in for it for a moment); what the
archive would say again is not (4xx, values beyond all bounds, a certificate that does not verify).
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
from urllib.parse import unquote

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error
from twisted.web.client import (
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
)
from twisted.web.http_headers import Headers

from cartd.errors import CartdError

MAX_SIZE = 1 << 50
"""Bytes; a file that claims more (1 PiB) is taken for nonsense, not for a file."""

MAX_TIME = 253_402_300_799
"""The last second of the year 9999, where HTTP dates end (RFC 9110, section 5.6.7)."""

MAX_RETRY_AFTER = 86_400.0
MAX_MESSAGE = 200

_RETRYABLE_4XX = frozenset({408, 425, 429})
_UNIX_TIME = re.compile(r"-?[0-9]{1,15}(\.[0-9]*)?")
_LENGTH = re.compile(r"[0-9]{1,30}")
_ID_NUMBER = re.compile(r"[0-9]{1,30}")
_SECONDS = re.compile(r"[0-9]{1,9}")


class ArchiveError(CartdError):
    """A request to the archive failed.

    ``retryable`` says whether the same request may succeed later, ``retry_after`` how many seconds
    the archive asked to wait (none if it did not say).
    """

    def __init__(self, message: str, *, retryable: bool, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class FileState:
    """What the archive says of a file: bytes, whole Unix seconds, whether it can be sent now."""

    size: int
    mtime: int
    on_disk: bool


def read_state(headers: Headers) -> FileState:
    """The headers of ``HEAD /ID``, as Pacifica's Archive Interface writes them.

    Raises :class:`ArchiveError`, which names the header that is missing or makes no sense.
    """
    media = values(headers, b"X-Pacifica-File-Storage-Media") or [""]
    return FileState(
        size=_size(_single(headers, b"X-Content-Length")),
        mtime=_time(_single(headers, b"Last-Modified")),
        on_disk=media[-1].lower() == "disk",
    )


def told_file(headers: Headers) -> str:
    """Which file the answer to a HEAD says that it is about; empty if it does not say."""
    return (values(headers, b"X-Pacifica-File") or [""])[-1]


def is_named(told: str, archive_id: str) -> bool:
    """Whether ``told`` names the file of this id as Pacifica's Archive Interface does.

    That is a path which ends in the id, or, where the site has chosen so, in its hexadecimal.
    """
    name = unquote(told).rpartition("/")[2]
    hexadecimal = f"{int(archive_id):x}" if _ID_NUMBER.fullmatch(archive_id) else archive_id
    return name in ("", archive_id.rpartition("/")[2], hexadecimal, f"file.{hexadecimal}")


def refusal(method: str, code: int, headers: Headers, body: bytes, now: float) -> ArchiveError:
    """The error for an answer of another code than asked for; ``now`` is a Unix time."""
    try:
        status = f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        status = str(code)
    said = _message(body)
    return ArchiveError(
        f"the archive answered {status} to {method}" + (f": {said}" if said else ""),
        retryable=not 300 <= code < 500 or code in _RETRYABLE_4XX,
        retry_after=_retry_after(headers, now),
    )


def failure(raised: BaseException, *, begun: bool = False) -> ArchiveError | None:
    """The error for what Twisted raised, or none if that is no failure of the archive's.

    ``begun`` says whether the head of an answer had arrived.
    """
    leaves = tuple(_leaves(raised))
    for types, sentence, retryable in _CAUSES:
        for leaf in leaves:
            if isinstance(leaf, types):
                return ArchiveError(sentence, retryable=retryable)
    for leaf in leaves:
        if isinstance(leaf, SSL.Error):
            return _tls_failure(leaf)
        if isinstance(leaf, error.ConnectError):
            return ArchiveError(
                f"the archive cannot be reached: {clean(str(leaf))}", retryable=True
            )
    if any(isinstance(leaf, _LOST) for leaf in leaves):
        when = "in the middle of its answer" if begun else "before it answered"
        return ArchiveError(f"the archive broke the connection {when}", retryable=True)
    if isinstance(raised, _WRAPPERS):
        return ArchiveError("the archive's answer is not HTTP", retryable=True)
    return None


def values(headers: Headers, name: bytes) -> list[str]:
    """The values of a header, whatever bytes they are: Twisted's own decoding is strict UTF-8."""
    raw = headers.getRawHeaders(name) or ()
    return [value.decode("latin-1").strip() for value in raw]


def clean(text: str, limit: int = MAX_MESSAGE) -> str:
    """``text`` on one line, without control or formatting characters, cut to ``limit``."""
    printable = "".join(c if c.isprintable() else " " for c in text[: 4 * limit])
    return " ".join(printable.split())[:limit].rstrip()


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
        return ArchiveError(
            "the archive's certificate is not trusted or has expired", retryable=False
        )
    return ArchiveError("the archive and cartd cannot agree on TLS", retryable=True)


def _single(headers: Headers, name: bytes) -> str:
    found = values(headers, name)
    if not found:
        raise ArchiveError(f"the archive's answer has no {name.decode()} header", retryable=True)
    if found.count(found[0]) < len(found):
        raise ArchiveError(
            f"the archive's answer has several {name.decode()} headers", retryable=True
        )
    return found[0]


def _garbled(name: str, value: str) -> ArchiveError:
    return ArchiveError(
        f"the archive's {name} header makes no sense: {clean(value, 40)}", retryable=True
    )


def _size(value: str) -> int:
    if not _LENGTH.fullmatch(value):
        raise _garbled("X-Content-Length", value)
    size = int(value)
    if size > MAX_SIZE:
        raise ArchiveError(
            f"the archive's X-Content-Length header is beyond all bounds: {value}", retryable=False
        )
    return size


def _time(value: str) -> int:
    """Times before 1970 become 0: such a file is as good as any, only few formats can say them."""
    if _UNIX_TIME.fullmatch(value):
        seconds = float(value)
    else:
        date = _http_date(value)
        if date is None:
            raise _garbled("Last-Modified", value)
        seconds = date
    if seconds > MAX_TIME:
        raise ArchiveError(
            f"the archive's Last-Modified header is beyond all bounds: {value}", retryable=False
        )
    return max(0, math.floor(seconds))


def _http_date(value: str) -> float | None:
    """Unix time of an HTTP date in any of the three forms of RFC 9110, section 5.6.7."""
    try:
        date = parsedate_to_datetime(value)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _retry_after(headers: Headers, now: float) -> float | None:
    """Seconds of a ``Retry-After`` header, at most a day (RFC 9110, section 10.2.3)."""
    for value in values(headers, b"Retry-After"):
        if _SECONDS.fullmatch(value):
            return min(float(value), MAX_RETRY_AFTER)
        date = _http_date(value)
        if date is not None:
            return min(max(0.0, date - now), MAX_RETRY_AFTER)
    return None


def _message(body: bytes) -> str:
    """The ``message`` of an error body in Pacifica's form; empty if the body is anything else."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    message = document.get("message") if isinstance(document, dict) else None
    return clean(message) if isinstance(message, str) else ""
