"""Builds tars from lists of members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cartd.tar.index import TarIndex, TarIndexBuilder
from cartd.tar.members import Members
from cartd.tar.virtual_tar import VirtualTar


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
    """Return the index of ``members``, added in pages of that size."""
    builder = TarIndexBuilder()
    for first in range(0, len(members), page):
        builder.add(columns(members[first : first + page]))
    return builder.index()


def build_tar(members: Sequence[Member], *, top: str, page: int = 5000) -> VirtualTar:
    """Return the tar of ``members`` below ``top``."""
    index = index_of(members, page=page)
    return VirtualTar(top, index, index.shift(top))
