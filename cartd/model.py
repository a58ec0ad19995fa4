"""The words of the service as values: carts, their files, and the statuses of both."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from cartd.text import escape


class CartStatus(StrEnum):
    """Where a cart stands.  The values are what Pacifica's clients and database know."""

    WAITING = "waiting"
    STAGING = "staging"
    BUNDLING = "bundling"
    READY = "ready"
    ERROR = "error"
    DELETED = "deleted"


class FileStatus(StrEnum):
    """Where one file of a cart stands."""

    WAITING = "waiting"
    STAGING = "staging"
    STAGED = "staged"
    ERROR = "error"
    DELETED = "deleted"
    """Its cart was."""


UNFINISHED = frozenset({CartStatus.WAITING, CartStatus.STAGING, CartStatus.BUNDLING})
"""The statuses of a cart that still has work to be done."""


@dataclass(frozen=True, slots=True)
class User:
    """Who asks, where the service wants to know."""

    name: str
    admin: bool = False
    """Whether all carts are theirs."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """Whose the carts are that a client posts, and which ones are there for it."""

    owner: str | None
    """The name that its carts get; none where nobody is asked who they are."""
    sees_all: bool
    """Whether others' carts, and those without an owner, are there as well."""

    @classmethod
    def of(cls, user: User | None) -> Viewer:
        """A user sees what is theirs, an admin everything; so does everybody without users."""
        return UNRESTRICTED if user is None else cls(user.name, user.admin)


UNRESTRICTED = Viewer(owner=None, sees_all=True)
"""Who asks where nobody is asked who they are."""


@dataclass(frozen=True, slots=True)
class TarFacts:
    """What is known of a cart's tar without a look at its members."""

    layout: int
    """The number of the layout in which it was, or would be, written."""
    digest: str
    """SHA-256 of all that its bytes follow from, beside the layout and the top folder."""
    lengths: str
    """Its lengths below all top folders, as :class:`cartd.tar.lengths.Lengths` dumps them."""
    since: float
    """Unix time since which the cart's tar has had these bytes."""


@dataclass(frozen=True, slots=True)
class Cart:
    """One posted manifest under one uid.

    Times are Unix seconds, sizes are bytes.
    """

    id: int
    uid: str
    status: CartStatus
    created: float
    updated: float
    """When its status last changed."""
    used: float
    """When a client last posted or downloaded it."""
    error: str = ""
    """Why it is in error; empty otherwise."""
    bundle: bool = False
    """Whether its tar is written to the volume."""
    fingerprint: str | None = None
    """Digest of its manifest; none for a cart that was posted to Pacifica Cartd."""
    files_total: int = 0
    files_staged: int = 0
    bytes_total: int | None = None
    """Sum of its files' sizes; none until the archive has told all of them."""
    bytes_staged: int = 0
    volume_bytes: int = 0
    """What it takes of the volume: promised while it is staged, real afterwards."""
    bytes_linked: int = 0
    """How much of that it shares with other carts, and is counted with those."""
    owner: str | None = None
    """The name of the user who posted it; none if nobody was asked who they are."""
    evicting: str | None = None
    """Token of the eviction that is under way; none if there is none."""
    waits_for: str | None = None
    """What keeps the archive from answering; none while that does not keep the cart waiting."""
    tape_files: int | None = None
    """How many of its files were to come from tape, when that was last recorded; none: none."""
    waits_since: float | None = None
    tape_since: float | None = None
    tar: TarFacts | None = None
    """Of its tar when it was last made ready; none for a cart that Pacifica Cartd made ready."""

    @property
    def display_uid(self) -> str:
        """The uid for logs and terminals: Pacifica Cartd took nearly any character in it."""
        return escape(self.uid)

    @property
    def message(self) -> str:
        """What a client is told beside the status: why it is in error, or what it waits for."""
        if self.error:
            return self.error
        if self.waits_for is not None and self.waits_since is not None:
            return (
                f"Waiting for the archive since {format_time(self.waits_since)}: {self.waits_for}"
            )
        if self.tape_files is not None and self.tape_since is not None:
            files = "1 file" if self.tape_files == 1 else f"{self.tape_files} files"
            return f"Waiting for tape since {format_time(self.tape_since)}: {files}"
        return ""


def format_time(time: float) -> str:
    """A Unix time for people, as ``2026-11-24 10:00:00 UTC``."""
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S} UTC"


@dataclass(frozen=True, slots=True)
class DuplicateFile:
    """A file that one cart lacks and another has staged: the same id and hash, hence bytes."""

    position: int
    """Where the cart that lacks it has it, and below which path."""
    path: str
    staged_id: int
    """The row in the store of the staged one; then its cart, that one's uid, and its path there."""
    staged_cart: int
    staged_uid: str
    staged_path: str
    size: int
    mtime: int
    hash_type: str
    hash_sum: str
    losses: int = 0
    """How often that cart had lost files then; after one more it may be another file."""


@dataclass(frozen=True, slots=True)
class CartFile:
    """One entry of a cart's manifest."""

    position: int
    """Its place in the manifest, from 0."""
    archive_id: str
    path: str
    """Normalised: relative, no empty, ``.`` or ``..`` component."""
    hash_type: str
    """A name that :func:`hashlib.new` takes."""
    hash_sum: str
    """Lower-case hex; empty while nobody knows it."""
    status: FileStatus = FileStatus.WAITING
    error: str = ""
    size: int | None = None
    mtime: int | None = None
    """Whole Unix seconds, as the archive told them."""
    id: int | None = field(default=None, compare=False)
    """The number of its row in the store, which says nothing of the file itself."""
