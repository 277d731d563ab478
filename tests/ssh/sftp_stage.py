"""A Content between a user and a target that a test plays: its steps are carried out here, as the conversation does."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

from protocols.ssh import sftp_wire as wire
from protocols.ssh.sftp import sftp_content
from proxy.core.errors import Refused
from proxy.core.events import Command, Result
from proxy.core.session import Permit
from proxy.core.verdict import Deny
from proxy.terminal.content import Ask, Broken, Content, Done, Settings, Step, ToTarget, ToUser

HOME = b"/home/alice"
U32 = wire.U32.pack
U64 = wire.U64.pack
S = wire.string


def request(code: int, request_id: int, *parts: bytes) -> bytes:
    """A packet with an id: a request, or a reply."""
    return wire.packet(code, U32(request_id) + b"".join(parts))


def extended(name: bytes, request_id: int, *parts: bytes) -> bytes:
    """An EXTENDED request."""
    return request(wire.EXTENDED, request_id, S(name), *parts)


def opening(path: bytes, request_id: int, flags: int = wire.FXF_READ) -> bytes:
    """An OPEN."""
    return request(wire.OPEN, request_id, S(path), U32(flags), U32(0))


def reading(handle: bytes, request_id: int, offset: int, size: int) -> bytes:
    """A READ."""
    return request(wire.READ, request_id, S(handle), U64(offset), U32(size))


def writing(handle: bytes, request_id: int, offset: int, data: bytes) -> bytes:
    """A WRITE."""
    return request(wire.WRITE, request_id, S(handle), U64(offset), S(data))


def closing(handle: bytes, request_id: int) -> bytes:
    """A CLOSE."""
    return request(wire.CLOSE, request_id, S(handle))


def packets(data: bytes) -> list[tuple[int, bytes]]:
    """Whole packets as (type, body behind it); fails on anything else."""
    found = []
    while data:
        size = wire.U32.unpack_from(data)[0]
        assert len(data) >= 4 + size, "half a packet"
        found.append((data[4], data[5 : 4 + size]))
        data = data[4 + size :]
    return found


class Stage:
    """Carries out the steps. links: real names by path as the target knows them; missing: what it does not have."""

    def __init__(self, content: Content, decide: Callable[[Command], bool | None] = lambda command: True) -> None:
        self.content = content
        self.decide = decide
        self.links: dict[bytes, bytes] = {}
        self.missing: set[bytes] = set()
        self.answering = True  # the gate's own REALPATHs
        self.lookups: list[tuple[int, bytes]] = []
        self.now = 100.0
        self.up = b""  # what the target got of the user
        self.up_untaped = b""
        self.down = b""  # what the user got, gate's answers too
        self.down_untaped = b""
        self.err = b""
        self.gate_up = b""
        self.asks: list[Ask] = []
        self.commands: list[Command] = []
        self.results: list[Result] = []
        self.done: list[Done] = []
        self.broken = ""

    def user(self, *pieces: bytes) -> Stage:
        """The user sends."""
        for piece in pieces:
            self.do(self.content.from_user(piece, self.now))
        return self

    def target(self, *pieces: bytes) -> Stage:
        """The target sends."""
        for piece in pieces:
            self.do(self.content.from_target("out", piece, self.now))
        return self

    def allow(self, ask: Ask) -> None:
        """Decide an Ask that was left undecided."""
        self.up += ask.data
        self.do(self.content.allowed(ask, permit(ask.command), self.now))

    def refuse(self, ask: Ask) -> None:
        """The same, against it."""
        self.do(self.content.refused(ask, Refused(Deny("no-etc", "not for you")), self.now))

    def end(self) -> None:
        """The channel is closed."""
        self.do(self.content.ended(self.now))

    def do(self, steps: list[Step]) -> None:
        """Carry out steps."""
        for step in steps:
            match step:
                case ToTarget(data=data, by_gate=True):
                    self.gate_up += data
                    self._look_up(data)
                case ToTarget(data=data, taped=taped):
                    self.up += data
                    self.up_untaped += b"" if taped else data
                case ToUser(data=data, stream="err"):
                    self.err += data
                case ToUser(data=data, taped=taped):
                    self.down += data
                    self.down_untaped += b"" if taped else data
                case Ask():
                    self.asks.append(step)
                    self.commands.append(step.command)
                    verdict = self.decide(step.command)
                    if verdict is not None:
                        (self.allow if verdict else self.refuse)(step)
                case Done():
                    self.done.append(step)
                    self.results.append(step.result)
                case Broken():
                    self.broken = step.text

    def _look_up(self, data: bytes) -> None:
        if data[4] != wire.REALPATH:
            return
        fields = wire.Fields(data, 5, len(data))
        self.lookups.append((fields.u32(), fields.string()))
        if self.answering:
            self.answer_lookups()

    def answer_lookups(self) -> None:
        """Answer what the gate has asked, in the order it was asked."""
        lookups, self.lookups = self.lookups, []
        for request_id, path in lookups:
            self.do(self.content.from_target("out", self.real(request_id, path), self.now))

    def real(self, request_id: int, path: bytes) -> bytes:
        """The target's answer to a REALPATH: links along the way are followed."""
        name = posixpath.join(HOME, path)
        done = b""
        for part in name.split(b"/"):
            done = posixpath.normpath(posixpath.join(done or b"/", part))
            for _ in range(8):
                done = self.links.get(done, done)
            if done in self.missing:
                return wire.status(request_id, wire.FX_NO_SUCH_FILE, "No such file")
        return request(wire.NAME, request_id, U32(1), S(done), S(b""), U32(0))

    def take(self) -> tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]]:
        """The packets since the last call: those of the user at the target, and those at the user."""
        up, down, self.up, self.down = packets(self.up), packets(self.down), b"", b""
        return up, down

    def statuses(self) -> list[tuple[int, int, str]]:
        """The STATUS packets at the user since the last call: id, code, text."""
        found = []
        for code, body in self.take()[1]:
            if code == wire.STATUS:
                fields = wire.Fields(body, 0, len(body))
                found.append((fields.u32(), fields.u32(), fields.string().decode()))
        return found


def permit(command: Command) -> Permit:
    """A permit in name only: a Content keeps it and gives it back."""
    return cast(Permit, SimpleNamespace(command=command))


def begun(decide: Callable[[Command], bool | None] = lambda command: True, settings: Settings | None = None) -> Stage:
    """An SFTP channel behind INIT and VERSION."""
    stage = Stage(sftp_content(settings or Settings(7, "box", "alice")), decide)
    stage.user(wire.init()).target(wire.packet(wire.VERSION, U32(3)))
    stage.take()
    return stage


def opened(stage: Stage, path: bytes, handle: bytes = b"h", flags: int = wire.FXF_READ) -> Stage:
    """Open a file."""
    stage.user(opening(path, 1, flags)).target(request(wire.HANDLE, 1, S(handle)))
    stage.take()
    return stage
