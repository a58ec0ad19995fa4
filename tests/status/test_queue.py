"""The fair queue agrees with a turn-by-turn simulation of the semaphore's order."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd.status.queue import Ahead, FairQueue, Share

SHARES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40)), min_size=1, max_size=8)


def served_before(shares: list[Share], key: int, step: int) -> dict[int, float]:
    """Serve ``step`` turns a unit, owner by owner and cart by cart, until ``key`` is complete."""
    left = {share.key: share.amount * step for share in shares}
    owners: OrderedDict[object, list[int]] = OrderedDict()
    for share in shares:
        owners.setdefault(share.owner, []).append(share.key)
    served = dict.fromkeys(left, 0.0)
    while left[key] > 0:
        owner, keys = owners.popitem(last=False)
        turn = keys.pop(0)
        left[turn] -= 1
        served[turn] += 1 / step
        if left[turn] > 0:
            keys.append(turn)
        if keys:
            owners[owner] = keys
    return served


@given(SHARES)
def test_amount_ahead_is_what_turns_in_rotation_serve(drawn: list[tuple[str, int]]) -> None:
    shares = [Share(key, owner, amount, 1) for key, (owner, amount) in enumerate(drawn)]
    queue = FairQueue(shares)
    for share in shares:
        ahead = queue.ahead(share.key)
        assert ahead is not None
        served = served_before(shares, share.key, step=50)
        del served[share.key]
        assert ahead.amount == pytest.approx(sum(served.values()), abs=0.04 * len(shares) ** 2)
        complete = sum(served[one.key] >= one.amount - 0.01 for one in shares if one != share)
        equal = sum(one.amount == share.amount for one in shares)
        assert abs(ahead.carts - complete) <= equal


def test_a_small_cart_does_not_wait_for_the_whole_of_a_large_one() -> None:
    queue = FairQueue([Share(1, "a", 1000, 10_000), Share(2, "b", 10, 10)])
    assert queue.ahead(2) == Ahead(carts=0, amount=10, size=100)
    assert queue.ahead(1) == Ahead(carts=1, amount=10, size=10)


def test_carts_of_one_owner_share_its_turns() -> None:
    queue = FairQueue([Share(1, "a", 10, 10), Share(2, "a", 10, 10), Share(3, "b", 10, 10)])
    assert queue.ahead(3) == Ahead(carts=0, amount=10, size=10)
    assert queue.ahead(2) == Ahead(carts=2, amount=20, size=20)


def test_bytes_ahead_are_unknown_while_those_of_another_cart_are() -> None:
    queue = FairQueue([Share(1, None, 10, None), Share(2, None, 10, 5)])
    assert queue.ahead(2) == Ahead(carts=1, amount=10, size=None)
    assert queue.ahead(1) == Ahead(carts=0, amount=10, size=5)


def test_a_cart_with_nothing_left_is_not_in_the_queue() -> None:
    queue = FairQueue([Share(1, None, 0, 0), Share(2, None, 3, 3)])
    assert queue.ahead(1) is None
    assert queue.ahead(7) is None
    assert queue.ahead(2) == Ahead(carts=0, amount=0, size=0)
