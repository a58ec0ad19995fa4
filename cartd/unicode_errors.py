"""Locates invalid Unicode in a manifest: bytes that are not UTF-8, or lone surrogates.

Strategy: called only after the parser has failed.  The parser reports no offsets of entries, so the
fault is replaced by a unique marker, and the body is parsed again to find the entry with the
marker.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import Final

import msgspec

_BLOCK: Final = 1 << 20
_LONE_SURROGATE: Final = re.compile(
    rb"\\u[dD](?:"
    rb"[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|[c-fC-F][0-9a-fA-F]{2}(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb")"
)
"""A surrogate without its other half (RFC 8259, section 8.2), in text without double
backslashes."""
_SPACES: Final = b"\xff\xff"
"""Replaces two backslashes: bytes that are not part of an escape."""
_ESCAPE: Final = 6
"""Length of ``\\udce9`` in bytes."""
_KEY: Final = re.compile(r"\w{1,100}", re.ASCII)
"""A key that is safe to quote in a message."""

_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list: Final = msgspec.json.Decoder(list[msgspec.Raw])


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
        quote = body.find(b'"', start + _BLOCK)
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
        keys = _object.decode(marked)
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
        for position, entry in enumerate(_list.decode(value)):
            if marker in bytes(entry):
                return ".".join(filter(None, (f"fileids[{position}]", _key_in(entry, marker))))
    except msgspec.ValidationError:
        pass  # not a list
    return None


def _key_in(entry: msgspec.Raw, marker: bytes) -> str:
    try:
        fields = _object.decode(entry)
    except msgspec.ValidationError:
        return ""
    return next((_safe_key(key) for key, value in fields.items() if marker in bytes(value)), "")


def _safe_key(key: str) -> str:
    """Return the key if it is safe to quote, else ''."""
    return key if _KEY.fullmatch(key) else ""
