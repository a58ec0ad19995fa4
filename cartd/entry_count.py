"""How many entries a posted manifest may have, known before any of them is decoded.

Strategy: an entry takes less of the body than of memory, and one that is none, as ``0``, takes a
fiftieth: so they are counted while the body is only text.  Commas, of which there is one less than
entries at most, tell it of all but the greatest manifests.  Of those all that is not structure is
removed, by passes over the bytes that are each one call, and what is left is short.
"""

from __future__ import annotations

import re

from cartd.errors import TooLarge

LIMIT = "server.max_entries"
_BLOCK = 1 << 20
_NO_STRUCTURE = bytes(set(range(256)) - set(b'{}[],"'))
_STRINGS = re.compile(rb'"[^"]*"?')
_PLAIN_ENTRY = b"{,,,}"
_TOKENS = re.compile(rb"[][{}]|,+")
_DEPTH = 2
"""Of what is in the lists of the manifest itself: ``{"fileids": [here]}``."""


def check_entries(body: bytes, most: int) -> None:
    """Raise TooLarge if a list of the manifest has more than ``most`` entries.

    What ``body`` is if it is no JSON is for others to say.
    """
    if _more_commas(body, most) and _longest_list(body, most) > most:
        raise TooLarge(f"fileids: has more than {most} entries ({LIMIT})", limit=LIMIT)


def _more_commas(body: bytes, most: int) -> bool:
    """Whether there are ``most`` or more; the interpreter's lock is let go in between."""
    commas = 0
    for start in range(0, len(body), _BLOCK):
        commas += body.count(b",", start, start + _BLOCK)
        if commas >= most:
            return True
    return False


def _longest_list(body: bytes, most: int) -> int:
    """How many entries the longest has, or the first that has more than ``most``."""
    depth = longest = entries = 0
    in_list = False
    for token in _TOKENS.finditer(_structure(body)):
        text = token[0]
        if text in b"[{":
            depth += 1
            if depth == _DEPTH:
                in_list, entries = text == b"[", 1
        elif text in b"]}":
            depth -= 1
        elif depth == _DEPTH and in_list:
            entries += len(text)
            longest = max(longest, entries)
            if longest > most:
                break
    return longest


def _structure(body: bytes) -> bytes:
    """The brackets and commas outside of strings, without those of plain entries."""
    # Pairs first: what is before a quote then escapes it.
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Two strings that touch each other, now that what was between them is gone, become one.
    bare = unescaped.translate(None, _NO_STRUCTURE).replace(b'""', b"")
    return _STRINGS.sub(b"", bare).replace(_PLAIN_ENTRY, b"").replace(b"{}", b"")
