"""HTTPS by a certificate made here: names, callers' certificates, and renewal while serving."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import trustme

from sie_core.errors import InvalidRequestError
from sie_core.server.run import Server
from sie_core.server.settings import ModelSettings
from sie_core.server.tls import Certificate


def write(authority: trustme.CA, folder: Path) -> tuple[str, str]:
    """Write a certificate for this machine, and its key."""
    made = authority.issue_cert("127.0.0.1", "localhost")
    made.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    made.private_key_pem.write_to_path(folder / "key.pem")
    return str(folder / "cert.pem"), str(folder / "key.pem")


def trusting(authority: trustme.CA, own: trustme.LeafCert | None = None) -> httpx.Client:
    """A caller who trusts an authority, with a certificate of their own or none."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if own is not None:
        own.configure_cert(context)
    return httpx.Client(verify=context, timeout=30)


@pytest.fixture
def authority() -> trustme.CA:
    """Who signs."""
    return trustme.CA()


@pytest.fixture
def start(
    serve: Callable[..., Server], tiny_bert: Path, authority: trustme.CA, tmp_path: Path
) -> Callable[..., Server]:
    """A maker of servers with a certificate."""

    def run(**given: str) -> Server:
        cert, key = write(authority, tmp_path)
        models = (ModelSettings(name="tiny", source=str(tiny_bert)),)
        return serve(models=models, is_awaited=False, tls_cert=cert, tls_key=key, **given)

    return run


def test_a_server_with_a_certificate_speaks_https(
    start: Callable[..., Server], authority: trustme.CA
) -> None:
    """And nothing else on that port."""
    server = start()
    assert server.url.startswith("https://")
    with trusting(authority) as client:
        assert client.get(f"{server.url}/healthz").text == "ok"
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{server.url}/healthz")
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{server.url.replace('https', 'http')}/healthz")


def test_old_versions_of_tls_are_not_spoken(
    start: Callable[..., Server], authority: trustme.CA
) -> None:
    """1.2 is."""
    url = start().url
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with httpx.Client(verify=context) as client:
        assert client.get(f"{url}/healthz").status_code == 200
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with httpx.Client(verify=context) as client, pytest.raises(httpx.ConnectError):
        client.get(f"{url}/healthz")


def test_callers_can_be_asked_for_a_certificate(
    start: Callable[..., Server], authority: trustme.CA, tmp_path: Path
) -> None:
    """Of an authority that is named."""
    callers = trustme.CA()
    callers.cert_pem.write_to_path(tmp_path / "callers.pem")
    server = start(tls_client_ca=str(tmp_path / "callers.pem"))
    with trusting(authority, callers.issue_cert("app")) as client:
        assert client.get(f"{server.url}/healthz").status_code == 200
    for own in (None, trustme.CA().issue_cert("app")):
        with trusting(authority, own) as client, pytest.raises(httpx.TransportError):
            client.get(f"{server.url}/healthz")


def test_a_renewed_certificate_is_read_while_serving(
    start: Callable[..., Server], authority: trustme.CA, tmp_path: Path
) -> None:
    """New connections get it; a file that is wrong changes nothing."""
    server = start()
    address = urlsplit(server.url)

    def certificate() -> str:
        return ssl.get_server_certificate((str(address.hostname), int(address.port or 0)))

    before = certificate()
    write(authority, tmp_path)
    assert certificate() == before
    server.reload()
    renewed = certificate()
    assert renewed != before
    (tmp_path / "key.pem").write_text("half a file")
    server.reload()
    assert certificate() == renewed


def test_what_cannot_be_used_is_said_at_the_start(authority: trustme.CA, tmp_path: Path) -> None:
    """With the files' names, not with OpenSSL's stack."""
    cert, key = write(authority, tmp_path)
    other = tmp_path / "other.pem"
    authority.issue_cert("127.0.0.1").private_key_pem.write_to_path(other)
    for files, reason in (
        (("missing.pem", None, None), "missing.pem cannot be used for TLS: No such file"),
        ((cert, str(other), None), "cert.pem and .*other.pem cannot be used for TLS"),
        ((cert, key, key), "key.pem cannot be used for TLS"),
        ((None, key, None), "TLS needs a certificate: give --tls-cert"),
    ):
        with pytest.raises(InvalidRequestError, match=reason):
            Certificate.given(*files)
    assert Certificate.given(None, None, None) is None


def test_an_encrypted_key_is_refused_and_nobody_is_asked(
    authority: trustme.CA, tmp_path: Path
) -> None:
    """A service has no terminal to ask on."""
    from cryptography.hazmat.primitives import serialization

    cert, key = write(authority, tmp_path)
    private = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    Path(key).write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(InvalidRequestError, match="the private key is encrypted"):
        Certificate.given(cert, key, None)
