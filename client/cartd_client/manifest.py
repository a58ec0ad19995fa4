"""Manifests: read, checked and made, without a copy of a large one in memory.

The service checks a manifest completely; the client checks what would make it send another one
than its user means, and what it needs itself: the files that are expected.
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cartd_client.errors import InvalidManifest
from cartd_client.model import FileEntry

NAMESPACE = uuid.UUID("5a4a7d6e-3b0c-5f57-8f8e-2d0a53d3c9a1")
"""The name space of :func:`default_uid`."""
_BLOCK = 1 << 20


class Manifest:
    """A manifest, in a file or in memory; the content is read when it is needed."""

    def __init__(self, source: bytes | Path) -> None:
        self._source = source

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Return the manifest in a file; raise InvalidManifest if that cannot be read."""
        manifest = cls(Path(path))
        manifest.open().close()
        return manifest

    def open(self) -> IO[bytes]:
        """Return the JSON as a file; raise InvalidManifest."""
        if isinstance(self._source, bytes):
            return io.BytesIO(self._source)
        try:
            return self._source.open("rb")
        except OSError as error:
            raise InvalidManifest(
                f"The manifest {self._source} cannot be read: {error.strerror}"
            ) from error

    def files(self) -> Iterator[FileEntry]:
        """Yield the files, in their order; raise InvalidManifest at the first fault."""
        raise NotImplementedError


def default_uid(manifest: Manifest, user: str) -> str:
    """Return a UUID of the manifest's bytes and the user: the same again for the same."""
    digest = hashlib.sha256()
    with manifest.open() as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return str(uuid.uuid5(NAMESPACE, f"{user}\0{digest.hexdigest()}"))
