"""Where everything of a cart is: every path on the volume comes from here."""

from __future__ import annotations

import os
import secrets
from itertools import count
from pathlib import Path

from cartd.model import Cart

NAME_MAX = 255
"""Bytes of one component (NAME_MAX of POSIX systems in use)."""


def check_component(name: str) -> str:
    """``name`` itself, if it can name one entry of a directory and nothing else.

    Raises ``ValueError`` for what is empty, ``.`` or ``..``, holds ``/`` or NUL, or is longer than
    255 bytes in the file system's encoding, or cannot be said in that at all.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} cannot be a name on the volume")
    if len(name) > NAME_MAX or (not name.isascii() and len(os.fsencode(name)) > NAME_MAX):
        raise ValueError(f"{name[:40]!r}... has more than {NAME_MAX} bytes")
    return name


class VolumePaths:
    """Paths below ``root``; none of them is looked at."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.links = root / "cartuids"
        self.all_incoming = root / "incoming"
        self.identity = root / ".cartd-volume"
        self._before_id = str(root / "1")[:-1]
        # Drawn once: a system call a file, on the reactor's thread, hands the interpreter to
        # some busy worker each time, and costs more than all else that is done for a small file.
        self._token = secrets.token_hex(8)
        self._serial = count(1)

    def cart(self, cart_id: int) -> Path:
        return self.root / str(cart_id)

    def incoming(self, cart_id: int) -> Path:
        return self.all_incoming / str(cart_id)

    def temporary(self, cart_id: int, hint: object) -> Path:
        """A name that nobody else has, in the cart's part of ``incoming/``."""
        return self.incoming(cart_id) / f"{hint}-{self._token}-{next(self._serial)}"

    def tree(self, cart: Cart) -> Path:
        return self.cart(cart.id) / check_component(cart.uid)

    def tar(self, cart: Cart) -> Path:
        """Raises ``ValueError`` for a uid too long to have ``.tar`` behind it."""
        return self.cart(cart.id) / check_component(f"{cart.uid}.tar")

    def member(self, cart: Cart, path: str) -> Path:
        """Where the cart's file ``path`` is; raises ``ValueError`` if it cannot be in the tree."""
        return self.staged(cart.id, cart.uid, path)

    def staged(self, cart_id: int, uid: str, path: str) -> Path:
        """As :meth:`member`, for whoever has no more of the cart than this."""
        tree = f"{self._before_id}{cart_id}{os.sep}{check_component(uid)}"
        for component in path.split("/"):
            check_component(component)
        member = f"{tree}{os.sep}{path.replace('/', os.sep)}"
        # The jail check should never fire on POSIX; on Windows "C:" and "a\\..\\b" come this far.
        if os.path.normpath(member) != member or not member.startswith(f"{tree}{os.sep}"):
            raise ValueError(f"{path!r} is outside its cart")
        return Path(member)

    def link(self, cart: Cart) -> Path:
        return self.links / check_component(cart.uid)

    def link_target(self, cart: Cart) -> str:
        """What the link of the cart says: the bundle if it has one, else its tree."""
        name = self.tar(cart).name if cart.bundle else self.tree(cart).name
        return f"../{cart.id}/{name}"
