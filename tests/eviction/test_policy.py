"""The eviction policy: which carts are evicted, and how many bytes must be freed."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd.eviction.policy import choose, shortfall
from cartd.model import EvictionCandidate

NOW = 1_000.0

carts = st.lists(
    st.builds(
        EvictionCandidate,
        cart_id=st.integers(1, 50),
        size=st.integers(0, 100),
        used=st.integers(0, 1_100).map(float),
    ),
    unique_by=lambda candidate: candidate.cart_id,
    max_size=30,
)
amounts = st.integers(-10, 1_500)
buffers = st.integers(0, 1_000).map(float)


def eligible(candidates: list[EvictionCandidate], buffer_time: float) -> list[EvictionCandidate]:
    return [one for one in candidates if one.size and one.used <= NOW - buffer_time]


@given(carts, amounts, buffers.filter(bool))
def test_a_recently_used_cart_is_never_chosen(
    candidates: list[EvictionCandidate], needed: int, buffer_time: float
) -> None:
    for one in choose(candidates, needed=needed, now=NOW, buffer_time=buffer_time):
        assert NOW - one.used >= buffer_time


@given(carts, amounts, buffers.filter(bool))
def test_enough_is_freed_or_all_that_may_go(
    candidates: list[EvictionCandidate], needed: int, buffer_time: float
) -> None:
    chosen = choose(candidates, needed=needed, now=NOW, buffer_time=buffer_time)
    if sum(one.size for one in chosen) < needed:
        assert set(chosen) == set(eligible(candidates, buffer_time))


@given(carts, amounts, buffers.filter(bool))
def test_the_choice_is_the_shortest_prefix_in_lru_order(
    candidates: list[EvictionCandidate], needed: int, buffer_time: float
) -> None:
    chosen = choose(candidates, needed=needed, now=NOW, buffer_time=buffer_time)
    order = sorted(eligible(candidates, buffer_time), key=lambda one: (one.used, one.cart_id))
    assert chosen == order[: len(chosen)]
    assert sum(one.size for one in chosen[:-1]) < max(needed, 1)


@given(carts, amounts, st.randoms())
def test_the_order_of_the_candidates_does_not_matter(
    candidates: list[EvictionCandidate], needed: int, random: Random
) -> None:
    shuffled = list(candidates)
    random.shuffle(shuffled)
    assert choose(shuffled, needed=needed, now=NOW, buffer_time=0) == choose(
        candidates, needed=needed, now=NOW, buffer_time=0
    )


@pytest.mark.parametrize("needed", [0, -1])
def test_nothing_is_chosen_when_nothing_is_needed(needed: int) -> None:
    assert choose([EvictionCandidate(1, 10, 0.0)], needed=needed, now=NOW, buffer_time=0) == []


def test_carts_used_at_the_same_time_go_by_their_ids() -> None:
    late, early = EvictionCandidate(2, 10, 5.0), EvictionCandidate(1, 10, 5.0)
    assert choose([late, early], needed=10, now=NOW, buffer_time=0) == [early]


def test_without_a_buffer_time_any_cart_is_evictable() -> None:
    future = EvictionCandidate(1, 10, NOW + 3_600)
    assert choose([future], needed=1, now=NOW, buffer_time=0) == [future]
    assert choose([future], needed=1, now=NOW, buffer_time=1) == []


def test_a_cart_is_evictable_when_its_buffer_time_ends() -> None:
    at_the_edge = EvictionCandidate(1, 10, NOW - 60)
    assert choose([at_the_edge], needed=1, now=NOW, buffer_time=60) == [at_the_edge]
    assert choose([at_the_edge], needed=1, now=NOW, buffer_time=60.5) == []


@pytest.mark.parametrize(
    ("wanted", "free", "promised", "used", "quota", "reserve", "missing"),
    [
        pytest.param(50, 100, 30, 500, None, 20, 0, id="it fits exactly"),
        pytest.param(60, 100, 30, 500, None, 20, 10, id="the disk is too small"),
        pytest.param(60, 100, 30, 500, 520, 20, 40, id="the quota is tighter"),
        pytest.param(60, 100, 30, 500, 555, 20, 10, id="the disk is tighter"),
        pytest.param(0, 10, 0, 0, None, 20, 10, id="the reserve is broken already"),
        pytest.param(0, 100, 0, 70, 50, 0, 20, id="the quota is broken already"),
        pytest.param(5, 100, 0, 0, 50, 20, -45, id="there is space left"),
        pytest.param(1, 100, 0, 0, 0, 0, 1, id="a quota of nothing"),
    ],
)
def test_the_shortfall_is_what_the_tighter_limit_lacks(
    wanted: int, free: int, promised: int, used: int, quota: int | None, reserve: int, missing: int
) -> None:
    assert missing == shortfall(
        wanted=wanted, free=free, promised=promised, used=used, quota=quota, reserve=reserve
    )


sizes = st.integers(0, 10_000)


@given(sizes, sizes, sizes, sizes, st.none() | sizes, sizes)
def test_after_freeing_the_shortfall_it_fits(
    wanted: int, free: int, promised: int, used: int, quota: int | None, reserve: int
) -> None:
    missing = max(
        shortfall(
            wanted=wanted, free=free, promised=promised, used=used, quota=quota, reserve=reserve
        ),
        0,
    )
    assert free + missing - promised - wanted >= reserve
    assert quota is None or used - missing + wanted <= quota


def test_a_cart_that_holds_no_bytes_stays() -> None:
    empty, full = EvictionCandidate(1, 0, 1.0), EvictionCandidate(2, 10, 2.0)
    assert choose([empty, full], needed=10, now=NOW, buffer_time=0) == [full]
