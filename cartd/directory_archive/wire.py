"""Parses and formats the headers and parameters of the protocol."""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http import HTTPStatus
from urllib.parse import quote

from cartd.conditions import Conditions, Decision, evaluate
from cartd.directory_archive.directory import FileStatus
from cartd.directory_archive.errors import BeyondEnd
from cartd.errors import InvalidInput, RangeNotSatisfiable
from cartd.ranges import ByteRange


def modified_time(header: str | None) -> float:
    """Return the Unix time in a ``Last-Modified`` request header; now if there is none.

    It is an HTTP date (RFC 9110, section 5.6.7) or, as in responses to HEAD, decimal seconds.
    """
    if header is None:
        return time.time()
    try:
        seconds = float(header)
    except ValueError:
        seconds = _http_date(header)
    if not math.isfinite(seconds):
        raise InvalidInput(f"Last-Modified: {header!r} is not a time")
    return seconds


def _http_date(text: str) -> float:
    parsed = email.utils.parsedate_tz(text)
    if parsed is None:
        raise InvalidInput(f"Last-Modified: {text!r} is not a time")
    try:
        return float(email.utils.mktime_tz(parsed))
    except (OverflowError, ValueError) as error:
        raise InvalidInput(f"Last-Modified: {text!r} is not a time") from error


def range_selector(
    byte_range: str | None, conditions: Conditions
) -> Callable[[FileStatus], Decision]:
    """Return a function that selects the bytes of a GET, for when the file is open.

    ``byte_range`` is Pacifica's parameter ``START-END``, END exclusive, and overrides the header;
    the response is 200, and bytes beyond the end of the file are left out.

    A date in If-Range never matches: clients set the date of a file, so it does not identify the
    bytes (RFC 9110, section 8.8.2.2).
    """
    span = _byte_range(byte_range) if byte_range else None
    if span is not None:
        conditions = replace(conditions, range=None)

    def decide(status: FileStatus) -> Decision:
        try:
            decision = evaluate("GET", conditions, status.representation, now=time.time())
        except RangeNotSatisfiable as error:
            raise BeyondEnd(status.size) from error
        if decision.status == HTTPStatus.NOT_MODIFIED:
            return Decision(HTTPStatus.NOT_MODIFIED, ByteRange(0, 0, partial=False))
        if span is None:
            return decision
        start, stop = (min(place, status.size) for place in span)
        return Decision(HTTPStatus.OK, ByteRange(start, stop, partial=False))

    return decide


def precondition_check(
    method: str, conditions: Conditions
) -> Callable[[FileStatus | None], Decision]:
    """Return a function that checks the conditions of ``method`` against the current file."""

    def check(status: FileStatus | None) -> Decision:
        current = None if status is None else status.representation
        return evaluate(method, conditions, current, now=time.time())

    return check


def _byte_range(text: str) -> tuple[int, int]:
    start, dash, stop = text.partition("-")
    if not (dash and _is_number(start) and _is_number(stop) and int(start) <= int(stop)):
        raise InvalidInput(f"byte_range is START-END, not {text!r}")
    return int(start), int(stop)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def status_headers(archive_id: str, status: FileStatus, media: str) -> Iterator[tuple[str, str]]:
    """Yield the headers of HEAD; Pacifica's clients use the misspelt one, too."""
    yield "X-Pacifica-Messsage", "File was found"
    yield "X-Pacifica-Message", "File was found"
    yield "X-Pacifica-File", quote(archive_id, safe="/ !$&'()*+,;=:@~")
    yield "X-Content-Length", str(status.size)
    yield "Last-Modified", str(status.mtime)
    yield "ETag", status.etag
    yield "X-Pacifica-Ctime", str(status.ctime)
    yield "X-Pacifica-Bytes-Per-Level", f"({status.size},)"
    yield "X-Pacifica-File-Storage-Media", media
    yield "Content-Type", "application/json"


def old_path(body: bytes) -> str:
    """Return the ``path`` in the JSON body of a PATCH."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("the body is not JSON") from error
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str):
        raise InvalidInput('the body is {"path": OLD_PATH}, OLD_PATH a string')
    return path
