"""Client operations on carts other than downloads: submit, find and delete."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import IO

from twisted.internet.defer import Deferred

from cartd.carts.delete import Removal
from cartd.deferreds.fair_semaphore import ByteLimit
from cartd.deferreds.tasks import uncancellable
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import CartdError, CartNotFound, Fault, InvalidManifest, Stopping, Unavailable
from cartd.manifest import Manifest, parse
from cartd.metrics import UNEXPOSED, Metrics
from cartd.model import MAX_UID_LENGTH, Cart, UserQuota, Viewer, check_uid, uid_may_be_stored
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
        now: Callable[[], float],
        metrics: Metrics = UNEXPOSED,
    ) -> None:
        """``admission_slot`` is :meth:`AdmissionControl.slot`.

        A post holds a slot from its beginning to its end.  The argument tells whether the cart may
        have been posted before; the slot's value is the error that any other cart is rejected with,
        if there is one.  ``memory`` limits the bytes of manifests that are processed concurrently.
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
        self._now = now
        self._posted = metrics.carts_posted
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
        if not self._open:
            raise Stopping("The service is stopping; post the cart again in a minute")
        check_uid(uid)

        async def posted() -> bool:
            return await self._store.carts.newest_for(viewer, uid) is not None

        async with self._admission_slot(posted) as refusal, self._memory.hold(_body_size(body)):
            return await self._parse_and_store(viewer, uid, body, check, refusal)

    async def _parse_and_store(
        self,
        viewer: Viewer,
        uid: str,
        body: IO[bytes],
        check: Callable[[], Awaitable[None]] | None,
        refusal: CartdError | None,
    ) -> Cart:
        # Not cancelled if the client disconnects: the thread uses the memory until it ends.
        manifest = await uncancellable(
            self._threads.run(
                lambda: parse(
                    body.read(),
                    require_hashsum=self._require_hashsum,
                    max_entries=self._max_entries,
                )
            )
        )
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

    async def delete(self, viewer: Viewer, uid: str) -> None:
        """Delete all carts of ``uid`` that ``viewer`` may see, even if the client disconnects.

        :raises CartNotFound: there is none that has not been deleted.
        """
        if not uid_may_be_stored(uid):
            raise CartNotFound("Not Found")
        deleting = Deferred.fromCoroutine(self._removal.delete_all(viewer, uid))
        if not await uncancellable(deleting):
            raise CartNotFound("Not Found")


def _body_size(body: IO[bytes]) -> int:
    size = body.seek(0, os.SEEK_END)
    body.seek(0)
    return size
