"""The archive that holds the files, asked by Pacifica's Archive Interface protocol through treq."""

from cartd.archive.answers import ArchiveError, FileState
from cartd.archive.archive import Archive
from cartd.archive.client import archive_client
from cartd.archive.tls import TlsPolicy

__all__ = ["Archive", "ArchiveError", "FileState", "TlsPolicy", "archive_client"]
