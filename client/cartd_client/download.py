"""Downloads a cart, resumes, unpacks and verifies it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cartd_client.model import FileEntry, Options, Progress, Report, Source, Target
from cartd_client.transport import Transport


def download(
    transport: Transport,
    source: Source,
    target: Target,
    expected: Iterable[FileEntry] | None = None,
    options: Options | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Download ``source`` to ``target``, and verify each file that ``expected`` lists."""
    raise NotImplementedError
