"""Small tapes of Kubernetes, as protocols/kubernetes writes them: an API session, execs, a copy, a port-forward."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from recorder.format import PAYLOAD_LIMIT
from recorder.tape import ERR, GATE, OUT, USER, Kind, Tape
from tests.recorder.stories import WALL_NS
from tests.recorder.tapes import Clock, open_tape, pack, recorder

PODS = "/api/v1/namespaces/payments/pods"
COLUMNS = ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
ROWS = [["api-7f6d-fghij", "0/1", "CrashLoopBackOff", "14", "52m"], ["db-0", "1/1", "Running", "0", "12d"]]
SHA256 = "5c0e" * 16


class Api:
    """A tape that is being written; its clock stands still until it is told. Flows are counted from 0."""

    def __init__(self, tape: Tape, clock: Clock) -> None:
        self.tape = tape
        self.clock = clock
        self.flow = -1

    def ask(
        self,
        text: str,
        method: str = "GET",
        path: str = PODS,
        *,
        verb: str = "get",
        kind: str = "read",
        body: bytes = b"",
        fields: str = "Content-Type: application/json\r\n",
        objects: tuple[str, ...] = ("payments/pods/*",),
        verdict: str = "allow",
        values: Sequence[str | None] = (),
        estimate: Sequence[float] = (),
        **said: Any,
    ) -> tuple[int, int]:
        """A request, its COMMAND and verdict ("" for none yet); returns the flow and the COMMAND's number."""
        self.flow += 1
        fields = fields if body else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: 10.0.0.1:6443\r\nUser-Agent: kubectl/v1.32\r\n{fields}\r\n"
        data = head.encode() + body
        for at in range(0, len(data), PAYLOAD_LIMIT):
            self.tape.append(USER, Kind.WIRE, data[at : at + PAYLOAD_LIMIT], flow=self.flow)
        entry = {"verb": verb, "kind": kind, "text": text, "objects": list(objects), "flow": self.flow}
        entry |= ({"values": list(values)} if values else {}) | ({"estimate": list(estimate)} if estimate else {})
        n = self.tape.append(USER, Kind.COMMAND, pack(entry), entry)
        if verdict:
            self.verdict(n, verdict, **said)
        return self.flow, n

    def verdict(self, n: int, verdict: str = "allow", **said: Any) -> None:
        entry = {"command": n, "verdict": verdict, "rule": "readers", **said}
        if verdict == "deny":
            entry = {"reason": "not from here", **entry, "rule": "keep-out"}
        self.tape.append(GATE, Kind.VERDICT, pack(entry), entry)

    def approval(self, n: int, **said: Any) -> None:
        self.tape.append(GATE, Kind.APPROVAL, pack({"command": n, "id": "A7", **said}))

    def head(self, flow: int, status: str = "200 OK", content_type: str = "application/json", more: str = "") -> None:
        text = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{more}\r\n"
        self.tape.append(OUT, Kind.WIRE, text.encode(), flow=flow)

    def body(self, flow: int, data: bytes) -> None:
        self.tape.append(OUT, Kind.WIRE, data, flow=flow)

    def result(self, n: int, flow: int, status: int = 200, tag: str = "200 OK", **said: Any) -> None:
        entry = {"command": n, "tag": tag, "count": 0, "bytes": 0, "flow": flow, "status": status, "sent": 0, **said}
        self.tape.append(GATE, Kind.RESULT, pack(entry))

    def answer(
        self, asked: tuple[int, int], body: bytes, took_ms: float = 31, status: str = "200 OK", **said: Any
    ) -> None:
        """The whole answer to a request, and its RESULT."""
        flow, n = asked
        self.clock.pass_ms(took_ms)
        self.head(flow, status, said.pop("content_type", "application/json"))
        if body:
            self.body(flow, body)
        self.result(n, flow, int(status[:3]), status, **{"bytes": len(body), **said})

    def table(self, text: str = "kubectl get pods -l app=api", **said: Any) -> None:
        """A list, as kubectl gets it."""
        document = json.dumps({"kind": "Table", "rows": []}).encode()
        rows = said.pop("rows", ROWS)
        asked = self.ask(text, path=f"{PODS}?labelSelector=app%3Dapi&limit=500", verb="list")
        self.answer(asked, document, columns=COLUMNS, rows=rows, count=said.pop("count", len(rows)), **said)


