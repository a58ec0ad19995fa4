"""The names that clients give to carts."""

from __future__ import annotations

import re

from cartd.errors import InvalidInput

UID_PATTERN = r"[A-Za-z0-9_~][A-Za-z0-9._~-]{0,254}"
"""What the whole of a uid matches."""
_UID = re.compile(UID_PATTERN)


MAX_STORED_LENGTH = 255
"""Characters of the database's column, in Pacifica Cartd as well."""


def may_be_stored(uid: str) -> bool:
    """Whether a cart may have this uid in the database: Pacifica Cartd took nearly any.

    A look-up of what may not is spared: it would find nothing, or be refused for a NUL.
    """
    return "\0" not in uid and len(uid) <= MAX_STORED_LENGTH


def check_uid(uid: str) -> str:
    """Return ``uid`` if a new cart may have it; raises InvalidInput."""
    if _UID.fullmatch(uid) is None:
        raise InvalidInput(
            "uid: is not 1 to 255 of A-Z a-z 0-9 . _ ~ -, beginning with neither . nor -"
        )
    return uid
