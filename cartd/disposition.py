"""The name that a client gives its download, and how an answer says it back."""

from __future__ import annotations

import string
import time
from urllib.parse import quote

from cartd.errors import InvalidInput

SUFFIX = ".tar"
MAX_BYTES = 255
"""What the common file systems allow for one name."""

_UNSAFE_CHARACTERS = frozenset("/\\\0")
_NO_FOLDER = frozenset({"", ".", ".."})

_PLAIN = frozenset(string.ascii_letters + string.digits + " !#$&'()+,-.=@[]^_`{}~")
"""What even clients that split headers naively, or unquote too much, leave as it is."""

_ATTR_CHAR = "!#$&+-.^_`|~"
"""Beside letters and digits, what needs no percent-encoding (RFC 8187, section 3.2.1)."""


def check_filename(name: str) -> str:
    """Give ``name`` if a file and, without its ``.tar``, a folder may be called so.

    Raises :class:`InvalidInput`.  Any other text is allowed, control characters too: whoever
    writes the name into a header uses :func:`content_disposition`.
    """
    if not _UNSAFE_CHARACTERS.isdisjoint(name):
        raise InvalidInput("filename: must not hold '/', '\\' or NUL")
    if top_folder(name) in _NO_FOLDER:
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


def default_filename(now: float) -> str:
    """Name a tar after local time, as Pacifica does."""
    return time.strftime(f"data_%Y_%m_%d_%H_%M_%S{SUFFIX}", time.localtime(now))


def content_disposition(name: str) -> str:
    """Write the header's value (RFC 6266); pure ASCII without a control character.

    A name that is not plain is given twice: exactly, in the encoding of RFC 8187, and with ``_``
    for whatever some client might misread.  The exact one stands first because Python's email
    package takes the first of the two; those that only know ``filename`` do not look at it.
    """
    if _PLAIN.issuperset(name):
        return f'attachment; filename="{name}"'
    fallback = "".join(c if c in _PLAIN else "_" for c in name)
    exact = quote(name, safe=_ATTR_CHAR)
    return f"attachment; filename*=UTF-8''{exact}; filename=\"{fallback}\""
