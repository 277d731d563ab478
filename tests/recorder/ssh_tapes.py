"""Small SSH sessions for tests of flows: a shell, execs that overlap, SFTP, what is held, forwards, two terminals."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from recorder.tape import ERR, GATE, OUT, USER, Kind, Mode, Tape
from tests.recorder.stories import WALL_NS
from tests.recorder.tapes import Clock, open_tape, pack, recorder

SHA256 = hashlib.sha256(b"app").hexdigest()
OPEN = struct.pack(">IB", 5, 90) + b"open"  # a framed message without a flow, by its form


class Story:
    """A tape that is being written, as protocols/ssh writes it; its clock stands still until it is told."""

    def __init__(self, tape: Tape, clock: Clock) -> None:
        self.tape = tape
        self.clock = clock
        self.out: dict[tuple[int, int], bytearray] = {}  # by flow and channel: what a reader must find

    def command(self, verb: str, text: str, kind: str = "execute", verdict: str = "allow", **more: Any) -> int:
        """A COMMAND and its verdict, "" for none yet."""
        n = self.tape.append(USER, Kind.COMMAND, pack({"verb": verb, "kind": kind, "text": text, **more}))
        self.clock.pass_ms(1)
        if verdict:
            self.verdict(n, verdict)
        return n

    def verdict(self, n: int, verdict: str = "allow", **more: Any) -> None:
        said = {"command": n, "verdict": verdict, "rule": "ops", **more}
        if verdict == "deny":
            said = {"reason": "not from here", **said, "rule": "keep-out"}
        self.tape.append(GATE, Kind.VERDICT, pack(said))

    def wire(self, flow: int, channel: int, data: bytes) -> None:
        self.tape.append(channel, Kind.WIRE, data, flow=flow)
        self.out.setdefault((flow, channel), bytearray()).extend(data)

    def result(self, n: int, tag: str, **details: Any) -> None:
        said = {"command": n, "tag": tag, "count": 0, "bytes": details.pop("bytes", 0), **details}
        self.tape.append(GATE, Kind.RESULT, pack(said))

    def resize(self, flow: int, columns: int, rows: int) -> None:
        self.tape.append(GATE, Kind.RESIZE, pack([columns, rows]), flow=flow)

    def message(self, channel: int = USER) -> None:
        """A message of the connection protocol that belongs to no stream."""
        self.tape.append(channel, Kind.WIRE, OPEN)

    def login(self) -> None:
        n = self.command("CONNECT", "connect as deploy to shop", "session")
        self.result(n, "connected")

    def shell(self, flow: int, columns: int = 80, rows: int = 24) -> int:
        """A pty and a shell on it, with its first prompt; returns the shell's COMMAND."""
        self.message()
        self.command("pty", f"terminal xterm-256color {columns}x{rows}", "session", flow=flow)
        self.resize(flow, columns, rows)
        n = self.command("shell", "shell", flow=flow)
        self.wire(flow, OUT, b"\x1b[32mdeploy@shop\x1b[0m:~$ ")
        return n

    def line(self, flow: int, text: str, output: bytes, verdict: str = "allow") -> int:
        """A line typed on a shell, echoed key by key, and what it printed."""
        for key in text.encode():
            self.wire(flow, USER, bytes([key]))
            self.clock.pass_ms(90)
            self.wire(flow, OUT, bytes([key]))
        n = self.command("line", text, verdict=verdict, flow=flow, exact=False, objects=[text.split()[0]])
        self.wire(flow, USER, b"\r")
        self.wire(flow, OUT, b"\r\n" + output + b"\x1b[32mdeploy@shop\x1b[0m:~$ ")
        self.clock.pass_ms(300)
        return n

    def vim(self, flow: int) -> None:
        """A program on the alternate screen, which draws and leaves again."""
        self.wire(flow, OUT, b"\x1b[?1049h\x1b[H\x1b[2J\x1b[1;1Hthis is vim\r\n~\r\n~\r\n\x1b[24;1H-- INSERT --")
        self.clock.pass_ms(2000)
        self.wire(flow, OUT, b"\x1b[2;1Hwith a second line")
        self.clock.pass_ms(500)
        self.wire(flow, OUT, b"\x1b[?1049l")


