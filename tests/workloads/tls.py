"""TLS for a server of the tests, with a certificate that is made on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rdsrepl.sandbox.servers import processes
from rdsrepl.sandbox.servers.postgres_server import HOST, PostgresServer


@contextmanager
def tls(server: PostgresServer) -> Iterator[None]:
    """Let a running server accept TLS; clients connect with ``sslmode=require``, through TCP."""
    certificate, key = _certificate()
    with server.open_data_dirs() as (place,):
        processes.write_private_file(place / "server.crt", certificate)
        processes.write_private_file(place / "server.key", key)
    server.settings["ssl"] = "on"
    server.reload()
    try:
        yield
    finally:
        del server.settings["ssl"]
        server.reload()


def _certificate() -> tuple[str, str]:
    """Return a self-signed certificate and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem).decode(), private.decode()
