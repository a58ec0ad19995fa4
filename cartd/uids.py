"""The names that clients give to carts."""

from __future__ import annotations

import re

from cartd.errors import InvalidInput

UID_PATTERN = r"[A-Za-z0-9_~][A-Za-z0-9._~-]{0,254}"
"""What the whole of a uid matches."""
_UID = re.compile(UID_PATTERN)


def check_uid(uid: str) -> str:
    """Give ``uid`` back if a cart may have it; raises InvalidInput."""
    if _UID.fullmatch(uid) is None:
        raise InvalidInput(
            "uid: is not 1 to 255 of A-Z a-z 0-9 . _ ~ -, beginning with neither . nor -"
        )
    return uid