def write(
    directory: Path, tell: Callable[[Story], Awaitable[None] | None], *, close: bool = True, mode: Mode = "written"
) -> tuple[Path, Story]:
    """Write a tape by a story; return its first segment and the story."""
    clock, wall = Clock(), Clock()
    wall.ns = WALL_NS
    on = recorder(directory, monotonic_ns=clock, wall_ns=wall)

    async def scenario() -> tuple[Path, Story]:
        identity = {"subject": "ana@acme", "agents": ["claude-code"]}
        tape = open_tape(on, mode, protocol="ssh", identity=identity, target="shop", more={"database": "deploy"})
        first = tape.path
        story = Story(tape, clock)
        story.login()
        told = tell(story)
        if told is not None:
            await told
        await tape.written()
        if close:
            await tape.close("closed", "user left")
        return first, story

    return asyncio.run(scenario())


def a_shell(story: Story) -> None:
    """One terminal: typed lines, one of them denied, an editor, another size."""
    n = story.shell(0)
    story.line(0, "ls /srv", b"app.tar.gz  \x1b[34mdata\x1b[0m\r\n")
    story.line(0, "rm -rf /", b"gatecast: denied by keep-out\r\n", "deny")
    story.vim(0)
    story.resize(0, 100, 30)
    story.clock.pass_ms(3000)
    story.line(0, "exit", b"logout\r\n")
    sent = len(story.out[0, USER])
    story.result(n, "exit 0", flow=0, exit=0, sent=sent, bytes=len(story.out[0, OUT]))


def execs(story: Story) -> None:
    """Three at once on one connection: their output comes by turns, one has errors, one prints no text."""
    texts = ["for i in 1 2; do date; done", "make -C /srv/app test", "cat /srv/app.tar.gz"]
    found = [story.command("exec", text, flow=flow, objects=[text.split()[0]]) for flow, text in enumerate(texts)]
    story.wire(0, OUT, b"first of zero\n")
    story.clock.pass_ms(200)
    story.wire(1, OUT, b"first of one\n")
    story.wire(1, ERR, b"warning: on the error channel\n")
    story.wire(2, OUT, b"\x1f\x8b\x00\x01" + bytes(range(256)))
    story.clock.pass_ms(200)
    story.wire(0, OUT, b"second of zero, without an end")
    story.wire(1, OUT, b"\x1b[2J\x1b[31mred\x1b[0m second of one\n")
    story.result(found[1], "exit 2", flow=1, exit=2, sent=0, bytes=70)
    story.clock.pass_ms(50)
    story.wire(2, OUT, b"\xff\xfe more")
    story.result(found[0], "exit 0", flow=0, exit=0, sent=0, bytes=44)
    story.result(found[2], "signal TERM", flow=2, signal="TERM", sent=0, bytes=267)


def sftp(story: Story) -> None:
    """Transfers whose contents are not on the tape, a directory, a rename, and a file that is not for this user."""
    n = story.command("subsystem", "sftp", "transfer", flow=0)

    def file(verb: str, kind: str, *objects: str, verdict: str = "allow") -> int:
        story.wire(0, USER, b"\x00\x00\x00\x05" + verb.encode())
        return story.command(verb, f"{verb} {' -> '.join(objects)}", kind, verdict, flow=0, objects=list(objects))

    listed = file("file-list", "read", "/srv")
    story.wire(0, OUT, b"\x00\x00\x01\x00names of files")
    story.result(listed, "ok", flow=0)
    put = file("file-write", "write", "/srv/app.tar.gz")
    story.clock.pass_ms(812)
    told = {"path": "/srv/app.tar.gz", "direction": "upload", "size": 13_000_000, "in_order": True, "complete": True}
    story.result(put, "ok", flow=0, sha256=SHA256, **told)
    got = file("file-read", "read", "/srv/big.iso")
    story.clock.pass_ms(100)
    told = {"path": "/srv/big.iso", "direction": "download", "size": 4096, "in_order": False, "complete": False}
    story.result(got, "ok", flow=0, **told)
    story.result(file("file-rename", "write", "/srv/a", "/srv/b"), "ok", flow=0)
    file("file-read", "read", "/etc/shadow", verdict="deny")
    gone = file("file-remove", "delete", "/srv/none")
    story.result(gone, "", flow=0, error={"severity": "ERROR", "code": "2", "message": "No such file"})
    story.result(n, "exit 0", flow=0, exit=0, sent=13_000_200, bytes=5_000)


