"""How many entries a posted manifest has, known before any of them is decoded.

Strategy: an entry that is none, as ``0``, takes fifty times as much memory as it takes of the body,
so they are counted while the body is only text.  Commas tell it of all but the greatest manifests:
there is one less than entries at least.  Of those, block by block, all that is not structure is
removed by passes over the bytes that are each one call; what is left is short.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cartd.errors import TooLarge

LIMIT = "server.max_entries"

_BLOCK = 1 << 20
_NO_STRUCTURE = bytes(set(range(256)) - set(b'{}[],"'))
_STRINGS = re.compile(rb'"[^"]*"?')
_PLAIN = (b"{,,,}", b"{}", b"[]", b"{}", b"[]")
"""What is in most entries, and in what is in them: two levels of it."""
_NO_BACKSLASH = re.compile(rb"[^\\]")
_TOKENS = re.compile(rb"[][{}]|,+")
_DEPTH = 2
"""Of what is in the lists of the manifest itself: ``{"fileids": [here]}``."""


def check_entries(body: bytes, max_entries: int) -> None:
    """Raise TooLarge if a list of the manifest has more than ``max_entries`` entries.

    What ``body`` is if it is no JSON is for others to say.
    """
    if _more_commas(body, max_entries) and _longest_list(body, max_entries) > max_entries:
        raise TooLarge(f"fileids: has more than {max_entries} entries ({LIMIT})", limit=LIMIT)


def _more_commas(body: bytes, max_entries: int) -> bool:
    """Whether there are ``max_entries`` or more; the interpreter's lock is let go in between."""
    commas = 0
    for start in range(0, len(body), _BLOCK):
        commas += body.count(b",", start, start + _BLOCK)
        if commas >= max_entries:
            return True
    return False


def _longest_list(body: bytes, max_entries: int) -> int:
    """How many entries the longest has, or the first that has more than ``max_entries``."""
    depth = longest = entries = 0
    in_list = False
    for structure in _structures(body):
        for token in _TOKENS.findall(structure):
            if token in b"[{":
                depth += 1
                if depth == _DEPTH:
                    in_list, entries = token == b"[", 1
            elif token in b"]}":
                depth -= 1
            elif depth == _DEPTH and in_list:
                entries += len(token)
                longest = max(longest, entries)
        if longest > max_entries:
            break
    return longest


def _structures(body: bytes) -> Iterator[bytes]:
    """The brackets and commas outside of strings, without most of those inside of entries."""
    in_string = False
    for block in _blocks(body):
        # Pairs first: what is before a quote then escapes it.
        unescaped = block.replace(b"\\\\", b"").replace(b'\\"', b"")
        # Two strings that touch each other, now that what was between them is gone, become one.
        bare = unescaped.translate(None, _NO_STRUCTURE).replace(b'""', b"")
        if in_string:
            bare = b'"' + bare
        in_string = bare.count(b'"') % 2 == 1
        structure = _STRINGS.sub(b"", bare)
        for plain in _PLAIN:
            structure = structure.replace(plain, b"")
        yield structure


def _blocks(body: bytes) -> Iterator[bytes]:
    """Never cut behind a backslash, which has a meaning for what follows."""
    start = 0
    while start < len(body):
        last = _NO_BACKSLASH.search(body, start + _BLOCK - 1)
        end = last.end() if last else len(body)
        yield body[start:end]
        start = end
