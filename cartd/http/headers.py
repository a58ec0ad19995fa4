"""Header fields of responses: Cache-Control, Content-Disposition with its file name, and escaping.

Every response has Cache-Control (RFC 9111, section 5.2.2).  Caches may store a response without it
by heuristics, even a 404 or a 204 (RFC 9110, section 15.1): a shared cache would then serve
outdated responses, or those of one user to another.

The module is pure: it only maps values to values.
"""

from __future__ import annotations

import re
import string
import time
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import quote

from cartd.errors import InvalidInput

NO_STORE = "no-store"
"""For statuses, errors, and responses to changes."""
REVALIDATED = "private, no-cache, no-transform"
"""For bytes with validators: the client may store them but must revalidate before each use; proxies
must neither store nor change them."""
PUBLIC = "public, max-age=3600"
"""For content that is the same for all users and changes only with a release."""


def prefers_html(accept: str) -> bool:
    """Return whether a value of Accept names text/html and prefers it to JSON (RFC 9110, 12.5.1).

    Browsers do; programs that accept anything do not.
    """
    qualities: dict[str, float] = {}
    for item in accept.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        quality = next((one[2:] for one in parameters if one.startswith("q=")), "1")
        try:
            qualities[name] = float(quality)
        except ValueError:
            qualities[name] = 0.0
    other = qualities.get("application/*", qualities.get("*/*", 0.0))
    return qualities.get("text/html", 0.0) > qualities.get("application/json", other)


def escape_header(text: str) -> str:
    """Return ``text`` as a header value, with all but printable ASCII escaped."""
    if text.isascii() and text.isprintable():
        return text
    text = text.encode("ascii", "backslashreplace").decode()
    return "".join(c if " " <= c <= "~" else f"\\x{ord(c):02x}" for c in text)


_QUALITY = re.compile(rb"[qQ]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
"""A weight (RFC 9110, section 12.4.2)."""


def quality_of(accept: Sequence[bytes], media_type: bytes) -> float:
    """Return the weight of a media type that Accept names; 0 if it is not named.

    ``accept``: the values of the header.  Ranges such as ``*/*`` name no type.
    """
    for item in b",".join(accept).lower().split(b","):
        name, *parameters = item.split(b";")
        if name.strip() == media_type:
            weights = filter(None, (_QUALITY.fullmatch(one.strip()) for one in parameters))
            return next((float(weight[1]) for weight in weights), 1.0)
    return 0.0


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
