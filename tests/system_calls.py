"""Which path a system call is about, whatever way it was told."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def path_of(arguments: Sequence[Any], options: Mapping[str, Any], position: int = 0) -> str:
    """The path at ``position`` of a call of :mod:`os`, whose directory may be a descriptor."""
    own = ("src_dir_fd", "dst_dir_fd")[position]
    at = options.get(own, options.get("dir_fd"))
    path = os.fsdecode(arguments[position])
    return path if at is None else f"{Path(f'/proc/self/fd/{at}').readlink()}/{path}"
