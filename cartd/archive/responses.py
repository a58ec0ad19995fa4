"""Responses of the archive: parse their headers, and turn errors into ArchiveError.

Strategy: an error that may be transient is ``retryable`` (5xx, 408, 425, 429, and responses that
are not in the archive's own form, which may come from a proxy); an error that would repeat is not
(4xx, values out of range).  An error that may concern the whole archive is an ``outage`` (502, 503,
504).  Errors without a response are in :mod:`cartd.archive.errors`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import quote, unquote

from twisted.web.http_headers import Headers

from cartd.archive.errors import ArchiveError
from cartd.text import one_line

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
    if not said and code in _SLASH_REJECTIONS and "/" in archive_id and not _is_json(headers):
        sent_as = one_line(quote(archive_id, safe=""), MAX_QUOTED)
        said = f"the id is sent as {sent_as}, and a proxy in between may reject %2F"
    return ArchiveError(
        f"the archive answered {status} to {method}" + (f": {said}" if said else ""),
        retryable=not 300 <= code < 500 or code in _RETRYABLE_4XX,
        retry_after=retry_after(headers, now),
        outage=code in _UNAVAILABLE,
        unavailable=code in _UNAVAILABLE,
        needs_explanation=method == "HEAD" and code == HTTPStatus.INTERNAL_SERVER_ERROR,
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
