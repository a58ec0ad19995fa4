"""The name that a client gives its download, and how an answer says it back."""

from __future__ import annotations

import re
import string
import time
import unicodedata
from functools import lru_cache
from urllib.parse import quote

from cartd.errors import InvalidInput

SUFFIX = ".tar"
MAX_BYTES = 255
"""What the common file systems allow for one name."""

_SEPARATORS = frozenset("/\\")
_CONTROL_CATEGORIES = frozenset({"Cc", "Zl", "Zp"})
"""C0, DEL and C1; the separators of lines and of paragraphs."""
_CONTROL_DIRECTIONS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""What makes ``gpj.tar`` look like ``rat.jpg`` (UAX 9, section 2)."""
_RESERVED_NAMES = frozenset({"", ".", ".."})

_UNQUOTABLE = frozenset('"/\\')
_PERCENT_ENCODED = re.compile("%(?=[0-9A-Fa-f]{2})")
"""Some clients decode this in ``filename=`` (RFC 6266, appendix D)."""
_REPLACEMENT = "_"

_ATTR_CHAR = "!#$&+-.^_`|~"
"""Beside letters and digits, what needs no percent-encoding (RFC 8187, section 3.2.1)."""


def check_filename(name: str) -> str:
    """Return ``name`` if a file and, without its ``.tar``, a folder may be called so.

    Raises :class:`InvalidInput` for separators of paths, for characters that control a terminal,
    a line or the direction of text, and for what no file is called.
    """
    if not _SEPARATORS.isdisjoint(name):
        raise InvalidInput("filename: must not hold '/' or '\\'")
    if not (name.isascii() and name.isprintable()) and any(map(_is_control, name)):
        raise InvalidInput("filename: must not hold control characters")
    if top_folder(name) in _RESERVED_NAMES:
        raise InvalidInput("filename: must be the name of a file")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidInput("filename: must be Unicode text") from None
    if size > MAX_BYTES:
        raise InvalidInput(f"filename: must not be longer than {MAX_BYTES} bytes")
    return name


def top_folder(name: str) -> str:
    """Name the folder that holds all of the tar's files."""
    return name.removesuffix(SUFFIX)


@lru_cache(maxsize=1024)
def default_filename(now: float) -> str:
    """Name a tar after its time in UTC: the same one wherever the service runs."""
    return time.strftime(f"data_%Y_%m_%d_%H_%M_%S{SUFFIX}", time.gmtime(now))


@lru_cache(maxsize=1024)
def header_value(name: str) -> str:
    """Return the header's value (RFC 6266) in printable ASCII, for a name that was checked.

    Printable ASCII is given as it is, but for ``"``, ``\\``, ``/`` and a ``%`` that some clients
    would decode.  Any other name is given twice: first simplified, for clients that know only
    ``filename``, then exactly, in the encoding of RFC 8187 (RFC 6266, appendix D).
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
    """The nearest name in ASCII: letters without their marks, ``_`` for what has no letter."""
    # Composed first: a mark that is left alone belongs to the letter before it.
    plain = "".join(map(_to_ascii, unicodedata.normalize("NFC", name)))
    plain = "".join(_REPLACEMENT if c in _UNQUOTABLE or not c.isprintable() else c for c in plain)
    plain = _PERCENT_ENCODED.sub(_REPLACEMENT, plain)
    if top_folder(plain) in _RESERVED_NAMES:
        plain = _REPLACEMENT + plain
    if len(plain) > MAX_BYTES:  # a sign may stand for many letters
        suffix = SUFFIX if plain.endswith(SUFFIX) else ""
        plain = plain[: MAX_BYTES - len(suffix)] + suffix
    return plain


def _to_ascii(character: str) -> str:
    """What of the character's decomposition is ASCII; a mark of its own has nothing."""
    left = "".join(c for c in unicodedata.normalize("NFKD", character) if c in _PRINTABLE)
    if left.strip() or character.isascii():
        return left
    return "" if unicodedata.combining(character) else _REPLACEMENT


_PRINTABLE = frozenset(string.ascii_letters + string.digits + string.punctuation + " ")
