"""Carts that share files: in a store, and in a model of what the disk has, to be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from cartd.eviction.policy import freed
from cartd.manifest import Entry
from cartd.model import Cart, CartStatus, FileStatus
from cartd.store import Store
from tests.support.stored_carts import found, manifest

SIZES = {"nothing": 0, "small": 1, "middle": 30, "large": 700, "huge": 2**40}
"""The archive's files: their ids and bytes."""
TAR = 10_240
MOST = 8
"""Carts that live at the same time, about."""


@dataclass(eq=False)
class Inode:
    """One file on the disk, whatever names it has."""

    size: int


@dataclass(eq=False)
class Tree:
    """A cart: the archive's ids of its files, and what of them is on the disk, by position."""

    cart: Cart
    names: list[str]
    hash_known: list[bool]
    files: dict[int, Inode] = field(default_factory=dict)
    finished: bool = False
    tar: int = 0
    never_written: int = 0
    """Bytes that were promised to it, and are still counted though it is deleted."""

    def missing(self) -> list[int]:
        return [position for position in range(len(self.names)) if position not in self.files]


class Sharing:
    """Does at random what services do, to the store and to the model alike."""

    def __init__(self, store: Store, random: Random) -> None:
        self.store = store
        self.random = random
        self.trees: list[Tree] = []
        self.leaving: list[Tree] = []
        """Deleted, but still on the disk."""

    async def step(self) -> None:
        steps = {self.post: 2, self.link: 5, self.fetch: 4, self.finish: 8, self.restage: 8}
        steps |= {self.remove: 3, self.revalidate: 3}
        if len(self.trees) > MOST:
            steps = {self.delete: 1}
        [step] = self.random.choices([*steps, self.delete], [*steps.values(), 1])
        await step()

    async def post(self) -> None:
        names = self.random.choices(list(SIZES), k=self.random.randint(1, 5))
        known = [self.random.random() < 0.8 for _ in names]
        entries = [
            Entry(name, f"{n}/{name}", "sha1", digest(name) if known[n] else "")
            for n, name in enumerate(names)
        ]
        bundle = self.random.random() < 0.2
        cart, _ = await self.store.carts.post(
            f"u{self.random.random()}", manifest(entries), bundle=bundle, now=10
        )
        await self.store.leases.claim(cart.id, "me", now=10, until=100)
        self.trees.append(Tree(cart, names, known))

    async def link(self) -> None:
        """Link some duplicates; another event may come between that and recording it."""
        if tree := self._one(finished=False):
            duplicates = await self.store.dedup.duplicates(tree.cart.id, range(len(tree.names)))
            assert {one.position for one in duplicates} == self._with_duplicates(tree)
            duplicates = [one for one in duplicates if self.random.random() < 0.8]
            trees = {one.cart.id: one for one in self.trees}
            linked = [trees[duplicate.staged_cart] for duplicate in duplicates]
            at = [int(duplicate.staged_path.split("/")[0]) for duplicate in duplicates]
            inodes = [one.files[position] for one, position in zip(linked, at, strict=True)]
            before = [dict(one.files) for one in linked]
            if self.random.random() < 0.3:
                await self.random.choice([self.restage, self.delete])(tree)
            gone = await self.store.dedup.record_linked(tree.cart.id, "me", duplicates)
            for duplicate, one, inode, had in zip(duplicates, linked, inodes, before, strict=True):
                still = one in self.trees and had.keys() <= one.files.keys()
                assert (duplicate.position in gone) is not still
                if still:
                    tree.files[duplicate.position] = inode

    async def fetch(self) -> None:
        if tree := self._one(finished=False):
            store, cart_id = self.store, tree.cart.id
            new = [position for position in tree.missing() if self.random.random() < 0.8]
            sizes = [(position, SIZES[tree.names[position]], 5) for position in new]
            await store.progress.record_states(cart_id, "me", sizes)
            total = sum(SIZES[name] for name in tree.names)
            tar = TAR if tree.cart.bundle else 0
            await store.progress.reserve(cart_id, "me", bytes_total=total, volume_bytes=total + tar)
            digests = [(position, digest(tree.names[position])) for position in new]
            await store.progress.record_staged(cart_id, "me", digests, now=11)
            for position, size, _ in sizes:
                tree.files[position] = Inode(size)
                tree.hash_known[position] = True

    async def finish(self) -> None:
        """The cart is ready, or in error when it is not whole."""
        if tree := self._one(finished=False):
            cart = await found(self.store, tree.cart)
            if tree.missing() and self.random.random() < 0.7:
                return
            if tree.missing():
                await self.store.progress.record_error(
                    cart.id, "me", "no", position=tree.missing()[0], file_error="no", now=12
                )
            elif tree.cart.bundle:
                await self.store.progress.record_bundled(cart.id, "me")
                await self.store.progress.record_ready(cart.id, "me", volume_bytes=TAR, now=12)
                tree.files, tree.tar = {}, TAR
            else:
                await self.store.progress.record_ready(
                    cart.id, "me", volume_bytes=cart.bytes_staged, now=12
                )
            tree.finished = True

    async def restage(self, but: Tree | None = None) -> None:
        """Some files of a finished cart are found damaged: it is staged again."""
        if (tree := self._one(finished=True)) and tree is not but:
            lost = [n for n in range(len(tree.names)) if tree.tar or self.random.random() < 0.5]
            assert await self.store.progress.restage(tree.cart.id, lost=lost, now=13)
            await self.store.leases.claim(tree.cart.id, "me", now=13, until=100)
            for position in lost:
                tree.files.pop(position, None)
            tree.finished, tree.tar = False, 0

    async def revalidate(self) -> None:
        """The dirty rows of a cart may not be on the disk: some or all of them are revalidated."""
        if not (dirty := await self.store.durability.dirty_rows("me")):
            return
        cart_id = self.random.choice(list(dirty))
        rows = [row for row in dirty[cart_id] if self.random.random() < 0.8]
        await self.store.durability.revalidate(cart_id, rows, now=13)
        [tree] = [tree for tree in self.trees if tree.cart.id == cart_id]
        files = await self.store.carts.files(cart_id)
        lost = [one.position for one in files if one.status is not FileStatus.STAGED]
        cart = await found(self.store, tree.cart)
        for position in {*lost} & {*tree.files}:
            del tree.files[position]
        if cart.status is CartStatus.STAGING:
            tree.finished = False
            await self.store.leases.claim(cart_id, "me", now=13, until=100)

    async def delete(self, but: Tree | None = None) -> None:
        if (tree := self._one()) and tree is not but:
            before = await self.store.space.usage()
            assert await self.store.removals.mark_deleted(tree.cart.id, 14)
            after = await self.store.space.usage()
            assert after[0] == before[0]
            tree.never_written = before[1] - after[1]
            self.trees.remove(tree)
            self.leaving.append(tree)

    async def remove(self) -> None:
        """The files of a deleted cart go."""
        if self.leaving:
            tree = self.leaving.pop(self.random.randrange(len(self.leaving)))
            freed = await self.store.removals.record_removed(tree.cart.id, 15)
            rest = self._there()
            assert freed - tree.never_written == on_disk([*rest, tree]) - on_disk(rest)

    async def check(self) -> None:
        """The store counts each byte once, and knows what any carts would free."""
        used, unwritten = await self.store.space.usage()
        never_written = sum(tree.never_written for tree in self.leaving)
        assert used - unwritten - never_written == on_disk(self._there())
        evictable, shares = (
            await self.store.space.evictable(),
            await self.store.space.shared_bytes(),
        )
        going = {one.cart_id: one for one in evictable if self.random.random() < 0.6}
        rest = [tree for tree in self._there() if tree.cart.id not in going]
        assert freed(going.values(), shares) == on_disk(self._there()) - on_disk(rest)

    def _there(self) -> list[Tree]:
        return self.trees + self.leaving

    def _one(self, *, finished: bool | None = None) -> Tree | None:
        wanted = [tree for tree in self.trees if finished in (None, tree.finished)]
        return self.random.choice(wanted) if wanted else None

    def _with_duplicates(self, tree: Tree) -> set[int]:
        staged = {
            other.names[position]
            for other in self.trees
            if other is not tree and not other.cart.bundle
            for position in other.files
        }
        return {n for n in tree.missing() if tree.hash_known[n] and tree.names[n] in staged}


def on_disk(trees: Iterable[Tree]) -> int:
    """Bytes of all bundles, and of all files, those of many names once."""
    trees = list(trees)
    inodes = {inode for tree in trees for inode in tree.files.values()}
    return sum(inode.size for inode in inodes) + sum(tree.tar for tree in trees)


def digest(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()
