"""Attacks with SPDY/3.1 over real sockets: exec and port-forward, header bombs and games with streams."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import zlib
from collections.abc import Mapping

from protocols.kubernetes import spdy_wire
from proxy.core.events import Command
from proxy.core.http import websocket as ws
from proxy.core.verdict import Allow, Deny, Hold, Verdict
from proxy.http.sessions import RUNS_LIMIT
from recorder.tape import Kind
from tests.fakes import FakeApprovals
from tests.kubernetes.attacking import PODS, Asked, Stage, User, request
from tests.kubernetes.test_attacks_kubernetes import run
from tests.kubernetes.test_attacks_kubernetes_streams import granted

FORWARD = f"{PODS}/api/portforward"
TUNNEL = "SPDY/3.1+portforward.k8s.io"


def control(kind: int, body: bytes, flags: int = 0, version: int = 0x8003) -> bytes:
    return version.to_bytes(2, "big") + kind.to_bytes(2, "big") + bytes((flags,)) + len(body).to_bytes(3, "big") + body


def data(stream: int, payload: bytes, fin: bool = False) -> bytes:
    return stream.to_bytes(4, "big") + bytes((1 if fin else 0,)) + len(payload).to_bytes(3, "big") + payload


class Blocks:
    """Header blocks of one direction, ours and not the gate's."""

    def __init__(self) -> None:
        self.packer = zlib.compressobj(9, zlib.DEFLATED, 15, 8, zlib.Z_DEFAULT_STRATEGY, spdy_wire.DICTIONARY)

    def raw(self, block: bytes) -> bytes:
        return self.packer.compress(block) + self.packer.flush(zlib.Z_SYNC_FLUSH)

    def __call__(self, headers: Mapping[str, str]) -> bytes:
        parts = [len(headers).to_bytes(4, "big")]
        for each in (word.encode("latin-1") for pair in headers.items() for word in pair):
            parts += [len(each).to_bytes(4, "big"), each]
        return self.raw(b"".join(parts))

    def open(self, stream: int, headers: Mapping[str, str], flags: int = 0) -> bytes:
        return control(1, stream.to_bytes(4, "big") + bytes(6) + self(headers), flags)

    def pair(self, stream: int, port: str, name: str) -> bytes:
        about = {"port": port, "requestid": name}
        return self.open(stream, {"streamtype": "error", **about}, 1) + self.open(
            stream + 2, {"streamtype": "data", **about}
        )


def upgraded(path: str, protocol: str) -> bytes:
    return request(
        "POST", path, "Content-Length: 0", "Connection: Upgrade", "Upgrade: SPDY/3.1",
        f"X-Stream-Protocol-Version: {protocol}",
    )  # fmt: skip


async def forward(asked: Asked) -> None:
    """A target of port-forward that accepts all and says nothing; rest has what it got, past the WebSocket."""
    asked.say(granted(asked, TUNNEL))
    decoder = ws.Decoder(masked=True)
    with contextlib.suppress(ConnectionError):
        while got := await asked.reader.read(1 << 16):
            asked.rest += b"".join(frame.payload for frame in decoder.feed(got) if frame.opcode < ws.CLOSE)


async def begun(stage: Stage) -> User:
    user = await stage.user()
    user.send(upgraded(FORWARD, "portforward.k8s.io"))
    status, _, _ = await user.head()
    assert status == 101
    return user


