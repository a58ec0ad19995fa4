"""The key of the tokens of forms: one for all processes of a store."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cartd.store import load_form_key, sync
from tests.support.databases import Postgres

pytest_plugins = ("tests.support.database_fixtures",)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'cartd.sqlite3'}"
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        created = postgres.create()
        yield created
        postgres.drop(created)


def test_processes_that_start_together_get_one_key(url: str) -> None:
    sync(url)
    with ThreadPoolExecutor(8) as threads:
        keys = set(threads.map(load_form_key, [url] * 8))
    assert len(keys) == 1
    assert load_form_key(url) in keys
    assert len(keys.pop()) == 32


def test_stores_have_different_keys(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path / name}" for name in ("a", "b")]
    for each in urls:
        sync(each)
    assert load_form_key(urls[0]) != load_form_key(urls[1])
