"""The file of tokens: all its entries, the same when written anew, or one line of why not.

An input is the file; a reason never shows what it keeps of a secret.
"""

from __future__ import annotations

import re

from cartd.auth.entries import NAME, name_of_line, parse

KEY = "c2VjcmV0c2VjcmV0c2VjcmV0"
WORDS = (
    f"ada admin $scrypt$ln=14,r=8,p=1$c2FsdHNhbHRzYWx0${KEY}\n".encode(),
    b" user ", b" admin ", b"$scrypt$", b"ln=", b",r=", b",p=", b"$", b"#", b"\n", b"\r",
    b"ada@h.org", b"\xc2\x85", b"\xe2\x80\xa8", b"\x0c", b"=", b"99", b"a" * 255, KEY.encode(),
)  # fmt: skip


def check(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        entries = parse(text)
    except ValueError as error:
        said = str(error)
        assert re.match(r"line [0-9]+: ", said) and said.isprintable(), said
        assert KEY not in said, said
        return
    names = [name for line in text.splitlines() if (name := name_of_line(line)) is not None]
    assert list(entries) == names
    assert all(NAME.fullmatch(name) for name in names), names
    assert all(entry.user.name == name for name, entry in entries.items())
    assert parse("\n".join(map(str, entries.values()))) == entries
