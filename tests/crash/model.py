"""What clients know of their carts, and so which responses are right; no I/O.

A request without a response may have been processed or not: the model allows both until it is
compared with the store (:meth:`Model.reconcile`).  Each uid belongs to one client, which sends one
request at a time; all carts use the same files, so that carts of different clients share them.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from random import Random
from typing import Any

from tests.support.running_cartd import entry, manifest

NO_SPACE = "No Space Available"
GIANT = "giant"
"""Id of a file that is too large for the volume."""
CORRUPT = "corrupt"
"""Id of a file that the archive sends with other bytes than the manifest declares."""
LARGE_BYTES = 8 * 2**20
"""Size of a file that exceeds all buffers between the service and a client that does not read."""
ETAGS = 20_000
"""Number of tags and tars that are remembered."""


@dataclass(frozen=True, slots=True)
class Archived:
    """A file in the archive; ``mtime`` in whole Unix seconds."""

    data: bytes
    mtime: int


def archived_files(seed: str) -> dict[str, Archived]:
    """Return the archive's files by id: few, so that many carts share them."""
    random = Random(f"{seed}/files")
    sizes = {
        **{f"small{n}": random.choice([0, 1, 511, 512, 4096, 20_000]) for n in range(24)},
        **{f"middle{n}": random.randint(100_000, 1_500_000) for n in range(6)},
        **{f"large{n}": LARGE_BYTES + n for n in range(3)},
    }
    return {
        name: Archived(random.randbytes(size), random.randint(10**9, 17 * 10**8))
        for name, size in sizes.items()
    }


@dataclass(frozen=True, eq=False)
class Post:
    """One manifest; its paths are in no other manifest."""

    number: int
    uid: str
    files: tuple[tuple[str, str, Archived | None], ...]
    """(archive id, path, content); the content of a file that cannot be staged is ``None``."""
    bundle: bool

    @cached_property
    def body(self) -> bytes:
        entries = [
            entry(name, path, archived.data if archived else b"")
            for name, path, archived in self.files
        ]
        return manifest(entries, bundle=self.bundle)

    @cached_property
    def contents(self) -> dict[str, Archived]:
        """Return the files that can be staged, by path."""
        return {path: archived for _, path, archived in self.files if archived}

    @property
    def complete(self) -> bool:
        """Whether all files can be staged."""
        return all(archived for _, _, archived in self.files)

    def explains(self, error: str) -> bool:
        """Whether the error is a true cause for this cart to fail.

        A small cart may fail for lack of space while larger ones are in the way, so that error is
        accepted for any cart; later carts detect it if space is not freed.
        """
        return error == NO_SPACE or any(
            error.startswith(f"Failed to stage {path} (archive id {name}): ")
            and ("declared" in error if name == CORRUPT else "404" in error)
            for name, path, archived in self.files
            if archived is None and name != GIANT
        )


def post_of(number: int, uid: str, random: Random, files: dict[str, Archived]) -> Post:
    """Return a random manifest: mostly small files, sometimes one that cannot be staged."""
    weights = [1.0 if name.startswith("large") else 3.0 for name in files]
    names = random.choices(list(files), weights, k=random.choice([1, 2, 3, 5, 8]))
    bad_file = random.choices(["", "missing", CORRUPT, GIANT], [20, 1, 1, 1])[0]
    names += [bad_file] if bad_file else []
    chosen = tuple(
        (name, f"c{number}/{place % 3}/{name}-{place}", files.get(name))
        for place, name in enumerate(names)
    )
    return Post(number, uid, chosen, random.random() < 0.25)


def slow_post(number: int, uid: str, files: dict[str, Archived]) -> Post:
    """Return a manifest of which most must still be sent once all buffers are full."""
    names = ("large0", "small0", "small1")
    return Post(
        number, uid, tuple((name, f"c{number}/{name}", files[name]) for name in names), False
    )


def number_in(path: str) -> int | None:
    """Return the number of the post that has such a path."""
    found = re.match(r"c(\d+)/", path)
    return int(found[1]) if found else None


class Utf8Info(tarfile.TarInfo):
    """Has the name in UTF-8 in its ustar block, too, where tarfile writes question marks."""

    def create_pax_header(self, info: Any, encoding: str) -> bytes:
        blocks = super().create_pax_header(info, encoding)
        block = info["name"].encode().ljust(100, b"\0") + blocks[-412:]
        assert len(block) == 512
        checksum = sum(block[:148]) + 8 * 32 + sum(block[156:])
        return b"%b%b%06o\0%b" % (blocks[:-512], block[:148], checksum, block[155:])


@lru_cache(maxsize=24)
def tar_of(post: Post, top: str) -> bytes:
    """Return the cart's tar, by Python's tarfile; a folder has the time of its newest file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, archived in _members(post, top):
            info = Utf8Info(name)
            info.mtime = archived.mtime if archived else _newest(post, name[len(top) + 1 :])
            info.mode = 0o644 if archived else 0o755
            info.type = tarfile.REGTYPE if archived else tarfile.DIRTYPE
            info.size = len(archived.data) if archived else 0
            tar.addfile(info, io.BytesIO(archived.data) if archived else None)
    return out.getvalue()


def _newest(post: Post, folder: str) -> int:
    below = f"{folder}/" if folder else ""
    times = [one.mtime for path, one in post.contents.items() if path.startswith(below)]
    return max(times, default=0)


def _members(post: Post, top: str) -> Iterator[tuple[str, Archived | None]]:
    seen = {top}
    yield top, None
    for path, archived in post.contents.items():
        parts = [top, *path.split("/")]
        for depth in range(1, len(parts)):
            if (folder := "/".join(parts[:depth])) not in seen:
                seen.add(folder)
                yield folder, None
        yield f"{top}/{path}", archived


@dataclass(slots=True)
class Known:
    """What a client knows of a cart that was accepted, or may have been."""

    post: Post
    accepted: bool = False
    """Whether 201 was received."""
    may_be_deleted: bool = False
    """Whether a DELETE of it got no response."""
    damaged: bool = False
    """Whether a file of it was removed behind the service's back."""


