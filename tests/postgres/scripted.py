"""A PostgreSQL target that follows a script, on a port of 127.0.0.1: for targets that die, stall or talk nonsense.

It serves each connection in a thread, so that it lives beside a gateway in another. A stage names where it breaks;
how it breaks is a function that is given the socket.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from protocols.postgres import startup, wire

READY = wire.message(ord("Z"), b"I")
DESCRIBED = wire.message(ord("T"), struct.pack(">h", 1) + b"a\0" + wire.FIELD.pack(0, 0, 25, -1, -1, 0))
ROW = wire.message(ord("D"), struct.pack(">hi", 1, 3) + b"one")
DONE = wire.message(ord("C"), b"SELECT 1\0")

STAGES = ("accepted", "started", "asked", "proved", "ready", "query", "described", "row", "half a row", "answered")
Break = Callable[[socket.socket], None]


def reset(sock: socket.socket) -> None:
    """Die as a machine does that forgot the connection."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def close(sock: socket.socket) -> None:
    """Die as a process does."""
    sock.close()


def babble(sock: socket.socket) -> None:
    """Send what is no message."""
    sock.sendall(b"\xff\x00\x00\x00\x04HTTP/1.1 400 Bad Request\r\n\r\n" * 20)


def lie(sock: socket.socket) -> None:
    """Announce a message of a gigabyte."""
    sock.sendall(b"T" + struct.pack(">I", 1 << 30) + b"x" * 100)


def stall(sock: socket.socket) -> None:
    """Say nothing more, and read nothing."""


@dataclass
class ScriptedTarget:
    """Where it breaks and how may be changed between connections."""

    port: int = 0
    stage: str = ""
    how: Break = close
    connections: int = 0
    cancels: int = 0
    broken: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def end(self) -> None:
        """Close every connection; call it before a gateway counts the process's descriptors."""
        self.stop.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive(), "a scripted connection did not end"

    def serve(self, sock: socket.socket) -> None:
        """One connection, up to its stage."""
        with contextlib.suppress(OSError, EOFError), sock:
            for stage in self._dialogue(sock):
                if stage == self.stage:
                    self.how(sock)
                    self.broken.set()
                    self.stop.wait()
                    return

    def _dialogue(self, sock: socket.socket) -> Iterator[str]:
        yield "accepted"
        first = _exactly(sock, struct.unpack(">I", _exactly(sock, 4))[0] - 4)
        if first[:4] == struct.pack(">I", startup.CANCEL_CODE):
            self.cancels += 1
            return
        self.connections += 1
        yield "started"
        sock.sendall(startup.encode_auth(startup.AUTH_CLEARTEXT))
        yield "asked"
        _message(sock)
        yield "proved"
        sock.sendall(startup.encode_auth(startup.AUTH_OK) + startup.encode_backend_key(77, b"key!") + READY)
        yield "ready"
        while _message(sock)[0] != wire.TERMINATE:
            yield "query"
            sock.sendall(DESCRIBED)
            yield "described"
            sock.sendall(ROW)
            yield "row"
            sock.sendall(ROW[:8])
            yield "half a row"
            sock.sendall(ROW[8:] + DONE + READY)
            yield "answered"


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _message(sock: socket.socket) -> tuple[int, bytes]:
    head = _exactly(sock, 5)
    return head[0], _exactly(sock, wire.U32.unpack_from(head, 1)[0] - 4)


@contextlib.contextmanager
def scripted_target() -> Iterator[ScriptedTarget]:
    """Listen; on leaving every connection is closed and every thread has ended."""
    target = ScriptedTarget()
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        listener.settimeout(0.05)
        target.port = listener.getsockname()[1]

        def accept() -> None:
            while not target.stop.is_set():
                try:
                    sock, _ = listener.accept()
                except TimeoutError:
                    continue
                sock.settimeout(30)
                target.threads.append(threading.Thread(target=target.serve, args=(sock,), name="scripted"))
                target.threads[-1].start()

        acceptor = threading.Thread(target=accept, name="scripted target")
        acceptor.start()
        try:
            yield target
        finally:
            target.stop.set()
            acceptor.join()
            target.end()
