"""Header fields: Cache-Control, Range, conditions, and Content-Disposition with its file name.

Every response has Cache-Control (RFC 9111, section 5.2.2).  Caches may store a response without it
by heuristics, even a 404 or a 204 (RFC 9110, section 15.1): a shared cache would then serve
outdated responses, or those of one user to another.

Every route with a representation calls :func:`evaluate_conditions`, for every method, and calls it
last: conditions are ignored if the response without them would be anything but 2xx or 412
(RFC 9110, section 13.2.1).

The module is pure: it only maps values to values.
"""

from __future__ import annotations

import re
import string
import time
import unicodedata
from calendar import timegm
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from math import floor
from urllib.parse import quote

from cartd.errors import InvalidInput, PreconditionFailed, RangeNotSatisfiable

NO_STORE = "no-store"
"""For statuses, errors, and responses to changes."""
REVALIDATED = "private, no-cache, no-transform"
"""For bytes with validators: the client may store them but must revalidate before each use; proxies
must neither store nor change them."""
PUBLIC = "public, max-age=3600"
"""For content that is the same for all users and changes only with a release."""


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


def http_date(when: float) -> str:
    """Return Unix seconds as an HTTP date, rounded down (RFC 9110, section 5.6.7)."""
    return formatdate(floor(when), usegmt=True)


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


TAR_SUFFIX = ".tar"
MAX_FILENAME_BYTES = 255
"""The limit of common file systems for one name."""

_SEPARATORS = frozenset("/\\")
_CONTROL_CATEGORIES = frozenset({"Cc", "Zl", "Zp"})
"""C0, DEL and C1; line and paragraph separators."""
_CONTROL_DIRECTIONS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""Bidirectional controls: they make ``gpj.tar`` look like ``rat.jpg`` (UAX 9, section 2)."""
_RESERVED_NAMES = frozenset({"", ".", ".."})

_UNQUOTABLE = frozenset('"/\\')
_PERCENT_ENCODED = re.compile("%(?=[0-9A-Fa-f]{2})")
"""Percent-encoding, which some clients decode in ``filename=`` (RFC 6266, appendix D)."""
_REPLACEMENT = "_"

_ATTR_CHAR = "!#$&+-.^_`|~"
"""Characters beside letters and digits without percent-encoding (RFC 8187, section 3.2.1)."""


def check_filename(name: str) -> str:
    """Return ``name`` if it is valid for a file and, without its ``.tar``, for a folder.

    Raises :class:`InvalidInput` for path separators, control characters, bidirectional controls,
    and reserved names.
    """
    if not _SEPARATORS.isdisjoint(name):
        raise InvalidInput("filename: must not contain '/' or '\\'")
    if not (name.isascii() and name.isprintable()) and any(map(_is_control, name)):
        raise InvalidInput("filename: must not contain control characters")
    if top_folder(name) in _RESERVED_NAMES:
        raise InvalidInput("filename: must be the name of a file")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidInput("filename: must be Unicode text") from None
    if size > MAX_FILENAME_BYTES:
        raise InvalidInput(f"filename: must not be longer than {MAX_FILENAME_BYTES} bytes")
    return name


def top_folder(name: str) -> str:
    """Return the name of the folder that contains all files of the tar."""
    return name.removesuffix(TAR_SUFFIX)


@lru_cache(maxsize=1024)
def default_filename(now: float) -> str:
    """Return the default name of a tar, made of its time in UTC."""
    return time.strftime(f"data_%Y_%m_%d_%H_%M_%S{TAR_SUFFIX}", time.gmtime(now))


@lru_cache(maxsize=1024)
def content_disposition(name: str) -> str:
    """Return the value of Content-Disposition (RFC 6266) in printable ASCII, for a valid name.

    A name in printable ASCII is unchanged, except for ``"``, ``\\``, ``/`` and a ``%`` that some
    clients would decode.  Any other name is sent twice: simplified as ``filename``, for old
    clients, and exactly as ``filename*`` (RFC 8187; RFC 6266, appendix D).
    """
    plain = _ascii_name(name)
    if plain == name:
        return f'attachment; filename="{name}"'
    exact = quote(name, safe=_ATTR_CHAR)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}"


def _is_control(character: str) -> bool:
    return (
        unicodedata.category(character) in _CONTROL_CATEGORIES
        or unicodedata.bidirectional(character) in _CONTROL_DIRECTIONS
    )


def _ascii_name(name: str) -> str:
    """Return the nearest ASCII name: letters without marks, ``_`` for other characters."""
    # Composed first, so that a mark that remains belongs to the letter before it.
    plain = "".join(map(_to_ascii, unicodedata.normalize("NFC", name)))
    plain = "".join(_REPLACEMENT if c in _UNQUOTABLE or not c.isprintable() else c for c in plain)
    plain = _PERCENT_ENCODED.sub(_REPLACEMENT, plain)
    if top_folder(plain) in _RESERVED_NAMES:
        plain = _REPLACEMENT + plain
    if len(plain) > MAX_FILENAME_BYTES:  # one character may expand to many
        suffix = TAR_SUFFIX if plain.endswith(TAR_SUFFIX) else ""
        plain = plain[: MAX_FILENAME_BYTES - len(suffix)] + suffix
    return plain


def _to_ascii(character: str) -> str:
    """Return the ASCII part of the character's decomposition; empty for a combining mark."""
    left = "".join(c for c in unicodedata.normalize("NFKD", character) if c in _PRINTABLE)
    if left.strip() or character.isascii():
        return left
    return "" if unicodedata.combining(character) else _REPLACEMENT


_PRINTABLE = frozenset(string.ascii_letters + string.digits + string.punctuation + " ")
