"""TLS at both ends: certificates and keys from files, renewed while they are used."""

from cartd.tls.pem import Identity, PemFile, certificates, read_identity
from cartd.tls.reloading import RENEWAL_LOOK, Renewed
from cartd.tls.server import ServerTls

__all__ = [
    "RENEWAL_LOOK",
    "Identity",
    "PemFile",
    "Renewed",
    "ServerTls",
    "certificates",
    "read_identity",
]
