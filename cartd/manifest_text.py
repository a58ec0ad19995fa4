"""Scans the text of a manifest: counts its entries before it is decoded, and locates bad Unicode.

The parser reports no offset of invalid Unicode.  So after it has failed, the fault is replaced by a
unique marker, and the body is parsed again to find the entry with the marker.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator

import msgspec

from cartd.errors import TooLarge

BLOCK = 1 << 20
"""Bytes of the body that are processed by one call."""
_ENTRIES_LIMIT = "server.max_entries"
_NO_STRUCTURE = bytes(set(range(256)) - set(b'{}[],"'))
_STRINGS = re.compile(rb'"[^"]*"?')
_PLAIN = (b"{,,,}", b"{}", b"[]", b"{}", b"[]")
"""What remains of most entries, for two levels of nesting."""
_NO_BACKSLASH = re.compile(rb"[^\\]")
_TOKENS = re.compile(rb"[][{}]|,+")
_ENTRY_DEPTH = 2
"""Nesting depth of the entries: ``{"fileids": [here]}``."""


def check_entries(body: bytes, max_entries: int) -> None:
    """Raise TooLarge if a list of the manifest has more than ``max_entries`` entries.

    Invalid JSON is not reported here.

    Strategy: a decoded entry, even an invalid one as ``0``, may take fifty times its bytes in the
    body, so entries are counted in the bytes.  A manifest of n entries has at least n - 1 commas,
    so counting commas is enough for all but the largest manifests.  For those, everything but the
    JSON structure is removed, block by block, by calls that each process a whole block.
    """
    if _more_commas(body, max_entries) and _longest_list(body, max_entries) > max_entries:
        raise TooLarge(
            f"fileids: has more than {max_entries} entries ({_ENTRIES_LIMIT})", limit=_ENTRIES_LIMIT
        )


def _more_commas(body: bytes, max_entries: int) -> bool:
    """Whether there are ``max_entries`` commas or more, counted in blocks to let threads run."""
    commas = 0
    for start in range(0, len(body), BLOCK):
        commas += body.count(b",", start, start + BLOCK)
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
                if depth == _ENTRY_DEPTH:
                    in_list, entries = token == b"[", 1
            elif token in b"]}":
                depth -= 1
            elif depth == _ENTRY_DEPTH and in_list:
                entries += len(token)
                longest = max(longest, entries)
        if longest > max_entries:
            break
    return longest


def _structures(body: bytes) -> Iterator[bytes]:
    """Yield brackets and commas outside of strings, without most of those within entries."""
    in_string = False
    for block in _json_blocks(body):
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


def _json_blocks(body: bytes) -> Iterator[bytes]:
    """Split ``body`` into blocks, never directly behind a backslash, which may be an escape."""
    start = 0
    while start < len(body):
        last = _NO_BACKSLASH.search(body, start + BLOCK - 1)
        end = last.end() if last else len(body)
        yield body[start:end]
        start = end


_LONE_SURROGATE = re.compile(
    rb"\\u[dD](?:"
    rb"[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|[c-fC-F][0-9a-fA-F]{2}(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb")"
)
"""A surrogate without its other half (RFC 8259, section 8.2), in text without double
backslashes."""
_SPACES = b"\xff\xff"
"""Replaces two backslashes: bytes that are not part of an escape."""
_ESCAPE = 6
"""Length of ``\\udce9`` in bytes."""
_SAFE_KEY = re.compile(r"\w{1,100}", re.ASCII)
"""A key that is safe to quote in a message."""
_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])


def describe_lone_surrogate(body: bytes) -> str | None:
    """Return where ``body``, which the parser rejected, contains a lone surrogate.

    None if it contains none, or if it is also invalid for another reason.
    """
    found = next(_find_lone_surrogates(body), None)
    if found is None:
        return None
    marked = bytearray(body)
    for at in _find_lone_surrogates(body):
        marked[at : at + _ESCAPE] = b"\\ufffd"
    marker = _marker(body, _ESCAPE)
    marked[found : found + _ESCAPE] = marker
    try:
        place = _locate(bytes(marked), marker)
    except (msgspec.DecodeError, RecursionError):
        return None
    escape = body[found : found + _ESCAPE].decode()
    return f"{place}: contains a lone surrogate ({escape}, byte {found}), which is invalid Unicode"


def describe_invalid_utf8(body: bytes, at: int) -> str:
    """Return the place of the byte ``at`` of ``body``, which is not UTF-8."""
    marker = _marker(body, 8)
    marked = b"".join((body[:at], marker, body[at + 1 :]))
    try:
        place = _locate(marked, marker)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        place = "manifest"
    return f"{place}: is not UTF-8 (byte {at})"


def _marker(body: bytes, length: int) -> bytes:
    """Return a string that does not occur in ``body``."""
    while True:
        marker = secrets.token_hex(length)[:length].encode()
        if marker not in body:
            return marker


def _find_lone_surrogates(body: bytes) -> Iterator[int]:
    start = 0
    while start < len(body):
        # No escape extends beyond a quote.
        quote = body.find(b'"', start + BLOCK)
        end = len(body) if quote < 0 else quote + 1
        block = body[start:end].replace(b"\\\\", _SPACES)
        for lone in _LONE_SURROGATE.finditer(block):
            yield start + lone.start()
        start = end


def _locate(marked: bytes, marker: bytes) -> str:
    """Return the place of the marker in a manifest; ``manifest`` if it is in no entry's value.

    Raises ``msgspec.DecodeError`` for invalid JSON.
    """
    try:
        keys = _raw_object.decode(marked)
    except msgspec.ValidationError:
        return "manifest"
    for key, value in keys.items():
        if key == "fileids":
            if place := _locate_in_entries(value, marker):
                return place
        elif marker in bytes(value):
            return _safe_key(key) or "manifest"
    return "manifest"


def _locate_in_entries(value: msgspec.Raw, marker: bytes) -> str | None:
    try:
        for position, entry in enumerate(_raw_list.decode(value)):
            if marker in bytes(entry):
                return ".".join(filter(None, (f"fileids[{position}]", _key_in(entry, marker))))
    except msgspec.ValidationError:
        pass  # not a list
    return None


def _key_in(entry: msgspec.Raw, marker: bytes) -> str:
    try:
        fields = _raw_object.decode(entry)
    except msgspec.ValidationError:
        return ""
    return next((_safe_key(key) for key, value in fields.items() if marker in bytes(value)), "")


def _safe_key(key: str) -> str:
    """Return the key if it is safe to quote, else ''."""
    return key if _SAFE_KEY.fullmatch(key) else ""
