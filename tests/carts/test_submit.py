"""Submissions: what is done for a post before it reaches the store."""

from __future__ import annotations

from contextlib import nullcontext
from io import BytesIO
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from cartd.carts.submit import Submissions
from cartd.deferreds.fair_semaphore import ByteLimit
from cartd.errors import InvalidInput, Unavailable
from cartd.model import NO_QUOTA, UNRESTRICTED
from tests.support.sending import OneByOne
from tests.support.volume_parts import HeldThreads


class NoStore:
    """Fails a test that uses the store or another component."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


def submissions_with(
    threads: OneByOne | HeldThreads, store: Any = None, memory: ByteLimit | None = None
) -> Submissions:
    unused: Any = NoStore()
    return Submissions(
        store or unused,
        unused,
        threads,
        bundle_task=False,
        require_hashsum=False,
        max_entries=10,
        memory=memory or ByteLimit(100),
        admission_slot=lambda _: nullcontext(),
        limits=NO_QUOTA,
        stage=unused,
        restage=unused,
        now=lambda: 0.0,
    )


def test_a_manifest_is_read_and_parsed_in_a_thread() -> None:
    threads = OneByOne()
    body = BytesIO(b"{}")
    posting = Deferred.fromCoroutine(submissions_with(threads).post(UNRESTRICTED, "uid", body))
    assert body.tell() == 0 and not posting.called
    threads.finish()
    outcomes: list[Any] = []
    posting.addBoth(outcomes.append)
    [failure] = outcomes
    assert isinstance(failure, Failure) and failure.check(InvalidInput)
    assert str(failure.value) == "fileids: is missing"


@pytest.mark.parametrize("uid", ["", ".x", "a/b", "u" * 256])
def test_a_body_below_a_bad_uid_is_not_even_read(uid: str) -> None:
    threads = OneByOne()
    outcomes: list[Any] = []
    Deferred.fromCoroutine(
        submissions_with(threads).post(UNRESTRICTED, uid, BytesIO(b"{}"))
    ).addBoth(outcomes.append)
    assert threads.held == []
    assert outcomes[0].check(InvalidInput)


def test_posts_are_rejected_while_the_service_stops() -> None:
    threads = OneByOne()
    closed = submissions_with(threads)
    closed.close()
    outcomes: list[Any] = []
    Deferred.fromCoroutine(closed.post(UNRESTRICTED, "uid", BytesIO(b"{}"))).addBoth(
        outcomes.append
    )
    assert threads.held == []
    assert outcomes[0].check(Unavailable)


class BlockingStore:
    """A store whose ``post`` waits for the test."""

    def __init__(self) -> None:
        self.carts = self
        self.pending: list[Deferred[tuple[Any, bool]]] = []

    async def post(self, *_: object, **__: object) -> tuple[Any, bool]:
        pending: Deferred[tuple[Any, bool]] = Deferred()
        self.pending.append(pending)
        return await pending


def test_no_more_bytes_of_manifests_are_in_memory_than_may_be() -> None:
    """The memory is held until the manifest is stored, even if its client disconnects."""
    body = b'{"fileids": []}' + b" " * 25  # 40 bytes
    threads, store, memory = HeldThreads(), BlockingStore(), ByteLimit(100)
    posting = submissions_with(threads, store=store, memory=memory)
    posts = [
        Deferred.fromCoroutine(posting.post(UNRESTRICTED, f"u{number}", BytesIO(body)))
        for number in range(12)
    ]
    for post in posts:
        post.addErrback(lambda failure: failure.trap(CancelledError))
    assert (len(threads.held), memory.taken) == (2, 80)
    posts[0].cancel()
    assert (len(threads.held), memory.taken) == (2, 80)
    threads.run_one()  # without a client
    assert (len(threads.held), memory.taken) == (2, 80)
    posts[3].cancel()  # it waits, and is cancelled
    done = 0
    while threads.held or len(store.pending) > done:
        while threads.held:
            threads.run_one()
        assert 0 < len(store.pending) - done <= 2
        assert memory.taken <= 80
        store.pending[done].callback((None, False))
        done += 1
    assert (done, memory.taken) == (10, 0)
    assert all(post.called for post in posts)
