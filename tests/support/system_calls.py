"""The path of a system call, given in any way."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def path_of(arguments: Sequence[Any], options: Mapping[str, Any], position: int = 0) -> str:
    """Return the path at ``position`` of a call of :mod:`os`, resolving directory descriptors."""
    own = ("src_dir_fd", "dst_dir_fd")[position]
    at = options.get(own, options.get("dir_fd"))
    path = os.fsdecode(arguments[position])
    return path if at is None else f"{Path(f'/proc/self/fd/{at}').readlink()}/{path}"
