"""What clients do: post, delete, and download at a pace of their own."""

from __future__ import annotations

import io
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IConsumer, IDelayedCall, IProducer, IPushProducer
from twisted.internet.task import deferLater
from zope.interface import implementer

from cartd.content_disposition import top_folder
from cartd.downloads import Download
from cartd.errors import CartdError, Unreadable, VolumeDamaged
from cartd.model import EVERYBODY
from cartd.sending.push import Sender, SendStopped
from tests.simulation.oracle import Ledger, Spec
from tests.simulation.reactor import SimulatedReactor

if TYPE_CHECKING:
    from tests.simulation.process import World

CHUNK = 1500


async def post(world: World, ledger: Ledger, spec: Spec) -> None:
    ledger.post(spec)
    try:
        await world.services.recovery.recovered()
        cart = await world.carts.post(EVERYBODY, spec.uid, io.BytesIO(spec.body))
    except CartdError:
        return  # nobody knows whether it is there
    ledger.accepted[cart.id] = spec
    if world.deleting[spec.uid]:
        ledger.may_be_deleted.add(cart.id)


async def delete(world: World, ledger: Ledger, uid: str) -> None:
    before = ledger.ids_of(uid)
    ledger.may_be_deleted |= before
    world.deleting[uid] += 1
    try:
        await world.services.recovery.recovered()
        await world.carts.delete(EVERYBODY, uid)
    except CartdError:
        return
    else:
        ledger.must_be_deleted |= before
    finally:
        ledger.may_be_deleted |= ledger.ids_of(uid)
        world.deleting[uid] -= 1


async def purge(world: World, ledger: Ledger, uid: str) -> None:
    """A command beside the service deletes the carts: it sees no pins, but locks."""
    before = ledger.ids_of(uid)
    ledger.may_be_deleted |= before
    ledger.purged |= before
    world.deleting[uid] += 1
    try:
        await world.command.delete_all(EVERYBODY, uid)
    except CartdError:
        return
    else:
        ledger.must_be_deleted |= before
    finally:
        ledger.may_be_deleted |= ledger.ids_of(uid)
        ledger.purged |= ledger.ids_of(uid)
        world.deleting[uid] -= 1


async def download(
    world: World, ledger: Ledger, uid: str, name: str, part: tuple[float, float], pace: float
) -> str:
    """Read a part of a cart's tar, from one share of its length to another; how it ended."""
    try:
        await world.services.recovery.recovered()
        async with world.services.downloads.open(EVERYBODY, uid, name) as opened:
            tar = ledger.tar_of(opened.cart, top_folder(name))
            ledger.tagged(opened.etag, tar)
            if opened.length != len(tar):
                ledger.wrong.append(f"a tar of {opened.length} bytes instead of {len(tar)}")
            # Sending may have to wait for its turn.
            await deferLater(world.reactor, world.reactor.random.choice((0.0, 0.7)) * pace)
            start, stop = (int(share * opened.length) for share in part)
            return await _read(world, ledger, opened, tar, start, max(start, stop), pace)
    except CartdError as error:
        return f"{type(error).__name__}: {error}"
    except CancelledError:
        return "left"


async def _read(
    world: World, ledger: Ledger, opened: Download, tar: bytes, start: int, stop: int, pace: float
) -> str:
    reader: Any = await opened.reader(start, stop)
    client = _Client(world.reactor, pace, lambda: reader._kept._held is not None)
    sender = Sender(reader, world.services.threads, client, CHUNK)
    try:
        await sender.start()
    except SendStopped:
        return "left"
    except Unreadable as error:
        if not world.place.disk.has_said(str(error)):
            ledger.wrong.append(f"cart {opened.cart.id} cannot be read: {error}")
        await world.services.downloads.restage(opened.cart, error.path)
        return "unreadable"
    except VolumeDamaged as error:
        # Another process sees that a cart is used when its first bytes are read, if it is there.
        purged = opened.cart.id in ledger.purged and not client.was_kept
        if opened.cart.id not in ledger.damaged and not purged:
            ledger.wrong.append(f"cart {opened.cart.id} lost bytes while it was read: {error}")
        await world.services.downloads.restage(opened.cart)
        return "damaged"
    except OSError as error:
        if error.errno not in world.place.disk.failed:
            ledger.wrong.append(f"cart {opened.cart.id} cannot be read: {error}")
        return "failed"
    if client.data != tar[start:stop]:
        ledger.wrong.append(f"wrong bytes of cart {opened.cart.id} from {start} to {stop}")
    ledger.read += 1
    return "read"


@implementer(IConsumer)
class _Client:
    """Takes what is sent, with a pause after each piece."""

    def __init__(self, reactor: SimulatedReactor, pace: float, is_kept: Callable[[], bool]) -> None:
        self.data = b""
        self.was_kept = False
        """Whether a lock kept the cart from other processes when the first bytes came."""
        self._is_kept = is_kept
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
        self.was_kept = self.was_kept or self._is_kept()
        self.data += data
        if self._producer is not None and self._pace:
            self._producer.pauseProducing()
            pause = self._pace * self._random.random()
            self._rest = self._reactor.callLater(pause, self._resume)

    def _resume(self) -> None:
        self._rest = None
        if self._producer is not None:
            self._producer.resumeProducing()
