"""Bundles of members that a test lists one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cartd.tar.index import TarIndex
from cartd.tar.index_builder import Layout, Members
from cartd.tar.virtual_tar import Bundle


class Member(NamedTuple):
    """One file of a tar."""

    path: str
    size: int
    mtime: int
    hash_type: str
    hash_sum: str


def columns(members: Sequence[Member]) -> Members:
    columns = [list(column) for column in zip(*members, strict=True)]
    return Members(*columns) if columns else Members([], [], [], [], [])


def index_of(members: Sequence[Member], *, page: int = 5000) -> TarIndex:
    """The index of ``members``, added so many at a time."""
    layout = Layout()
    for first in range(0, len(members), page):
        layout.add(columns(members[first : first + page]))
    return layout.index()


def lay_out(members: Sequence[Member], *, top: str, page: int = 5000) -> Bundle:
    """The bundle of ``members`` below ``top``."""
    index = index_of(members, page=page)
    return Bundle(top, index, index.shift(top))
