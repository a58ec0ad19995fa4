"""The volume while its directory is missing or is another one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cartd.errors import VolumeUnavailable
from cartd.volume import Volume
from cartd.volume.file_system import write_volume_number
from cartd.volume.identity import read_volume_number
from tests.support.volume_parts import (
    BODY,
    CART,
    InThisThread,
    a_cart,
    a_file,
    checksum_of,
    everything,
    has,
    logged,
    result_of,
    stage,
)

NUMBER = 4711
FILE = a_file(BODY)


async def no_throttle(_size: int) -> None:
    pass


ASKED: dict[str, Callable[[Volume], Coroutine[Any, Any, object]]] = {
    "check": lambda volume: volume.check(),
    "measure": lambda volume: volume.verification.stat_files(CART, [FILE]),
    "measure a tar": lambda volume: volume.bundles.stat_members(CART, [FILE]),
    "tar size": lambda volume: volume.bundles.size(CART),
    "faults": lambda volume: volume.verification.faults(CART, [FILE], no_throttle),
    "faults of a bundle": lambda volume: volume.verification.faults(
        a_cart(bundle=True), [FILE], no_throttle
    ),
    "is it there": lambda volume: has(volume, FILE),
    "free": lambda volume: volume.free_space(),
    "ids": lambda volume: volume.orphans.cart_ids(),
    "begin": lambda volume: volume.incoming.clear(CART.id, include_staged=True),
    "link": lambda volume: volume.links.place(CART),
    "drop files": lambda volume: volume.removal.drop_files(CART, [FILE]),
    "remove": lambda volume: volume.removal.remove(CART),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "volume"


@pytest.fixture
def volume(root: Path) -> Volume:
    volume = Volume(root, InThisThread(), NUMBER)
    volume.prepare()
    write_volume_number(root, NUMBER)
    return volume


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("instead", ["nothing", "empty", "another", "unreadable"])
def test_every_operation_fails_while_the_volume_is_unavailable(
    volume: Volume, root: Path, instead: str, asked: str
) -> None:
    stage(volume, FILE)
    root.rename(root.with_name("away"))
    if instead != "nothing":
        root.mkdir()
    if instead == "another":
        (root / "incoming").mkdir()
        write_volume_number(root, NUMBER + 1)
    if instead == "unreadable":
        (root / ".cartd-volume").mkdir()
    before = everything(root)
    with pytest.raises(VolumeUnavailable):
        result_of(ASKED[asked](volume))
    assert everything(root) == before
    if root.exists():
        shutil.rmtree(root)
    root.with_name("away").rename(root)
    assert result_of(has(volume, FILE))


def test_a_file_being_written_stays_off_a_foreign_volume(volume: Volume, root: Path) -> None:
    incoming = volume.incoming.open(CART, FILE, checksum_of(FILE))
    root.rename(root.with_name("away"))
    root.mkdir()
    incoming.write(BODY)
    with pytest.raises(VolumeUnavailable):
        result_of(incoming.finish())
    assert everything(root) == set()


def test_unavailable_and_back_are_each_logged_once(volume: Volume, root: Path) -> None:
    with logged() as events:
        for _ in range(2):
            result_of(volume.check())
            root.rename(root.with_name("away"))
            for _ in range(3):
                with pytest.raises(VolumeUnavailable):
                    result_of(volume.check())
            root.with_name("away").rename(root)
            result_of(volume.check())
    levels = [event["log_level"].name for event in events]
    assert levels == ["error", "warn"] * 2


def test_a_volume_without_a_number_is_always_available(root: Path) -> None:
    volume = Volume(root, InThisThread())
    volume.prepare()
    result_of(volume.check())
    assert result_of(volume.verification.stat_files(CART, [FILE])) == [None]


@pytest.mark.parametrize(
    ("text", "number"),
    [("12\nand more", 12), ("0", 0), ("", None), ("x12", None), ("99999999999", None)],
)
def test_only_a_number_is_a_volume_number(root: Path, text: str, number: int | None) -> None:
    root.mkdir()
    (root / ".cartd-volume").write_text(text)
    assert read_volume_number(root) == number
