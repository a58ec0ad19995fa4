"""The eviction policy for carts that share bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cartd.eviction.policy import choose, freed
from cartd.model import EvictionCandidate, SharedBytes

NOW = 1_000.0
IDS = range(1, 8)

holders = st.frozensets(st.sampled_from(IDS), min_size=2, max_size=4)
shared = st.lists(st.tuples(holders, st.integers(0, 100)), max_size=6)
alone = st.tuples(*[st.integers(0, 50) for _ in IDS])
uses = st.tuples(*[st.integers(0, 3).map(float) for _ in IDS])
living = st.sets(st.sampled_from(IDS))
amounts = st.integers(1, 500)


class Volume:
    """Bytes that carts own alone and share; some carts are not evictable."""

    def __init__(
        self,
        alone: tuple[int, ...],
        shared: list[tuple[frozenset[int], int]],
        uses: tuple[float, ...],
        evictable: set[int],
    ) -> None:
        self.alone = dict(zip(IDS, alone, strict=True))
        self.shared = shared
        # The second of a file's carts owns it: the owner need not be the oldest.
        self.shared_bytes = [
            SharedBytes(sorted(carts)[1], carts - {sorted(carts)[1]}, size)
            for carts, size in shared
        ]
        owned = {
            cart_id: self.alone[cart_id]
            + sum(share.size for share in self.shared_bytes if share.owner == cart_id)
            for cart_id in IDS
        }
        self.candidates = [
            EvictionCandidate(cart_id, owned[cart_id], used)
            for cart_id, used in zip(IDS, uses, strict=True)
            if cart_id in evictable
        ]

    def freed_by(self, gone: set[int]) -> int:
        """Recount from the carts that remain."""
        return sum(self.alone[one] for one in gone) + sum(
            size for carts, size in self.shared if carts <= gone
        )

    def chosen(self, needed: int) -> list[EvictionCandidate]:
        return choose(
            self.candidates, needed=needed, now=NOW, buffer_time=0, shared_bytes=self.shared_bytes
        )


volumes = st.builds(Volume, alone, shared, uses, living)


@given(volumes, living)
def test_what_carts_free_together_is_known(volume: Volume, gone: set[int]) -> None:
    going = [one for one in volume.candidates if one.cart_id in gone]
    assert freed(going, volume.shared_bytes) == volume.freed_by({one.cart_id for one in going})


@given(volumes, amounts)
def test_enough_is_freed_if_all_together_have_enough(volume: Volume, needed: int) -> None:
    all_of_them = volume.freed_by({one.cart_id for one in volume.candidates})
    gone = {one.cart_id for one in volume.chosen(needed)}
    assert volume.freed_by(gone) >= min(needed, all_of_them)


@given(volumes, amounts)
def test_no_chosen_cart_goes_in_vain(volume: Volume, needed: int) -> None:
    gone = {one.cart_id for one in volume.chosen(needed)}
    for cart_id in gone:
        assert volume.freed_by(gone - {cart_id}) < volume.freed_by(gone)


@given(volumes, amounts)
def test_none_is_chosen_that_was_used_later_than_need_be(volume: Volume, needed: int) -> None:
    chosen = volume.chosen(needed)
    assert chosen == sorted(chosen, key=lambda one: (one.used, one.cart_id))
    order = sorted(volume.candidates, key=lambda one: (one.used, one.cart_id))
    if chosen:
        before_the_last = {one.cart_id for one in order[: order.index(chosen[-1])]}
        assert volume.freed_by(before_the_last) < needed


def test_a_link_and_its_owner_go_together() -> None:
    link, owner, other = (
        EvictionCandidate(1, 0, 1.0),
        EvictionCandidate(2, 100, 2.0),
        EvictionCandidate(3, 100, 3.0),
    )
    shared_bytes = [SharedBytes(2, frozenset({1}), 100)]

    def chosen(*candidates: EvictionCandidate) -> list[EvictionCandidate]:
        return choose(candidates, needed=100, now=NOW, buffer_time=0, shared_bytes=shared_bytes)

    assert chosen(link, owner, other) == [link, owner]
    # While one of the two is not evictable, evicting the other frees nothing.
    assert chosen(link, other) == [other]
    assert chosen(owner, other) == [other]
