"""Attacks on exec, attach and port-forward over real sockets: WebSocket and SPDY, from either end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from proxy.core.http import websocket as ws
from proxy.core.verdict import Allow, Deny, Hold, Mask
from proxy.masking import Masking
from recorder.tape import Kind
from tests.fakes import FakeApprovals
from tests.kubernetes.attacking import EXEC, PATIENCE_SECONDS, PODS, Asked, Stage, User, ok, request, upgrade
from tests.kubernetes.test_attacks_kubernetes import run

CANARY = "hunter2-unseen"
MASKING = Masking(b"k" * 32, {"canary": "hunter2[^ \n]*"})
SUCCESS = b'{"metadata":{},"status":"Success"}'
STDIN = f"{PODS}/api/exec?command=cat&stdin=true&stdout=true&stderr=true"
TTY = f"{PODS}/api/exec?command=bash&stdin=true&stdout=true&tty=true"
FORWARD = f"{PODS}/api/portforward"


def granted(asked: Asked, protocol: str = "v5.channel.k8s.io") -> bytes:
    """The target's 101."""
    accept = ws.accept_key(asked.get("sec-websocket-key") or "")
    lines = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade",
             f"Sec-WebSocket-Accept: {accept}", f"Sec-WebSocket-Protocol: {protocol}")  # fmt: skip
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def message(channel: int, data: bytes, *, mask: bool = False, fin: bool = True) -> bytes:
    return ws.encode(ws.BINARY, bytes((channel,)) + data, mask, fin)


