"""Certificates for loopback, from an authority that only a test can make trusted."""

from pathlib import Path

import trustme

from token_broker.simulator.server import TlsFiles

__all__ = ["tls_files"]


def tls_files(authority: trustme.CA, directory: Path, *names: str) -> TlsFiles:
    """A certificate of `authority` for 127.0.0.1 and `names`, written into `directory`."""
    certificate = authority.issue_cert("127.0.0.1", *names)
    certificate.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    return TlsFiles(directory / "cert.pem", directory / "key.pem")
