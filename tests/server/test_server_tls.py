"""Https: files that cannot be used are refused at once, and the rest is as it is over http."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rosellm.roseinfer.config import ServerConfig
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.server.tls import check_tls, tls_files

FILES = Path(__file__).parents[1] / "data" / "tls"
CERT, KEY = str(FILES / "cert.pem"), str(FILES / "key.pem")


def test_what_can_be_used(tmp_path: Path) -> None:
    check_tls(ServerConfig())
    check_tls(ServerConfig(tls_cert=CERT, tls_key=KEY))
    both = tmp_path / "both.pem"
    both.write_text(Path(CERT).read_text() + Path(KEY).read_text())
    check_tls(ServerConfig(tls_cert=str(both)))
    assert tls_files(ServerConfig()) == (None, None)


@pytest.mark.parametrize(
    ("cert", "key", "says"),
    [
        (None, "key.pem", "--tls-key is of no use without --tls-cert"),
        ("none.pem", "key.pem", "--tls-cert DIR/none.pem: No such file"),
        ("cert.pem", "none.pem", "--tls-key DIR/none.pem: No such file"),
        ("", "key.pem", "--tls-cert DIR: Is a directory"),
        ("cert.pem", None, "--tls-cert DIR/cert.pem: these are not"),
        ("key.pem", "cert.pem", "--tls-key DIR/cert.pem: these are not"),
        ("cert.pem", "other_key.pem", "DIR/other_key.pem: this is not the certificate's"),
        ("cert.pem", "encrypted_key.pem", "DIR/encrypted_key.pem: the private key needs a pass"),
    ],
)
def test_what_cannot_is_one_line(cert: str | None, key: str | None, says: str) -> None:
    def full(name: str | None) -> str | None:
        return None if name is None else f"{FILES}/{name}"

    with pytest.raises(ConfigError, match=re.escape(says.replace("DIR", str(FILES)))) as caught:
        check_tls(ServerConfig(tls_cert=full(cert), tls_key=full(key)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\0\xff" * 1000, b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_broken_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "cert.pem"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="these are not a certificate"):
        check_tls(ServerConfig(tls_cert=str(file), tls_key=KEY))
