"""`Certificate`: what a server proves its name by, and whose callers it lets in by theirs."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from sie_core.errors import InvalidRequestError

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Certificate:
    """Files in PEM, and the TLS context made of them. TLS 1.2 and 1.3.

    Attributes:
        cert: The server's certificate, those that lead to its authority after it.
        key: Its private key; None if `cert` holds it.
        client_ca: Authorities; callers then need a certificate of theirs.
    """

    cert: Path
    key: Path | None = None
    client_ca: Path | None = None
    context: ssl.SSLContext = field(init=False, repr=False)

    @classmethod
    def given(cls, cert: str | None, key: str | None, client_ca: str | None) -> Self | None:
        """Read the settings; None means no TLS.

        Raises:
            InvalidRequestError: They do not fit together, or the files cannot be used.
        """
        if cert is None:
            if key is not None or client_ca is not None:
                msg = "TLS needs a certificate: give --tls-cert as well"
                raise InvalidRequestError(msg)
            return None
        return cls(Path(cert), *(None if name is None else Path(name) for name in (key, client_ca)))

    def __post_init__(self) -> None:
        self.context = self._load()

    def reload(self) -> None:
        """Read the certificate again, for new connections; if it is wrong, the old one stays."""
        try:
            self._load()  # both files fit together, or the live context is left alone
            self.context.load_cert_chain(self.cert, self.key)
        except InvalidRequestError as exc:
            _logger.error("%s; the certificate read before stays", exc)  # noqa: TRY400
        else:
            _logger.info("the certificate %s was read again", self.cert)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        files = [path for path in (self.cert, self.key) if path is not None]
        try:
            context.load_cert_chain(self.cert, self.key, _no_password)
            if self.client_ca is not None:
                files = [self.client_ca]
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ValueError) as exc:  # of the files, or of what is in them
            names = " and ".join(map(str, files))
            reason = getattr(exc, "strerror", None) or exc
            msg = f"{names} cannot be used for TLS: {reason}"
            raise InvalidRequestError(msg) from exc
        return context


def _no_password() -> str:
    """Refuse a key that is encrypted, instead of asking the terminal for its password."""
    msg = "the private key is encrypted; give one that is not, readable by the server only"
    raise ValueError(msg)
