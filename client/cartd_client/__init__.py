"""Client of cartd and Pacifica Cartd: from a manifest to files that are whole.

::

    from cartd_client import Client, Manifest

    client = Client("https://cartd.example.org", token=token)
    report = client.fetch(Manifest.read("manifest.json"), ".", filename="my-data.tar")
    print(report.summary())  # 1,200 files, 412 GB, all verified (sha256)

:class:`Client` has the requests, :mod:`cartd_client.model` what they return, and
:mod:`cartd_client.errors` what they raise.
"""

__version__ = "1.0.0"

from cartd_client.client import Client
from cartd_client.errors import ClientError, ExitStatus
from cartd_client.manifest import Manifest, default_uid
from cartd_client.model import (
    Directory,
    FileEntry,
    FileProblem,
    Options,
    Progress,
    Report,
    Status,
    Stdout,
    TarFile,
)

__all__ = [
    "Client",
    "ClientError",
    "Directory",
    "ExitStatus",
    "FileEntry",
    "FileProblem",
    "Manifest",
    "Options",
    "Progress",
    "Report",
    "Status",
    "Stdout",
    "TarFile",
    "__version__",
    "default_uid",
]
