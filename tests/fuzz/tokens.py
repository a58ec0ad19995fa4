"""The token file: all its entries, which round-trip, or an error message of one line.

An input is the file; a message never contains any part of a secret's hash.
"""

from __future__ import annotations

import re

from cartd.auth.tokens import NAME, line_name, parse_entries

KEY = "0123456789abcdef" * 4
WORDS = (
    f"ada admin sha256:{KEY}\n".encode(),
    b" user ", b" admin ", b"sha256:", b":", b"SHA256", b"#", b"\n", b"\r",
    b"ada@h.org", b"\xc2\x85", b"\xe2\x80\xa8", b"\x0c", b"=", b"99", b"a" * 255, KEY.encode(),
)  # fmt: skip


def check(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        entries = parse_entries(text)
    except ValueError as error:
        message = str(error)
        assert re.match(r"line [0-9]+: ", message) and message.isprintable(), message
        assert KEY not in message, message
        return
    names = [name for line in text.splitlines() if (name := line_name(line)) is not None]
    assert list(entries) == names
    assert all(NAME.fullmatch(name) for name in names), names
    assert all(entry.user.name == name for name, entry in entries.items())
    assert parse_entries("\n".join(map(str, entries.values()))) == entries
