"""TLS: certificates and keys from files, reloaded when they change."""

from cartd.tls.pem import Identity, PemFile, certificates, read_identity
from cartd.tls.reloading import RELOAD_INTERVAL, ReloadingCertificate
from cartd.tls.server import ServerTls

__all__ = [
    "RELOAD_INTERVAL",
    "Identity",
    "PemFile",
    "ReloadingCertificate",
    "ServerTls",
    "certificates",
    "read_identity",
]
