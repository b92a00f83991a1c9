"""The files that https needs, tried before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rosellm.roseinfer.config import ServerConfig
from rosellm.roseinfer.errors import ConfigError, shown

if TYPE_CHECKING:
    from ssl import SSLContext


class TlsFiles(NamedTuple):
    """Paths; without any, http is served."""

    cert: str | None = None
    key: str | None = None


def tls_files(config: ServerConfig) -> TlsFiles:
    """The files that a configuration names."""
    return TlsFiles(
        *(path and str(Path(path).expanduser()) for path in (config.tls_cert, config.tls_key))
    )


def load_tls(config: ServerConfig) -> SSLContext | None:
    """What https is served with; None where http is.

    Raises:
        OSError: the files have changed since they were checked.
    """
    cert, key = tls_files(config)
    if cert is None:
        return None
    context = _context()
    context.load_cert_chain(cert, key)
    return context


def check_tls(config: ServerConfig) -> None:
    """Refuse files that https could not be served with.

    Raises:
        ConfigError: one line that names the file.
    """
    cert, key = tls_files(config)
    if cert is None:
        if key is not None:
            raise ConfigError("--tls-key is of no use without --tls-cert")
        return
    _check_readable("--tls-cert", cert)
    if key is not None:
        _check_readable("--tls-key", key)
    _check_pair(cert, key)


def _check_readable(flag: str, path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{flag} {shown(path)}: {reason}") from None


def _check_pair(cert: str, key: str | None) -> None:
    import ssl

    context = _context()
    spoken = f"--tls-cert {shown(cert)}"
    if key is not None:
        spoken += f" with --tls-key {shown(key)}"
    asked = []

    def passphrase() -> str:
        asked.append(True)
        return ""

    try:
        context.load_cert_chain(cert, key, passphrase)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(f"{spoken}: {_reason(error, encrypted=bool(asked))}") from None


def _context() -> SSLContext:
    import ssl  # which a server without https need not load

    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def _reason(error: Exception, *, encrypted: bool) -> str:
    if encrypted:
        return "the private key needs a passphrase; only keys without one can be used"
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return "this is not the certificate's private key"
    return "these are not a certificate chain and its private key in PEM"
