"""The listening socket, claimed before anything is loaded, so that a taken port costs no wait."""

from __future__ import annotations

import errno
import socket

from rosellm.roseinfer.errors import ConfigError

BACKLOG = 2048
REASONS = {
    errno.EADDRINUSE: "it is already in use; pass another --port",
    errno.EACCES: "that needs more rights; pass a --port above 1023",
    errno.EADDRNOTAVAIL: "this machine has no such address; pass another --host",
}


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to host and port, not yet listening: until then connections are refused.

    Raises:
        ConfigError: the address cannot be had; one line that says why.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen on {host!r}: {error}") from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _refused(host, port, error) from None
    return sock


def listen(sock: socket.socket) -> None:
    """Accept connections from now on.

    Raises:
        ConfigError: another process was quicker.
    """
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        host, port = sock.getsockname()[:2]
        raise _refused(host, port, error) from None


def url(sock: socket.socket) -> str:
    """Where a client on this machine finds the socket."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _refused(host: str, port: int, error: OSError) -> ConfigError:
    reason = REASONS.get(error.errno or 0, error.strerror or str(error))
    return ConfigError(f"cannot listen on {host}:{port}: {reason}")