class Frames:
    """Frames that a user gets."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.decoder = ws.Decoder(masked=False)
        self.channels: dict[int, bytes] = {}
        self.close: tuple[int, str] | None = None
        self.pongs = 0

    async def all(self) -> None:
        """Everything, to the end of the stream; a Close is answered by leaving."""
        data = bytes(self.user.buffer)
        self.user.buffer.clear()
        with contextlib.suppress(EOFError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self.close is None:
                    self._take(data)
                    if self.close is None:
                        await self.user._more()
                        data = bytes(self.user.buffer)
                        self.user.buffer.clear()
        self.user.close()

    def _take(self, data: bytes) -> None:
        for frame in self.decoder.feed(data):
            if frame.opcode == ws.CLOSE:
                self.close = ws.decode_close(frame.payload)
            elif frame.opcode == ws.PONG:
                self.pongs += 1
            elif frame.payload:
                channel = frame.payload[0]
                self.channels[channel] = self.channels.get(channel, b"") + frame.payload[1:]

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.channels[3])
        return found


async def let_in(stage: Stage, path: str = EXEC, **more: Any) -> User:
    user = await stage.user()
    user.send(upgrade(path, **more))
    status, _, raw = await user.head()
    assert status == 101, (raw, bytes(user.buffer))
    return user


def echoing(say: bytes = b"") -> Any:
    """A target that grants, notes what it gets until its end, and then says so much."""

    async def answer(asked: Asked) -> None:
        asked.say(granted(asked) + message(1, b"") + say)
        with contextlib.suppress(ConnectionError):
            while data := await asked.reader.read(1 << 16):
                asked.rest += data

    return answer


# -- a user's WebSocket ---------------------------------------------------------------------------------

BAD_FRAMES: dict[str, bytes] = {
    "unmasked": message(0, b"x"),
    "reserved bits": b"\xc2\x80" + bytes(4),
    "an unknown opcode": b"\x83\x80" + bytes(4),
    "an unknown control": b"\x8b\x80" + bytes(4),
    "a fragmented ping": b"\x09\x80" + bytes(4),
    "a long ping": b"\x89\xfe\x01\x2c" + bytes(4) + b"x" * 300,
    "a continuation of nothing": b"\x80\x81" + bytes(4) + b"x",
    "a message in a message": message(0, b"a", mask=True, fin=False) + message(0, b"b", mask=True),
    "a length that is too long in form": b"\x82\xfe\x00\x01" + bytes(4) + b"\x00",
    "a negative length": b"\x82\xff" + b"\xff" * 8 + bytes(4),
    "stdout": message(1, b"x", mask=True),
    "the status": message(3, SUCCESS, mask=True),
    "an unknown channel": message(9, b"x", mask=True),
    "a channel beyond": message(200, b"x", mask=True),
    "a half-close of nothing": message(255, b"", mask=True),
    "a half-close of two": message(255, b"\x00\x00", mask=True),
    "a half-close of an unknown": message(255, b"\x09", mask=True),
    "input behind its end": message(255, b"\x00", mask=True) + message(0, b"x", mask=True),
    "a close of one byte": b"\x88\x81" + bytes(4) + b"x",
    "a close with a forbidden code": b"\x88\x82" + bytes(4) + (1005).to_bytes(2, "big"),
    "HTTP": request("DELETE", PODS),
}


def test_frames_that_are_none_end_their_stream_and_pass_nothing() -> None:
    async def test(stage: Stage) -> None:
        for name, data in BAD_FRAMES.items():
            stage.asked.clear()
            user = await let_in(stage, STDIN)
            await stage.until(lambda: bool(stage.asked))
            user.send(data)
            frames = Frames(user)
            await frames.all()
            await stage.until(lambda: stage.served == len(stage.tapes))
            assert len(stage.asked) == 1
            decoder = ws.Decoder(masked=True)
            passed = [frame.payload for frame in decoder.feed(stage.asked[0].rest) if frame.opcode < ws.CLOSE]
            allowed = {b"", b"\xff\x00", b"\x00a"}
            assert {bytes(each) for each in passed} <= allowed, (name, passed)
            stage_tape = stage.tapes[-1]
            assert stage_tape.closed is not None and stage_tape.closed[1] != "internal error", (name, stage_tape.closed)
        assert [each["status"] for each in stage.of(Kind.RESULT) if "status" in each] == []

    run(test, answer=echoing())


def test_nothing_passes_before_the_verdict() -> None:
    """Input, sizes and ends that come behind the handshake at once wait for the human, bounded."""

    async def test(stage: Stage) -> None:
        approvals = stage.gate.approvals
        assert isinstance(approvals, FakeApprovals)
        user = await stage.user()
        early = message(0, b"rm -rf /\r", mask=True) + message(4, b'{"Width":1,"Height":1}', mask=True)
        user.send(upgrade(TTY) + early * 3)
        await stage.until(lambda: bool(approvals.pending))
        assert stage.connections == 0
        approvals.pending[0].decide("denied", "boss")
        frames = Frames(user)
        await user.head()
        await frames.all()
        assert stage.connections == 0 and frames.status["status"] == "Failure"
        # More than is kept of it ends the question.
        flood = await stage.user()
        flood.send(upgrade(TTY) + message(0, b"x" * 30_000, mask=True) * 4)
        await flood.head()
        await stage.until(lambda: len(approvals.pending) == 2)
        await Frames(flood).all()
        assert stage.connections == 0
        states = [each["state"] for each in stage.of(Kind.APPROVAL)]
        assert states == ["pending", "denied", "pending", "withdrawn"], states
        sizes = await stage.user()
        sizes.send(upgrade(TTY))
        await sizes.head()
        await stage.until(lambda: len(approvals.pending) == 3)
        sizes.send(b"".join(message(4, b'{"Width":%d,"Height":1}' % (n + 1), mask=True) for n in range(3000)))
        await Frames(sizes).all()
        assert stage.connections == 0 and stage.of(Kind.APPROVAL)[-1]["state"] == "withdrawn"

    run(test, lambda command: Hold("ask", ("boss",), 60.0))


def test_pings_of_a_user_who_reads_nothing_take_no_memory() -> None:
    """A flood of pings is answered as fast as its answers are read, and by nobody else's time."""

    async def test(stage: Stage) -> None:
        user = await let_in(stage, STDIN)
        ping = ws.encode(ws.PING, b"x" * 100, mask=True) * 500
        user.writer.transport.set_write_buffer_limits(1)
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                user.reader._limit = 1  # type: ignore[attr-defined]  # reads no more than it has
                while sent < 200:
                    user.send(ping)
                    await user.writer.drain()
                    sent += 1
        other = await stage.user()
        other.send(request("GET", "/version"))
        assert (await other.answer()).status == 200

    async def answer(asked: Asked) -> None:
        if asked.get("upgrade") is None:
            asked.say(ok())
            return
        await echoing()(asked)

    run(test, answer=answer)


