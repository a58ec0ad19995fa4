"""Ranges, conditional requests and HTTP dates (RFC 9110, sections 14, 13 and 5.6.7).

Every route with a representation calls :func:`evaluate_conditions`, for every method, and calls it
last: conditions are ignored if the response without them would be anything but 2xx or 412
(RFC 9110, section 13.2.1).

The module is pure: it only maps values to values.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from http import HTTPStatus
from math import floor

from cartd.errors import PreconditionFailed, RangeNotSatisfiable

_WHITESPACE = " \t"
_RANGE_UNIT = "bytes="
_RANGE = re.compile(r"([0-9]*)-([0-9]*)")
_MAX_DIGITS = 30
"""Longer numbers are treated as beyond any length."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from ``start`` up to, but not including, ``stop``."""

    start: int
    stop: int
    partial: bool
    """Whether the answer is 206 with ``Content-Range``, not 200."""


def select_range(length: int, range_header: str) -> ByteRange:
    """Return the bytes to send of a representation of ``length`` bytes (RFC 9110, section 14.2).

    A Range that is invalid or has several ranges is ignored: the complete representation is sent.
    Raises :class:`RangeNotSatisfiable` for a valid range that selects no byte.
    """
    whole = ByteRange(0, length, partial=False)
    found = _parse_range(range_header, length) if length else None
    if found is None:
        return whole
    start, stop = found
    if start >= stop:
        raise RangeNotSatisfiable(f"The range {range_header} selects none of the {length} bytes")
    return ByteRange(start, stop, partial=True)


def _parse_range(header: str, length: int) -> tuple[int, int] | None:
    """Return the single range of ``header`` (RFC 9110, section 14.1.2), cut to ``length``.

    None if the header is invalid or has several ranges; an empty range is not satisfiable.
    """
    header = header.strip(_WHITESPACE)
    if header[: len(_RANGE_UNIT)].lower() != _RANGE_UNIT:
        return None
    listed = (each.strip(_WHITESPACE) for each in header[len(_RANGE_UNIT) :].split(","))
    wanted = [each for each in listed if each]
    match = _RANGE.fullmatch(wanted[0]) if len(wanted) == 1 else None
    if match is None:
        return None
    first, last = match.groups()
    if first and last and _order(last) < _order(first):
        return None
    if first:
        return _number(first), min(_number(last) + 1, length) if last else length
    if last:
        return max(length - _number(last), 0), length
    return None


def _order(digits: str) -> tuple[int, str]:
    """Return a key that sorts like the number, for any number of digits."""
    significant = digits.lstrip("0")
    return len(significant), significant


def _number(digits: str) -> int:
    """Return the number, or one beyond any length: int() rejects thousands of digits."""
    size, significant = _order(digits)
    return int(significant or "0") if size <= _MAX_DIGITS else 10**_MAX_DIGITS


CONDITIONAL = frozenset(
    {
        b"If-Match",
        b"If-Unmodified-Since",
        b"If-None-Match",
        b"If-Modified-Since",
        b"Range",
        b"If-Range",
    }
)
"""The headers of :class:`Conditions`, spelled as in the RFC."""

_TAG = re.compile(r'(W/)?("[^"]*")')
_READ_METHODS = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Representation:
    """The representation that a GET would send now."""

    length: int = 0
    etag: str | None = None
    """A strong ETag with its quotes; None without validator."""
    last_modified: float | None = None
    """Unix seconds of the last change."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The headers that make a request conditional or partial; None for those not sent."""

    if_match: str | None = None
    if_unmodified_since: str | None = None
    if_none_match: str | None = None
    if_modified_since: str | None = None
    range: str | None = None
    if_range: str | None = None

    @classmethod
    def read(cls, field: Callable[[str], str | None]) -> Conditions:
        """``field`` returns the value of a header, joined by commas if repeated."""
        return cls(
            field("If-Match"),
            field("If-Unmodified-Since"),
            field("If-None-Match"),
            field("If-Modified-Since"),
            field("Range"),
            field("If-Range"),
        )

    @property
    def has_precondition(self) -> bool:
        """Whether there is a precondition, which may apply to any method."""
        found = (
            self.if_match,
            self.if_unmodified_since,
            self.if_none_match,
            self.if_modified_since,
        )
        return any(value is not None for value in found)

    @property
    def is_conditional(self) -> bool:
        """Whether there is a precondition or a range: the client may have a part already."""
        return self.has_precondition or self.range is not None

    @property
    def needs_strong_date(self) -> bool:
        """Whether :func:`evaluate_conditions` needs ``date_is_strong`` for a GET."""
        return self.range is not None and self.if_range is not None and not _is_tag(self.if_range)


UNCONDITIONAL = Conditions()
"""The conditions of a request with none of these headers."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The result: OK (perform the method), PARTIAL_CONTENT or NOT_MODIFIED."""

    status: HTTPStatus
    selected: ByteRange
    """The bytes to send, unless NOT_MODIFIED."""


