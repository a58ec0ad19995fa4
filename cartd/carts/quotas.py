"""Per-user quotas of unfinished carts, and fair shares of what carts in staging share.

A post is checked before it is stored, against what the store knows of the user's unfinished carts.
The number of files is known then, but the number of bytes only once the archive has returned the
sizes of all files.  So a cart of unknown size is accepted while the known bytes are below the
limit, and counts from the moment its size is known.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cartd.errors import QuotaExceeded
from cartd.model import Viewer


@dataclass(frozen=True, slots=True)
class Outstanding:
    """The unfinished carts of one user, and their files and bytes that are not staged yet."""

    carts: int = 0
    files: int = 0
    bytes: int = 0
    """Of carts whose sizes are known."""


@dataclass(frozen=True, slots=True)
class UserQuota:
    """Limits of what may be outstanding for one user; ``None`` is no limit."""

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


class FairShare:
    """Shares of the carts in staging: users get equal shares, and the carts of a user, too."""

    def __init__(self) -> None:
        self._owners: dict[int, str | None] = {}
        self._carts: Counter[str | None] = Counter()

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, cart_id: int, owner: str | None) -> None:
        """Count the cart, unless it is counted already."""
        if cart_id not in self._owners:
            self._owners[cart_id] = owner
            self._carts[owner] += 1

    def remove(self, cart_id: int) -> None:
        """Stop counting the cart, if it was counted."""
        if cart_id in self._owners:
            owner = self._owners.pop(cart_id)
            self._carts[owner] -= 1
            if not self._carts[owner]:
                del self._carts[owner]

    def divisor(self, owner: str | None, *, unknown_owners: int = 0) -> int:
        """Return the number that a shared amount is divided by for a cart of ``owner``.

        ``unknown_owners`` is the number of further carts whose owners are not known yet; they count
        as carts of ``owner``.
        """
        others = len(self._carts) - (owner in self._carts)
        return (others + 1) * max(self._carts[owner] + unknown_owners, 1)
