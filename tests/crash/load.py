"""Clients that use the service in every way concurrently, and check all responses."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from itertools import count
from pathlib import Path
from random import Random
from subprocess import TimeoutExpired
from threading import Event, Lock, Thread
from urllib.parse import quote

from tests.crash.model import Archived, Known, Model, Post, post_of, slow_post
from tests.support.running_cartd import DEADLINE, POLL_INTERVAL, Answer, RunningCartd
from tests.support.slow_reader import SlowReader

CLIENTS = 4
UIDS = 3
"""Uids per client."""
CART_WAIT = 2.0
"""Seconds that a client waits for a cart before its next action."""
EXIT_TIMEOUT = DEADLINE
"""Seconds within which a process must have ended after its connections broke."""
BROKEN = (OSError, HTTPException)


class Load:
    """The clients of one run; ``faults`` are their findings, ``done`` counts their actions."""

    def __init__(
        self, cartd: RunningCartd, model: Model, files: dict[str, Archived], numbers: count[int]
    ) -> None:
        self.cartd = cartd
        self.model = model
        self.files = files
        self.numbers = numbers
        self.lock = Lock()
        self.stopped = Event()
        self.faults: list[str] = []
        self.done: Counter[str] = Counter()
        self._clients: list[Client] = []

    def start(self, seed: str) -> None:
        self._clients = [
            Client(self, number, Random(f"{seed}/{number}")) for number in range(CLIENTS)
        ]
        for client in self._clients:
            client.thread.start()

    def stop(self) -> None:
        """Let every client finish its action, and wait for that."""
        self.stopped.set()
        for client in self._clients:
            client.thread.join()


class Client:
    """One user, with carts of its own, in a thread."""

    def __init__(self, load: Load, number: int, random: Random) -> None:
        self.thread = Thread(target=self._run, name=f"client {number}", daemon=True)
        self._load = load
        self._cartd = load.cartd
        self._model = load.model
        self._random = random
        self._uids = [f"u{number}-{n}" for n in range(UIDS)]

    def _run(self) -> None:
        actions: dict[Callable[[str], None], int] = {
            self._post: 4,
            self._post_again: 1,
            self._download: 4,
            self._ranges: 4,
            self._delete: 1,
            self._delete_while_reading: 1,
            self._evict_while_reading: 1,
            self._remove_a_file: 1,
        }
        while not self._load.stopped.is_set():
            [action] = self._random.choices(list(actions), list(actions.values()))
            known = [uid for uid in self._uids if self._model.uids.get(uid)]
            if action == self._post or not known:
                action, known = self._post, self._uids
            try:
                action(self._random.choice(known))
            except BROKEN as error:
                if not self._has_died():
                    self._fault(f"{action.__name__}: aborted without a kill: {error!r}")
                return
            except Exception as error:
                self._fault(f"{action.__name__}: {error!r}")
                return
            self._count(action.__name__.lstrip("_"))

    def _has_died(self) -> bool:
        assert self._cartd.process is not None
        try:
            self._cartd.process.wait(EXIT_TIMEOUT)
        except TimeoutExpired:
            return False
        return True

    def _count(self, what: str, number: int = 1) -> None:
        with self._load.lock:
            self._load.done[what] += number

    def _fault(self, what: str) -> None:
        self._load.faults.append(f"{self.thread.name}: {what}")

    # Actions of clients

    def _post(self, uid: str) -> None:
        post = post_of(next(self._load.numbers), uid, self._random, self._load.files)
        self._send(post)

    def _post_again(self, uid: str) -> None:
        self._send(self._random.choice(self._known(uid)).post)

    def _send(self, post: Post) -> None:
        self._model.posting(post)
        answer = self._request("POST", f"/{post.uid}", post.body)
        if answer.status == 201:
            self._model.posted(post)
        else:
            self._fault(f"posting c{post.number}: {answer}")

    def _await_end(self, uid: str) -> str:
        end = time.monotonic() + CART_WAIT
        while True:
            answer = self._request("HEAD", f"/{uid}")
            status = answer.headers["x-pacifica-status"]
            if status == "error" and answer.status == 500:
                self._check_cause(uid, answer.headers["x-pacifica-message"])
            if status in ("ready", "error") or time.monotonic() > end:
                return status
            time.sleep(POLL_INTERVAL)

    def _delete(self, uid: str) -> None:
        self._model.deleting(uid)
        answer = self._request("DELETE", f"/{uid}")
        if answer.status in (200, 404):
            self._model.deleted(uid)
        else:
            self._fault(f"deleting {uid}: {answer}")

    def _download(self, uid: str) -> None:
        name = self._random.choice(["", "data", "ä ö"])
        known = self._known(uid)
        self._await_end(uid)
        answer = self._get(uid, name)
        if answer is not None:
            self._check(uid, known, name, answer)

    def _ranges(self, uid: str) -> None:
        """Request some ranges of the same tar."""
        name, known, etag = self._random.choice(["data", "other"]), self._known(uid), ""
        self._await_end(uid)
        for _ in range(3):
            start = self._random.choice([0, 511, self._random.randrange(60_000)])
            wanted = {"range": f"bytes={start}-{start + self._random.randrange(200_000)}"}
            answer = self._get(uid, name, **wanted, **({"if_range": etag} if etag else {}))
            if answer is None:
                return
            self._check(uid, known, name, answer)
            etag = answer.headers.get("etag", etag)

    def _delete_while_reading(self, uid: str) -> None:
        self._read_slowly(uid, lambda: self._delete(uid))

    def _evict_while_reading(self, uid: str) -> None:
        others = [other for other in self._uids if other != uid]
        self._read_slowly(uid, lambda: self._post(self._random.choice(others)))

    def _read_slowly(self, uid: str, meanwhile: Callable[[], object]) -> None:
        """Delete or evict the cart during a slow download, which must still get all bytes."""
        self._send(slow_post(next(self._load.numbers), uid, self._load.files))
        known = self._known(uid)
        if self._await_end(uid) != "ready":
            return
        reader = SlowReader(self._cartd, _target(uid, "slow"))
        try:
            meanwhile()
            if reader.status == 200:
                answer = Answer(reader.status, reader.headers, reader.rest())
                self._check(uid, known, "slow", answer)
        finally:
            reader.close()

    def _remove_a_file(self, uid: str) -> None:
        """Remove a staged file behind the service's back: a download must detect that."""
        post = self._known(uid)[-1].post
        if self._await_end(uid) == "ready" and post.contents:
            self._model.damaged(post)
            path = self._random.choice(list(post.contents))
            move_away(self._cartd, f"cartuids/{uid}", path)
        self._download(uid)

    # Checks

    def _known(self, uid: str) -> list[Known]:
        return list(self._model.uids.get(uid, []))

    def _request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        answer = self._cartd.request(method, path, body, **headers)
        if answer.status == 503 and not _is_not_ready(answer):
            raise ConnectionAbortedError(f"it says that it is stopping: {answer}")
        return answer

    def _get(self, uid: str, name: str, **headers: str) -> Answer | None:
        """Return the response to a GET, or ``None`` if it was aborted because of a removed file."""
        try:
            return self._request("GET", _target(uid, name), None, **headers)
        except BROKEN:
            if self._model.is_damaged(uid):
                self._count("broken for a lost file")
                return None
            raise

    def _check(self, uid: str, known: list[Known], name: str, answer: Answer) -> None:
        if answer.status == 200:
            self._check_bytes(known, name, answer, 0, len(answer.body))
        elif answer.status == 206:
            found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers["content-range"])
            assert found is not None
            first, last, length = map(int, found.groups())
            if len(answer.body) != last - first + 1:
                self._fault(f"{len(answer.body)} bytes, but Content-Range is {found[0]}")
            self._check_bytes(known, name, answer, first, length)
        elif answer.status == 500:
            self._check_cause(uid, answer.json["message"])
        elif answer.status not in (202, 404, 416) and not _is_not_ready(answer):
            self._fault(f"getting {uid}: {answer}")

    def _check_bytes(
        self, known: list[Known], name: str, answer: Answer, start: int, length: int
    ) -> None:
        top = name or _default_top(answer)
        tars = self._model.matching_tars(known, top, start, answer.body, length)
        if not tars:
            candidates = [one.post.number for one in known]
            self._fault(
                f"{len(answer.body)} bytes from {start} of {length} are of none of {candidates}: "
                f"{dict(answer.headers)}"
            )
            return
        with self._load.lock:
            if not self._model.etag_is_consistent(answer.headers["etag"], tars):
                self._fault(f"the ETag is that of another tar: {dict(answer.headers)}")
        self._count("downloads compared" if len(answer.body) == length else "ranges compared")
        self._count("bytes compared", len(answer.body))

    def _check_cause(self, uid: str, error: str) -> None:
        if not any(one.post.explains(error) for one in self._known(uid)):
            self._fault(f"{uid} is in error without a cause: {error}")


def removed_files(cartd: RunningCartd) -> Path:
    """Return the directory of removed files, with their paths on the volume."""
    return cartd.directory / "removed"


def move_away(cartd: RunningCartd, tree: str, path: str) -> None:
    """Move a file out of a cart's tree, if it exists."""
    with suppress(FileNotFoundError, NotADirectoryError):
        staged = (cartd.volume / tree).resolve(strict=True) / path
        aside = removed_files(cartd) / staged.relative_to(cartd.volume.resolve())
        aside.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(aside)


def _default_top(answer: Answer) -> str:
    """Return the top folder of a tar that was requested without a name."""
    named = re.search(r'"(data_\d{4}(?:_\d\d){5})\.tar"', answer.headers["content-disposition"])
    assert named, answer.headers
    return named[1]


def _target(uid: str, name: str) -> str:
    return f"/{uid}?filename={quote(name)}" if name else f"/{uid}"


def _is_not_ready(answer: Answer) -> bool:
    """Whether it replaces a 202, as for a range request."""
    return answer.status == 503 and (
        answer.json["message"] == "The cart is not ready for download."
    )