def games() -> dict[str, bytes]:
    """What no client sends; each with header blocks of its own."""
    found: dict[str, bytes] = {}
    blocks = Blocks()
    bomb = blocks.raw((1).to_bytes(4, "big") + (4).to_bytes(4, "big") + b"name" + (1 << 30).to_bytes(4, "big"))
    found["a header that is said to be long"] = control(1, (1).to_bytes(4, "big") + bytes(6) + bomb)
    blocks = Blocks()
    zeros = blocks.raw((1).to_bytes(4, "big") + (1).to_bytes(4, "big") + b"n" + (9_000_000).to_bytes(4, "big") +
                       bytes(9_000_000))  # fmt: skip
    found["a header bomb"] = control(1, (1).to_bytes(4, "big") + bytes(6) + zeros)
    blocks = Blocks()
    found["many headers"] = blocks.open(1, {f"h{n}": "" for n in range(300)})
    for port in ("", "0", "65536", "9" * 5000, "8\xb2", "-1", " 80", "0x50", "80 "):
        found[f"the port {port[:9]!r}"] = Blocks().pair(1, port, "0")
    blocks = Blocks()
    found["mismatching ports"] = blocks.open(1, {"streamtype": "error", "port": "80", "requestid": "0"}) + blocks.open(
        3, {"streamtype": "data", "port": "81", "requestid": "0"}
    )
    blocks = Blocks()
    found["the same requestid twice"] = blocks.pair(1, "80", "0") + blocks.pair(5, "80", "0")
    found["an even stream"] = Blocks().pair(2, "80", "0")
    blocks = Blocks()
    found["a stream twice"] = blocks.pair(1, "80", "0") + blocks.pair(1, "80", "1")
    blocks = Blocks()
    found["streams backwards"] = blocks.pair(5, "80", "0") + blocks.pair(1, "80", "1")
    found["another type"] = Blocks().open(1, {"streamtype": "stdin", "port": "80", "requestid": "0"})
    found["one direction"] = Blocks().open(1, {"streamtype": "data", "port": "80", "requestid": "0"}, 2)
    found["data of no stream"] = data(7, b"x")
    found["data on the error stream"] = Blocks().open(
        1, {"streamtype": "error", "port": "80", "requestid": "0"}
    ) + data(1, b"x")
    found["a reset of no stream"] = control(3, (9).to_bytes(4, "big") + (5).to_bytes(4, "big"))
    found["a reply that nobody waits for"] = control(2, (1).to_bytes(4, "big") + Blocks()({}))
    found["a huge control frame"] = control(1, bytes(2_000_000))
    found["another version"] = control(6, bytes(4), version=0x8002)
    found["an unknown frame"] = control(77, b"")
    found["a short ping"] = control(6, b"x")
    found["a broken block"] = control(1, (1).to_bytes(4, "big") + bytes(6) + b"\xff" * 30)
    return found


def test_games_with_streams_end_the_session_and_reach_nobody() -> None:
    async def test(stage: Stage) -> None:
        for name, wire in games().items():
            stage.asked.clear()
            user = await begun(stage)
            user.send(wire)
            await user.rest()
            await stage.until(lambda: stage.served == len(stage.tapes))
            ended = stage.tapes[-1].closed
            assert ended is not None and ended[1] not in ("internal error", ""), (name, ended)
            assert "user" in ended[1] or "SPDY" in ended[1] or "stream" in ended[1], (name, ended)
        connects = [command for command in stage.commands if command.verb == "connect"]
        assert all(command.facts["port"] == 80 for command in connects), connects

    run(test, answer=forward)


def test_a_user_who_resets_the_connection_has_closed_the_session() -> None:
    """kubectl, ended by a signal, resets as often as it closes: that is no failure of the session."""

    async def test(stage: Stage) -> None:
        user = await begun(stage)
        user.send(Blocks().pair(1, "80", "0"))
        await stage.until(lambda: bool(stage.asked and stage.asked[0].rest))
        sock = user.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        user.close()
        await stage.until(lambda: stage.served == len(stage.tapes))
        ended = stage.tapes[-1].closed
        assert ended is not None and ended[0] == "closed", ended

    run(test, answer=forward)


def test_a_thousand_connections_and_no_more() -> None:
    async def test(stage: Stage) -> None:
        user = await begun(stage)
        blocks = Blocks()
        user.send(b"".join(blocks.pair(1 + 4 * n, "80", str(n)) for n in range(1001)))
        await user.rest()
        await stage.until(lambda: stage.served == 1)
        assert stage.tapes[0].closed is not None and "more than 1000" in stage.tapes[0].closed[1]

    run(test, answer=forward)


def test_what_is_refused_gets_no_byte_to_the_pod() -> None:
    """Input behind the streams at once, for a port that is denied, beside one that is allowed."""

    def rule(command: Command) -> Verdict:
        return Deny("no", "not this port") if command.facts.get("port") == 22 else Allow("yes")

    async def test(stage: Stage) -> None:
        user = await begun(stage)
        blocks = Blocks()
        user.send(blocks.pair(1, "22", "0") + data(3, b"evil", True) + blocks.pair(5, "80", "1") + data(7, b"fine"))
        await stage.until(lambda: bool(stage.asked) and b"fine" in stage.asked[0].rest)
        user.send(data(3, b"evil") + data(1, b"", True))
        user.send(data(7, b"more"))
        await stage.until(lambda: b"more" in stage.asked[0].rest)
        assert b"evil" not in stage.asked[0].rest
        assert [each["verdict"] for each in stage.of(Kind.VERDICT)] == ["allow", "deny", "allow"]

    run(test, rule, forward)


