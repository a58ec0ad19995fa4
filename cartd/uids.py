"""Uids: the names that clients choose for carts."""

from __future__ import annotations

import re

from cartd.errors import InvalidInput

UID_PATTERN = r"[A-Za-z0-9_~][A-Za-z0-9._~-]{0,254}"
"""The pattern of a complete uid."""
_UID = re.compile(UID_PATTERN)


MAX_STORED_LENGTH = 255
"""Characters of the database column, as in Pacifica Cartd."""


def may_be_stored(uid: str) -> bool:
    """Return whether a cart in the database can have this uid; Pacifica Cartd accepted nearly any.

    Look-ups of other uids are skipped: they would find nothing, or fail because of a NUL.
    """
    return "\0" not in uid and len(uid) <= MAX_STORED_LENGTH


def check_uid(uid: str) -> str:
    """Return ``uid`` if a new cart may have it; else raise InvalidInput."""
    if _UID.fullmatch(uid) is None:
        raise InvalidInput(
            "uid: must be 1 to 255 characters of A-Z a-z 0-9 . _ ~ - and not begin with . or -"
        )
    return uid
