"""Verifies a tar or an unpacked directory against the files of a manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from cartd_client.model import FileEntry, Progress, Report


def verify(
    path: Path,
    expected: Iterable[FileEntry],
    on_progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Verify the files of a tar, or those below a directory, against ``expected``."""
    raise NotImplementedError
