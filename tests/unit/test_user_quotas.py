"""Per-user quotas of unfinished carts."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cartd.errors import QuotaExceeded
from cartd.model import NO_QUOTA, UNRESTRICTED, Outstanding, User, UserQuota, Viewer

NUMBERS = st.integers(0, 20)
MAYBE = st.none() | st.integers(1, 20)
ADA = Viewer.of(User("ada"))


def refusal(limits: UserQuota, outstanding: Outstanding, files: int) -> str | None:
    """Return the name of the limit that rejects one more cart, if any."""
    try:
        limits.check(outstanding, files)
    except QuotaExceeded as error:
        assert f"({error.limit})" in str(error)
        return error.limit
    return None


@given(st.builds(UserQuota, MAYBE, MAYBE, MAYBE), NUMBERS, NUMBERS, NUMBERS, NUMBERS)
@example(UserQuota(carts=1), 1, 0, 0, 0)
@example(UserQuota(files=4), 1, 2, 0, 2)
@example(UserQuota(files=4), 1, 2, 0, 3)
@example(UserQuota(bytes=8), 1, 1, 8, 1)
@example(UserQuota(bytes=8), 1, 1, 7, 1)
def test_one_more_cart_is_refused_by_the_limit_that_it_goes_over(
    limits: UserQuota, carts: int, files: int, size: int, more: int
) -> None:
    over = {
        "auth.max_carts_staging": limits.carts is not None and carts + 1 > limits.carts,
        "auth.max_files": limits.files is not None and files + more > limits.files,
        # The bytes of the new cart are not known yet.
        "auth.max_bytes": limits.bytes is not None and size >= limits.bytes,
    }
    named = refusal(limits, Outstanding(carts, files, size), more)
    assert (named is None) == (not any(over.values()))
    assert named is None or over[named]


@given(st.builds(UserQuota, MAYBE, MAYBE, MAYBE), st.lists(st.integers(0, 8), max_size=30))
def test_sequential_posts_never_exceed_the_limits(limits: UserQuota, posts: list[int]) -> None:
    carts = files = 0
    for more in posts:
        if refusal(limits, Outstanding(carts, files), more) is None:
            carts, files = carts + 1, files + more
    assert limits.carts is None or carts <= limits.carts
    assert limits.files is None or files <= limits.files


def test_a_rejection_names_the_usage_and_the_limit() -> None:
    with pytest.raises(
        QuotaExceeded, match=r"^This cart has 5 files, and 7 files of your other .* limit is 11 "
    ):
        UserQuota(files=11).check(Outstanding(2, 7, 0), 5)


def test_limits_apply_to_users_only() -> None:
    limits = UserQuota(carts=1)
    assert limits.applicable_to(ADA) == limits
    assert limits.applicable_to(Viewer.of(User("root", admin=True))) == NO_QUOTA
    assert limits.applicable_to(UNRESTRICTED) == NO_QUOTA
    assert (bool(limits), bool(NO_QUOTA)) == (True, False)
