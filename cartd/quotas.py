"""What one user may have under way, and how much of what carts share each of them gets.

Strategy: a post is refused before anything is entered, by what the store knows of the user's
unfinished carts at that moment.  How many files a cart has is known then; how many bytes, only
when the archive has told the sizes of all of them.  So a cart of unknown size is let in while the
known bytes are below their limit, and counts from when its size is known.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cartd.errors import QuotaExceeded
from cartd.model import Viewer


@dataclass(frozen=True, slots=True)
class Outstanding:
    """Of the unfinished carts of one user: how many, and what of them is not staged yet."""

    carts: int = 0
    files: int = 0
    bytes: int = 0
    """Those of the carts whose sizes are known."""


@dataclass(frozen=True, slots=True)
class UserQuota:
    """The most that may be outstanding for one user; none is no limit."""

    carts: int | None = None
    files: int | None = None
    bytes: int | None = None

    def __bool__(self) -> bool:
        return (self.carts, self.files, self.bytes) != (None, None, None)

    def applicable_to(self, asker: Viewer) -> UserQuota:
        """Those are for users, and not for admins."""
        return NO_QUOTA if asker.sees_all else self

    def check(self, outstanding: Outstanding, files: int) -> None:
        """Whether one more cart, of so many files, may come.

        :raises QuotaExceeded: it may not; the message tells its client why.
        """
        if self.carts is not None and outstanding.carts >= self.carts:
            raise QuotaExceeded(
                f"{outstanding.carts} of your carts are being staged, and no more than"
                f" {self.carts} may be (auth.max_carts_staging); post it when one is ready",
                limit="auth.max_carts_staging",
            )
        if self.files is not None and outstanding.files + files > self.files:
            raise QuotaExceeded(
                f"This cart has {files} files and {outstanding.files} of your others are not"
                f" staged yet; together no more than {self.files} may be (auth.max_files)",
                limit="auth.max_files",
            )
        if self.bytes is not None and outstanding.bytes >= self.bytes:
            raise QuotaExceeded(
                f"{outstanding.bytes} bytes of your carts are not staged yet, and no more than"
                f" {self.bytes} may be (auth.max_bytes); post it when some are",
                limit="auth.max_bytes",
            )


NO_QUOTA = UserQuota()


class FairShare:
    """The carts that are being staged, by their owners: users share evenly, then their carts."""

    def __init__(self) -> None:
        self._owners: dict[int, str | None] = {}
        self._carts: Counter[str | None] = Counter()

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, cart_id: int, owner: str | None) -> None:
        """The cart is staged from now on, unless it was already."""
        if cart_id not in self._owners:
            self._owners[cart_id] = owner
            self._carts[owner] += 1

    def remove(self, cart_id: int) -> None:
        """The cart is not staged any more, if it was."""
        if cart_id in self._owners:
            owner = self._owners.pop(cart_id)
            self._carts[owner] -= 1
            if not self._carts[owner]:
                del self._carts[owner]

    def divisor(self, owner: str | None, *, unknown_owners: int = 0) -> int:
        """Into how many parts that is cut of which a cart of ``owner`` gets one.

        ``unknown_owners`` are carts that nobody knows the owners of yet: they count as this one's.
        """
        others = len(self._carts) - (owner in self._carts)
        return (others + 1) * max(self._carts[owner] + unknown_owners, 1)
