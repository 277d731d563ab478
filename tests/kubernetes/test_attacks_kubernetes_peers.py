"""Attacks on ``gatecast serve`` itself, in front of the stand-in API server: raw TLS, real rules, real tapes.

What they leave is looked at by the gateway's own fixture: no traceback in the log, every tape verifies, no secret.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.gateway import KubeGateway, kube_gateway
from tests.kubernetes.place import tale
from tests.peers.kubernetes import KubeServer

pytestmark = pytest.mark.peer

RULES = """\
rules:
  - name: look
    who: {groups: [dev]}
    commands: {verbs: [get, list, watch, log]}
    allow: true
"""
PODS = "/api/v1/namespaces/default/pods"


@pytest.fixture(scope="module")
def looking(kube: KubeServer) -> Iterator[KubeGateway]:
    """A gateway whose one rule lets ana look."""
    with (
        tempfile.TemporaryDirectory(prefix="gatecast-") as folder,
        kube_gateway(Path(folder) / "gw", kube, RULES) as gateway,
    ):
        yield gateway


def raw(gateway: KubeGateway, data: bytes) -> bytes:
    """One connection, these bytes; all that comes back."""
    context = ssl.create_default_context(cafile=str(gateway.authority))
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        sock.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while piece := sock.recv(1 << 16):
                answer += piece
                if b"HTTP/1.1 101" not in answer and b"\r\n\r\n" in answer and _whole(answer):
                    break
        return answer


def _whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next((line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
    return body.endswith(b"0\r\n\r\n") if length is None else len(body) >= int(length)


def request(gateway: KubeGateway, method: str, path: str, *fields: str, body: bytes = b"") -> bytes:
    lines = [f"{method} /k8s/kube{path} HTTP/1.1", "Host: gate", f"Authorization: Bearer {gateway.token}", *fields]
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1") + body


def code(answer: bytes) -> int:
    return int(answer.split(b" ")[1]) if answer else 0


def seen(kube: KubeServer, mark: int) -> list[tuple[str, str]]:
    return [(str(each.get("method")), str(each.get("path"))) for each in kube.requests(mark)]


def test_who_may_look_does_nothing_else_by_any_trick(kube: KubeServer, looking: KubeGateway) -> None:
    """Deletes behind other requests, in other words, by other paths: none gets to the server."""
    hidden = b"DELETE /api/v1/namespaces/default/pods/api HTTP/1.1\r\nHost: x\r\n\r\n"
    both = ("Content-Length: 0", "Transfer-Encoding: chunked")
    tries: list[tuple[bytes, tuple[int, ...]]] = [
        (request(looking, "DELETE", f"{PODS}/api"), (403,)),
        (request(looking, "GET", PODS, *both) + b"0\r\n\r\n" + hidden, (400,)),
        (request(looking, "GET", PODS, f"Content-Length: {len(hidden)}") + hidden, (400,)),
        (request(looking, "GET", PODS, "X-HTTP-Method-Override: DELETE") + hidden, (200,)),
        (request(looking, "GET", f"{PODS}/api/proxy/x"), (403,)),
        (request(looking, "GET", "/api/v1/nodes/n1/proxy/run/default/api/main?cmd=id"), (403,)),
        (request(looking, "GET", f"{PODS}/api/exec?command=id&stdout=1"), (403,)),
        (request(looking, "GET", "/api/v1/watch/../namespaces/default/secrets"), (400,)),
        (request(looking, "GET", f"{PODS}%2fapi"), (400,)),
        (request(looking, "GET", "/metrics"), (403,)),
        (request(looking, "GET", PODS, "Impersonate-User: system:admin"), (403,)),
        (request(looking, "GET", PODS, "Connection: close, Impersonate-User"), (400,)),
        (request(looking, "PURGE", PODS), (405, 501, 400)),
        (request(looking, "POST", f"{PODS}/api/eviction", "Content-Length: 2", body=b"{}"), (400, 403, 415)),
        (os.urandom(3000), (0, 400)),
        (b"\x16\x03\x01" * 100, (0, 400)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 505)),
    ]
    mark = kube.mark()
    for data, codes in tries:
        answer = raw(looking, data)
        assert code(answer) in codes, (data[:200], answer[:600])
        assert b"Traceback" not in answer and looking.token.encode() not in answer
    assert {method for method, _ in seen(kube, mark)} <= {"GET"}, seen(kube, mark)
    assert len(seen(kube, mark)) <= 1, "what was let through is the one list"


def test_a_denied_stream_is_denied_on_every_way(kube: KubeServer, looking: KubeGateway) -> None:
    mark = kube.mark()
    key = ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    for path in (f"{PODS}/api/exec?command=id&stdout=1", f"{PODS}/api/attach?stdout=1", f"{PODS}/api/portforward"):
        for upgrade in (
            ("Upgrade: websocket", *key, "Sec-WebSocket-Protocol: v5.channel.k8s.io, SPDY/3.1+portforward.k8s.io"),
            ("Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io, portforward.k8s.io"),
        ):
            method = "GET" if "websocket" in upgrade[0] else "POST"
            answer = raw(looking, request(looking, method, path, "Connection: Upgrade", *upgrade))
            assert b"denied" in answer or code(answer) == 403, answer
    assert seen(kube, mark) == []


def test_the_tapes_say_what_was_tried(looking: KubeGateway) -> None:
    raw(looking, request(looking, "DELETE", f"{PODS}/api", "Gatecast-Run: attack", "User-Agent: \x9b2Jx\x85y"))
    tapes: list[Any] = [tale(path) for path in sorted(looking.folder.rglob("*.000.gct"))]
    verbs = {command["verb"] for told in tapes for command in told.commands}
    assert {"delete", "proxy", "exec", "portforward"} <= verbs
    assert all(verdict["verdict"] in ("allow", "deny") for told in tapes for verdict in told.verdicts)
    listed = looking.gatecast("sessions", "list")
    assert listed.returncode == 0 and "\x9b" not in listed.stdout and "\x85" not in listed.stdout
