"""Simulated clients: post, delete, and download at a given pace."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IConsumer, IDelayedCall, IProducer, IPushProducer
from twisted.internet.task import deferLater
from zope.interface import implementer

from cartd.carts.download import Download
from cartd.errors import CartdError, FileUnreadable, VolumeDamaged
from cartd.http.headers import top_folder
from cartd.model import UNRESTRICTED, Cart, CartFile, FileStatus
from cartd.sending.sender import ClientDisconnected, PushSender
from tests.simulation.oracle import Oracle, Spec
from tests.simulation.reactor import SimulatedReactor

if TYPE_CHECKING:
    from tests.simulation.process import SimulatedProcess

CHUNK = 1500


async def post(process: SimulatedProcess, oracle: Oracle, spec: Spec) -> None:
    oracle.post(spec)
    try:
        await process.components.recovery.wait_until_recovered()
        cart = await process.submissions.post(UNRESTRICTED, spec.uid, io.BytesIO(spec.body))
    except CartdError:
        return  # unknown whether it was stored
    oracle.accepted[cart.id] = spec
    if process.deleting[spec.uid]:
        oracle.may_be_deleted.add(cart.id)


async def delete(process: SimulatedProcess, oracle: Oracle, uid: str) -> None:
    before = oracle.ids_of(uid)
    oracle.may_be_deleted |= before
    process.deleting[uid] += 1
    try:
        await process.components.recovery.wait_until_recovered()
        await process.submissions.delete(UNRESTRICTED, uid)
    except CartdError:
        return
    else:
        oracle.must_be_deleted |= before
    finally:
        oracle.may_be_deleted |= oracle.ids_of(uid)
        process.deleting[uid] -= 1


async def purge(process: SimulatedProcess, oracle: Oracle, uid: str) -> None:
    """Delete the carts as a command beside the service does: it sees no pins, but locks."""
    before = oracle.ids_of(uid)
    oracle.may_be_deleted |= before
    oracle.purged |= before
    process.deleting[uid] += 1
    try:
        await process.other_removal.delete_all(UNRESTRICTED, uid)
    except CartdError:
        return
    else:
        oracle.must_be_deleted |= before
    finally:
        oracle.may_be_deleted |= oracle.ids_of(uid)
        oracle.purged |= oracle.ids_of(uid)
        process.deleting[uid] -= 1


async def retry(process: SimulatedProcess, uid: str) -> None:
    with suppress(CartdError):
        await process.components.recovery.wait_until_recovered()
        await process.submissions.retry(UNRESTRICTED, uid)


async def _failed_files(process: SimulatedProcess, cart: Cart) -> list[CartFile] | None:
    """Return the files that a ready cart lacks; None if it has been restaged meanwhile."""
    if not cart.files_failed:
        return []
    store = process.components.store
    failed = await store.statuses.files(cart.id, status=FileStatus.ERROR, limit=10)
    now = await store.carts.cart(cart.id)
    if now is None or (now.status, now.updated) != (cart.status, cart.updated):
        return None
    return failed


async def download(
    process: SimulatedProcess,
    oracle: Oracle,
    uid: str,
    name: str,
    part: tuple[float, float],
    pace: float,
) -> str:
    """Read a part of a cart's tar, given as fractions of its length; return how that ended."""
    try:
        await process.components.recovery.wait_until_recovered()
        async with process.components.downloads.open(UNRESTRICTED, uid, name) as opened:
            failed = await _failed_files(process, opened.cart)
            if failed is None:
                return "restaged"
            tar = oracle.tar_of(opened.cart, top_folder(name), failed)
            oracle.tagged(opened.etag, tar)
            if opened.length != len(tar):
                oracle.violations.append(f"a tar of {opened.length} bytes instead of {len(tar)}")
            # Sending may be delayed.
            await deferLater(process.reactor, process.reactor.random.choice((0.0, 0.7)) * pace)
            start, stop = (int(share * opened.length) for share in part)
            return await _read(process, oracle, opened, tar, start, max(start, stop), pace)
    except CartdError as error:
        return f"{type(error).__name__}: {error}"
    except CancelledError:
        return "left"


async def _read(
    process: SimulatedProcess,
    oracle: Oracle,
    opened: Download,
    tar: bytes,
    start: int,
    stop: int,
    pace: float,
) -> str:
    reader: Any = await opened.reader(start, stop)
    client = _Client(process.reactor, pace, lambda: reader._lock._fd is not None)
    sender = PushSender(reader, process.components.threads, client, CHUNK)
    try:
        await sender.start()
    except ClientDisconnected:
        return "left"
    except FileUnreadable as error:
        if not process.machine.disk.has_raised(str(error)):
            oracle.violations.append(f"cart {opened.cart.id} cannot be read: {error}")
        await process.components.downloads.restage(opened.cart, error.path)
        return "unreadable"
    except VolumeDamaged as error:
        # Another process sees that a cart is in use only once its first bytes are read.
        purged = opened.cart.id in oracle.purged and not client.was_locked
        # A retry of a partial cart may have replaced its tree by a tar.
        bundled = opened.cart.is_partial and opened.cart.bundle
        if opened.cart.id not in oracle.damaged and not purged and not bundled:
            oracle.violations.append(f"cart {opened.cart.id} lost bytes while it was read: {error}")
        await process.components.downloads.restage(opened.cart)
        return "damaged"
    except OSError as error:
        if error.errno not in process.machine.disk.failed:
            oracle.violations.append(f"cart {opened.cart.id} cannot be read: {error}")
        return "failed"
    if client.data != tar[start:stop]:
        oracle.violations.append(f"wrong bytes of cart {opened.cart.id} from {start} to {stop}")
    oracle.read += 1
    return "read"


@implementer(IConsumer)
class _Client:
    """Receives data, with a pause after each piece."""

    def __init__(
        self, reactor: SimulatedReactor, pace: float, is_locked: Callable[[], bool]
    ) -> None:
        self.data = b""
        self.was_locked = False
        """Whether a lock protected the cart from other processes when the first bytes arrived."""
        self._is_locked = is_locked
        self._reactor = reactor
        self._random: Random = reactor.random
        self._pace = pace
        self._producer: IPushProducer | None = None
        self._rest: IDelayedCall | None = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._producer = cast(IPushProducer, producer)

    def unregisterProducer(self) -> None:
        self._producer = None
        if self._rest is not None:
            self._rest.cancel()

    def write(self, data: bytes) -> None:
        self.was_locked = self.was_locked or self._is_locked()
        self.data += data
        if self._producer is not None and self._pace:
            self._producer.pauseProducing()
            pause = self._pace * self._random.random()
            self._rest = self._reactor.callLater(pause, self._resume)

    def _resume(self) -> None:
        self._rest = None
        if self._producer is not None:
            self._producer.resumeProducing()
