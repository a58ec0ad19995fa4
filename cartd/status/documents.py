"""Builds status documents: from the store alone, so that every process returns the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote

from msgspec import UNSET, DecodeError, UnsetType
from twisted.internet.defer import Deferred

from cartd.carts.description import bag_description, recorded_description
from cartd.deferreds.tasks import SingleFlight
from cartd.errors import CartNotFound
from cartd.model import (
    MAX_UID_LENGTH,
    UNFINISHED,
    Cart,
    CartDetails,
    CartFile,
    CartFormat,
    CartStatus,
    FileStatus,
    Viewer,
    format_time,
    uid_may_be_stored,
)
from cartd.status.document import (
    Bag,
    Bytes,
    Cause,
    Download,
    Eta,
    Failed,
    FailedFile,
    Files,
    Kept,
    Phase,
    Queue,
    Rate,
    Status,
    Waiting,
)
from cartd.status.pace import Pace, loaded
from cartd.status.queue import FairQueue, Share
from cartd.store import Store
from cartd.tar.bag import recorded_facts

FIRST_FAILED = 10
"""Failed files that a document lists."""
QUEUE_SECONDS = 1.0
"""How long one reading of all unfinished carts is used."""
FAILED_CACHE_SIZE = 256
"""Number of carts whose first failed files are cached."""
MAX_UNFINISHED_PROGRESS = 99.9

_NO_PACE = Pace(at=0.0)


@dataclass(frozen=True, slots=True)
class DocumentRules:
    """The settings that documents depend on."""

    public_url: str | None = None
    """The URL of the service for its clients, ending in ``/``; URLs are paths without it."""
    buffer_time: float = 0.0
    """Seconds for which a cart is not evicted after its last use."""
    eviction_enabled: bool = True
    organization: str = ""
    """What bags name as their source."""


class Urls(NamedTuple):
    """The URLs of a uid: absolute with ``public_url``, else paths."""

    cart: str
    status: str


class StatusDocuments:
    """Returns the status documents of carts."""

    def __init__(
        self,
        store: Store,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        rules: DocumentRules | None = None,
    ) -> None:
        """``now`` returns Unix time, to be compared with leases; ``monotonic`` is for caches."""
        self._store = store
        self._now = now
        self._rules = rules or DocumentRules()
        self._queues = _Queues(store, monotonic)
        self._failed: OrderedDict[tuple[int, float | None, float, int], list[FailedFile]] = (
            OrderedDict()
        )
        """By cart, start of its staging, last change of its status, and number of failed files."""

    async def newest(self, viewer: Viewer, uid: str) -> Status:
        """Return the document of the newest cart of ``uid`` that ``viewer`` may see.

        :raises CartNotFound: there is none that has not been deleted.
        """
        _, document = await self.newest_with_id(viewer, uid)
        return document

    async def newest_with_id(self, viewer: Viewer, uid: str) -> tuple[int, Status]:
        """As :meth:`newest`, with the id of the cart, for :meth:`for_carts`."""
        cart = await self._store.carts.newest_for(viewer, uid) if uid_may_be_stored(uid) else None
        found = {} if cart is None else await self.for_carts([cart.id])
        if cart is None or cart.id not in found:
            raise CartNotFound(f"No cart with uid {uid[:MAX_UID_LENGTH]} found")
        return cart.id, found[cart.id]

    async def for_carts(self, cart_ids: Sequence[int]) -> dict[int, Status]:
        """Return the documents of these carts, deleted or not; unknown ids lack.

        It is one query for all of them, and one for the queue, which is cached for a second.  The
        first failed files of a cart are read again only when their number has changed.
        """
        found = await self._store.statuses.details(cart_ids)
        queue = None
        if any(cart.status in UNFINISHED for cart, _ in found.values()):
            queue = await self._queues.current()
        return {
            cart_id: self._document(cart, details, queue, await self._first_failed(cart, details))
            for cart_id, (cart, details) in found.items()
        }

    def urls(self, uid: str) -> Urls:
        """Return the URLs of the carts of ``uid``."""
        base, quoted = self._rules.public_url or "/", quote(uid, safe="")
        return Urls(f"{base}{quoted}", f"{base}-/carts/{quoted}")

    async def seconds_left(self, cart_id: int) -> float | None:
        """Return the seconds after which the cart may be ready; None if that is not known."""
        found = await self._store.statuses.details([cart_id])
        if cart_id not in found:
            return None
        pace = self._pace(*found[cart_id])
        return None if pace.low is None else pace.at + pace.low - self._now()

    async def _first_failed(self, cart: Cart, details: CartDetails) -> list[FailedFile]:
        if not cart.files_failed:
            return []
        key = cart.id, details.started, cart.updated, cart.files_failed
        if key not in self._failed:
            files = await self._store.statuses.files(
                cart.id, status=FileStatus.ERROR, limit=FIRST_FAILED
            )
            self._failed[key] = [failed_file(file) for file in files]
            if len(self._failed) > FAILED_CACHE_SIZE:
                self._failed.popitem(last=False)
        return self._failed[key]

    def _document(
        self, cart: Cart, details: CartDetails, queue: FairQueue | None, first: list[FailedFile]
    ) -> Status:
        pace = self._pace(cart, details)
        files = _files(cart, details, pace)
        phase = _phase(cart, details, files)
        waiting = self._waiting(cart, details, phase)
        urls = self.urls(cart.uid)
        url = urls.status
        return Status(
            uid=cart.uid,
            owner=UNSET if cart.owner is None else cart.owner,
            name=UNSET if details.name is None else details.name,
            labels=list(details.labels),
            status=cart.status,
            outcome=cart.outcome,
            phase=phase,
            message=_message(cart, files, phase, waiting),
            problem=UNSET if cart.problem is None else cart.problem,
            created=_time(cart.created),
            started=UNSET if details.started is None else _time(details.started),
            updated=_time(max(cart.updated, pace.at)),
            finished=_time(cart.updated) if cart.outcome is not None else UNSET,
            version=details.version,
            files=files,
            bytes=Bytes(
                total=UNSET if cart.bytes_total is None else cart.bytes_total,
                staged=cart.bytes_staged,
                fetched=cart.bytes_staged - details.size_linked,
                linked=details.size_linked,
            ),
            progress=_progress(cart, pace),
            rate=_rate(pace),
            eta=_eta(cart, pace),
            queue=_queue(cart, queue),
            waiting=waiting,
            kept=self._kept(cart),
            failed=(
                Failed(count=files.failed, first=first, all=f"{url}/files?status=failed")
                if files.failed
                else UNSET
            ),
            download=_download(cart, urls.cart, self._rules.organization),
            links=_links(cart, urls),
        )

    def _pace(self, cart: Cart, details: CartDetails) -> Pace:
        """Return what is measured now: nothing once the lease of the measuring process is over."""
        staged = cart.status in (CartStatus.STAGING, CartStatus.BUNDLING)
        if not staged or details.pace is None or self._unleased(details):
            return _NO_PACE
        try:
            return loaded(details.pace)
        except DecodeError:
            return _NO_PACE  # of another version of cartd

    def _unleased(self, details: CartDetails) -> bool:
        return details.lease_until is None or details.lease_until <= self._now()

    def _waiting(self, cart: Cart, details: CartDetails, phase: Phase) -> Waiting | UnsetType:
        if cart.status not in UNFINISHED:
            return UNSET
        if cart.waits_for is not None and cart.waits_since is not None:
            return Waiting(
                cause=Cause.ARCHIVE, since=_time(cart.waits_since), detail=cart.waits_for
            )
        if phase is Phase.QUEUED:
            return Waiting(cause=Cause.TURN, since=_time(cart.created))
        if self._unleased(details):
            return Waiting(
                cause=Cause.TURN,
                detail="No process stages the cart at present; one takes it within a minute.",
            )
        if phase is Phase.RECALLING:
            since = UNSET if cart.tape_since is None else _time(cart.tape_since)
            return Waiting(cause=Cause.TAPE, since=since)
        return UNSET

    def _kept(self, cart: Cart) -> Kept | UnsetType:
        if cart.status is not CartStatus.READY:
            return UNSET
        if not self._rules.eviction_enabled:
            return Kept(may_go="It stays until it is deleted.")
        if self._rules.buffer_time > 0:
            return Kept(
                promised_until=_time(cart.used + self._rules.buffer_time),
                may_go="It may be evicted afterwards, when the volume needs space.",
            )
        return Kept(may_go="It may be evicted as soon as the volume needs space.")


class _Queues:
    """The fair queue of all unfinished carts, read at most once in ``QUEUE_SECONDS``."""

    def __init__(self, store: Store, monotonic: Callable[[], float]) -> None:
        self._store = store
        self._monotonic = monotonic
        self._queue: FairQueue | None = None
        self._read_at = 0.0
        self._reading: SingleFlight[FairQueue] | None = None

    def current(self) -> Deferred[FairQueue]:
        if self._queue is not None and self._monotonic() - self._read_at < QUEUE_SECONDS:
            known: Deferred[FairQueue] = Deferred()
            known.callback(self._queue)
            return known
        if self._reading is None or not self._reading.in_progress:
            self._reading = SingleFlight(self._read)
        return self._reading.result()

    async def _read(self) -> FairQueue:
        started = self._monotonic()
        left = await self._store.statuses.remaining()
        self._queue = FairQueue(
            # Files on tape take no turns until they are recalled.
            Share(one.cart_id, one.owner, one.files - min(one.on_tape, one.files), one.size)
            for one in left
        )
        self._read_at = started
        return self._queue


def failed_file(file: CartFile) -> FailedFile:
    """Return what a document says of a file that could not be staged."""
    return FailedFile(
        position=file.position,
        id=file.archive_id,
        path=file.path,
        error=file.error,
        problem=UNSET if file.problem is None else file.problem,
    )


def _files(cart: Cart, details: CartDetails, pace: Pace) -> Files:
    left = max(cart.files_total - cart.files_staged - cart.files_failed, 0)
    fetching: int | UnsetType = UNSET
    recalling: int | UnsetType = UNSET
    waiting = left
    if pace is not _NO_PACE:
        fetching = min(pace.fetching, left)
        waiting -= fetching
    on_tape = (cart.tape_files or 0) if pace is _NO_PACE else pace.recalling
    if on_tape and cart.status in UNFINISHED:
        recalling = min(on_tape, waiting)
        waiting -= recalling
    return Files(
        total=cart.files_total,
        staged=cart.files_staged,
        failed=cart.files_failed,
        linked=details.files_linked,
        waiting=waiting,
        recalling=recalling,
        fetching=fetching,
    )


def _phase(cart: Cart, details: CartDetails, files: Files) -> Phase:
    if cart.status in UNFINISHED and details.started is None:
        return Phase.QUEUED  # no process has claimed it yet
    if cart.status is CartStatus.BUNDLING:
        return Phase.BUNDLING
    if cart.status is not CartStatus.STAGING:
        return Phase.DONE
    if files.recalling and not files.waiting and not files.fetching:
        return Phase.RECALLING
    return Phase.FETCHING


def _message(cart: Cart, files: Files, phase: Phase, waiting: Waiting | UnsetType) -> str:
    """Return one sentence: what happens now, or what the cart waits for."""
    if cart.status is CartStatus.ERROR:
        return cart.error or "Staging has failed."
    if cart.is_partial:
        return (
            f"The cart is ready for download, but {files.failed:,} of {_number(files.total)}"
            f" {'is' if files.failed == 1 else 'are'} missing; a retry stages only what is missing."
        )
    if cart.status is CartStatus.READY:
        return "The cart is ready for download."
    if cart.status is CartStatus.DELETED:
        return "The cart has been deleted."
    if waiting is not UNSET and waiting.cause is Cause.ARCHIVE and cart.waits_since is not None:
        return f"Waiting for the archive since {format_time(cart.waits_since)}: {cart.waits_for}"
    if waiting is not UNSET and waiting.cause is Cause.TURN:
        return waiting.detail or "Waiting for its turn to be staged."
    if phase is Phase.BUNDLING:
        return "All files are staged; the tar is being written."
    return _progress_message(cart, files, phase)


def _progress_message(cart: Cart, files: Files, phase: Phase) -> str:
    done = f"{files.staged:,} of {_number(files.total)} staged"
    if phase is Phase.RECALLING:
        assert isinstance(files.recalling, int)
        return f"Waiting for {_number(files.recalling)} on tape; {done}."
    if cart.bytes_total is None:
        return f"The archive is asked for the sizes of {_number(files.total)}."
    if files.staged + files.failed == files.total:
        return "All files are staged; the tar is being prepared."
    if files.recalling:
        return f"Fetching files; {done}, {files.recalling:,} on tape."
    return f"Fetching files; {done}."


def _number(files: int) -> str:
    return "1 file" if files == 1 else f"{files:,} files"


def _progress(cart: Cart, pace: Pace) -> float | UnsetType:
    """Return the percentage of the bytes that are here, including incomplete files."""
    if cart.status is CartStatus.READY:
        return 100.0
    if cart.status is CartStatus.DELETED or cart.bytes_total is None:
        return UNSET
    if cart.bytes_total:
        part = max(cart.bytes_staged, pace.here) / cart.bytes_total
    else:
        part = cart.files_staged / max(cart.files_total, 1)
    return min(int(part * 1000) / 10, MAX_UNFINISHED_PROGRESS)


def _rate(pace: Pace) -> Rate | UnsetType:
    if pace.recent is None:
        return UNSET
    return Rate(recent=pace.recent, mean=UNSET if pace.mean is None else pace.mean)


def _eta(cart: Cart, pace: Pace) -> Eta | UnsetType:
    if pace.low is None or pace.high is None or pace.basis is None:
        return UNSET
    if cart.waits_for is not None:
        return UNSET
    middle = round((pace.low * pace.high) ** 0.5)
    return Eta(seconds=middle, low=pace.low, high=pace.high, basis=pace.basis)


def _queue(cart: Cart, queue: FairQueue | None) -> Queue | UnsetType:
    ahead = None if queue is None else queue.ahead(cart.id)
    if ahead is None:
        return UNSET
    return Queue(
        carts_ahead=ahead.carts,
        files_ahead=round(ahead.amount),
        bytes_ahead=UNSET if ahead.size is None else ahead.size,
    )


def _download(cart: Cart, url: str, organization: str) -> Download | UnsetType:
    if cart.status is not CartStatus.READY:
        return UNSET
    formats, bag = ["tar"], None
    if cart.tar is not None or not cart.has_tar:  # not a tar that Pacifica Cartd has written
        formats.append("bag")
        facts = recorded_facts(cart, organization)
        bag = None if facts is None else bag_description(cart, facts)
    tar = bag if cart.format is CartFormat.BAG else recorded_description(cart)
    return Download(
        url=url,
        length=UNSET if tar is None else tar.length,
        etag=UNSET if tar is None else tar.etag,
        formats=formats,
        bag=(
            Bag(
                url=f"{url}?format=bag",
                length=UNSET if bag is None else bag.length,
                etag=UNSET if bag is None else bag.etag,
            )
            if "bag" in formats
            else UNSET
        ),
    )


def _links(cart: Cart, urls: Urls) -> dict[str, str]:
    links = {"self": urls.status, "cart": urls.cart}
    names = ["files", "events", "labels"]
    if cart.status is CartStatus.READY:
        names.append("checksums")
    if cart.status is CartStatus.ERROR or cart.is_partial:
        names.append("retry")
    return links | {name: f"{urls.status}/{name}" for name in names}


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