def test_upgrades_of_what_is_no_stream_are_refused() -> None:
    async def test(stage: Stage) -> None:
        for path in (
            PODS, f"{PODS}?watch=1", f"{PODS}/api/log?follow=1", f"{PODS}/api/proxy/x", "/version", "/metrics",
            "/api/v1/nodes/n1/proxy/exec/shop/api/main?command=id", "/api/v1/namespaces/shop/services/x/proxy/",
        ):  # fmt: skip
            got = await stage.ask(upgrade(path))
            assert got.status == 400, (path, got)
            spdy = ("Connection: upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io")
            assert (await stage.ask(request("POST", path, *spdy))).status in (400, 405), path
        for fields in (
            ("Upgrade: websocket, SPDY/3.1",), ("Upgrade: websocket", "Upgrade: websocket"), ("Upgrade: h2c",),
            ("Upgrade: websocket", "Sec-WebSocket-Version: 8"), ("Upgrade: SPDY/3",), ("Upgrade: TLS/1.0",),
        ):  # fmt: skip
            got = await stage.ask(request("GET", EXEC, "Connection: Upgrade", *fields))
            assert got.status == 400, (fields, got)
        for protocol in ("v9.channel.k8s.io", "v5.channel.k8s.io.evil", "portforward.k8s.io", ","):
            got = await stage.ask(upgrade(EXEC, protocol=protocol))
            assert got.status in (400, 403, 101), (protocol, got)
            if got.status == 101:
                assert protocol == ","
        assert all(command.verb == "exec" for command in stage.commands)
        assert all(asked.target.partition("?")[0] == f"{PODS}/api/exec" for asked in stage.asked)

    run(test, answer=lambda asked: asked.say(ok(b'{"kind":"Status","code":403}', code="403 Forbidden")))


def test_what_is_run_is_what_was_decided() -> None:
    """The query of an exec goes up as it was read: other orders, other spellings and other parameters do not."""
    tries = [
        ("command=a&container=c&command=b&stdout=1", ("a", "b"), "stdout=true&container=c&command=a&command=b"),
        ("stdout=maybe&command=id&stdin=0&tty=FALSE", ("id",), "stdin=false&stdout=true&tty=false&command=id"),
        ("stdout=1&command=%0aid%00&command=", ("\nid\0", ""), "stdout=true&command=%0Aid%00&command="),
        ("stdout=1&Command=x&command=id&command%5b%5d=y", ("id",), "stdout=true&command=id"),
        ("stdout=1&command=a%26command=b%20c+d", ("a&command=b c d",), "stdout=true&command=a%26command%3Db%20c%20d"),
        ("stdout=1&command=id&ports=80&dryRun=All&as=root&impersonate=x", ("id",), "stdout=true&command=id"),
        ("stdout=1", (), "stdout=true"),
    ]

    async def test(stage: Stage) -> None:
        for query, argv, sent in tries:
            stage.asked.clear()
            user = await stage.user()
            user.send(upgrade(f"{PODS}/api/exec?{query}"))
            await user.head()
            await Frames(user).all()
            assert stage.commands[-1].facts["argv"] == argv, query
            assert [asked.target for asked in stage.asked] == [f"{PODS}/api/exec?{sent}"], query
            assert stage.asked[0].method == "GET"

    run(test, answer=lambda asked: asked.say(ok(b'{"kind":"Status","code":403}', code="403 Forbidden")))


@pytest.mark.parametrize(
    "argv",
    ["sh", "bash -i", "sh -s", "sh -", "sh -c sh", "env sh", "busybox sh", "sh /dev/stdin", "sh -c exec%20bash",
     "nsenter -t 1 -m sh", "su", "chroot /host", "python3", "python3 -", "xargs -I{} sh -c {}", "timeout 9 sh",
     "script -q /dev/null", "perl", "/bin/bash", "ash", "node", "stdbuf -o0 sh", "nohup sh", "setsid sh"],
)  # fmt: skip
def test_single_commands_only_means_no_shell_by_pipe(argv: str) -> None:
    words = "".join(f"&command={word}" for word in argv.split())

    async def test(stage: Stage) -> None:
        user = await stage.user()
        user.send(upgrade(f"{PODS}/api/exec?stdin=true&stdout=true{words}"))
        await user.head()
        await Frames(user).all()
        assert stage.connections == 0, argv

    run(test, settings={"exec_only": True})


def test_attach_is_interactive() -> None:
    async def test(stage: Stage) -> None:
        user = await stage.user()
        user.send(upgrade(f"{PODS}/api/attach?stdin=true&stdout=true"))
        await user.head()
        await Frames(user).all()
        assert stage.connections == 0

    run(test, settings={"exec_only": True})


# -- a target's WebSocket -------------------------------------------------------------------------------

