"""Kubernetes' part in the conformance suite: an API server that knows the suite's vocabulary, and a user of HTTP/1.1.

A word is one request, and travels as a label selector: ``GET .../configmaps?labelSelector=/* read 7 */`` lists one
ConfigMap, ``DELETE`` of the same is a write, ``GET .../pods/bulk-3/log`` is text; a write too long for that is the
body of a POST. The API server speaks TLS and wants the gate's bearer token. All its answers are chunked, so that the
message that is on the tape (without transfer coding) is what both ends can compare: status line, fields, body.

What HTTP cannot say, and what stands for it here:
- a hold is silent until it is decided (a 1xx answer would break clients): note() reads the approval itself;
- nothing comes unasked: the remark of "later" is a Warning of the next answer. A remark is a Warning of the target's,
  never one of the gate's;
- the gate's answer in the place of a target that failed is a 503, after which a client may go on; this one hangs up.
Each user has a run of its own, so that each has a tape of its own. There are no transactions.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import ssl
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

from protocols.kubernetes import PROTOCOL
from protocols.kubernetes.commands import Conversation
from protocols.kubernetes.exchange import BODY_LIMIT
from protocols.kubernetes.request_info import read_path
from proxy.certificates import self_signed
from proxy.core.errors import PeerError
from proxy.core.gate import Gate
from proxy.core.http.heads import RequestHead
from proxy.core.parties import Identity, Target
from proxy.core.stream import MemoryStream
from proxy.policy.shell import read_shell
from tests.conformance import CANARY, FLOOD_BYTES, Reply
from tests.fakes import SECRET, FakeApprovals

KEEP_BYTES = 1 << 20
SELECTED_LIMIT = 1_000  # characters of a word that goes into a path
_CONFIGMAPS = "/api/v1/namespaces/shop/configmaps"
_LOG = re.compile(r"/api/v1/namespaces/shop/pods/([a-z]+)-(\d+)/log")
_SELECTED = re.compile(r"/\* (.*) \*/")
_BEFORE, _BEHIND = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"write-x"},"data":{"word":"', b'"}}'
_READ_BYTES = 64 * 1024
# Both lengths of a body at once: what smuggles requests past a gate that does not refuse it. RFC 9112 6.3.
_SMUGGLED = (
    b"POST /k8s/shop/api/v1/namespaces/shop/configmaps HTTP/1.1\r\nHost: gate\r\nContent-Length: 4\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nDELETE /write 1 HTTP/1.1\r\n\r\n"
)
_runs: Final = itertools.count()


@dataclass(frozen=True, slots=True)
class Asked:
    """The request of a word."""

    method: str
    path: str
    body: bytes = b""


def asked(word: str) -> Asked:
    """The request of a word."""
    verb, _, number = word.partition(" ")
    if len(word) > SELECTED_LIMIT:
        return Asked("POST", _CONFIGMAPS, _BEFORE + number.encode() + _BEHIND)
    if verb == "bulk":
        return Asked("GET", f"/api/v1/namespaces/shop/pods/bulk-{number}/log")
    path = f"{_CONFIGMAPS}?labelSelector={quote(f'/* {word} */', safe='')}"
    return Asked("DELETE" if verb == "write" else "GET", path)


def word_of(method: str, path: str, body: bytes) -> str:
    """The word of a request, "" if it has none."""
    if method == "POST":
        return "write " + body[len(_BEFORE) : len(body) - len(_BEHIND)].decode()
    found = _LOG.fullmatch(path)
    if found is not None:
        return f"{found[1]} {found[2]}"
    selected = _SELECTED.search(unquote(path))
    return selected[1] if selected is not None else ""


def status_document(code: int, message: str) -> bytes:
    state = "Success" if code < 400 else "Failure"
    return json.dumps(
        {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": state, "message": message, "code": code}
    ).encode()


def listed(number: str) -> bytes:
    """A list of one ConfigMap, with a number and an address."""
    item = {"metadata": {"name": f"read-{number}", "namespace": "shop"}, "data": {"id": number, "email": CANARY}}
    return json.dumps({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {}, "items": [item]}).encode()


class Head:
    """First line and fields of a message, as they came; names in lower case."""

    def __init__(self, data: bytes) -> None:
        first, *rest = data.decode("latin-1").split("\r\n")
        self.first = first
        self.fields = [
            (name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in rest if line)
        ]
        self.lines = rest

    def get(self, name: str) -> str | None:
        return next((value for found, value in self.fields if found == name), None)

    def taped(self) -> bytes:
        """The head without what frames the message: as it is on the tape."""
        framing = ("transfer-encoding", "connection", "keep-alive")
        kept = [line for line in self.lines if line and line.partition(":")[0].lower() not in framing]
        return "".join(f"{line}\r\n" for line in (self.first, *kept, "")).encode("latin-1")


Read = Callable[[], Coroutine[Any, Any, bytes]]


class Messages:
    """HTTP messages from a source of bytes: heads, and bodies piece by piece."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._rest = bytearray()

    async def _more(self) -> None:
        data = await self._read()
        if not data:
            raise EOFError
        self._rest += data

    async def _until(self, mark: bytes) -> bytes:
        while (end := self._rest.find(mark)) < 0:
            await self._more()
        found = bytes(self._rest[:end])
        del self._rest[: end + len(mark)]
        return found

    async def head(self) -> Head:
        """The next head. Raises EOFError."""
        return Head(await self._until(b"\r\n\r\n"))

    async def body(self, head: Head) -> AsyncIterator[bytes]:
        """The body of a message, without its transfer coding. Raises EOFError where it is cut off."""
        if head.get("transfer-encoding") == "chunked":
            while size := int(await self._until(b"\r\n"), 16):
                async for piece in self._fixed(size):
                    yield piece
                await self._until(b"\r\n")
            await self._until(b"\r\n")
            return
        async for piece in self._fixed(int(head.get("content-length") or 0)):
            yield piece

    async def _fixed(self, size: int) -> AsyncIterator[bytes]:
        while size:
            if not self._rest:
                await self._more()
            piece = bytes(self._rest[:size])
            del self._rest[: len(piece)]
            size -= len(piece)
            yield piece

    async def to_end(self) -> None:
        """Read until the connection is over."""
        with contextlib.suppress(EOFError):
            while True:
                self._rest.clear()
                await self._more()


