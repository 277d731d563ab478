"""Listening sockets: every address that a name stands for, IPv4 and IPv6 alike, and Unix sockets.

Deliberately left out: sockets handed over by systemd; SO_REUSEPORT (several workers get their connections from one
process that accepts: proxy.workers).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

from proxy.core.errors import ConfigError
from proxy.sections import parse_address

BACKLOG_LIMIT: Final = 1024  # the kernel cuts it to net.core.somaxconn, 4096 today
UNIX_PATH_LIMIT: Final = 107  # sun_path is 108 bytes with its final zero (unix(7))


def listen(address: str) -> list[socket.socket]:
    """Bind and listen on all that the address stands for. Raises ConfigError that says what to do."""
    place = parse_address(address)
    return [_listen_unix(place)] if isinstance(place, Path) else _listen_tcp(address, *place)


def name_of(sock: socket.socket) -> str:
    """The address of a listening socket, as one writes it in the configuration."""
    name = sock.getsockname()
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
    return f"unix:{name}"


def _listen_tcp(address: str, host: str, port: int) -> list[socket.socket]:
    try:
        # AI_PASSIVE without a host: every address; without IPv6 in the kernel only the IPv4 one is found or bound.
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError(f"{address}: the name cannot be resolved") from error
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, place in dict.fromkeys(found):
            number = sockets[0].getsockname()[1] if sockets and port == 0 else port
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # the IPv4 one is bound by itself
            try:
                sock.bind((place[0], number, *place[2:]))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL or len(found) == 1:
                    raise
                sockets.pop().close()  # "localhost" has ::1 in /etc/hosts where the kernel has no IPv6
                continue
            sock.listen(BACKLOG_LIMIT)
            sock.setblocking(False)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ConfigError(f"{address}: cannot listen: {_advice(error)}") from error
    if not sockets:
        raise ConfigError(f"{address}: cannot listen: no such address on this machine")
    return sockets


def _listen_unix(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > UNIX_PATH_LIMIT:
        raise ConfigError(f"unix:{path}: the path is longer than {UNIX_PATH_LIMIT} bytes")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(str(path))
        sock.listen(BACKLOG_LIMIT)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConfigError(f"unix:{path}: cannot listen: {_advice(error)}") from error
    return sock


def _remove_stale(path: Path) -> None:
    """Remove the socket that a killed process left; a live one, or a file of another kind, stays."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "a file is in its place")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                return
        raise OSError(errno.EADDRINUSE, "in use")


def _advice(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "another process listens there; stop it or choose another port"
        case errno.EACCES:
            return "not permitted; ports below 1024 need CAP_NET_BIND_SERVICE"
        case errno.EADDRNOTAVAIL:
            return "no such address on this machine"
        case _:
            return error.strerror or "unknown error"
