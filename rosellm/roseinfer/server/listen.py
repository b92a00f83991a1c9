"""The listening socket, claimed before anything is loaded, so that a taken port costs no wait."""

from __future__ import annotations

import errno
import ipaddress
import json
import socket

from rosellm.roseinfer.config import ServerConfig
from rosellm.roseinfer.errors import ConfigError, shown
from rosellm.roseinfer.server.keys import KEY_VARIABLE

BACKLOG = 2048
_ASK_S = 1.0
_HEALTH_BYTES = 1 << 16
REASONS = {
    errno.EACCES: "that needs more rights; pass a --port above 1023",
    errno.EADDRNOTAVAIL: "this machine has no such address; pass another --host",
}


def check_exposure(config: ServerConfig, *, keys: bool) -> None:
    """Refuse to serve other machines without a key, unless that is what is wanted.

    Args:
        keys: whether there are any.

    Raises:
        ConfigError: says how to.
    """
    if config.insecure or keys or _is_loopback(config.host):
        return
    raise ConfigError(
        f"--host {config.host}: other machines could reach it, and no key is set; put one into"
        f" {KEY_VARIABLE}, or pass --api-key-file or --insecure"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"


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


def url(sock: socket.socket, scheme: str = "http") -> str:
    """Where a client on this machine finds the socket."""
    host, port = sock.getsockname()[:2]
    host = _reachable(host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _refused(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        model = _served_at(_reachable(host), port)
        by = f" by rosellm, serving {shown(model)}" if model else ""
        return ConfigError(
            f"cannot listen on {host}:{port}: it is already in use{by}; pass another --port"
        )
    reason = REASONS.get(error.errno or 0, error.strerror or str(error))
    return ConfigError(f"cannot listen on {host}:{port}: {reason}")


def _served_at(host: str, port: int) -> str:
    """The model of the rosellm that listens there; empty for any other program."""
    import http.client  # 25 ms, which a start that succeeds need not wait for

    connection = http.client.HTTPConnection(host, port, timeout=_ASK_S)
    try:
        connection.request("GET", "/health")
        health = json.loads(connection.getresponse().read(_HEALTH_BYTES))
        return str(health["model"]) if "engine" in health else ""
    except (OSError, http.client.HTTPException, LookupError, TypeError, ValueError):
        return ""
    finally:
        connection.close()
