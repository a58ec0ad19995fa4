"""Methods and access by path, for the validation of a request's head.

The routes themselves are in :mod:`cartd.http.routes`; a test compares both.
"""

from __future__ import annotations

from collections.abc import Sequence

from cartd import openapi
from cartd.model import check_uid

CART_METHODS = ("DELETE", "GET", "HEAD", "POST")
_READ_METHODS = ("GET", "HEAD")
_OPENAPI_PATH = openapi.PATH.strip("/").split("/")


def allowed_methods(path: Sequence[str]) -> Sequence[str]:
    """Return the methods of a path, given as non-empty segments; empty if it is unknown."""
    if len(path) == 1:
        return CART_METHODS
    return _READ_METHODS if not path or list(path) == _OPENAPI_PATH else ()


def check_post(path: Sequence[str]) -> None:
    """Check that a cart can be posted to ``path``.

    :raises InvalidInput: its uid is invalid.
    """
    check_uid(path[0])


def is_public(method: bytes, path: Sequence[str]) -> bool:
    """Return whether the request needs no authentication: the root and the OpenAPI document."""
    return method in (b"GET", b"HEAD") and allowed_methods(path) == _READ_METHODS
