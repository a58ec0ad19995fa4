"""Binding of volume and database, and the errors if they do not belong together."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cartd.errors import ConfigError, NoSpace
from cartd.integrity import recovery
from cartd.integrity.recovery import bind_volume
from cartd.model import CartStatus
from cartd.store import Store, sync, volume_record
from tests.support.databases import sqlite_url
from tests.support.stored_carts import with_status
from tests.support.volume_parts import everything, in_the_loop

pytest_plugins = ("tests.support.database_fixtures",)

MARK = ".cartd-volume"
NEW = {"cartuids", "incoming", MARK}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "volume"


def number_on(root: Path) -> int:
    return int((root / MARK).read_text().split()[0])


def number_in(database: str) -> int | None:
    with volume_record(database) as record:
        return record.number


def with_a_cart(root: Path) -> None:
    (root / "7" / "mine").mkdir(parents=True)


def refusal(database: str, root: Path) -> str:
    """Return the error of binding; check that nothing is created, written or removed."""
    before = everything(root), number_in(database)
    with pytest.raises(ConfigError) as refused:
        bind_volume(database, root)
    assert (everything(root), number_in(database)) == before
    assert "\n" not in str(refused.value)
    return str(refused.value)


async def a_ready_cart(store: Store) -> None:
    await with_status(store, "mine", CartStatus.READY)


def another_database(directory: Path) -> str:
    url = sqlite_url(directory / "other.sqlite3")
    sync(url)
    return url


def test_two_new_ones_get_one_number_and_keep_it(database: str, root: Path) -> None:
    number = bind_volume(database, root)
    assert number == number_on(root) == number_in(database)
    assert number is not None and 0 <= number < 2**31
    assert everything(root) == NEW
    assert bind_volume(database, root) == number


def test_the_number_is_drawn_anew_for_each(database: str, root: Path, tmp_path: Path) -> None:
    assert bind_volume(database, root) != bind_volume(
        another_database(tmp_path), tmp_path / "other"
    )


@in_the_loop
async def test_a_volume_of_pacifica_is_bound(database: str, store: Store, root: Path) -> None:
    await a_ready_cart(store)
    with_a_cart(root)
    assert bind_volume(database, root) == number_on(root) == number_in(database)


@in_the_loop
async def test_an_empty_directory_is_rejected_as_volume_with_carts(
    database: str, store: Store, root: Path
) -> None:
    bind_volume(database, root)
    await a_ready_cart(store)
    root.rename(root.with_name("away"))
    root.mkdir()
    assert "is it mounted?" in refusal(database, root)
    root.rmdir()
    assert "cartd-cmd bind-volume" in refusal(database, root)
    assert not root.exists()
    root.with_name("away").rename(root)
    assert bind_volume(database, root) == number_on(root)


def test_an_empty_directory_is_accepted_without_carts(database: str, root: Path) -> None:
    number = bind_volume(database, root)
    root.rename(root.with_name("away"))
    assert bind_volume(database, root) == number == number_on(root)


def test_another_databases_carts_are_left_alone(database: str, root: Path, tmp_path: Path) -> None:
    bind_volume(another_database(tmp_path), root)
    with_a_cart(root)
    assert "carts of another database" in refusal(database, root)


def test_a_volume_of_another_database_without_carts_is_bound(
    database: str, root: Path, tmp_path: Path
) -> None:
    theirs = bind_volume(another_database(tmp_path), root)
    assert theirs != bind_volume(database, root) == number_on(root)


@in_the_loop
async def test_two_volumes_that_were_swapped_are_left_alone(
    database: str, store: Store, root: Path, tmp_path: Path
) -> None:
    bind_volume(database, root)
    await a_ready_cart(store)
    other = tmp_path / "other"
    bind_volume(another_database(tmp_path), other)
    assert "not the volume" in refusal(database, other)


@pytest.mark.parametrize("marked", [False, True], ids=["unmarked", "of another database"])
@in_the_loop
async def test_force_binds_a_replaced_volume(
    database: str, store: Store, root: Path, tmp_path: Path, marked: bool
) -> None:
    number = bind_volume(database, root)
    await a_ready_cart(store)
    replacement = tmp_path / "replacement"
    if marked:
        bind_volume(another_database(tmp_path), replacement)
        with_a_cart(replacement)
    assert bind_volume(database, replacement, force=True) == number
    assert bind_volume(database, replacement) == number == number_on(replacement)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_files_written_by_root_get_the_volume_owner(database: str, root: Path) -> None:
    """With a mark that the service cannot read, the volume would be unavailable."""
    root.mkdir()
    os.chown(root, 12345, 23456)
    for force in (False, True):
        (root / MARK).unlink(missing_ok=True)
        bind_volume(database, root, force=force)
        mark = (root / MARK).stat()
        assert (mark.st_uid, mark.st_gid) == (12345, 23456)


def test_an_unreadable_mark_is_reported_and_kept(database: str, root: Path) -> None:
    root.mkdir()
    (root / MARK).mkdir()
    with pytest.raises(ConfigError, match=r"volume_path: .*cannot be used: it is not a"):
        bind_volume(database, root)


def test_a_disk_too_full_for_the_mark_gets_it_another_time(
    database: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_root: Path, _number: int) -> None:
        raise NoSpace

    with monkeypatch.context() as patched:
        patched.setattr(recovery, "write_volume_number", full)
        assert bind_volume(database, root) is None
    assert number_in(database) is None
    assert bind_volume(database, root) == number_on(root)


def test_a_disk_error_is_reported(
    database: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_root: Path) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(recovery, "read_volume_number", failing)
    with pytest.raises(ConfigError, match=r"volume_path: .*: Input/output error"):
        bind_volume(database, root)
