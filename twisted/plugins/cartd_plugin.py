"""Defines the ``twistd`` commands ``cartd`` and ``cartd-archive``."""

from twisted.application.service import ServiceMaker

cartd = ServiceMaker(
    "cartd",
    "cartd.service",
    "Stages files out of an archive and streams them as one tar.",
    "cartd",
)

cartd_archive = ServiceMaker(
    "cartd-archive",
    "cartd.directory_archive.service",
    "Serves a directory by the Archive Interface protocol.",
    "cartd-archive",
)
