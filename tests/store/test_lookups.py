"""Look-ups by uid share queries, and never see a state older than their call."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from cartd.errors import Unavailable
from cartd.store.database import Database
from cartd.store.lookups import MAX_OWNED_UIDS, MAX_UIDS, Lookups
from cartd.store.tables import date_of


class Queries:
    """A database that answers on demand, with one cart for each existing uid."""

    def __init__(self) -> None:
        self.queried: list[set[str]] = []
        self.existing: dict[str, int] = {}
        self._answers: list[Deferred[list[Any]]] = []

    async def rows(self, _statement: object, parameters: dict[str, list[str]]) -> list[Any]:
        self.queried.append({*parameters["uids"], *parameters.get("owners", [])})
        answer: Deferred[list[Any]] = Deferred()
        self._answers.append(answer)
        return await answer

    def answer(self) -> None:
        uids = self.queried[len(self.queried) - len(self._answers)]
        rows = [
            (
                cart_id,
                uid,
                "ready",
                *[date_of(0)] * 3,
                "",
                None,
                False,
                None,
                *[0] * 6,
                *[None] * 6,
                "tar",
                None,
                0,
                *[None] * 4,
            )
            for uid, cart_id in self.existing.items()
            if uid in uids
        ]
        self._answers.pop(0).callback(rows)

    def fail(self) -> None:
        self._answers.pop(0).errback(Unavailable("closed"))


def lookup(lookups: Lookups, uid: str) -> list[object]:
    found: list[object] = []
    lookups.newest(uid).addBoth(
        lambda cart: found.append(cart if isinstance(cart, Failure) else cart and cart.id)
    )
    return found


def test_lookups_during_a_query_are_batched_in_the_next() -> None:
    queries = Queries()
    queries.existing = {"a": 1, "b": 2}
    lookups = Lookups(cast(Database, queries))
    first = lookup(lookups, "a")
    others = [lookup(lookups, uid) for uid in "abcb"]
    assert queries.queried == [{"a"}]
    queries.answer()
    assert queries.queried == [{"a"}, {"a", "b", "c"}]
    assert first == [1]
    assert others == [[], [], [], []]
    queries.answer()
    assert others == [[1], [2], [None], [2]]
    assert len(queries.queried) == 2


def test_a_lookup_sees_what_was_written_before_it_was_asked() -> None:
    queries = Queries()
    lookups = Lookups(cast(Database, queries))
    early = lookup(lookups, "a")
    queries.existing = {"a": 1}
    late = lookup(lookups, "a")
    queries.existing = {}
    queries.answer()
    queries.existing = {"a": 1}
    queries.answer()
    assert (early, late) == ([None], [1])


def test_a_query_has_at_most_the_databases_number_of_parameters() -> None:
    queries = Queries()
    lookups = Lookups(cast(Database, queries))
    for number in range(MAX_UIDS + 2):
        lookup(lookups, f"cart-{number}")
    queries.answer()
    queries.answer()
    assert [len(uids) for uids in queries.queried] == [1, MAX_UIDS, 1]


def test_lookups_of_owned_carts_have_smaller_batches() -> None:
    queries = Queries()
    lookups = Lookups(cast(Database, queries))
    for number in range(MAX_OWNED_UIDS + 2):
        lookups.newest_of(f"owner-{number}", f"cart-{number}")
    queries.answer()
    queries.answer()
    assert [len(queried) for queried in queries.queried] == [2, 2 * MAX_OWNED_UIDS, 2]


def test_a_failed_query_fails_its_lookups_and_the_next_are_asked() -> None:
    queries = Queries()
    queries.existing = {"b": 2}
    lookups = Lookups(cast(Database, queries))
    failed, answered = lookup(lookups, "a"), lookup(lookups, "b")
    queries.fail()
    queries.answer()
    [failure] = failed
    assert isinstance(failure, Failure) and failure.check(Unavailable)
    assert answered == [2]


def test_a_cancelled_lookup_does_not_disturb_the_others() -> None:
    queries = Queries()
    queries.existing = {"a": 1}
    lookups = Lookups(cast(Database, queries))
    gone = lookups.newest("a")
    gone.addErrback(lambda _: None)
    gone.cancel()
    stays = lookup(lookups, "a")
    queries.answer()
    queries.answer()
    assert stays == [1]