class Server:
    """See tests/conformance.Backend."""

    def __init__(self) -> None:
        self.target = Target("shop", "kubernetes")
        self.commands: list[str] = []
        self.connections = 0
        self.received = bytearray()
        self.sent = bytearray()
        self.sent_bytes = 0
        self.secret_seen = False
        self.on_command: Any = None
        self._late = ""
        self._open: set[asyncio.StreamWriter] = set()
        self._over = asyncio.Event()
        self._quiet = asyncio.Event()

    async def close(self) -> None:
        """End all connections."""
        self._over.set()
        for writer in self._open:
            writer.transport.abort()
        while self._open:
            self._quiet.clear()
            await self._quiet.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of the gate."""
        self._open.add(writer)
        self.connections += 1
        messages = Messages(lambda: reader.read(_READ_BYTES))
        try:
            with contextlib.suppress(EOFError, ConnectionError, ssl.SSLError):
                while await self._exchange(messages, writer):
                    pass
        finally:
            self._open.discard(writer)
            self._quiet.set()
            writer.transport.abort()

    async def _exchange(self, messages: Messages, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; returns whether another may follow."""
        head = await messages.head()
        body = b"".join([piece async for piece in messages.body(head)])
        method, path, _ = head.first.split(" ")
        if head.get("authorization") != f"Bearer {SECRET}":
            await self._say(writer, 401, [status_document(401, "Unauthorized")], kept=False)
            return True
        self.secret_seen = True
        word = word_of(method, path, body)
        if not word:
            version = b'{"major":"1","minor":"34","gitVersion":"v1.34.0"}'
            await self._say(writer, 200, [version], kept=False)
            return True
        self.received += f"{method} {path}\n".encode() + body
        self.commands.append(word)
        self.on_command(word)
        return await self._answer(word, writer)

    async def _answer(self, word: str, writer: asyncio.StreamWriter) -> bool:
        verb, _, number = word.partition(" ")
        late, self._late = self._late, ""
        warning = f"by the way {late}" if late else ""
        match verb:
            case "read":
                await self._say(writer, 200, [listed(number)], warning)
            case "write" | "begin" | "end":
                await self._say(writer, 200, [status_document(200, "")], warning)
            case "notice":
                await self._say(writer, 200, [status_document(200, "")], f"seen {CANARY}")
            case "later":
                self._late = CANARY
                await self._say(writer, 200, [status_document(200, "")])
            case "bulk":
                await self._say(writer, 200, [f"1 {CANARY}\n".encode() * 3], warning, "text/plain")
            case "error":
                await self._say(writer, 409, [status_document(409, f"duplicate key ({CANARY})")], warning)
            case "secret":
                await self._say(writer, 500, [status_document(500, f"I was given {SECRET}")], warning)
            case "flood":
                row = b"x" * 400 + b"\t" + b"y" * 622 + b"\n"
                await self._say(writer, 200, itertools.repeat(row, FLOOD_BYTES // len(row)), warning, "text/plain")
            case "garbage":
                writer.write(b"HELO I am no API server\r\n\r\n")
                await writer.drain()
                return False
            case "stall":
                await self._over.wait()
            case _:
                await self._say(writer, 404, [status_document(404, "that did not work")], warning)
        return True

    async def _say(
        self,
        writer: asyncio.StreamWriter,
        code: int,
        pieces: Any,
        warning: str = "",
        content_type: str = "application/json",
        *,
        kept: bool = True,
    ) -> None:
        phrase = {200: "OK", 401: "Unauthorized", 404: "Not Found", 409: "Conflict", 500: "Internal Server Error"}[code]
        lines = [f"HTTP/1.1 {code} {phrase}", f"Content-Type: {content_type}"]
        if warning:
            lines.append(f'Warning: 299 - "{warning}"')
        head = "".join(f"{line}\r\n" for line in lines).encode()
        self._note(head + b"\r\n", kept)
        writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            self._note(piece, kept)
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _note(self, data: bytes, kept: bool) -> None:
        """Keep what is said behind the login."""
        if not kept:
            return
        self.sent_bytes += len(data)
        if len(self.sent) < KEEP_BYTES:
            self.sent += data


class User:
    """See tests/conformance.Caller."""

    def __init__(self, stream: MemoryStream, token: str, target: str, approvals: FakeApprovals | None) -> None:
        self._stream = stream
        self._token = token
        self._target = target
        self._run = f"run-{next(_runs)}"
        self._approvals = approvals
        self._told = 0
        self._messages = Messages(self._read)
        self._outgoing: deque[bytes] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._before = bytearray()  # what came to the login
        self._listener: Any = None
        self.logged_in = False
        self.sent = bytearray()
        self.heard = bytearray()

    @property
    def on_heard(self) -> Any:
        return self._listener

    @on_heard.setter
    def on_heard(self, listener: Any) -> None:
        """Who listens hears of the login first: it is on the tape as well."""
        self._listener = listener
        listener(bytes(self._before))

    async def _read(self) -> bytes:
        try:
            return await self._stream.read(_READ_BYTES)
        except PeerError:
            return b""

    # -- asking ---------------------------------------------------------------------------------------

    async def say(self, *words: str) -> None:
        for word in words:
            request = asked(word)
            self.sent += f"{request.method} {request.path}\n".encode() + request.body
            self._send(self._wire(request))

    def _wire(self, request: Asked) -> bytes:
        lines = [
            f"{request.method} /k8s/{self._target}{request.path} HTTP/1.1",
            "Host: gate.example.com",
            f"Authorization: Bearer {self._token}",
            "Accept: application/json",
            f"Gatecast-Run: {self._run}",
        ]
        if request.body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(request.body)}"]
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode() + request.body

    def _send(self, data: bytes) -> None:
        """Queue it: whoever asks does not wait for the gate to read."""
        self._outgoing.append(data)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        with contextlib.suppress(PeerError):
            while self._outgoing:
                await self._stream.write(self._outgoing.popleft())

    async def violate(self) -> None:
        self._send(_SMUGGLED)

    # -- hearing --------------------------------------------------------------------------------------

    def _heard(self, data: bytes) -> None:
        if not self.logged_in:
            self._before += data
            return
        if self._listener is not None:
            self._listener(data)
        if len(self.heard) < KEEP_BYTES:
            self.heard += data

    async def hear(self) -> Reply:
        reply = Reply()
        try:
            head = await self._messages.head()
        except EOFError:
            reply.ended, reply.error = True, "the connection ended"
            return reply
        last_word = bytearray()  # of a 503, which may be the gate's own that needs no tape, for there is none
        code = head.first.split(" ")[1]
        tell = last_word.extend if code == "503" else self._heard
        if code == "400" and head.get("connection") == "close":
            tell = self._before.extend  # what was no request belongs to no session
        tell(head.taped())
        body = bytearray()
        try:
            async for piece in self._messages.body(head):
                tell(piece)
                if len(body) < KEEP_BYTES:
                    body += piece
        except EOFError:
            reply.ended, reply.error = True, KubernetesAdapter.cut[0]
        reply.raw = bytes(body)
        self._understand(head, bytes(body), reply)
        if "recorded" not in reply.error:
            self._heard(bytes(last_word))
        if reply.ended or head.get("connection") == "close" or self._gates_own(head, reply):
            reply.ended = True
            await self._hang_up()
        return reply

    @staticmethod
    def _gates_own(head: Head, reply: Reply) -> bool:
        """Whether the gate answers in the place of a target that failed."""
        return head.first.split(" ")[1] == "503" and "gatecast" in reply.error

    async def _hang_up(self) -> None:
        await self._stream.close()

    @staticmethod
    def _understand(head: Head, body: bytes, reply: Reply) -> None:
        code = int(head.first.split(" ")[1])
        warnings = [value for name, value in head.fields if name == "warning"]
        reply.notes = [text.partition('"')[2].rstrip('"') for text in warnings if not text.startswith("299 gatecast ")]
        if reply.ended:
            return
        if head.get("content-type") == "text/plain":
            reply.cells = [cell for line in body.decode().splitlines() for cell in line.split(" ")]
            return
        document = json.loads(body) if body else {}
        if code >= 400:
            reply.error = str(document.get("message") or code)
        for item in document.get("items", ()):
            reply.cells += item.get("data", {}).values()

    async def note(self) -> str:
        assert self._approvals is not None
        while len(self._approvals.pending) <= self._told:
            await asyncio.sleep(0)
        pending = self._approvals.pending[self._told]
        self._told += 1
        return f"{pending.id} by {pending.hold.rule}"


class Kept:
    """Residents of a test: tasks that are ended with the stage."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    def start(
        self, protocol: str, listener: str, identity: Identity, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work())
        self.tasks.append(task)
        return task


class KubernetesAdapter:
    """See tests/conformance.Adapter."""

    protocol = PROTOCOL
    limit = BODY_LIMIT
    streams = True
    cut = ("the connection ended in the middle of an answer", "the connection ended")
    transactions = False

    def __init__(self) -> None:
        self._kept: Kept | None = None
        self._approvals: FakeApprovals | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"plain_allowed": True, "login_seconds": 10.0}

    @contextlib.asynccontextmanager
    async def backend(self) -> AsyncIterator[Server]:
        backend = Server()
        with _certificate() as folder:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
            context.set_alpn_protocols(["http/1.1"])
            server = await asyncio.start_server(backend.serve, "127.0.0.1", 0, ssl=context)
            settings = {"ca_file": str(folder / "tls.crt"), "server_name": "localhost"}
            port = server.sockets[0].getsockname()[1]
            backend.target = Target("shop", "kubernetes", host="127.0.0.1", port=port, settings=settings)
            try:
                yield backend
            finally:
                await self._end()
                server.close()
                await backend.close()

    async def _end(self) -> None:
        """The gateway stops: sessions that wait for a next request are over."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.stopping.set()
            await asyncio.gather(*kept.tasks, return_exceptions=True)

    def prepare(self, gate: Gate) -> None:
        self._kept = Kept()
        object.__setattr__(gate, "shell", read_shell)
        object.__setattr__(gate, "residents", self._kept)
        self._approvals = gate.approvals if isinstance(gate.approvals, FakeApprovals) else None

    async def login(self, user: MemoryStream, token: str, target: str) -> User | str:
        """Ask for the version, as every client does first."""
        made = User(user, token, target, self._approvals)
        made._send(made._wire(Asked("GET", "/version")))
        reply = await made.hear()
        made.logged_in = True
        return reply.error or made

    def text(self, word: str) -> str:
        request = asked(word)
        fields = (("Content-Type", "application/json"), ("Content-Length", str(len(request.body))))
        head = RequestHead(
            request.method, f"/k8s/shop{request.path}", fields if request.body else (), length=len(request.body)
        )
        conversation = Conversation(Target("shop", "kubernetes"), 0, read_shell)
        return conversation.from_user(head, read_path(request.path, request.method), request.body).text

    def sized(self, size: int) -> str:
        return "write " + "x" * (size - len(_BEFORE) - len(_BEHIND))

    def own_words(self, data: bytes) -> bool:
        return True


@contextlib.contextmanager
def _certificate() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gatecast-") as name:
        self_signed(Path(name), ["localhost"])
        yield Path(name)


ADAPTER = KubernetesAdapter()
