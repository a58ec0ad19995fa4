"""File names of downloads: no header injection, and clients read back the same name.

An input is the name in UTF-8; other bytes stand for lone surrogates.
"""

from __future__ import annotations

import re
from email import message_from_string, policy
from pathlib import PurePosixPath
from urllib.parse import unquote

from werkzeug.http import parse_options_header

from cartd.errors import InvalidInput
from cartd.http.headers import MAX_FILENAME_BYTES, check_filename, content_disposition, top_folder

WORDS = (
    b".tar", b"..", b"/", b"\\", b'"', b";", b"\r\nSet-Cookie: a=b", b"%0d%0a", b"filename=", b"*=",
    b"UTF-8''", b"=?utf-8?q?a?=", b"\xe2\x80\xae", b"\xc2\x85", b"\xf0\x9f\x98\x80", b"\0", b"'",
    b"\t",
)  # fmt: skip

_HEADER = re.compile(r"""attachment; filename="([^"\\/]+)"(; filename\*=UTF-8''([!-~]+))?""")
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def check(data: bytes) -> None:
    name = data.decode("utf-8", "surrogateescape")
    try:
        given = check_filename(name)
    except InvalidInput as error:
        assert str(error).startswith("filename: ") and str(error).isprintable()
        return
    assert not _CONTROLS.search(name), name
    assert given == name and len(name.encode()) <= MAX_FILENAME_BYTES
    for path in (name, top_folder(name)):
        assert PurePosixPath("/root", path).parent == PurePosixPath("/root"), name
        assert path not in ("", ".", "..")
    value = content_disposition(name)
    assert value.isascii() and value.isprintable(), value
    parts = _HEADER.fullmatch(value)
    assert parts, value
    exact = parts[1] if parts[2] is None else unquote(parts[3], errors="strict")
    assert exact == name
    assert check_filename(parts[1]) == parts[1]
    assert parse_options_header(value) == ("attachment", {"filename": name})
    message = message_from_string(f"Content-Disposition: {value}\r\n\r\n", policy=policy.HTTP)
    assert message.keys() == ["Content-Disposition"]
