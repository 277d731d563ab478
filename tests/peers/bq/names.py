"""Names without DNS: a CONNECT proxy that knows some hosts and refuses all others.

Real clients find it by HTTPS_PROXY; a universe's hosts (bigquery.NAME, bigquerystorage.NAME, sts.NAME on port 443)
then lead to ports of this machine, without any rights. What else a client dials is refused and written down, which
makes it the witness that nothing leaks past a gateway. RFC 9110 9.3.6.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Final

READ_BYTES: Final = 1 << 16
HEAD_LIMIT: Final = 1 << 14
HEAD_SECONDS: Final = 30.0


class Names:
    """A running proxy. dialled and refused: "host:port" of each CONNECT."""

    def __init__(self, hosts: Mapping[str, int]) -> None:
        self._hosts = dict(hosts)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self.dialled: list[str] = []
        self.refused: list[str] = []
        threading.Thread(target=self._accept, name="names", daemon=True).start()

    @property
    def url(self) -> str:
        """For HTTPS_PROXY."""
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def close(self) -> None:
        """End it with all connections."""
        self._stopped = True
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._stopped:
            try:
                user, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(user,), daemon=True).start()

    def _serve(self, user: socket.socket) -> None:
        with contextlib.suppress(OSError), self._held(user):
            user.settimeout(HEAD_SECONDS)
            head = b""
            while b"\r\n\r\n" not in head and len(head) < HEAD_LIMIT:
                data = user.recv(READ_BYTES)
                if not data:
                    return
                head += data
            user.settimeout(None)
            method, where, *_ = head.split(b" ", 2)
            name = where.decode("latin-1")
            port = self._hosts.get(name) if method == b"CONNECT" else None
            if port is None:
                self.refused.append(name)
                user.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            self.dialled.append(name)
            with self._held(socket.create_connection(("127.0.0.1", port))) as target:
                user.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=_pump, args=(target, user), daemon=True)
                back.start()
                _pump(user, target)
                back.join()

    @contextlib.contextmanager
    def _held(self, each: socket.socket) -> Iterator[socket.socket]:
        with self._lock:
            self._open.add(each)
        try:
            yield each
        finally:
            with self._lock:
                self._open.discard(each)
            each.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(READ_BYTES):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def names(hosts: Mapping[str, int]) -> Iterator[Names]:
    """Run a proxy; hosts: ports of this machine by "host:port"."""
    running = Names(hosts)
    try:
        yield running
    finally:
        running.close()
