"""Admission control: the limit of carts in staging."""

from __future__ import annotations

from contextlib import suppress

import pytest
from twisted.internet.defer import Deferred, ensureDeferred, succeed

from cartd.carts.submit import AdmissionControl
from cartd.errors import Unavailable


class Posts:
    """Posts that run until the test ends them, and a number of stored carts."""

    def __init__(self, most: int) -> None:
        self.stored = 0
        self.refusals: list[Unavailable | None] = []
        self.admission = AdmissionControl(most, lambda: succeed(self.stored))

    def post(self, *, again: bool = False) -> tuple[Deferred[None], Deferred[None]]:
        """Return the post's end, and the Deferred that ends it."""
        end: Deferred[None] = Deferred()

        async def enter() -> None:
            async with self.admission.slot(lambda: succeed(again)) as refusal:
                self.refusals.append(refusal)
                await end

        return ensureDeferred(enter()), end

    def is_refused(self) -> bool:
        posting, end = self.post()
        refused: list[object] = []
        posting.addErrback(lambda failure: refused.append(failure.value))
        end.callback(None)
        for error in refused:
            assert isinstance(error, Unavailable) and error.limit == "cartd.max_carts_staging"
        return bool(refused)


def test_carts_in_the_store_count() -> None:
    posts = Posts(3)
    posts.stored = 2
    assert not posts.is_refused()
    posts.stored = 3
    assert posts.is_refused()
    posts.stored = 2
    assert not posts.is_refused()


def test_posts_that_are_under_way_count() -> None:
    posts = Posts(2)
    running = [posts.post(), posts.post()]
    assert posts.is_refused()
    running[0][1].callback(None)
    assert not posts.is_refused()


@pytest.mark.parametrize("fails", [True, False], ids=["it fails", "its client leaves"])
def test_a_post_that_ends_badly_counts_no_more(fails: bool) -> None:
    posts = Posts(1)
    posting, end = posts.post()
    posting.addErrback(lambda _: None)
    assert posts.is_refused()
    with suppress(Exception):
        end.errback(ValueError()) if fails else posting.cancel()
    assert not posts.is_refused()


def test_a_repost_is_admitted_with_the_pending_rejection() -> None:
    posts = Posts(1)
    posts.stored = 1
    posts.post(again=True)
    [refusal] = posts.refusals
    assert refusal is not None and refusal.limit == "cartd.max_carts_staging"
    posts.stored = 0
    assert posts.is_refused()  # it counts nevertheless