def write(
    directory: Path,
    tell: Callable[[Api], Awaitable[None] | None],
    *,
    close: bool = True,
    http: bool = True,
    protocol: str = "kubernetes",
) -> Path:
    """Write a tape by a story; return its first segment."""
    clock, wall = Clock(), Clock()
    wall.ns = WALL_NS
    on = recorder(directory, monotonic_ns=clock, wall_ns=wall)

    async def scenario() -> Path:
        identity = {"subject": "leo@acme", "agents": ["sre-bot"]}
        more: dict[str, Any] = {"http": True} if http else {}
        tape = open_tape(on, "written", protocol=protocol, identity=identity, target="prod", more=more)
        first = tape.path
        told = tell(Api(tape, clock))
        if told is not None:
            await told
        await tape.written()
        if close:
            await tape.close("closed", "idle")
        return first

    return asyncio.run(scenario())


def event(kind: str, name: str, what: str = "ADDED", **more: Any) -> bytes:
    """A line of a watch."""
    thing = {"kind": kind, "metadata": {"name": name, "namespace": "payments"}, **more}
    return json.dumps({"type": what, "object": thing}).encode() + b"\n"


def status(code: int, reason: str, message: str) -> bytes:
    """A metav1.Status."""
    return json.dumps(
        {"kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": code}
    ).encode()


def discovery(api: Api, count: int = 3) -> None:
    for i in range(count):
        path = f"/apis/group{i}/v1"
        asked = api.ask(f"GET {path}", path=path, verb="discover", objects=(path,))
        if i == 2:
            api.answer(asked, status(503, "ServiceUnavailable", "not ready"), 1, "503 Service Unavailable")
        else:
            api.answer(asked, b'{"kind": "APIResourceList"}', 1)


def day(api: Api) -> None:
    """A bit of everything that an agent does in a day."""
    api.tape.append(USER, Kind.INTENT, pack({"text": "why does api crash"}))
    discovery(api)
    api.table(count=60)
    for i in range(5):
        api.clock.pass_ms(5000)
        api.table(rows=ROWS[: 1 if i == 3 else 2], count=60)
    log = f"{PODS}/api-7f6d-fghij/log?follow=true&tailLines=10"
    of_log = ("payments/pods/api-7f6d-fghij",)
    flow, n = api.ask("kubectl logs -f api-7f6d-fghij --tail=10", path=log, verb="log", objects=of_log)
    api.clock.pass_ms(8)
    api.head(flow, content_type="text/plain")
    for i in range(3):
        api.body(flow, f"line {i} of the log\n".encode())
        api.clock.pass_ms(700)
    api.body(flow, b"half a ")
    api.clock.pass_ms(700)
    api.body(flow, b"line\n")
    api.result(n, flow, bytes=70)
    gone = api.ask("kubectl get pod gone", path=f"{PODS}/gone", objects=("payments/pods/gone",))
    api.answer(gone, status(404, "NotFound", 'pods "gone" not found'), 3, "404 Not Found",
               error={"code": "404", "reason": "NotFound", "message": 'pods "gone" not found'})  # fmt: skip
    secret = api.ask("kubectl get secret db -o yaml", path="/api/v1/namespaces/payments/secrets/db",
                     objects=("payments/secrets/db",), masks=["secrets"])  # fmt: skip
    body = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "db", "managedFields": [{"a": 1}] * 9},
            "data": {"password": "W21hc2tlZF0="}, "type": "Opaque"}  # fmt: skip
    api.answer(secret, json.dumps(body).encode(), 4)
    patch = b'{"spec": {"replicas": 3}}'
    scale, n = api.ask("kubectl scale deployment/api --replicas=3", "PATCH",
                    "/apis/apps/v1/namespaces/payments/deployments/api", verb="patch", kind="write", body=patch,
                    objects=("payments/deployments.apps/api",), verdict="")  # fmt: skip
    api.approval(n, state="pending", rule="writes", approvers=["group:oncall"])
    api.clock.pass_ms(41_000)
    api.approval(n, state="approved", by="mia@acme", reason="ok #812")
    api.verdict(n, rule="writes", approval="A7")
    answer = {"kind": "Deployment", "metadata": {"name": "api", "namespace": "payments"}}
    api.answer((scale, n), json.dumps(answer).encode(), 12)
    flow, _ = api.ask("kubectl delete namespace payments", "DELETE", "/api/v1/namespaces/payments", verb="delete",
                      kind="delete", objects=("-/namespaces/payments",), verdict="deny")  # fmt: skip
    api.head(flow, "403 Forbidden")
    api.body(flow, status(403, "Forbidden", "gatecast: keep-out"))
    flow, n = api.ask("kubectl get pods -w", path=f"{PODS}?watch=true", verb="watch")
    api.head(flow)
    api.body(flow, event("Pod", "api-7f6d", status={"phase": "Pending"}))
    other = api.ask("kubectl get pod db-0", path=f"{PODS}/db-0", objects=("payments/pods/db-0",))
    api.clock.pass_ms(900)
    line = event("Pod", "api-7f6d", "MODIFIED", status={"phase": "Running"})
    api.body(flow, line[:20])
    api.answer(other, b"k8s\x00\x0a\x02v1" * 40, content_type="application/vnd.kubernetes.protobuf")
    api.body(flow, line[20:] + event("Pod", "api-7f6d", "DELETED"))
    api.result(n, flow, bytes=300)