def held(story: Story) -> None:
    """An exec that a human lets pass, and a file that none does."""
    n = story.command("exec", "systemctl restart app", verdict="", flow=0, objects=["systemctl"])
    pending = {"state": "pending", "rule": "restarts", "approvers": ["group:oncall"]}
    story.tape.append(GATE, Kind.APPROVAL, pack({"command": n, "id": "A7", **pending}))
    story.clock.pass_ms(41_000)
    story.tape.append(GATE, Kind.APPROVAL, pack({"command": n, "id": "A7", "state": "approved", "by": "mia@acme"}))
    story.verdict(n, approval="A7")
    story.wire(0, ERR, b"gatecast: approved by mia@acme\n")
    story.result(n, "exit 0", flow=0, exit=0, sent=0, bytes=31)
    story.command("subsystem", "sftp", "transfer", flow=1)
    n = story.command("file-write", "put /etc/passwd", "write", "", flow=1, objects=["/etc/passwd"])
    story.tape.append(GATE, Kind.APPROVAL, pack({"command": n, "id": "A8", **pending}))
    story.clock.pass_ms(1000)
    story.tape.append(GATE, Kind.APPROVAL, pack({"command": n, "id": "A8", "state": "expired"}))
    story.verdict(n, "deny", reason="nobody approved it in time", approval="A8")


def forward(story: Story) -> None:
    """A forward with a database's bytes in it, one that is denied, and a port that is listened on."""
    n = story.command("direct-tcpip", "forward to db.internal:5432", "transfer", flow=0, objects=["db.internal:5432"])
    story.wire(0, USER, b"\x00\x00\x00\x08\x04\xd2\x16\x2f")
    story.wire(0, OUT, b"N")
    story.clock.pass_ms(4000)
    story.result(n, "closed", flow=0, sent=12_288, bytes=3_145_728)
    story.command("direct-tcpip", "forward to vault:8200", "transfer", "deny", flow=1, objects=["vault:8200"])
    story.command("tcpip-forward", "listen on 0.0.0.0:8080", "transfer", objects=["0.0.0.0:8080"])


def shell_and_copy(story: Story) -> None:
    """A terminal, and on the same connection an exec and a copy beside it (ControlMaster); then another exec."""
    shell = story.shell(0)
    story.line(0, "tail -f /var/log/app", b"one\r\n")
    beside = story.command("exec", "uptime", flow=1, objects=["uptime"])
    story.wire(1, OUT, b"up 12 days\n")
    story.wire(0, OUT, b"two\r\n")
    story.result(beside, "exit 0", flow=1, exit=0, sent=0, bytes=11)
    story.clock.pass_ms(1000)
    story.wire(0, OUT, b"three\r\n")
    story.result(shell, "exit 0", flow=0, exit=0, sent=20, bytes=200)
    story.clock.pass_ms(1000)
    after = story.command("exec", "hostname", flow=2, objects=["hostname"])
    story.wire(2, OUT, b"shop-1\n")
    story.result(after, "exit 0", flow=2, exit=0, sent=0, bytes=7)


def two_terminals(story: Story) -> None:
    """Two shells at the same time, the first of which ends first."""
    one, other = story.shell(0), story.shell(1)
    story.line(0, "echo zero", b"zero\r\n")
    story.line(1, "echo one", b"one\r\n")
    story.result(one, "exit 0", flow=0, exit=0, sent=10, bytes=100)
    story.line(1, "echo more", b"more\r\n")
    story.result(other, "exit 0", flow=1, exit=0, sent=20, bytes=200)
