"""The data model: carts, files, statuses, users and their quotas, and which uids are valid.

:class:`Viewer` says which carts a client may see.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from cartd.checksum import hash_name
from cartd.errors import InvalidUid, Problem, QuotaExceeded, escape


class CartStatus(StrEnum):
    """The status of a cart.  The values are those of Pacifica's clients and database."""

    WAITING = "waiting"
    STAGING = "staging"
    BUNDLING = "bundling"
    READY = "ready"
    ERROR = "error"
    DELETED = "deleted"


class Outcome(StrEnum):
    """How the staging of a cart ended."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    """It is ready without the files that have failed, as its manifest permits."""
    FAILED = "failed"


class CartFormat(StrEnum):
    """What a cart is sent as, and stored as if it is bundled."""

    TAR = "tar"
    """A tar of its files."""
    BAG = "bag"
    """A tar of a bag of its files (BagIt 1.0, RFC 8493)."""


class FileStatus(StrEnum):
    """The status of a file of a cart."""

    WAITING = "waiting"
    STAGING = "staging"
    STAGED = "staged"
    ERROR = "error"
    DELETED = "deleted"
    """Its cart was deleted."""


UNFINISHED = frozenset({CartStatus.WAITING, CartStatus.STAGING, CartStatus.BUNDLING})
"""The statuses of a cart that is not ready yet, and neither failed nor deleted."""


class Fit(StrEnum):
    """Whether the volume has space for a number of bytes."""

    NOW = "now"
    AFTER_EVICTION = "after-eviction"
    """After other carts have been evicted."""
    NO = "no"


@dataclass(frozen=True, slots=True)
class User:
    """An authenticated user."""

    name: str
    admin: bool = False
    """Whether the user may access all carts."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """The owner of the carts that a client posts, and which carts the client may see."""

    owner: str | None
    """The owner of new carts; none without authentication."""
    sees_all: bool
    """Whether the client also sees the carts of other users and those without an owner."""

    @classmethod
    def of(cls, user: User | None) -> Viewer:
        """A user sees the user's own carts; an admin, and without authentication anyone, all."""
        return UNRESTRICTED if user is None else cls(user.name, user.admin)


UNRESTRICTED = Viewer(owner=None, sees_all=True)
"""The viewer where authentication is off."""


@dataclass(frozen=True, slots=True)
class Outstanding:
    """The unfinished carts of one user, and their files and bytes that are not staged yet."""

    carts: int = 0
    files: int = 0
    bytes: int = 0
    """Of carts whose sizes are known."""


@dataclass(frozen=True, slots=True)
class UserQuota:
    """Limits of what may be outstanding for one user; ``None`` is no limit.

    A post is checked before it is stored, against what the store knows of the user's unfinished
    carts.  The number of files is known then, but the number of bytes only once the archive has
    returned the sizes of all files.  So a cart of unknown size is accepted while the known bytes
    are below the limit, and counts from the moment its size is known.
    """

    carts: int | None = None
    files: int | None = None
    bytes: int | None = None

    def __bool__(self) -> bool:
        return (self.carts, self.files, self.bytes) != (None, None, None)

    def applicable_to(self, viewer: Viewer) -> UserQuota:
        """Return the quota of a user; admins have none."""
        return NO_QUOTA if viewer.sees_all else self

    def check(self, outstanding: Outstanding, files: int) -> None:
        """Check whether one more cart, with that many files, is within the quota.

        :raises QuotaExceeded: it is not; the message is for the client.
        """
        if self.carts is not None and outstanding.carts >= self.carts:
            raise QuotaExceeded(
                f"{outstanding.carts} of your carts are being staged, and the limit is"
                f" {self.carts} (auth.max_carts_staging); try again when one is ready",
                limit="auth.max_carts_staging",
            )
        if self.files is not None and outstanding.files + files > self.files:
            raise QuotaExceeded(
                f"This cart has {files} files, and {outstanding.files} files of your other carts"
                f" are not staged yet; the limit is {self.files} (auth.max_files)",
                limit="auth.max_files",
            )
        if self.bytes is not None and outstanding.bytes >= self.bytes:
            raise QuotaExceeded(
                f"{outstanding.bytes} bytes of your carts are not staged yet; the limit is"
                f" {self.bytes} (auth.max_bytes); try again when some carts are ready",
                limit="auth.max_bytes",
            )


NO_QUOTA = UserQuota()