def copy_out(api: Api) -> None:
    """kubectl cp from a pod: two files, whose bytes are not on the tape."""
    entry = {"verb": "copy-out", "kind": "transfer", "text": "kubectl cp -n payments api:/var/log .", "flow": 0,
             "objects": ["payments/pods/api"]}  # fmt: skip
    n = api.tape.append(USER, Kind.COMMAND, pack(entry), entry)
    api.verdict(n)
    api.clock.pass_ms(500)
    for name, size in (("log/access.log", 12_900_000), ("log/error.log", 0)):
        said = {"command": n, "tag": "file", "count": 0, "bytes": size, "path": name, "direction": "download"}
        api.tape.append(GATE, Kind.RESULT, pack({**said, "size": size, "complete": True, "sha256": SHA256}))
    folder = {"command": n, "tag": "directory", "path": "log/old", "direction": "download", "size": 0}
    api.tape.append(GATE, Kind.RESULT, pack({**folder, "count": 0, "bytes": 0, "complete": True}))
    api.tape.append(ERR, Kind.WIRE, b"tar: removing leading '/'\n", flow=0)
    said = {"command": n, "tag": "exit 0", "count": 0, "bytes": 12_904_448, "sent": 0, "flow": 0, "exit": 0}
    api.tape.append(GATE, Kind.RESULT, pack(said))


def an_exec(api: Api) -> None:
    """kubectl exec -it: the size comes behind the command; lines are read off the terminal."""
    entry = {"verb": "exec", "kind": "execute", "text": "kubectl exec -it api -c api -- sh", "flow": 0,
             "objects": ["payments/pods/api"]}  # fmt: skip
    n = api.tape.append(USER, Kind.COMMAND, pack(entry), entry)
    api.verdict(n)
    api.tape.append(GATE, Kind.RESIZE, pack([120, 40]), flow=0)
    api.tape.append(OUT, Kind.WIRE, b"\x1b[32m/app\x1b[0m # ", flow=0)
    api.clock.pass_ms(1000)
    api.tape.append(USER, Kind.WIRE, b"ls", flow=0)
    line = {"verb": "line", "kind": "execute", "text": "ls", "flow": 0, "exact": False}
    typed = api.tape.append(USER, Kind.COMMAND, pack(line), line)
    api.verdict(typed)
    api.tape.append(OUT, Kind.WIRE, b"ls\r\n\x1b[34mbin\x1b[0m\r\n\x1b[32m/app\x1b[0m # ", flow=0)
    api.clock.pass_ms(2000)
    api.tape.append(GATE, Kind.RESIZE, pack([100, 30]), flow=0)
    said = {"command": n, "tag": "exit 0", "count": 0, "bytes": 60, "sent": 3, "flow": 0, "exit": 0}
    api.tape.append(GATE, Kind.RESULT, pack(said))


def forward(api: Api) -> None:
    """kubectl port-forward: two connections through it, one of which is denied."""
    entry = {"verb": "portforward", "kind": "session", "text": "kubectl port-forward -n payments pod/db-0",
             "objects": ["payments/pods/db-0"]}  # fmt: skip
    session = api.tape.append(USER, Kind.COMMAND, pack(entry), entry)
    api.verdict(session)
    for flow, port in enumerate((5432, 22)):
        said = {"verb": "connect", "kind": "transfer", "text": f"connect to port {port} of pod db-0", "flow": flow,
                "objects": ["payments/pods/db-0"]}  # fmt: skip
        n = api.tape.append(USER, Kind.COMMAND, pack(said), said)
        api.verdict(n, "deny" if port == 22 else "allow")
        if port == 22:
            continue
        api.tape.append(USER, Kind.WIRE, b"\x00\x00\x00\x08", flow=flow)
        api.tape.append(OUT, Kind.WIRE, b"N", flow=flow)
        api.clock.pass_ms(4000)
        api.tape.append(
            GATE, Kind.RESULT,
            pack({"command": n, "tag": "closed", "count": 0, "bytes": 3_145_728, "sent": 12_288, "flow": flow}),
        )  # fmt: skip
    api.tape.append(GATE, Kind.RESULT, pack({"command": session, "tag": "closed", "count": 0, "bytes": 0}))
