"""Fair shares of carts in staging."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd.staging.stager import FairShare


@pytest.mark.parametrize("known", [True, False], ids=["claimed", "coming"])
def test_without_users_carts_share_evenly(known: bool) -> None:
    fair_share = FairShare()
    assert fair_share.divisor(None) == 1
    for cart_id in range(1, 6):
        if known:
            fair_share.add(cart_id, None)
        assert fair_share.divisor(None, unknown_owners=0 if known else cart_id) == cart_id


def test_users_share_evenly_and_then_the_carts_of_each() -> None:
    fair_share = FairShare()
    numbers = count()
    for owner, carts in {"ada": 100, "bob": 1, "eve": 4}.items():
        for _ in range(carts):
            fair_share.add(next(numbers), owner)
    assert [fair_share.divisor(owner) for owner in ("ada", "bob", "eve")] == [300, 3, 12]
    # A new cart counts before its owner is known.
    assert fair_share.divisor("new", unknown_owners=1) == 4


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 5), st.sampled_from([None, "ada", "bob"])),
        max_size=40,
    )
)
def test_what_all_carts_get_is_never_more_than_the_whole(
    steps: list[tuple[bool, int, str | None]],
) -> None:
    fair_share, there = FairShare(), dict[int, str | None]()
    for joins, cart_id, owner in steps:
        if joins:
            fair_share.add(cart_id, owner)
            there.setdefault(cart_id, owner)
        else:
            fair_share.remove(cart_id)
            there.pop(cart_id, None)
        carts = Counter(there.values())
        assert len(fair_share) == len(there)
        assert {owner: fair_share.divisor(owner) for owner in carts} == {
            owner: number * len(carts) for owner, number in carts.items()
        }