@dataclass(frozen=True, slots=True)
class TarFacts:
    """What is known of a cart's tar without reading its members."""

    layout: int
    """The version of the tar's layout."""
    digest: str
    """SHA-256 of everything that determines the tar's bytes, except layout and top folder."""
    lengths: str
    """Its lengths for all top folders, as :class:`cartd.tar.index.Lengths` dumps them."""
    since: float
    """Unix time of the last change of the tar's bytes."""


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
    """The error message if the cart is in error; empty otherwise."""
    problem: str | None = None
    """The :class:`cartd.errors.Problem` of a cart in error; none if it is not known."""
    bundle: bool = False
    """Whether its tar is written to the volume."""
    fingerprint: str | None = None
    """Digest of its manifest; none for a cart that was posted to Pacifica Cartd."""
    files_total: int = 0
    files_staged: int = 0
    bytes_total: int | None = None
    """Sum of its files' sizes; none until all of them are known."""
    bytes_staged: int = 0
    volume_bytes: int = 0
    """Its bytes on the volume: reserved while it is staged, used afterwards."""
    bytes_linked: int = 0
    """How many of these are shared with other carts and counted there."""
    owner: str | None = None
    """The name of the user who posted it; none if authentication was off."""
    evicting: str | None = None
    """Token of the running eviction; none without one."""
    waits_for: str | None = None
    """Why the archive is unavailable; none unless the cart waits for that."""
    tape_files: int | None = None
    """How many of its files were on tape when last recorded; none if none were."""
    waits_since: float | None = None
    tape_since: float | None = None
    format: CartFormat = CartFormat.TAR
    """What clients get that request no format."""
    max_failed: int | None = None
    """How many of its files may fail while the others become ready; none if the cart fails then."""
    files_failed: int = 0
    bag: str | None = None
    """Facts of its bag, as :class:`cartd.tar.bag.BagFacts` dumps them; none until determined."""
    tar: TarFacts | None = None
    """The tar when the cart was last made ready; none if Pacifica Cartd made it ready."""

    def __str__(self) -> str:
        """The name of the cart in log lines: ``Cart 12 (my-data, alice)``."""
        owner = "" if self.owner is None else f", {escape(self.owner)}"
        return f"Cart {self.id} ({self.display_uid}{owner})"

    @property
    def has_tar(self) -> bool:
        """Whether it is kept as one tar on the volume once it is ready; else it is a tree.

        A partial cart is kept as a tree, so that a retry fetches only what is missing.
        """
        return self.bundle and not self.files_failed

    @property
    def tar_prefix(self) -> str:
        """What precedes the path of each file in its tar on the volume."""
        return f"{self.uid}/data/" if self.format is CartFormat.BAG else f"{self.uid}/"

    @property
    def is_partial(self) -> bool:
        """Whether it is ready although some of its files have failed."""
        return self.outcome is Outcome.PARTIAL

    @property
    def outcome(self) -> Outcome | None:
        """How its staging ended; None if it has not, or the cart is deleted."""
        if self.status is CartStatus.ERROR:
            return Outcome.FAILED
        if self.status is CartStatus.READY:
            return Outcome.PARTIAL if self.files_failed else Outcome.COMPLETE
        return None

    @property
    def display_uid(self) -> str:
        """The uid, escaped for logs and terminals: Pacifica Cartd accepted almost any character."""
        return escape(self.uid)

    @property
    def message(self) -> str:
        """The message for clients beside the status: the error, or what the cart waits for."""
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


@dataclass(frozen=True, slots=True)
class CartDetails:
    """What a status document says of a cart beside :class:`Cart`."""

    name: str | None
    labels: tuple[str, ...]
    started: float | None
    """Unix time at which its staging last began; none before."""
    files_linked: int
    """How many of its files were linked to those of other carts instead of fetched."""
    size_linked: int
    """Bytes of those files."""
    pace: str | None
    """Its :class:`cartd.status.pace.Pace`, as JSON; none while it is not measured."""
    version: int
    """How often the cart has changed."""
    lease_until: float | None
    """Unix time at which the lease of the process that stages it expires; none without one."""


def format_time(time: float) -> str:
    """Format a Unix time as ``2026-11-24 10:00:00 UTC``."""
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S} UTC"


@dataclass(frozen=True, slots=True)
class SecondHash:
    """A hash of a file beside that of its manifest."""

    hash_type: str
    hash_sum: str
    """Lower-case hex."""


@dataclass(frozen=True, slots=True)
class DuplicateFile:
    """A file that one cart lacks and another cart has staged: with the same id and hash."""

    position: int
    """Position in the cart that lacks the file; ``path`` is its path there."""
    path: str
    staged_id: int
    """Row of the staged file in the store; its cart, the cart's uid, and its path follow."""
    staged_cart: int
    staged_uid: str
    staged_path: str
    size: int
    mtime: int
    hash_type: str
    hash_sum: str
    invalidations: int = 0
    """The invalidation counter of that cart; if it has changed, the file may be another one."""
    also_hash_type: str | None = None
    """The second hash of the staged file, as in :class:`CartFile`."""
    also_hash_sum: str | None = None
    had_hash_type: str | None = None
    """The type of the second hash that the lacking file had when it was last staged, if any."""

    def missing_hash_type(self, default: str | None) -> str | None:
        """Return the type of the second hash that is to be computed of the staged file, or None.

        All files of a cart get the same type, as far as possible: that which the file had, else
        ``default``.  The staged file may have it already.
        """
        also = _second_hash_type(self.hash_type, self.had_hash_type or default)
        if also and self.also_hash_type and hash_name(also) == hash_name(self.also_hash_type):
            return None
        return also


