"""TLS of an ``ssl:`` endpoint: versions, ciphers and certificate."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IStreamServerEndpoint
from twisted.internet.ssl import (
    AcceptableCiphers,
    CertificateOptions,
    DiffieHellmanParameters,
    TLSVersion,
)
from twisted.python.filepath import FilePath
from zope.interface import implementer

from cartd.certificates import PemFile, ReloadingCertificate, read_identity
from cartd.config.parsers import TlsEndpoint
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import ConfigError

_CIPHERS = AcceptableCiphers.fromOpenSSLCipherString(
    "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:!aNULL"
)
"""For TLS 1.2: forward secrecy and authenticated encryption (RFC 9325, section 4.2).

All ciphers of TLS 1.3 have both.
"""


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """Starts TLS on connections, with the certificate that was loaded last.

    The constructor blocks, and raises :class:`ConfigError` if a file is unusable.
    """

    def __init__(self, endpoint: TlsEndpoint) -> None:
        self._endpoint = endpoint
        name = f"The certificate of ssl:{endpoint.port}"
        self._options = ReloadingCertificate(name, endpoint.files, self._make)

    def endpoint(self, reactor: Any) -> IStreamServerEndpoint:
        """Return the endpoint to listen on."""
        return SSL4ServerEndpoint(
            reactor,
            self._endpoint.port,
            self,
            backlog=self._endpoint.backlog,
            interface=self._endpoint.interface,
        )

    async def poll(self, threads: ThreadRunner) -> None:
        """See :meth:`ReloadingCertificate.poll`; open connections keep their certificate."""
        await self._options.poll(threads)

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        return self._options.current.serverConnectionForTLS(protocol)

    def _make(self) -> CertificateOptions:
        endpoint = self._endpoint
        identity = read_identity(
            PemFile("certKey", endpoint.certificate),
            PemFile("privateKey", endpoint.private_key),
            None if endpoint.chain is None else PemFile("extraCertChain", endpoint.chain),
        )
        dh_parameters = None
        if endpoint.dh_parameters is not None:
            path = FilePath(str(endpoint.dh_parameters))
            dh_parameters = DiffieHellmanParameters.fromFile(path)
        # Twisted disables compression, sessions and tickets.
        options = CertificateOptions(
            privateKey=identity.key,
            certificate=identity.certificate,
            extraCertChain=list(identity.chain),
            raiseMinimumTo=TLSVersion.TLSv1_2,
            lowerMaximumSecurityTo=TLSVersion.TLSv1_2 if endpoint.only_1_2 else None,
            acceptableCiphers=_CIPHERS,
            dhParameters=dh_parameters,
        )
        try:
            context = options.getContext()
        except SSL.Error as error:
            file = PemFile("dhParameters", endpoint.dh_parameters or endpoint.certificate)
            raise ConfigError(f"{file} cannot be used") from error
        # A handshake costs the server many times what it costs the client.
        context.set_options(SSL.OP_NO_RENEGOTIATION)
        return options
