"""Builds status documents from the store, and what this process knows of downloads."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import quote

from msgspec import UNSET

from cartd.errors import CartNotFound
from cartd.model import MAX_UID_LENGTH, Cart, CartDetails, CartStatus, Viewer, uid_may_be_stored
from cartd.status.document import Bytes, Files, Outcome, Phase, Status
from cartd.store import Store

_PHASES = {
    CartStatus.WAITING: Phase.QUEUED,
    CartStatus.STAGING: Phase.FETCHING,
    CartStatus.BUNDLING: Phase.BUNDLING,
}
_OUTCOMES = {CartStatus.READY: Outcome.COMPLETE, CartStatus.ERROR: Outcome.FAILED}


class StatusDocuments:
    """Returns the status documents of carts."""

    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now

    async def newest(self, viewer: Viewer, uid: str) -> Status:
        """Return the document of the newest cart of ``uid`` that ``viewer`` may see.

        :raises CartNotFound: there is none that has not been deleted.
        """
        cart = await self._store.carts.newest_for(viewer, uid) if uid_may_be_stored(uid) else None
        found = {} if cart is None else await self._store.statuses.details([cart.id])
        if cart is None or cart.id not in found:
            raise CartNotFound(f"No cart with uid {uid[:MAX_UID_LENGTH]} found")
        return self.of(*found[cart.id])

    def of(self, cart: Cart, details: CartDetails) -> Status:
        """Return the document of a cart."""
        url = f"/-/carts/{quote(cart.uid, safe='')}"
        done = cart.files_staged + details.files_failed
        return Status(
            uid=cart.uid,
            owner=UNSET if cart.owner is None else cart.owner,
            name=UNSET if details.name is None else details.name,
            labels=list(details.labels),
            status=cart.status,
            outcome=_OUTCOMES.get(cart.status),
            phase=_PHASES.get(cart.status, Phase.DONE),
            message=cart.message,
            problem=UNSET if cart.problem is None else cart.problem,
            created=_time(cart.created),
            started=UNSET if details.started is None else _time(details.started),
            updated=_time(cart.updated),
            finished=_time(cart.updated) if cart.status in _OUTCOMES else UNSET,
            version=details.version,
            files=Files(
                total=cart.files_total,
                staged=cart.files_staged,
                failed=details.files_failed,
                linked=details.files_linked,
                waiting=cart.files_total - done,
            ),
            bytes=Bytes(
                total=UNSET if cart.bytes_total is None else cart.bytes_total,
                staged=cart.bytes_staged,
                fetched=cart.bytes_staged - details.size_linked,
                linked=details.size_linked,
            ),
            links={"self": url, "files": f"{url}/files", "events": f"{url}/events"},
        )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
