"""Small servers on 127.0.0.1 that a forward may lead to, each in a thread, and clients that come through it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

PATIENCE_SECONDS: Final = 30.0
Handler = Callable[[socket.socket], None]


def echo(connection: socket.socket) -> None:
    """Send back what comes; say how many bytes it were after the end of the input (a half close)."""
    size = 0
    while data := connection.recv(65536):
        size += len(data)
        connection.sendall(data)
    connection.sendall(b"|%d" % size)


def speaks_first(connection: socket.socket) -> None:
    """Greet before anything comes, as SMTP and MySQL do, and end."""
    connection.sendall(b"220 hello\r\n")
    connection.recv(100)


@contextlib.contextmanager
def serving(handler: Handler, path: Path | None = None) -> Iterator[int]:
    """Serve until the block ends; yields the port (0 for a Unix socket at path)."""
    if path is not None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
    else:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
    listener.listen(200)
    port = 0 if path is not None else int(listener.getsockname()[1])
    threads: list[threading.Thread] = []
    sockets: list[socket.socket] = []

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            handler(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(PATIENCE_SECONDS)
                sockets.append(connection)
                threads.append(threading.Thread(target=one, args=(connection,)))
                threads[-1].start()

    threads.append(threading.Thread(target=accept))
    threads[0].start()
    try:
        yield port
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # close() alone would not wake accept()
        listener.close()
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(PATIENCE_SECONDS)


def connect(address: int | Path) -> socket.socket:
    """Connect to a port of 127.0.0.1 or a Unix socket."""
    if isinstance(address, int):
        return socket.create_connection(("127.0.0.1", address), timeout=PATIENCE_SECONDS)
    found = socket.socket(socket.AF_UNIX)
    found.settimeout(PATIENCE_SECONDS)
    found.connect(str(address))
    return found


def read_all(connection: socket.socket) -> bytes:
    """Read to the end."""
    pieces = []
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def talk(address: int | Path, data: bytes) -> bytes:
    """Send everything, half-close, and read to the end: echo() answers data, a bar, and its length."""
    with connect(address) as connection:
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(read_all(connection)))
        reader.start()
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        reader.join(PATIENCE_SECONDS)
        assert not reader.is_alive(), "no end of the answer"
        return got[0]


def socks(version: int, port: int, host: str, to: int) -> socket.socket:
    """Connect through a SOCKS server (4a or 5, RFC 1928) on 127.0.0.1. Raises ConnectionRefusedError."""
    found = connect(port)
    try:
        if version == 5:
            found.sendall(b"\x05\x01\x00")
            assert _exactly(found, 2) == b"\x05\x00"
            found.sendall(b"\x05\x01\x00\x03" + bytes([len(host)]) + host.encode() + struct.pack(">H", to))
            taken = _exactly(found, 10)[1] == 0
        else:
            found.sendall(b"\x04\x01" + struct.pack(">H", to) + b"\0\0\0\x01u\0" + host.encode() + b"\0")
            taken = _exactly(found, 8)[1] == 90
        if not taken:
            raise ConnectionRefusedError
    except BaseException:
        found.close()
        raise
    return found


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionRefusedError
        data += piece
    return data
