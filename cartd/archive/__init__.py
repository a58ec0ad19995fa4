"""The archive that holds the files, asked by Pacifica's Archive Interface protocol through treq."""

from cartd.archive.client import Archive
from cartd.archive.http_client import archive_client
from cartd.archive.responses import ArchiveError, FileState
from cartd.archive.tls import TlsPolicy

__all__ = ["Archive", "ArchiveError", "FileState", "TlsPolicy", "archive_client"]
