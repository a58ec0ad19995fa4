"""What the archive's answers mean: headers to values, everything else to one sentence.

Strategy: what may be over soon is ``retryable`` (5xx, 408, 425, 429, and answers that are not in
the archive's own form, since a proxy may stand in for it for a moment); what the archive would say
again is not (4xx, values beyond all bounds).  What may say more of the archive than of one file is
an ``outage`` (502, 503, 504).  For what is no answer at all, see
:mod:`cartd.archive.transport_errors`.
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

from cartd.errors import CartdError
from cartd.text import one_line

MAX_SIZE = 1 << 50
"""Bytes; a file that claims more (1 PiB) is taken for nonsense, not for a file."""

MAX_TIME = 253_402_300_799
"""The last second of the year 9999, where HTTP dates end (RFC 9110, section 5.6.7)."""

MAX_RETRY_AFTER = 86_400.0
MAX_QUOTED = 40
"""Characters of a value that makes no sense."""

_RETRYABLE_4XX = frozenset({408, 425, 429})
_UNAVAILABLE = frozenset({502, 503, 504})
"""What a proxy says whose server is away, and a server that is (RFC 9110, section 15.6)."""
_SLASH_REJECTIONS = frozenset({400, 403, 404})
"""What web servers say that do not like an encoded slash, as Apache does (AllowEncodedSlashes)."""
_MEDIA = b"X-Pacifica-File-Storage-Media"
_UNIX_TIME = re.compile(r"-?[0-9]{1,15}(\.[0-9]*)?")
_LENGTH = re.compile(r"[0-9]{1,30}")
_ID_NUMBER = re.compile(r"[0-9]{1,30}")
_SECONDS = re.compile(r"[0-9]{1,9}")
_NO_SUCH_FILE = re.compile(r"No such file or directory: (['\"])([^'\"]*[^'\"/])\1")
"""How Python tells of a file that is not there (ENOENT), and which it is."""


class ArchiveError(CartdError):
    """A request to the archive failed.

    ``retryable``: the same request may succeed later.  ``retry_after``: seconds to wait, if the
    archive asked for that.  ``outage``: the archive as a whole may be unavailable.
    ``unavailable``: it has answered so (502, 503, 504), which may concern this file alone.
    ``missing``: a response with status 500 has a trace, which says that the archive has no such
    file, or that the device that should hold it is gone.  ``needs_explanation``: it was the
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


@dataclass(frozen=True, slots=True)
class FileState:
    """What the archive says of a file: bytes, whole Unix seconds, whether it can be sent now."""

    size: int
    mtime: int
    on_disk: bool
    retry_after: float | None = None
    """Seconds after which the archive wants to be asked again, if it said so."""


def read_state(headers: Headers, now: float) -> FileState:
    """The headers of ``HEAD /ID``, as Pacifica's Archive Interface writes them.

    ``now`` is a Unix time.

    Raises :class:`ArchiveError`, which names the header that is missing or makes no sense.  Any
    storage medium but ``disk`` is taken for a tape.
    """
    media = header_values(headers, _MEDIA)
    if not media:
        raise ArchiveError(f"the archive's answer has no {_MEDIA.decode()} header", retryable=True)
    return FileState(
        size=_size(_single(headers, b"X-Content-Length")),
        mtime=_time(_single(headers, b"Last-Modified")),
        on_disk=media[-1].lower() == "disk",
        retry_after=retry_after(headers, now),
    )


def named_file(headers: Headers) -> str:
    """Which file the answer to a HEAD says that it is about; empty if it does not say."""
    return (header_values(headers, b"X-Pacifica-File") or [""])[-1]


def names_file(named: str, archive_id: str) -> bool:
    """Whether ``named`` names the file of this id as Pacifica's Archive Interface does.

    That is a path which ends in the id, or, where the site has chosen so, in its hexadecimal.
    """
    name = unquote(named).rpartition("/")[2]
    hexadecimal = f"{int(archive_id):x}" if _ID_NUMBER.fullmatch(archive_id) else archive_id
    return name in ("", archive_id.rpartition("/")[2], hexadecimal, f"file.{hexadecimal}")


