"""Checks the number of entries of a posted manifest before any of them is decoded.

Strategy: a decoded entry, even an invalid one as ``0``, may take fifty times its bytes in the body,
so entries are counted in the bytes.  A manifest of n entries has at least n - 1 commas, so counting
commas is enough for all but the largest manifests.  For those, everything but the JSON structure
is removed, block by block, by calls that each process a whole block.
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
"""What remains of most entries, for two levels of nesting."""
_NO_BACKSLASH = re.compile(rb"[^\\]")
_TOKENS = re.compile(rb"[][{}]|,+")
_DEPTH = 2
"""Nesting depth of the entries: ``{"fileids": [here]}``."""


def check_entries(body: bytes, max_entries: int) -> None:
    """Raise TooLarge if a list of the manifest has more than ``max_entries`` entries.

    Invalid JSON is not reported here.
    """
    if _more_commas(body, max_entries) and _longest_list(body, max_entries) > max_entries:
        raise TooLarge(f"fileids: has more than {max_entries} entries ({LIMIT})", limit=LIMIT)


def _more_commas(body: bytes, max_entries: int) -> bool:
    """Whether there are ``max_entries`` commas or more, counted in blocks to let threads run."""
    commas = 0
    for start in range(0, len(body), _BLOCK):
        commas += body.count(b",", start, start + _BLOCK)
        if commas >= max_entries:
            return True
    return False


def _longest_list(body: bytes, max_entries: int) -> int:
    """Return the length of the longest list, or of the first with more than ``max_entries``."""
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
    """Yield brackets and commas outside of strings, without most of those within entries."""
    in_string = False
    for block in _blocks(body):
        # Pairs of backslashes first: a remaining backslash before a quote then escapes it.
        unescaped = block.replace(b"\\\\", b"").replace(b'\\"', b"")
        # Adjacent strings, whose separators have been removed, become one.
        bare = unescaped.translate(None, _NO_STRUCTURE).replace(b'""', b"")
        if in_string:
            bare = b'"' + bare
        in_string = bare.count(b'"') % 2 == 1
        structure = _STRINGS.sub(b"", bare)
        for plain in _PLAIN:
            structure = structure.replace(plain, b"")
        yield structure


def _blocks(body: bytes) -> Iterator[bytes]:
    """Split ``body`` into blocks, never directly behind a backslash, which may be an escape."""
    start = 0
    while start < len(body):
        last = _NO_BACKSLASH.search(body, start + _BLOCK - 1)
        end = last.end() if last else len(body)
        yield body[start:end]
        start = end
