"""TLS at both ends: certificates and keys from files, renewed while they are used."""

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
