"""Submissions: post, find and delete carts; the limit of carts in staging."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import IO, Any

from twisted.internet.defer import Deferred, DeferredLock

from cartd.carts.delete import Removal
from cartd.deferreds.fair_semaphore import ByteLimit
from cartd.deferreds.tasks import uncancellable
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import (
    CartdError,
    CartNotFound,
    Conflict,
    Fault,
    InvalidManifest,
    Stopping,
    Unavailable,
)
from cartd.manifest import Manifest, parse
from cartd.metrics import UNEXPOSED, Metrics
from cartd.model import (
    MAX_UID_LENGTH,
    Cart,
    CartStatus,
    UserQuota,
    Viewer,
    check_uid,
    uid_may_be_stored,
)
from cartd.store import Store

LIMIT_SETTING = "cartd.max_carts_staging"
MAX_BUNDLED_UID = 255 - len(".tar")
"""A bundle is a file named after its uid, and a name has 255 bytes at most (POSIX NAME_MAX)."""
IsRepost = Callable[[], Awaitable[bool]]


class AdmissionControl:
    """Limits how many carts of all users are staged at the same time.

    It admits or rejects a cart before anything is done for it.

    ``unfinished`` returns how many carts are neither ready nor in error.  Admitted carts count at
    once, so that concurrent posts do not exceed the limit.
    """

    def __init__(self, limit: int, unfinished: Callable[[], Awaitable[int]]) -> None:
        self._limit = limit
        self._unfinished = unfinished
        self._slots = 0

    @asynccontextmanager
    async def slot(
        self, is_repost: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[Unavailable | None]:
        """Hold a slot for a post, from before its manifest is read until its cart is stored.

        Without a free slot, a possible repost (``is_repost``) is admitted nevertheless; then the
        value is the error to raise if it turns out to be another cart.

        :raises Unavailable: the limit is reached.
        """
        self._slots += 1
        try:
            full: Unavailable | None = None
            if await self._unfinished() + self._slots > self._limit:
                full = Unavailable(
                    f"{self._limit} carts are being staged, the limit ({LIMIT_SETTING});"
                    " try again later",
                    limit=LIMIT_SETTING,
                )
                if not await is_repost():
                    raise full
            yield full
        finally:
            self._slots -= 1


class Submissions:
    """Posts, finds and deletes carts; once closed, it accepts no more carts.

    To a user, another user's cart does not exist, whatever the operation.
    """

    def __init__(
        self,
        store: Store,
        removal: Removal,
        threads: ThreadRunner,
        *,
        bundle_task: bool,
        require_hashsum: bool,
        max_entries: int,
        memory: ByteLimit,
        admission_slot: Callable[[IsRepost], AbstractAsyncContextManager[Unavailable | None]],
        limits: UserQuota,
        stage: Callable[[int], object],
        restage: Callable[[Cart], Coroutine[Any, Any, None]],
        now: Callable[[], float],
        metrics: Metrics = UNEXPOSED,
    ) -> None:
        """``admission_slot`` is :meth:`AdmissionControl.slot`.

        A post holds a slot from its beginning to its end.  The argument tells whether the cart may
        have been posted before; the slot's value is the error that any other cart is rejected with,
        if there is one.  ``memory`` limits the bytes of manifests that are processed concurrently.
        ``restage`` is :meth:`cartd.integrity.repair.Repair.restage`, with ``retry_failed``.
        """
        self._store = store
        self._removal = removal
        self._threads = threads
        self._bundle_task = bundle_task
        self._require_hashsum = require_hashsum
        self._max_entries = max_entries
        self._memory = memory
        self._admission_slot = admission_slot
        self._limits = limits
        self._stage = stage
        self._restage = restage
        self._now = now
        self._posted = metrics.carts_posted
        self._retries: dict[str | None, DeferredLock] = {}
        """By owner, held while a cart of the owner is restaged."""
        self._open = True

    def close(self) -> None:
        self._open = False

    async def post(
        self,
        viewer: Viewer,
        uid: str,
        body: IO[bytes],
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> Cart:
        """Accept the manifest in ``body``, which is read and parsed in a thread.

        Posting the same manifest again while its cart exists changes nothing.  ``check`` is called
        after all other checks; what it raises rejects the cart.

        :raises InvalidInput: the uid or the manifest breaks a rule.
        :raises TooLarge: it has too many entries.
        :raises QuotaExceeded: the user has reached a limit of unfinished carts.
        :raises Unavailable: the service is stopping, or is staging as many carts as it may.
        """
        try:
            return await self._post(viewer, uid, body, check)
        except CartdError:
            self._posted.labels("rejected").inc()
            raise

    async def _post(
        self,
        viewer: Viewer,
        uid: str,
        body: IO[bytes],
        check: Callable[[], Awaitable[None]] | None,
    ) -> Cart:
        self._check_open("post the cart again")
        check_uid(uid)

        async def posted() -> bool:
            return await self._store.carts.newest_for(viewer, uid) is not None

        async with self._admission_slot(posted) as refusal, self._memory.hold(body_size(body)):
            return await self._parse_and_store(viewer, uid, body, check, refusal)

    async def _parse_and_store(
        self,
        viewer: Viewer,
        uid: str,
        body: IO[bytes],
        check: Callable[[], Awaitable[None]] | None,
        refusal: CartdError | None,
    ) -> Cart:
        manifest = await self.parse(body)
        if manifest.bundle and len(uid) > MAX_BUNDLED_UID:
            reason = f"a cart whose uid is over {MAX_BUNDLED_UID} characters cannot be bundled"
            raise InvalidManifest(f"bundle: {reason}", [Fault("#/bundle", reason)])
        bundle = manifest.bundle
        if bundle is None:
            bundle = self._bundle_task and len(uid) <= MAX_BUNDLED_UID
        if check is not None:
            await check()
        accepting = self._store_and_stage(viewer, uid, manifest, bundle, refusal)
        return await uncancellable(Deferred.fromCoroutine(accepting))

    async def parse(self, body: IO[bytes]) -> Manifest:
        """Parse a manifest in a thread; the caller holds memory for it.

        :raises InvalidInput: it breaks a rule.
        :raises TooLarge: it has too many entries.
        """
        # Not cancelled if the client disconnects: the thread uses the memory until it ends.
        return await uncancellable(
            self._threads.run(
                lambda: parse(
                    body.read(),
                    require_hashsum=self._require_hashsum,
                    max_entries=self._max_entries,
                )
            )
        )

    async def _store_and_stage(
        self, viewer: Viewer, uid: str, manifest: Manifest, bundle: bool, refusal: CartdError | None
    ) -> Cart:
        """Store the cart and start staging it; a disconnected client does not interrupt this."""
        cart, new = await self._store.carts.post(
            uid,
            manifest,
            bundle=bundle,
            now=self._now(),
            viewer=viewer,
            limits=self._limits.applicable_to(viewer),
            refusal=refusal,
        )
        self._posted.labels("accepted" if new else "repeated").inc()
        if new:
            self._stage(cart.id)
        return cart

    async def find(self, viewer: Viewer, uid: str) -> Cart:
        """Return the newest cart of ``uid`` that ``viewer`` may see.

        :raises CartNotFound: there is none that has not been deleted.
        """
        cart = await self._store.carts.newest_for(viewer, uid) if uid_may_be_stored(uid) else None
        if cart is None:
            raise CartNotFound(f"No cart with uid {uid[:MAX_UID_LENGTH]} found")
        return cart

    async def retry(self, viewer: Viewer, uid: str) -> Cart:
        """Stage the newest cart of ``uid`` that ``viewer`` may see again; return it.

        The files that failed, and those that are missing on the volume, are fetched again.  The
        limits are those of a post.  A disconnected client does not interrupt this once it has
        begun.

        :raises CartNotFound: there is none that has not been deleted.
        :raises Conflict: it is neither in error nor partial.
        :raises QuotaExceeded: the user has reached a limit of unfinished carts.
        :raises Unavailable: the service is stopping, or is staging as many carts as it may, or the
            volume is not writable.
        """
        self._check_open("retry")
        cart = await self.find(viewer, uid)
        if cart.status is not CartStatus.ERROR and not cart.is_partial:
            ready = cart.status is CartStatus.READY
            state = "ready and has all its files" if ready else "being staged"
            raise Conflict(
                f"The cart is {state}: only a cart in error or a partial one can be staged again"
            )

        async def is_repost() -> bool:
            return False

        limits = self._limits.applicable_to(viewer)
        async with self._admission_slot(is_repost), self._retry_slot(cart.owner):
            if limits and cart.owner is not None:
                unstaged = cart.files_total - cart.files_staged
                await self._store.carts.check_quota(cart.owner, limits, unstaged)
            await uncancellable(Deferred.fromCoroutine(self._restage(cart)))
        restaged = await self._store.carts.cart(cart.id)
        if restaged is None or restaged.status is CartStatus.DELETED:
            raise CartNotFound("Not Found")
        if restaged.status is cart.status and restaged.updated == cart.updated:
            raise Conflict("The cart is being evicted: post it again")
        return restaged

    @asynccontextmanager
    async def _retry_slot(self, owner: str | None) -> AsyncIterator[None]:
        """Wait until no other cart of ``owner`` is being restaged.

        So carts of one user are counted one after the other, as posts are.
        """
        lock = self._retries.setdefault(owner, DeferredLock())
        await lock.acquire()
        try:
            yield
        finally:
            lock.release()
            if not lock.locked:
                self._retries.pop(owner, None)

    def _check_open(self, advice: str) -> None:
        if not self._open:
            raise Stopping(f"The service is stopping; {advice} in a minute")

    async def set_labels(self, viewer: Viewer, uid: str, labels: Sequence[str]) -> None:
        """Replace the labels of the newest cart of ``uid`` that ``viewer`` may see.

        :raises CartNotFound: there is none that has not been deleted.
        """
        cart = await self.find(viewer, uid)
        if not await self._store.statuses.set_labels(cart.id, labels):
            raise CartNotFound("Not Found")

    async def delete(self, viewer: Viewer, uid: str) -> None:
        """Delete all carts of ``uid`` that ``viewer`` may see, even if the client disconnects.

        :raises CartNotFound: there is none that has not been deleted.
        """
        if not uid_may_be_stored(uid):
            raise CartNotFound("Not Found")
        deleting = Deferred.fromCoroutine(self._removal.delete_all(viewer, uid))
        if not await uncancellable(deleting):
            raise CartNotFound("Not Found")


def body_size(body: IO[bytes]) -> int:
    """Return the bytes of a body, which is then at its beginning."""
    size = body.seek(0, os.SEEK_END)
    body.seek(0)
    return size
