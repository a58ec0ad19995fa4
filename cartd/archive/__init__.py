"""Client of the archive that holds the files: Pacifica's Archive Interface over HTTP."""

from cartd.archive.client import ArchiveClient
from cartd.archive.http_client import http_client
from cartd.archive.responses import ArchiveError, FileState
from cartd.archive.tls import TlsPolicy

__all__ = ["ArchiveClient", "ArchiveError", "FileState", "TlsPolicy", "http_client"]
