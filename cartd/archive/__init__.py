"""The archive that holds the files: client, HTTP agent, TLS, retrying, circuit breaker, limits."""

from cartd.archive.client import ArchiveClient, explained_status, http_client
from cartd.archive.responses import ArchiveError, FileState
from cartd.archive.tls import TlsPolicy

__all__ = [
    "ArchiveClient",
    "ArchiveError",
    "FileState",
    "TlsPolicy",
    "explained_status",
    "http_client",
]