@dataclass(frozen=True, slots=True)
class LiveCart:
    """A cart in the store that is not deleted, and its post."""

    cart_id: int
    post: int
    status: str
    error: str


@dataclass
class Model:
    """All carts that may exist, and the tars that were received."""

    posts: dict[int, Post] = field(default_factory=dict)
    uids: dict[str, list[Known]] = field(default_factory=dict)
    deleted_posts: set[int] = field(default_factory=set)
    """Posts with a successful DELETE since the last :meth:`reconcile`."""
    _tars: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    _etags: OrderedDict[bytes, str] = field(default_factory=OrderedDict)

    # Actions of clients

    def posting(self, post: Post) -> None:
        """The manifest is about to be sent, for the first time or again."""
        self.posts[post.number] = post
        known = self.uids.setdefault(post.uid, [])
        if not any(one.post is post for one in known):
            known.append(Known(post))

    def posted(self, post: Post) -> None:
        """201 was received."""
        for known in self.uids[post.uid]:
            if known.post is post:
                known.accepted, known.may_be_deleted = True, False

    def deleting(self, uid: str) -> None:
        for known in self.uids.get(uid, []):
            known.may_be_deleted = True

    def deleted(self, uid: str) -> None:
        """200 or 404 was received: there is no cart of that uid."""
        self.deleted_posts.update(known.post.number for known in self.uids.pop(uid, []))

    def damaged(self, post: Post) -> None:
        for known in self.uids.get(post.uid, []):
            if known.post is post:
                known.damaged = True

    # Allowed responses

    def is_damaged(self, uid: str) -> bool:
        return any(known.damaged for known in self.uids.get(uid, []))

    @staticmethod
    def matching_tars(
        known: list[Known], name: str, start: int, body: bytes, length: int
    ) -> list[bytes]:
        """Return the tars of these carts with that length and with ``body`` at ``start``."""
        tars = [tar_of(one.post, top_of(one.post, name)) for one in known if one.post.complete]
        return [
            tar for tar in tars if len(tar) == length and tar[start : start + len(body)] == body
        ]

    def etag_is_consistent(self, etag: str, tars: list[bytes]) -> bool:
        """Whether an ETag has always stood for one tar, and the tar for that ETag.

        If several tars contain the received bytes, it must be true for one of them.
        """
        digests = [hashlib.sha256(tar).digest() for tar in tars]
        same = [one for one in digests if self._tars.get(etag, one) == one]
        same = [one for one in same if self._etags.get(one, etag) == etag]
        if len(same) == 1:
            self._tars[etag], self._etags[same[0]] = same[0], etag
            if len(self._tars) > ETAGS:
                self._tars.popitem(last=False)
            if len(self._etags) > ETAGS:
                self._etags.popitem(last=False)
        return bool(same)

    # The store, while the service is idle

    def reconcile(
        self, live_carts: Iterable[LiveCart], evicted: set[int], rows: dict[int, int]
    ) -> list[str]:
        """Compare with the store and copy its state; return faults as messages.

        ``rows``: the newest cart of each post, deleted or not.  ``evicted``: ids of carts.
        """
        there = list(live_carts)
        faults = [*self._lost({one.post for one in there}, evicted, rows)]
        for one in there:
            post = self.posts.get(one.post)
            if post is None or one.post in self.deleted_posts:
                faults.append(f"cart {one.cart_id} exists, though it was deleted")
            elif one.status == "error" and not post.explains(one.error):
                faults.append(f"cart {one.cart_id} is in error without a cause: {one.error}")
            elif one.status == "ready" and not post.complete:
                faults.append(f"cart {one.cart_id} is ready, though not all files can be staged")
            elif one.status not in ("ready", "error"):
                faults.append(f"cart {one.cart_id} is still {one.status}")
        self._reset_to(there)
        return faults

    def _lost(self, live_carts: set[int], evicted: set[int], rows: dict[int, int]) -> Iterator[str]:
        for uid, carts in self.uids.items():
            for known in carts:
                number = known.post.number
                sure = known.accepted and not known.may_be_deleted
                if sure and number not in live_carts and rows.get(number) not in evicted:
                    yield f"the accepted cart c{number} of {uid} is lost: row {rows.get(number)}"

    def _reset_to(self, live_carts: list[LiveCart]) -> None:
        uids: dict[str, list[Known]] = {}
        for one in sorted(live_carts, key=lambda one: one.cart_id):
            if post := self.posts.get(one.post):
                uids.setdefault(post.uid, []).append(Known(post, accepted=True))
        self.uids = uids
        self.posts = {known.post.number: known.post for of in uids.values() for known in of}
        self.deleted_posts.clear()


def top_of(post: Post, name: str) -> str:
    """Return the top folder of the cart's tar, if it is requested as ``name``."""
    return post.uid if post.bundle else name
