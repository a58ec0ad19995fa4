"""Consistency of rows, and of rows and volume, while the service is idle."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.crash.rows import CartRow


def files_of(volume: Path) -> Iterator[tuple[int, Path]]:
    """Yield all files and links below the carts' directories, with their cart ids."""
    for of_cart in volume.glob("[0-9]*"):
        for directory, _, names in os.walk(of_cart):
            yield from ((int(of_cart.name), Path(directory, name)) for name in names)


def link_errors(live: Sequence[CartRow], volume: Path) -> Iterator[str]:
    """The link of a uid must lead to its newest cart, if that is ready."""
    newest = {cart.uid: cart for cart in sorted(live, key=lambda cart: cart.id)}
    there = {path.name: str(path.readlink()) for path in volume.glob("cartuids/*")}
    for uid, cart in newest.items():
        target = f"../{cart.id}/{uid}.tar" if cart.bundle else f"../{cart.id}/{uid}"
        if cart.status == "ready" and there.get(uid) != target:
            yield f"cartuids/{uid} is {there.get(uid)}, not {target}"


def counter_errors(live: Sequence[CartRow]) -> Iterator[str]:
    """The counters of a cart's row must agree with the rows of its files."""
    for cart in live:
        size = sum(file.size or 0 for file in cart.staged)
        linked = sum(file.size or 0 for file in cart.staged if file.linked_to is not None)
        counted = cart.files_staged, cart.bytes_staged, cart.bytes_linked
        if counted != (len(cart.staged), size, linked):
            yield f"cart {cart.id} counts {counted}, not {(len(cart.staged), size, linked)}"


def ownership_errors(live: Sequence[CartRow], volume: Path) -> Iterator[str]:
    """Of files that are hard links of each other, one owns the bytes, and the others name it."""
    inodes: dict[int, int] = {}
    owning: dict[int, list[int]] = defaultdict(list)
    linked: dict[int, int] = {}
    for cart in live:
        for file in [] if cart.in_tar else cart.staged:
            path = volume / str(cart.id) / cart.uid / file.path
            if path.exists():  # missing files are reported elsewhere
                inodes[file.id] = path.stat().st_ino
                if file.linked_to is None:
                    owning[inodes[file.id]].append(file.id)
        linked |= {file.id: file.linked_to for file in cart.files if file.linked_to is not None}
    for file_id, owner in linked.items():
        if owner not in inodes or owner in linked:
            yield f"file {file_id} is linked to {owner}, which owns no bytes"
        elif inodes.get(file_id) != inodes[owner]:
            yield f"file {file_id} is linked to {owner}, but is no hard link of it"
    yield from (f"files {ids} own the same bytes" for ids in owning.values() if len(ids) > 1)
