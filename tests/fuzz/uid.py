"""Uids: an accepted uid is one URL segment, one file name and one header value, unchanged.

An input is the text in UTF-8; other bytes stand for lone surrogates.
"""

from __future__ import annotations

import string
from pathlib import PurePosixPath
from urllib.parse import quote

from cartd.errors import InvalidInput
from cartd.model import check_uid

WORDS = (b"..", b".", b"-", b"~", b"a" * 255, b"\n", b"/", b"%2e", b"\xc3\xa9", b"\0", b"\xd9\xa1")

_MAY = frozenset(string.ascii_letters + string.digits + "._~-")


def check(data: bytes) -> None:
    uid = data.decode("utf-8", "surrogateescape")
    right = 1 <= len(uid) <= 255 and _MAY.issuperset(uid) and uid[0] not in ".-"
    try:
        given = check_uid(uid)
    except InvalidInput as error:
        assert not right, uid
        assert str(error).startswith("uid: ") and str(error).isprintable()
        return
    assert right and given == uid, uid
    assert quote(uid, safe="") == uid
    assert PurePosixPath("/root", uid).parent == PurePosixPath("/root")