@dataclass(frozen=True, slots=True)
class CartFile:
    """One entry of a cart's manifest."""

    position: int
    """Position in the manifest, from 0."""
    archive_id: str
    path: str
    """Normalised: relative, no empty, ``.`` or ``..`` component."""
    hash_type: str
    """A name that :func:`hashlib.new` accepts."""
    hash_sum: str
    """Lower-case hex; empty while unknown."""
    status: FileStatus = FileStatus.WAITING
    error: str = ""
    problem: str | None = None
    """The :class:`cartd.errors.Problem` of a file in error; none if it is not known."""
    size: int | None = None
    mtime: int | None = None
    """Whole Unix seconds, from the archive."""
    id: int | None = field(default=None, compare=False)
    """The id of its row in the store; not compared."""
    also_hash_type: str | None = field(default=None, compare=False)
    """Algorithm of a second hash that was computed while it was staged; none without one."""
    also_hash_sum: str | None = field(default=None, compare=False)
    """Lower-case hex."""

    def second_hash_type(self, default: str | None) -> str | None:
        """Return the type of the second hash to compute when the file is staged, or None.

        It is that of the recorded one, so that a cart keeps the types of its hashes when it is
        restaged under another setting; else ``default``.  None if the first hash is of that type.
        """
        return _second_hash_type(self.hash_type, self.also_hash_type or default)


def _second_hash_type(hash_type: str, also: str | None) -> str | None:
    """Return ``also``; None if it is another name of ``hash_type``."""
    if also is None or hash_name(also) == hash_name(hash_type):
        return None
    return also


@dataclass(frozen=True, slots=True)
class HashTypes:
    """The hashes that a number of files of a cart have."""

    files: int
    hash_type: str
    is_known: bool
    """Whether that hash is known; not of a file without one before it is staged."""
    also_hash_type: str | None

    @property
    def names(self) -> frozenset[str]:
        """The canonical names of the known ones."""
        first = (self.hash_type,) if self.is_known else ()
        second = (self.also_hash_type,) if self.also_hash_type is not None else ()
        return frozenset(map(hash_name, (*first, *second)))

    def has(self, name: str | None) -> bool:
        """Whether the files have the hash of this canonical name; the manifest's if it is None."""
        return self.is_known if name is None else name in self.names


@dataclass(frozen=True, slots=True)
class FileFailure:
    """Why a file of a cart could not be staged."""

    position: int
    error: str
    problem: Problem | None = None


MAX_MISSING = 10_000
"""Files that may be missing in a partial cart, whatever its manifest permits."""
MAX_LABELS = 20
"""Labels of a cart."""
MAX_LABEL = 64
"""Characters of a label."""
MAX_NAME = 255
"""Characters of a cart's name."""
_CONTROL = re.compile("[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]")
"""Control characters, line separators and bidirectional controls."""


def short_text_fault(text: str, longest: int) -> str | None:
    """Return what is wrong with a name or a label, for a message; None if nothing is."""
    if not text:
        return "is empty"
    if len(text) > longest:
        return f"is over {longest} characters"
    return "contains a control character" if _CONTROL.search(text) else None


UID_PATTERN = r"[A-Za-z0-9_~][A-Za-z0-9._~-]{0,254}"
"""The pattern of a complete uid, the name that a client chooses for a cart."""


@dataclass(frozen=True, slots=True)
class EvictionCandidate:
    """A cart whose status allows its eviction."""

    cart_id: int
    size: int
    """Bytes on the volume that it owns; bytes that it only links to count for their owner."""
    used: float
    """Unix time of its last use."""


@dataclass(frozen=True, slots=True)
class SharedBytes:
    """Bytes that several carts share; they become free when the last of these is removed."""

    owner: int
    """The cart that the bytes count for."""
    links: frozenset[int]
    """The other carts that link to them."""
    size: int

    @property
    def holders(self) -> frozenset[int]:
        return self.links | {self.owner}


_UID = re.compile(UID_PATTERN)
MAX_UID_LENGTH = 255
"""Characters of the database column, as in Pacifica Cartd."""


def uid_may_be_stored(uid: str) -> bool:
    """Return whether a cart in the database can have this uid; Pacifica Cartd accepted nearly any.

    Look-ups of other uids are skipped: they would find nothing, or fail because of a NUL.
    """
    return "\0" not in uid and len(uid) <= MAX_UID_LENGTH


def check_uid(uid: str) -> str:
    """Return ``uid`` if a new cart may have it; else raise InvalidUid."""
    if _UID.fullmatch(uid) is None:
        raise InvalidUid(
            "uid: must be 1 to 255 characters of A-Z a-z 0-9 . _ ~ - and not begin with . or -"
        )
    return uid
