"""The symbolic links to carts in cartuids/."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cartd.volume import Volume
from tests.support.volume_parts import (
    BODY,
    CART,
    EMPTY,
    a_cart,
    a_file,
    everything,
    logged,
    result_of,
    stage,
)
from tests.support.volume_writer import written_by

pytest_plugins = ("tests.support.volume_fixture",)


def test_the_link_leads_to_the_tree_and_is_relative(volume: Volume, root: Path) -> None:
    stage(volume, a_file(BODY))
    result_of(volume.links.place(CART))
    assert (root / "cartuids" / "mine").readlink() == Path("../7/mine")
    assert (root / "cartuids" / "mine" / "a" / "b.dat").read_bytes() == BODY
    assert not (root / "incoming" / "7").exists()


def test_the_link_of_a_newer_cart_takes_the_place_of_the_older(volume: Volume, root: Path) -> None:
    result_of(volume.links.place(CART))
    result_of(volume.links.place(a_cart(8, bundle=True)))
    assert (root / "cartuids" / "mine").readlink() == Path("../8/mine.tar")


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_real_thing_in_the_place_of_the_link_is_left(
    volume: Volume, root: Path, kind: str
) -> None:
    there = root / "cartuids" / "mine"
    there.touch() if kind == "file" else there.mkdir()
    with logged() as events:
        result_of(volume.links.place(CART))
        result_of(volume.removal.remove(CART))
    assert there.exists()
    assert not there.is_symlink()
    assert len(events) == 1


def test_where_links_are_refused_it_is_said_once(root: Path) -> None:
    assert written_by("links", root) == "warn\n"
    assert everything(root) == EMPTY


def test_a_link_that_cannot_be_read_now_is_removed_later(
    volume: Volume, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removal of the cart fails with it, and is tried again."""
    stage(volume, a_file(BODY))
    result_of(volume.links.place(CART))

    def fail(*_: object, **__: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "readlink", fail)
        with pytest.raises(OSError, match="Input/output error"):
            result_of(volume.removal.remove(CART))
    result_of(volume.removal.remove(CART))
    assert everything(root) == EMPTY