HOSTILE: dict[str, bytes] = {
    "a status that never ends": message(3, b"{", fin=False) + b"\x00\x7e\x80\x00" + (b" " * 32768) * 1,
    "a status in pieces": message(3, b" {") * 100,
    "masked frames": message(1, b"x", mask=True),
    "stdin": message(0, b"x"),
    "a size": message(4, b"{}"),
    "an unknown channel": message(7, b"x"),
    "a frame without end": b"\x82\x7f" + b"\x7f" + b"\xff" * 7 + b"\x01",
    "a long ping": b"\x89\x7e\x01\x00" + b"x" * 256,
    "reserved bits": b"\xf2\x00",
    "an end without a status": b"",
    "a close with text": ws.encode_close(1011, "\x1b[2Jevil"),
    "HTTP": ok(),
    "two statuses": message(3, SUCCESS, fin=True)[:2] + b"\x03{}" + message(3, SUCCESS),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_targets_stream_ends_in_order(name: str) -> None:
    async def answer(asked: Asked) -> None:
        asked.say(granted(asked) + message(1, b"") + HOSTILE[name])
        await asked.writer.drain()
        if name in ("an end without a status", "a frame without end", "a status that never ends"):
            asked.writer.close()

    async def test(stage: Stage) -> None:
        user = await let_in(stage, EXEC)
        frames = Frames(user)
        await frames.all()
        assert frames.close is not None, (name, frames.channels)
        assert frames.status["status"] == "Failure" and "\x1b" not in str(frames.status)
        await stage.until(lambda: stage.served == 1)
        assert stage.tapes[0].closed is not None and stage.tapes[0].closed[1] != "internal error"

    run(test, answer=answer)


def test_handshakes_that_are_none() -> None:
    """Wrong answers to the gate's own handshake: the user hears of it as a Status, once."""
    answers = {
        "another protocol": lambda asked: granted(asked, "v1.channel.k8s.io"),
        "none": lambda asked: granted(asked).replace(b"Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n", b""),
        "another key": lambda asked: granted(asked).replace(b"Accept: ", b"Accept: x"),
        "another upgrade": lambda asked: granted(asked).replace(b"websocket", b"h2c"),
        "extensions": lambda asked: granted(asked).replace(b"Upgrade: w", b"Sec-WebSocket-Extensions: x\r\nUpgrade: w"),
        "a redirect": lambda asked: ok(b"", "Location: https://evil.example.com/", code="302 Found"),
        "200": lambda asked: ok(),
        "401": lambda asked: ok(
            b'{"kind":"Status","status":"Failure","code":401,"message":"no"}', code="401 Unauthorized"
        ),
        "an endless refusal": lambda asked: ok(b"x" * 300_000, code="403 Forbidden"),
        "101 in pieces": lambda asked: b"HTTP/1.1 101 S\r\n\r\n",
    }

    async def test(stage: Stage) -> None:
        for name, answer in answers.items():
            stage.answer = lambda asked, answer=answer: asked.say(answer(asked))  # type: ignore[misc]
            user = await let_in(stage, EXEC)
            frames = Frames(user)
            await frames.all()
            assert frames.status["status"] == "Failure" or frames.status.get("code"), name
            assert frames.close is not None and frames.close[0] == 1000, name

    run(test, answer=None)


def test_output_without_end_stops_at_a_user_who_does_not_read() -> None:
    sent = [0]

    async def answer(asked: Asked) -> None:
        if asked.get("upgrade") is None:
            asked.say(ok())
            return
        asked.say(granted(asked) + message(1, b""))
        piece = message(1, b"x" * 32_000)
        with contextlib.suppress(ConnectionError):
            while sent[0] < 400_000_000:
                asked.say(piece)
                sent[0] += len(piece)
                await asked.writer.drain()

    async def test(stage: Stage) -> None:
        await let_in(stage, EXEC)
        before = -1
        while before != sent[0]:
            before = sent[0]
            await asyncio.sleep(0.3)
        assert sent[0] < 40_000_000, "the target is stopped"
        assert (await stage.ask(request("GET", "/version"))).status == 200, "others live on"

    run(test, answer=answer)


def test_masks_of_streams_see_over_every_border() -> None:
    """A secret over frames, fragments, channels and behind the Status; in an error text too."""
    text = f"a {CANARY} b\n".encode()
    failure = json.dumps({"status": "Failure", "reason": "InternalError", "message": f"bad {CANARY}", "code": 500})
    pieces = b"".join(message(1, text[at : at + 1]) for at in range(len(text)))
    errors = b"".join(message(2, text[at : at + 1]) for at in range(len(text)))
    broken = message(1, text[:5], fin=False) + b"".join(
        ws.encode(ws.CONTINUATION, text[at : at + 1], fin=at == len(text) - 1) for at in range(5, len(text))
    )
    mixed = b"".join(
        message(1, text[at : at + 1]) + message(2, text[at : at + 1]) + ws.encode(ws.PING, b"p")
        for at in range(len(text))
    )

    async def test(stage: Stage) -> None:
        for data in (pieces, errors, broken, mixed):
            stage.answer = lambda asked, data=data: asked.say(  # type: ignore[misc]
                granted(asked) + message(1, b"") + data + message(3, failure.encode()) + ws.encode_close(1000)
            )
            user = await let_in(stage, EXEC)
            frames = Frames(user)
            await frames.all()
            said = b"".join(frames.channels.values())
            assert b"unseen" not in said and b"a " in said, frames.channels
            assert frames.status["status"] == "Failure"
        assert b"unseen" not in stage.taped()

    run(test, lambda command: Allow("r", (Mask("r", detectors=("canary",)),)), masker=MASKING)


def test_a_refusal_of_the_targets_is_masked_as_well() -> None:
    async def test(stage: Stage) -> None:
        said = json.dumps({"kind": "Status", "status": "Failure", "message": f"bad {CANARY}", "code": 403})
        stage.answer = lambda asked: asked.say(ok(said.encode(), code="403 Forbidden"))
        user = await let_in(stage, EXEC)
        frames = Frames(user)
        await frames.all()
        assert b"unseen" not in frames.channels[3] and frames.status["code"] == 403
        spdy = ("Connection: upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io")
        got = await stage.ask(request("POST", EXEC, *spdy))
        assert got.status == 403 and b"unseen" not in got.body
        assert b"unseen" not in stage.taped()

    run(test, lambda command: Allow("r", (Mask("r", detectors=("canary",)),)), masker=MASKING)


def test_a_copy_is_of_the_place_that_it_names() -> None:
    """What is not exactly kubectl's tar, or climbs out of the place that a rule allows, is an exec like any other."""
    tries = [
        ("tar -xmf - -C /data", "copy-in"), ("tar -xmf -", "copy-in"), ("tar cf - /data/x", "copy-out"),
        ("tar -xmf - -C /data/../etc", "exec"), ("tar cf - /data/../etc/shadow", "exec"), ("tar cf - ..", "exec"),
        ("tar -xmf - -C --to-command=sh", "exec"), ("tar cf - --checkpoint-action=exec=sh", "exec"),
        ("tar cf - -I sh", "exec"), ("tar -xmf - -C /a -C /b", "exec"), ("tar xmf - -C /a", "exec"),
        ("/tmp/tar cf - /data", "exec"), ("tar cf - /data /etc", "exec"), ("tar cf /dev/stdout /data", "exec"),
    ]  # fmt: skip

    async def test(stage: Stage) -> None:
        for line, verb in tries:
            words = "".join(f"&command={word}" for word in line.split())
            stdin = "&stdin=true" if "x" in line.split()[1] else ""
            user = await stage.user()
            user.send(upgrade(f"{PODS}/api/exec?stdout=true{stdin}{words}"))
            await user.head()
            user.close()
            assert stage.commands[-1].verb == verb, line
            assert ("transfer_path" in stage.commands[-1].facts) is (verb != "exec")
        assert stage.connections == 0

    run(test, lambda command: Deny("no", "never"))


def test_a_user_who_never_opens_its_streams_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """SPDY: who is let in and opens nothing has its time; the tape says whose fault it was."""
    monkeypatch.setattr("protocols.kubernetes.remote.READY_SECONDS", 0.3)

    async def test(stage: Stage) -> None:
        user = await stage.user()
        spdy = ("Content-Length: 0", "Connection: upgrade", "Upgrade: SPDY/3.1")
        user.send(request("POST", EXEC, *spdy, "X-Stream-Protocol-Version: v4.channel.k8s.io"))
        await user.head()
        await stage.until(lambda: stage.served == 1)
        assert stage.tapes[0].closed is not None and stage.tapes[0].closed[1].startswith("the user"), stage.tapes[0]

    run(test, answer=echoing())
