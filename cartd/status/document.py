"""The status document of a cart: the contract of JSON, events, page and client.

What is not known is absent, never a zero or a guess.  Times are UTC, sizes are bytes.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from msgspec import UNSET, Struct, UnsetType

from cartd.model import CartStatus, FileStatus, Outcome


class Phase(StrEnum):
    """What is done for a cart now."""

    QUEUED = "queued"
    RECALLING = "recalling"
    FETCHING = "fetching"
    BUNDLING = "bundling"
    DONE = "done"


class Basis(StrEnum):
    """What an estimate rests on: the cart's own rate, recalls from tape, or the carts before it."""

    RATE = "rate"
    TAPE = "tape"
    QUEUE = "queue"


class Cause(StrEnum):
    """What a cart waits for."""

    ARCHIVE = "archive"
    TAPE = "tape"
    SPACE = "space"
    DATABASE = "database"
    TURN = "turn"


class Files(Struct, frozen=True, kw_only=True):
    """Numbers of files."""

    total: int
    staged: int
    failed: int
    linked: int
    """Those of the staged files that were linked to another cart's instead of fetched."""
    waiting: int
    """Neither staged nor failed, nor counted as one of the next two."""
    recalling: int | UnsetType = UNSET
    """On tape, when last recorded."""
    fetching: int | UnsetType = UNSET
    """Being transferred now."""


class Bytes(Struct, frozen=True, kw_only=True):
    """Numbers of bytes."""

    total: int | UnsetType = UNSET
    """Unknown until the archive has told the size of every file."""
    staged: int
    fetched: int
    """Those of the staged bytes that were fetched from the archive."""
    linked: int


class Rate(Struct, frozen=True, kw_only=True):
    """Bytes per second."""

    recent: int
    mean: int | UnsetType = UNSET


class Eta(Struct, frozen=True, kw_only=True):
    """The estimated time to go, in seconds from ``updated``: a span, and its middle."""

    seconds: int
    low: int
    high: int
    basis: Basis


class Queue(Struct, frozen=True, kw_only=True):
    """What the fair turns serve before this cart is complete, of all other carts together."""

    carts_ahead: int
    files_ahead: int
    bytes_ahead: int | UnsetType = UNSET


class Waiting(Struct, frozen=True, kw_only=True, rename={"cause": "for"}):
    """What the cart waits for, since when, and why."""

    cause: Cause
    since: datetime | UnsetType = UNSET
    detail: str | UnsetType = UNSET


class Kept(Struct, frozen=True, kw_only=True):
    """Until when a ready cart stays on the volume."""

    promised_until: datetime | UnsetType = UNSET
    """It is not evicted before."""
    may_go: str
    """What ends it then, as a sentence."""


class FailedFile(Struct, frozen=True, kw_only=True):
    """A file that could not be staged."""

    position: int
    id: str
    path: str
    error: str
    problem: str | UnsetType = UNSET
    """What went wrong, as a name of the problem types; absent if it is not known."""


class Failed(Struct, frozen=True, kw_only=True):
    """The files that could not be staged."""

    count: int
    first: list[FailedFile]
    """At most ten."""
    all: str
    """URL of all of them."""


class Bag(Struct, frozen=True, kw_only=True):
    """The bag of a ready cart; length and ETag are absent until it has been requested."""

    url: str
    length: int | UnsetType = UNSET
    etag: str | UnsetType = UNSET


class Download(Struct, frozen=True, kw_only=True):
    """The tar of a ready cart, in the format of the cart."""

    url: str
    length: int | UnsetType = UNSET
    etag: str | UnsetType = UNSET
    formats: list[str]
    """The formats in which it can be requested."""
    bag: Bag | UnsetType = UNSET


class Status(Struct, frozen=True, kw_only=True):
    """The status document."""

    uid: str
    owner: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    labels: list[str]
    status: CartStatus
    outcome: Outcome | None
    phase: Phase
    message: str
    """One sentence: what happens now, or what the cart waits for."""
    problem: str | UnsetType = UNSET
    """Why it failed, as a name of the problem types; absent if it has not, or it is not known."""
    created: datetime
    started: datetime | UnsetType = UNSET
    updated: datetime
    """When the cart last changed."""
    finished: datetime | UnsetType = UNSET
    version: int
    files: Files
    bytes: Bytes
    progress: float | UnsetType = UNSET
    """Percent, 0 to 100; 100 only with an outcome."""
    rate: Rate | UnsetType = UNSET
    eta: Eta | UnsetType = UNSET
    queue: Queue | UnsetType = UNSET
    waiting: Waiting | UnsetType = UNSET
    kept: Kept | UnsetType = UNSET
    failed: Failed | UnsetType = UNSET
    download: Download | UnsetType = UNSET
    links: dict[str, str]
    """URLs by relation (RFC 8288): self, files, events, and more."""


class CartList(Struct, frozen=True, kw_only=True):
    """A page of carts, newest first."""

    carts: list[Status]
    next: str | UnsetType = UNSET
    """URL of the next page; absent on the last one."""


class Hash(Struct, frozen=True, kw_only=True):
    """A hash of a file."""

    hashtype: str
    hashsum: str


class File(Struct, frozen=True, kw_only=True):
    """One file of a cart."""

    position: int
    id: str
    path: str
    size: int | UnsetType = UNSET
    mtime: datetime | UnsetType = UNSET
    hashtype: str
    hashsum: str | UnsetType = UNSET
    also: Hash | UnsetType = UNSET
    """The second hash; absent if none was computed."""
    status: FileStatus
    error: str | UnsetType = UNSET
    problem: str | UnsetType = UNSET
    """What went wrong, as a name of the problem types; absent if it is not known."""