def test_held_connections_keep_a_bounded_amount() -> None:
    """Many connections that wait for a human, each with all that its user can send: memory has a bound."""

    def rule(command: Command) -> Verdict:
        return Hold("ask", ("boss",), 60.0) if command.verb == "connect" else Allow("yes")

    async def test(stage: Stage) -> None:
        user = await begun(stage)
        blocks = Blocks()
        approvals = stage.gate.approvals
        assert isinstance(approvals, FakeApprovals)
        user.send(b"".join(blocks.pair(1 + 4 * n, "80", str(n)) for n in range(900)))
        await stage.until(lambda: len(approvals.pending) == 900)
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                for n in range(900):
                    for _ in range(4):
                        user.send(data(3 + 4 * n, b"x" * 16_000))
                        await user.writer.drain()
                        sent += 16_000
        assert sent < 25_000_000, f"{sent} bytes are kept"  # the kernel's buffers hold some ten of them
        assert stage.asked[0].rest.count(b"x" * 100) == 0

    run(test, rule, forward)


def test_half_a_connection_keeps_nothing_for_ever() -> None:
    """A data stream whose error stream never comes is decided on by nobody."""

    async def test(stage: Stage) -> None:
        user = await begun(stage)
        user.send(Blocks().open(1, {"streamtype": "data", "port": "80", "requestid": "0"}))
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 50_000_000 and not stage.served:
                user.send(data(1, b"x" * 60_000))
                await user.writer.drain()
                sent += 60_000
        await stage.until(lambda: stage.served == 1)
        assert stage.tapes[0].closed is not None and "missing" in stage.tapes[0].closed[1]

    run(test, answer=forward)


def test_exec_by_spdy_plays_no_games() -> None:
    """Streams that were not asked for, that come twice, that are reset, that never come."""
    path = f"{PODS}/api/exec?command=cat&stdin=true&stdout=true"

    async def test(stage: Stage) -> None:
        for name in ("twice", "unknown", "status", "bomb", "leaves"):
            user = await stage.user()
            user.send(upgraded(path, "v4.channel.k8s.io"))
            await user.head()
            blocks = Blocks()
            opened = blocks.open(1, {"streamtype": "error"}) + blocks.open(3, {"streamtype": "stdin"})
            match name:
                case "twice":
                    user.send(opened + blocks.open(5, {"streamtype": "stdin"}))
                case "unknown":
                    user.send(opened + blocks.open(5, {"streamtype": "stdinout"}))
                case "status":
                    user.send(
                        opened + blocks.open(5, {"streamtype": "stdout"}) + data(1, b'{"status":"Success"}', True)
                    )
                case "bomb":
                    user.send(opened + games()["a header bomb"])
                case "leaves":
                    user.send(opened + control(7, bytes(8)))
            await user.rest()
            await stage.until(lambda: stage.served == len(stage.tapes))
            ended = stage.tapes[-1].closed
            assert ended is not None and ended[1] != "internal error", (name, ended)

    async def answer(asked: Asked) -> None:
        asked.say(granted(asked))
        with contextlib.suppress(ConnectionError):
            while await asked.reader.read(1 << 16):
                pass

    run(test, answer=answer)


# -- the rest -------------------------------------------------------------------------------------------


def test_runs_without_end_open_no_tapes_without_end() -> None:
    """A run id is the user's word: naming a new one with each request must not keep a tape open for each."""

    async def test(stage: Stage) -> None:
        user = await stage.user()
        for n in range(300):
            user.send(request("GET", PODS, f"Gatecast-Run: run-{n}"))
            assert (await user.answer()).status == 200
        await stage.until(lambda: sum(tape.closed is None for tape in stage.tapes) <= RUNS_LIMIT)
        assert len(stage.tapes) == 300
        assert all(each.closed[0] == "closed" for each in stage.tapes if each.closed is not None)
        user.send(request("GET", PODS, "Gatecast-Run: run-299"))
        assert (await user.answer()).status == 200 and len(stage.tapes) == 300, "the youngest is still there"

    run(test)
