"""Scenarios of port-forward: to a web server in the pod, or to a server of the test's own (pods are on its network)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import socketserver
import threading
import urllib.request
from collections.abc import Iterator

from tests.kubernetes.running import Runner, connected, scenario
from tests.peers.ssh import free_port
from tests.ssh.running import until


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)
        self.request.shutdown(socket.SHUT_WR)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


@contextlib.contextmanager
def _echo() -> Iterator[int]:
    """A server that says everything again, to the end of what it is told."""
    with _Server(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@scenario(every=True, switched=True)
def web_server(run: Runner) -> None:
    """An HTTP server inside the pod, several requests."""
    port = free_port()
    page = run.name("page")
    far = run.scratch()
    serving = f"mkdir {far} && echo {page} > {far}/index.html && busybox httpd -p 127.0.0.1:{port} -h {far}"
    assert run.sh(serving).returncode == 0
    try:
        with run.forward(port) as (local, _):
            for _ in range(3):
                opened = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                with opened.open(f"http://127.0.0.1:{local}/", timeout=20) as answer:
                    assert answer.read().decode().strip() == page
    finally:
        run.sh(f"kill $(pidof httpd); pkill -f 'httpd -p 127.0.0.1:{port}'; rm -r {far}")


@scenario(every=True, switched=True)
def many_connections(run: Runner) -> None:
    """Fifty at the same time, each with its own bytes."""
    with _echo() as port, run.forward(port) as (local, _):
        data = [os.urandom(20_000) for _ in range(50)]
        sockets = [connected(local) for _ in data]
        found: dict[int, bytes] = {}

        def one(number: int) -> None:
            held = bytearray()
            while len(held) < len(data[number]) and (piece := sockets[number].recv(65536)):
                held += piece
            found[number] = bytes(held)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for number, each in enumerate(sockets):
            each.sendall(data[number])
        for thread in threads:
            thread.join()
        for each in sockets:
            each.close()
        assert [found[number] == data[number] for number in range(50)] == [True] * 50


@scenario()
def large(run: Runner) -> None:
    """20 MB there and back over one connection."""
    block = os.urandom(1 << 20)
    with _echo() as port, run.forward(port) as (local, _), connected(local) as wire:

        def send() -> None:
            for _ in range(20):
                wire.sendall(block)

        thread = threading.Thread(target=send)
        thread.start()
        digest, left = hashlib.sha256(), 20 << 20
        while left and (piece := wire.recv(1 << 20)):
            digest.update(piece)
            left -= len(piece)
        thread.join()
        assert left == 0
        assert digest.hexdigest() == hashlib.sha256(block * 20).hexdigest()


@scenario(every=True, switched=True)
def nobody_listens(run: Runner) -> None:
    """A port that nobody listens on: that connection ends, and kubectl says why."""
    with run.forward(free_port()) as (local, process), connected(local) as wire:
        wire.sendall(b"x")
        with contextlib.suppress(ConnectionResetError):
            assert wire.recv(1) == b""
        assert process.stderr is not None
        until(lambda: b"forward" in process.stderr.readline(), "error")  # type: ignore[union-attr]
