"""Lists of carts in the store: order, filters and plans, on both databases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import Select, create_engine, event, text
from sqlalchemy.pool import NullPool

from cartd.model import CartStatus, Viewer
from cartd.store import Store, statuses
from tests.support.stored_carts import STATUSES, deleted, manifest, posted, with_status

pytest_plugins = ("tests.support.database_fixtures",)
CARTS = 100_000


async def labelled(store: Store, uid: str, owner: str | None, *labels: str) -> int:
    viewer = Viewer(owner, sees_all=owner is None)
    cart, _ = await store.carts.post(uid, manifest(0), bundle=False, now=1, viewer=viewer)
    assert await store.statuses.set_labels(cart.id, labels)
    return cart.id


@pytest_twisted.ensureDeferred
async def test_carts_are_listed_newest_first(store: Store) -> None:
    ids = [(await posted(store, f"u{number}")).id for number in range(7)]

    assert await store.statuses.newest(limit=9) == ids[::-1]
    assert await store.statuses.newest(limit=3) == ids[:3:-1]
    assert await store.statuses.newest(limit=3, before=ids[4]) == [ids[3], ids[2], ids[1]]
    assert await store.statuses.newest(limit=3, before=ids[0]) == []


@pytest_twisted.ensureDeferred
async def test_carts_are_listed_by_status_without_deleted_ones(store: Store) -> None:
    carts = [await with_status(store, f"u-{status}", status) for status in STATUSES]
    await deleted(store, await posted(store, "gone"))

    living = [cart for cart in carts if cart.status is not CartStatus.DELETED]
    assert await store.statuses.newest(limit=9) == [cart.id for cart in living][::-1]
    for cart in living:
        assert await store.statuses.newest(limit=9, status=cart.status) == [cart.id]
    assert await store.statuses.newest(limit=9, status=CartStatus.WAITING) == []


@pytest_twisted.ensureDeferred
async def test_carts_are_listed_by_owner_and_label(store: Store) -> None:
    one = await labelled(store, "1", "ada", "red", "blue")
    two = await labelled(store, "2", "bob", "red")
    three = await labelled(store, "3", None, "blue")

    assert await store.statuses.newest(limit=9, owner="ada") == [one]
    assert await store.statuses.newest(limit=9, label="red") == [two, one]
    assert await store.statuses.newest(limit=9, label="blue") == [three, one]
    assert await store.statuses.newest(limit=9, owner="ada", label="blue") == [one]
    assert await store.statuses.newest(limit=9, owner="bob", label="blue") == []
    assert await store.statuses.newest(limit=9, owner="eve") == []


@pytest_twisted.ensureDeferred
async def test_labels_are_replaced_and_leave_with_their_cart(store: Store) -> None:
    one = await labelled(store, "1", "ada", "red", "blue")
    two = await labelled(store, "2", "ada", "red")

    assert await store.statuses.set_labels(one, ("green",))
    assert await store.statuses.newest(limit=9, label="red") == [two]
    assert await store.statuses.newest(limit=9, owner="ada", label="green") == [one]
    assert await store.statuses.newest(limit=9, label="green", status=CartStatus.READY) == []
    assert await store.statuses.newest(limit=9, label="green", before=one) == []

    await store.removals.mark_deleted(one, 2.0)
    assert await store.statuses.newest(limit=9, label="green") == []
    assert not await store.statuses.set_labels(one, ("red",))
    assert await store.statuses.newest(limit=9, label="red") == [two]
    # The row of the cart can be deleted: none of a label refers to it.
    await store.removals.record_removed(one, 3.0)
    assert await store.removals.prune_removed(before=4.0) == 1
    assert await store.carts.cart(one) is None


ODD = [
    "a",
    "A",
    'a"',
    '"a',
    ',"a',
    '["a',
    "\\",
    '\\"a',
    "a\\",
    "é",
    "%",
    "_",
    "a,b",
    "]",
    "[]",
    "\t",
]


@pytest_twisted.ensureDeferred
async def test_a_label_is_found_exactly(store: Store) -> None:
    ids = {
        label: await labelled(store, f"u{n}", None, "first", label) for n, label in enumerate(ODD)
    }
    for label, cart_id in ids.items():
        assert await store.statuses.newest(limit=99, label=label) == [cart_id], label
    assert await store.statuses.newest(limit=99, label="b") == []


@pytest_twisted.ensureDeferred
async def test_name_and_labels_of_a_manifest_are_stored(store: Store) -> None:
    first = manifest(1)
    named = type(first)(first.entries, None, first.fingerprint, "My cart", ("x", "y"))
    cart, _ = await store.carts.post("u", named, bundle=False, now=1)
    [(_, details)] = (await store.statuses.details([cart.id])).values()
    assert (details.name, details.labels) == ("My cart", ("x", "y"))
    for label in "xy":
        assert await store.statuses.newest(limit=9, label=label) == [cart.id]


def plans(url: str, values: dict[str, Any], query: Select[Any]) -> list[str]:
    """Return the plan of a list, with 100,000 carts; the oldest are those of eve, and partial."""
    engine = create_engine(url, poolclass=NullPool)
    executed: list[Any] = []
    with engine.begin() as connection:
        now = NOW[engine.dialect.name]
        connection.exec_driver_sql(
            "INSERT INTO cart (id, cart_uid, status, creation_date, updated_date, used_date, error,"
            " bundle, owner, files_failed, deleted_date)"
            " WITH RECURSIVE n(n) AS"
            f" (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {CARTS})"
            " SELECT n, 'u' || n, CASE mod(n, 3) WHEN 0 THEN 'ready' WHEN 1 THEN 'error'"
            f" ELSE 'staging' END, {now}, {now}, {now}, '', false,"
            " CASE WHEN n <= 100 THEN 'eve' WHEN mod(n, 2) = 0 THEN 'ada' ELSE 'bob' END,"
            " CASE WHEN n <= 100 THEN 1 ELSE 0 END,"
            f" CASE mod(n, 10) WHEN 0 THEN {now} END FROM n"
        )
        if "label" in values:
            connection.exec_driver_sql(
                "INSERT INTO cart_label (label, cart_id, owner)"
                " SELECT CASE WHEN id <= 200 THEN 'rare' ELSE 'raw' END, id, owner FROM cart"
            )
        connection.execute(text("ANALYZE"))
        event.listen(engine, "before_cursor_execute", lambda *given: executed.extend(given[2:4]))
        rows = connection.execute(query, values).all()
        assert len(rows) == values["count"]
        statement, given = executed[:2]
        explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
        plan: Sequence[Any] = connection.exec_driver_sql(f"{explain} {statement}", given).all()
    return [str(row[-1]) for row in plan]


NOW = {
    "sqlite": "'2026-11-24 10:00:00.000000'",
    "postgresql": "TIMESTAMP '2026-11-24 10:00:00'",
}


@pytest.mark.parametrize("status", [None, CartStatus.READY])
@pytest.mark.parametrize("owner", [None, "ada", "eve"])
def test_lists_of_a_hundred_thousand_carts_read_an_index(
    database: str, owner: str | None, status: CartStatus | None
) -> None:
    wanted = statuses._LIVING if status is None else (status,)
    values = {"before": 2**63 - 1, "count": 20, **({"owner": owner} if owner else {})}

    lines = plans(database, values, statuses._LISTS[wanted, owner is not None, False])

    read = [line for line in lines if re.search(r"(SEARCH|SCAN| on) cart\b", line)]
    assert len(read) == len(wanted), lines
    # PostgreSQL may read the newest of all, where every third cart is wanted, and stop soon.
    indexes = "cart_owner_status" if owner else "cart_living"
    if database.startswith("postgresql") and owner != "eve":
        indexes += "|cart_pkey"
    assert all(
        re.search(rf"using (covering )?(index )?({indexes})\b", line, re.I) for line in read
    ), lines
    # The only sort is that of the newest of each status.
    assert not any(re.search(r"Seq Scan|\bSort  ", line) for line in lines), lines


def test_lists_of_partial_carts_read_no_others(database: str) -> None:
    values = {"before": 2**63 - 1, "count": 20}
    lines = plans(database, values, statuses._PARTIAL[False, False])
    [read] = [line for line in lines if re.search(r"(SEARCH|SCAN| on) cart\b", line)]
    assert "cart_partial" in read, lines


@pytest.mark.parametrize("owner", [None, "eve"])
def test_lists_with_a_label_read_the_rows_of_that_label(database: str, owner: str | None) -> None:
    values = {"before": 2**63 - 1, "count": 20, "label": "rare"}
    if owner:
        values["owner"] = owner

    lines = plans(database, values, statuses._LISTS[statuses._LIVING, owner is not None, True])

    [read] = [line for line in lines if re.search(r"(SEARCH|SCAN| on) cart_label\b", line)]
    assert "SCAN" not in read and "Seq" not in read, lines
    assert any(re.search(r"(SEARCH cart\b|cart_pkey)", line) for line in lines), lines
    assert not any(re.search(r"TEMP B-TREE|Seq Scan on cart\b", line) for line in lines), lines
