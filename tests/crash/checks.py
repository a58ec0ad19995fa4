"""Compares volume and store with what clients know, and with each other.

What :meth:`Checks.check_contents` compares holds at any moment, even right after a kill; the rest
holds once the service has been started again and is idle.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from tests.crash.consistency import counter_errors, files_of, link_errors, ownership_errors
from tests.crash.load import BROKEN, removed_files
from tests.crash.model import LiveCart, Model, Post, number_in, tar_of, top_of
from tests.crash.rows import CartRow, read_carts
from tests.support.running_cartd import DEADLINE, POLL_INTERVAL, Answer, RunningCartd

UNFINISHED = ("waiting", "staging", "bundling")
_UNEXPECTED = re.compile("Traceback|Unhandled|never awaited")


@dataclass(slots=True)
class Checks:
    """Each method raises ``AssertionError`` with all faults that it has found."""

    cartd: RunningCartd
    model: Model
    _evicted: set[int] = field(default_factory=set)
    _log_seen: int = 0
    _settled: int = 0
    """The last cart that the model has been reconciled with."""

    def check_contents(self) -> None:
        """Check that every file of a cart on the volume has the right bytes, recorded or not."""
        found = list(files_of(self.cartd.volume))
        carts = read_carts(self.cartd.database, and_of={cart_id for cart_id, _ in found})
        faults = []
        for cart_id, path in found:
            expected = self._expected(carts[cart_id], path) if cart_id in carts else None
            if expected is None:
                faults.append(f"{path} is in no manifest")
            elif path.read_bytes() != expected:
                faults.append(f"{path} has wrong bytes")
        fail_if_any(faults)

    def check_idle(self) -> None:
        """Wait until the service is idle; then compare everything."""
        self._wait_until_idle()
        self._download_all()
        self._wait_until_idle()
        self._put_back()
        self._read_log()
        carts = read_carts(self.cartd.database, after=self._settled, and_of=self._evicted)
        live = [
            LiveCart(cart.id, number_of(cart), cart.status, cart.error)
            for cart in carts.values()
            if cart.lives
        ]
        newest = {number_of(cart): cart.id for cart in sorted(carts.values(), key=lambda c: c.id)}
        fail_if_any(self.model.reconcile(live, self._evicted, newest))
        self._settled = max(carts, default=self._settled)
        self._evicted.clear()
        self.check_contents()
        self.check_volume_and_store()

    def check_volume_and_store(self) -> None:
        """Check that volume and store agree to the byte."""
        volume = self.cartd.volume
        live = [cart for cart in read_carts(self.cartd.database).values() if cart.lives]
        there: dict[int, set[Path]] = defaultdict(set)
        for cart_id, path in files_of(volume):
            there[cart_id].add(path)
        faults: list[str] = []
        inodes: dict[int, int] = {}
        for cart in live:
            expected = {volume / str(cart.id) / name for name in cart.names}
            found = there.pop(cart.id, set())
            faults += [f"{path} is recorded, but missing" for path in expected - found]
            faults += [f"{path} exists, but is not recorded" for path in found - expected]
            inodes |= {path.stat().st_ino: path.stat().st_size for path in found}
        faults += [
            f"{path} belongs to no existing cart" for found in there.values() for path in found
        ]
        faults += [
            *link_errors(live, volume),
            *counter_errors(live),
            *ownership_errors(live, volume),
            *(error for cart in live for error in self._hash_errors(cart)),
        ]
        taken = sum(cart.volume_bytes - cart.bytes_linked for cart in live)
        if taken != sum(inodes.values()):
            faults.append(f"{taken} bytes are counted, but {sum(inodes.values())} are used")
        fail_if_any(faults)

    def check_stopped(self) -> None:
        """Check that a clean stop has left no lease and no lock."""
        carts = read_carts(self.cartd.database).values()
        faults = [f"cart {cart.id} is held by {cart.holder}" for cart in carts if cart.holder]
        faults += [f"{path} is left over" for path in (self.cartd.volume / "holders").iterdir()]
        fail_if_any(faults)

    # Idle

    def _wait_until_idle(self) -> None:
        end = time.monotonic() + DEADLINE
        # Requests are answered with 503 until recovery has found what the last kill may have left
        # unwritten; only then are the carts concerned in staging again.
        while self.cartd.request("HEAD", "/any").status == 503:
            assert time.monotonic() < end, "the service does not get over the last kill"
        # Between two evictions of a series nothing seems to be going on.
        before: set[int] = set()
        while True:
            carts = read_carts(self.cartd.database, with_files=False)
            activity = list(self._activity(carts))
            live = {cart.id for cart in carts.values() if cart.lives}
            if not activity and live == before:
                return
            if time.monotonic() > end:
                fail_if_any(activity or ["carts come and go"])
            before = live
            time.sleep(POLL_INTERVAL)

    def _activity(self, carts: Mapping[int, CartRow]) -> Iterator[str]:
        volume = self.cartd.volume
        for cart in carts.values():
            if cart.holder or cart.status in UNFINISHED:
                yield f"cart {cart.id} is {cart.status} and held by {cart.holder}"
            if cart.evicting:
                yield f"cart {cart.id} is being evicted"
        for path in volume.glob("[0-9]*"):
            if int(path.name) not in carts:
                yield f"{path} belongs to no existing cart"
        for path in volume.glob("incoming/*"):
            yield f"{path} is left over"
        for path in volume.glob("cartuids/*"):
            if not path.exists():
                yield f"{path} is a broken link"

    # Downloads

    def _download_all(self) -> None:
        """Check every uid's response against its newest cart; damaged carts must recover."""
        carts = read_carts(self.cartd.database, with_files=False).values()
        uids = {cart.uid for cart in carts} | set(self.model.uids)
        fail_if_any(fault for uid in sorted(uids) if (fault := self._answer_error(uid)))

    def _answer_error(self, uid: str) -> str:
        end = time.monotonic() + DEADLINE
        while True:
            fault = self._answer_error_now(uid)
            if not fault or not self.model.is_damaged(uid) or time.monotonic() > end:
                return fault
            time.sleep(POLL_INTERVAL)

    def _answer_error_now(self, uid: str) -> str:
        try:
            answer = self.cartd.get(f"/{uid}?filename=data")
        except BROKEN as error:
            return f"the download of {uid} is aborted: {error!r}"
        of_uid = [cart for cart in read_carts(self.cartd.database).values() if cart.uid == uid]
        newest = max(of_uid, key=lambda cart: cart.id, default=None)
        if newest is None:
            return "" if answer.status == 404 else f"{uid} has no cart, but answers {answer}"
        if newest.status == "error":
            right = answer.status == 500 and answer.json["message"] == newest.error
            return "" if right else f"{uid} is in error ({newest.error}), but answers {answer}"
        post = self.model.posts.get(number_of(newest))
        if post is None:
            return f"cart {newest.id} of {uid} has a manifest that was deleted"
        if answer.status != 200:
            return f"cart {newest.id} of {uid} is {newest.status}, but answers {answer}"
        return self._compared(post, answer)

    def _compared(self, post: Post, answer: Answer) -> str:
        tar = tar_of(post, top_of(post, "data"))
        if answer.body != tar:
            return f"the tar of c{post.number} has wrong bytes"
        if not self.model.etag_is_consistent(answer.headers["etag"], [tar]):
            return f"c{post.number} has the ETag of another tar"
        return ""

    def _put_back(self) -> None:
        """Put back files taken from carts that no client can download any more."""
        carts = read_carts(self.cartd.database)
        aside = removed_files(self.cartd)
        for cart_id, path in list(files_of(aside)):
            staged = self.cartd.volume / path.relative_to(aside)
            cart = carts.get(cart_id)
            name = str(path.relative_to(aside / str(cart_id)))
            if cart and name in cart.names and not staged.exists():
                path.rename(staged)
            else:
                path.unlink()

    # Other sources

    def _expected(self, cart: CartRow, path: Path) -> bytes | None:
        post = self.model.posts.get(number_of(cart))
        top, *below = path.relative_to(self.cartd.volume / str(cart.id)).parts
        if post is None:
            return None
        if top == f"{cart.uid}.tar" and cart.bundle:
            return tar_of(post, cart.uid)
        archived = post.contents.get("/".join(below))
        return archived.data if archived and top == cart.uid else None

    def _hash_errors(self, cart: CartRow) -> Iterator[str]:
        """Every staged file must have a second hash, and the right one, however it was staged."""
        post = self.model.posts.get(number_of(cart))
        if post is None:
            return
        for file in cart.staged:
            expected = sha256(post.contents[file.path].data).hexdigest()
            if file.also_hash != expected:
                yield f"{file.path} has the second hash {file.also_hash}, not {expected}"

    def _read_log(self) -> None:
        """Read which carts were evicted since the last time; fail on an unexpected error."""
        with (self.cartd.directory / "cartd.log").open("rb") as log:
            log.seek(self._log_seen)
            text = log.read().decode(errors="replace")
            self._log_seen = log.tell()
        self._evicted |= {
            int(found) for found in re.findall(r"Cart (\d+) \(.*?\) is evicted", text)
        }
        # Only a damaged file on the volume is logged with a traceback.
        if len(_UNEXPECTED.findall(text)) != text.count("VolumeDamaged: "):
            fail_if_any([text])


def number_of(cart: CartRow) -> int:
    """Return the number of the cart's post."""
    number = number_in(cart.files[0].path)
    assert number is not None, cart
    return number


def fail_if_any(faults: Iterable[str]) -> None:
    found = list(faults)
    assert not found, "\n".join(found)
