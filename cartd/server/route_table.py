"""What can be asked for at which path, for the head of a request to be judged by.

The routes are in :mod:`cartd.rest`; a test compares both.
"""

from __future__ import annotations

from collections.abc import Sequence

from cartd import openapi
from cartd.uids import check_uid

CART_METHODS = ("DELETE", "GET", "HEAD", "POST")
_READ_METHODS = ("GET", "HEAD")
_OPENAPI_PATH = openapi.PATH.strip("/").split("/")


def allowed_methods(path: Sequence[str]) -> Sequence[str]:
    """The methods of a path, given as its segments without empty ones; none if it is unknown."""
    if len(path) == 1:
        return CART_METHODS
    return _READ_METHODS if not path or list(path) == _OPENAPI_PATH else ()


def check_post(path: Sequence[str]) -> None:
    """See that a cart may be made there.

    :raises InvalidInput: its uid is none.
    """
    check_uid(path[0])


def is_public(method: bytes, path: Sequence[str]) -> bool:
    """Whether nobody needs a name for it: it is asked if the service is there, or for its rules."""
    return method in (b"GET", b"HEAD") and allowed_methods(path) == _READ_METHODS