def error_response(
    method: str, archive_id: str, code: int, headers: Headers, body: bytes, now: float
) -> ArchiveError:
    """The error for an answer of another code than asked for; ``now`` is a Unix time."""
    try:
        status = f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        status = str(code)
    said, trace = _explanation(body)
    if code == HTTPStatus.INTERNAL_SERVER_ERROR and _is_missing(trace, archive_id):
        return ArchiveError(
            f"the archive does not have it ({status} to {method}: no such file or directory)",
            retryable=False,
            missing=True,
        )
    if not said and code in _SLASH_REJECTIONS and "/" in archive_id and not _is_json(headers):
        asked_for = one_line(quote(archive_id, safe=""), MAX_QUOTED)
        said = f"the id is asked for as {asked_for}, and a proxy on the way may refuse %2F"
    return ArchiveError(
        f"the archive answered {status} to {method}" + (f": {said}" if said else ""),
        retryable=not 300 <= code < 500 or code in _RETRYABLE_4XX,
        retry_after=retry_after(headers, now),
        outage=code in _UNAVAILABLE,
        unavailable=code in _UNAVAILABLE,
        needs_explanation=method == "HEAD" and code == HTTPStatus.INTERNAL_SERVER_ERROR,
    )


def _is_json(headers: Headers) -> bool:
    """Whether the archive's own errors look so; a HEAD has no body that would tell."""
    kinds = header_values(headers, b"Content-Type")
    return any(kind.partition(";")[0].strip().lower() == "application/json" for kind in kinds)


def header_values(headers: Headers, name: bytes) -> list[str]:
    """The values of a header, whatever bytes they are: Twisted's own decoding is strict UTF-8."""
    raw = headers.getRawHeaders(name) or ()
    return [value.decode("latin-1").strip() for value in raw]


def _single(headers: Headers, name: bytes) -> str:
    found = header_values(headers, name)
    if not found:
        raise ArchiveError(f"the archive's answer has no {name.decode()} header", retryable=True)
    if found.count(found[0]) < len(found):
        raise ArchiveError(
            f"the archive's answer has several {name.decode()} headers", retryable=True
        )
    return found[0]


def _malformed(name: str, value: str) -> ArchiveError:
    return ArchiveError(
        f"the archive's {name} header makes no sense: {one_line(value, MAX_QUOTED)}", retryable=True
    )


def _size(value: str) -> int:
    if not _LENGTH.fullmatch(value):
        raise _malformed("X-Content-Length", value)
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
            raise _malformed("Last-Modified", value)
        seconds = date
    if seconds > MAX_TIME:
        raise ArchiveError(
            "the archive's Last-Modified header is beyond all bounds: "
            f"{one_line(value, MAX_QUOTED)}",
            retryable=False,
        )
    return max(0, math.floor(seconds))


def _http_date(value: str) -> float | None:
    """Unix time of an HTTP date in any of the three forms of RFC 9110, section 5.6.7."""
    try:
        date = parsedate_to_datetime(value)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def retry_after(headers: Headers, now: float) -> float | None:
    """Seconds of a ``Retry-After`` header, at most a day (RFC 9110, section 10.2.3)."""
    for value in header_values(headers, b"Retry-After"):
        if _SECONDS.fullmatch(value):
            return min(float(value), MAX_RETRY_AFTER)
        date = _http_date(value)
        if date is not None:
            return min(max(0.0, date - now), MAX_RETRY_AFTER)
    return None


def _explanation(body: bytes) -> tuple[str, str]:
    """The message of an error body in Pacifica's form, and its trace; empty if it is anything else.

    The trace is as it came.
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
    """Whether a trace ends with the news that the file of this id is not there.

    Another file may be named: with threads, Pacifica's archive interface mixes up its requests.
    """
    found = _NO_SUCH_FILE.search(trace.rstrip().rpartition("\n")[2])
    return found is not None and names_file(found[2], archive_id)