def evaluate_conditions(
    method: str,
    conditions: Conditions,
    current: Representation | None,
    *,
    now: float,
    date_is_strong: bool = False,
) -> Decision:
    """Evaluate the conditions in the order of RFC 9110, 13.2.2; ``current`` is None if absent.

    ``date_is_strong``: the representation did not change twice in the second of its
    ``last_modified``, and that second is over (section 8.8.2.2).  Used only if
    ``conditions.needs_strong_date``.

    :raises PreconditionFailed: the method must not be performed.
    :raises RangeNotSatisfiable: the range of a GET selects no byte.
    """
    _check_unchanged(conditions, current, now)
    whole = ByteRange(0, current.length if current is not None else 0, partial=False)
    if _is_not_modified(method, conditions, current, now):
        if method in _READ_METHODS:
            return Decision(HTTPStatus.NOT_MODIFIED, whole)
        raise PreconditionFailed("If-None-Match matches the current representation")
    if method != "GET" or current is None or conditions.range is None:
        return Decision(HTTPStatus.OK, whole)
    if not _range_applies(conditions.if_range, current, now, date_is_strong):
        return Decision(HTTPStatus.OK, whole)
    selected = select_range(current.length, conditions.range)
    status = HTTPStatus.PARTIAL_CONTENT if selected.partial else HTTPStatus.OK
    return Decision(status, selected)


def _check_unchanged(conditions: Conditions, current: Representation | None, now: float) -> None:
    """Steps 1 and 2: If-Match or, without it, If-Unmodified-Since."""
    if conditions.if_match is not None:
        if not _matches(conditions.if_match, current, weakly=False):
            raise PreconditionFailed("If-Match does not match the current representation")
    elif conditions.if_unmodified_since is not None:
        since = parse_date(conditions.if_unmodified_since, now)
        modified = _modified(current)
        if since is not None and modified is not None and modified > since:
            raise PreconditionFailed("Modified since the time in If-Unmodified-Since")


def _is_not_modified(
    method: str, conditions: Conditions, current: Representation | None, now: float
) -> bool:
    """Steps 3 and 4: If-None-Match or, without it and for reads, If-Modified-Since."""
    if conditions.if_none_match is not None:
        return _matches(conditions.if_none_match, current, weakly=True)
    if conditions.if_modified_since is None or method not in _READ_METHODS:
        return False
    since = parse_date(conditions.if_modified_since, now)
    modified = _modified(current)
    return since is not None and modified is not None and modified <= since


def _range_applies(
    if_range: str | None, current: Representation, now: float, date_is_strong: bool
) -> bool:
    """Step 5 (section 13.1.5): weak tags never match, dates must be strong and equal."""
    if if_range is None:
        return True
    if _is_tag(if_range):
        return if_range.strip(_WHITESPACE) == current.etag
    date = parse_date(if_range, now)
    return date_is_strong and date is not None and date == _modified(current)


def _matches(listed: str, current: Representation | None, *, weakly: bool) -> bool:
    """Return whether a list of tags, or ``*``, matches (sections 13.1.1 and 13.1.2)."""
    if current is None:
        return False
    if listed.strip(_WHITESPACE) == "*":
        return True
    return any(tag == current.etag and (weakly or not weak) for weak, tag in _TAG.findall(listed))


def _is_tag(validator: str) -> bool:
    return validator.strip(_WHITESPACE).startswith(('"', 'W/"'))


def _modified(current: Representation | None) -> int | None:
    """Return whole seconds, as in ``Last-Modified``."""
    if current is None or current.last_modified is None:
        return None
    return floor(current.last_modified)


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_SHORT_DAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_DATES = (
    re.compile(rf"{_SHORT_DAY}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT"),
    re.compile(rf"{_LONG_DAY}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"),
    re.compile(rf"{_SHORT_DAY} {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})"),
)
"""IMF-fixdate, RFC 850, asctime."""


def http_date(when: float) -> str:
    """Return Unix seconds as an HTTP date, rounded down (RFC 9110, section 5.6.7)."""
    return formatdate(floor(when), usegmt=True)


def parse_date(text: str, now: float) -> int | None:
    """Return the Unix time of an HTTP date in any of its three forms (RFC 9110, section 5.6.7).

    None if it is invalid.  A year of two digits is in the century of ``now``, or in the previous
    one if it would be more than 50 years ahead.
    """
    text = text.strip(_WHITESPACE)
    match = next((found for form in _DATES if (found := form.fullmatch(text))), None)
    if match is None:
        return None
    year, day, hour, minute, second = (
        int(match[name]) for name in ("year", "day", "hour", "minute", "second")
    )
    month = _MONTHS.index(match["month"]) + 1
    if len(match["year"]) == 2:
        this_year = datetime.fromtimestamp(now, UTC).year
        year += this_year - this_year % 100
        if year > this_year + 50:
            year -= 100
    leap = second == 60
    try:
        date = datetime(year, month, day, hour, minute, second - leap)
    except ValueError:
        return None
    return timegm(date.timetuple()) + leap
