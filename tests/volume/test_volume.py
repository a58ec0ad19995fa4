"""The volume: paths, preparation at the start, many files at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from cartd.deferreds.threads import Threads
from cartd.errors import ConfigError
from cartd.volume import Volume
from tests.support.volume_parts import (
    BODY,
    CART,
    EMPTY,
    InThisThread,
    a_cart,
    a_file,
    checksum_of,
    everything,
    in_the_loop,
    result_of,
    stage,
)

pytest_plugins = ("tests.support.volume_fixture",)


def test_a_cart_has_its_tree_and_its_bundle_below_its_id(volume: Volume, root: Path) -> None:
    assert volume.paths.tree(CART) == root / "7" / "mine"
    assert volume.paths.tar(CART) == root / "7" / "mine.tar"
    assert volume.paths.member(CART, "a/b") == root / "7" / "mine" / "a" / "b"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "..",
        "a/../../x",
        ".",
        "a/./b",
        "a//b",
        "a/",
        "a\0b",
        "x" * 256,
        "a/" + "é" * 128,
        "\ud800",
    ],
    ids=ascii,
)
def test_a_path_that_cannot_be_in_the_tree_is_refused(volume: Volume, path: str) -> None:
    with pytest.raises(ValueError):
        volume.paths.member(CART, path)
    with pytest.raises(ValueError):
        volume.incoming.open(CART, a_file(BODY, path), checksum_of(a_file(BODY)))


@pytest.mark.parametrize("path", ["x" * 255, "é" * 127, "...", "..a", "a\\b", " ", "-", "a\nb"])
def test_a_strange_name_that_is_one_is_taken(volume: Volume, path: str) -> None:
    assert stage(volume, a_file(BODY, path)).read_bytes() == BODY


@pytest.mark.parametrize("uid", ["", "..", "a/b", "x" * 256, "\0"], ids=ascii)
def test_a_uid_that_is_no_name_is_refused(volume: Volume, uid: str) -> None:
    with pytest.raises(ValueError):
        volume.paths.tree(a_cart(uid=uid))


def test_a_uid_too_long_for_a_bundle_still_has_a_tree(volume: Volume) -> None:
    cart = a_cart(uid="u" * 252)
    assert volume.paths.tree(cart).name == cart.uid
    with pytest.raises(ValueError):
        volume.paths.tar(cart)


def test_two_volumes_in_one_directory_share_no_temporary_name(root: Path) -> None:
    for volume in (Volume(root, InThisThread()), Volume(root, InThisThread())):
        volume.prepare()
        incoming = volume.incoming.open(CART, a_file(b"", "x"), checksum_of(a_file(bytes(2 << 20))))
        incoming.write(bytes(1 << 20))
    assert len(list((root / "incoming" / "7").iterdir())) == 2


def test_preparing_makes_the_directories_and_nothing_else(volume: Volume, root: Path) -> None:
    assert everything(root) == EMPTY
    volume.prepare()
    assert everything(root) == EMPTY


def test_what_is_incoming_is_hidden_from_others(volume: Volume, root: Path) -> None:
    assert (root / "incoming").stat().st_mode & 0o077 == 0


def put_a_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("spoil", "named", "reason"),
    [
        pytest.param(lambda root: put_a_file(root), "volume'", "not a directory", id="a file"),
        pytest.param(
            lambda root: put_a_file(root / "incoming"),
            "incoming'",
            "not a directory",
            id="a file for what is incoming",
        ),
        pytest.param(
            lambda root: root.symlink_to(root.parent / "away"),
            "volume'",
            "not a directory",
            id="a dangling link",
        ),
    ],
)
def test_a_volume_that_cannot_be_used_is_reported_in_one_line(
    root: Path, spoil: Callable[[Path], object], named: str, reason: str
) -> None:
    spoil(root)
    with pytest.raises(ConfigError, match=reason) as caught:
        Volume(root, InThisThread()).prepare()
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_directory_above_the_volume_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="above it does not exist"):
        Volume(tmp_path / "not" / "mounted", InThisThread()).prepare()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_which_nothing_can_be_made_is_refused() -> None:
    nowhere = Path("/dev/fd")  # a directory that no user, not even root, can write to
    with pytest.raises(ConfigError, match="/dev/fd"):
        Volume(nowhere, InThisThread()).prepare()


def test_the_free_bytes_are_those_of_the_disk(volume: Volume) -> None:
    assert 0 < result_of(volume.free_space()) < 1 << 60


@in_the_loop
async def test_many_files_of_two_carts_come_at_once(root: Path) -> None:
    threads = Threads(reactor, 8)
    threads.start()
    try:
        volume = Volume(root, threads)
        volume.prepare()
        carts = [a_cart(1, "one"), a_cart(2, "two")]
        bodies = {f"d{n % 7}/e{n % 3}/{n}": str(n).encode() * n for n in range(300)}

        async def one(cart: Any, position: int, path: str) -> str:
            file = a_file(bodies[path], path, position=position)
            incoming = volume.incoming.open(cart, file, checksum_of(file))
            incoming.write(bodies[path])
            return await incoming.finish()

        await gatherResults(
            [
                Deferred.fromCoroutine(one(cart, position, path))
                for position, path in enumerate(bodies)
                for cart in carts
            ]
        )
        for cart in carts:
            assert {path: volume.paths.member(cart, path).read_bytes() for path in bodies} == bodies
            await volume.incoming.clear(cart.id)
    finally:
        threads.stop()
