"""The archive that holds the files, asked by Pacifica's Archive Interface protocol through treq."""

from cartd.archive.answers import ArchiveError, FileState
from cartd.archive.archive import Archive
from cartd.archive.client import archive_client

__all__ = ["Archive", "ArchiveError", "FileState", "archive_client"]
