"""Watches a cart: by the event stream, else by long polling, else by HEAD."""

from __future__ import annotations

from collections.abc import Iterator

from cartd_client.errors import CartFailed
from cartd_client.model import Status
from cartd_client.transport import Transport


def status(transport: Transport, uid: str, deadline: float | None = None) -> Status:
    """Return the status of a cart now; raise NoSuchCart."""
    raise NotImplementedError


def cart_failed(uid: str, status: Status | None) -> CartFailed:
    """Return the error for a cart whose last status is not ready."""
    message = status.message if status is not None else None
    return CartFailed(f"The cart {uid} is in error: {message or 'no reason given'}", cart=uid)


def watch(transport: Transport, uid: str, deadline: float | None = None) -> Iterator[Status]:
    """Yield the status of a cart now and whenever it changes, until it has ended.

    :raises WaitTimeout: it has not ended at ``deadline``, a time of ``time.monotonic``.
    :raises NoSuchCart: there is none, or it was deleted meanwhile.
    """
    raise NotImplementedError
