"""The layout of the volume: every path on it is built here."""

from __future__ import annotations

import os
import re
import secrets
from itertools import count
from pathlib import Path

from cartd.errors import InvalidUid
from cartd.model import Cart

CART_ID = re.compile("[1-9][0-9]{0,17}")
NAME_MAX = 255
"""Bytes of one component (NAME_MAX of POSIX systems in use)."""


def check_component(name: str) -> str:
    """Return ``name`` if it is a valid name of a directory entry.

    Raises ``ValueError`` if it is empty, ``.`` or ``..``, contains ``/`` or NUL, is longer than 255
    bytes in the file system's encoding, or cannot be encoded.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} cannot be a name on the volume")
    if len(name) > NAME_MAX or (not name.isascii() and len(os.fsencode(name)) > NAME_MAX):
        raise ValueError(f"{name[:40]!r}... has more than {NAME_MAX} bytes")
    return name


class VolumePaths:
    """Builds paths below ``root``, without any access to the disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.links = root / "cartuids"
        self.all_incoming = root / "incoming"
        self.identity = root / ".cartd-volume"
        self._before_id = str(root / "1")[:-1]
        # Generated once: a system call for each file, in the reactor's thread, would release the
        # GIL to a busy worker each time, and cost more than all else done for a small file.
        self._token = secrets.token_hex(8)
        self._serial = count(1)

    def cart(self, cart_id: int) -> Path:
        return self.root / str(cart_id)

    def incoming(self, cart_id: int) -> Path:
        return self.all_incoming / str(cart_id)

    def temporary(self, cart_id: int, hint: object) -> Path:
        """Return a unique path in the cart's directory in ``incoming/``."""
        return self.incoming(cart_id) / f"{hint}-{self._token}-{next(self._serial)}"

    def tree(self, cart: Cart) -> Path:
        """``ROOT/ID/UID``."""
        return self.cart(cart.id) / check_component(cart.uid)

    def check_uid(self, cart: Cart) -> None:
        """Raise :class:`InvalidUid` if the cart's uid cannot be the name of a directory.

        Pacifica Cartd accepted such uids, but could not stage these carts either.
        """
        try:
            self.tree(cart)
        except ValueError:
            raise InvalidUid("uid: cannot be the name of a directory") from None

    def tar(self, cart: Cart) -> Path:
        """``ROOT/ID/UID.tar``; raises ``ValueError`` if that name would exceed 255 bytes."""
        return self.cart(cart.id) / check_component(f"{cart.uid}.tar")

    def member(self, cart: Cart, path: str) -> Path:
        """``ROOT/ID/UID/PATH``; raises ``ValueError`` for a path that cannot be in the tree."""
        return self.staged(cart.id, cart.uid, path)

    def staged(self, cart_id: int, uid: str, path: str) -> Path:
        """As :meth:`member`, for a caller that has only the id and the uid."""
        tree = f"{self._before_id}{cart_id}{os.sep}{check_component(uid)}"
        for component in path.split("/"):
            check_component(component)
        member = f"{tree}{os.sep}{path.replace('/', os.sep)}"
        # This check should never fail on POSIX; on Windows "C:" and "a\\..\\b" come this far.
        if os.path.normpath(member) != member or not member.startswith(f"{tree}{os.sep}"):
            raise ValueError(f"{path!r} is outside its cart")
        return Path(member)

    def link(self, cart: Cart) -> Path:
        return self.links / check_component(cart.uid)

    def link_target(self, cart: Cart) -> str:
        """Return the target of the cart's link: its bundle if it has one, else its tree."""
        name = self.tar(cart).name if cart.has_tar else self.tree(cart).name
        return f"../{cart.id}/{name}"
