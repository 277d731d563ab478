"""Conversations of SSH as tests: what either side says, what reaches the other.

A Play holds a real Session over fakes and carries actions out as the relay does, with no sockets and no tasks. The
policy is a function of the command; None leaves the command undecided until decide() is called.
"""

from __future__ import annotations

import fnmatch
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from protocols.ssh import wire
from protocols.ssh.actions import (
    Action,
    Alarm,
    Decide,
    Disconnect,
    Down,
    Forget,
    Ignored,
    Intent,
    Mark,
    Record,
    Up,
    Withdraw,
)
from protocols.ssh.channels import Limits
from protocols.ssh.commands import ContentFactory, Conversation
from protocols.ssh.wire_bodies import Env, Listen, Number, Pty, Tcpip, Word
from proxy.core.errors import PeerError, Refused
from proxy.core.events import Chunk, Command, Resize
from proxy.core.gate import ShellReader
from proxy.core.parties import Identity, Target
from proxy.core.script import Invocation, Script
from proxy.core.session import Permit, Session
from proxy.core.verdict import Allow, Deny, Hold, Mask, Verdict
from proxy.core.writers import TargetWriter, UserWriter
from tests.fakes import SSH_PERMITS, FakeIdentities, FakeMasker, FakeTape, allow_all, fake_gate

T = TypeVar("T")
Rule = Callable[[Command], Verdict | None]
WINDOW = 2 * 1024 * 1024
PACKET = 32_768


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run what never really waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise AssertionError("it waits")


@types.coroutine
def _verdict() -> Generator[None, Verdict, Verdict]:
    verdict = yield
    return verdict


async def _asked(identity: Identity, target: Target, command: Command) -> Verdict:
    """A policy that a test answers, when it comes to it."""
    return await _verdict()


class Sink:
    """Takes framed messages."""

    def __init__(self) -> None:
        self.messages: list[wire.Message] = []

    async def write(self, data: bytes) -> None:
        self.messages += [wire.decode(payload, PeerError) for payload in wire.unframe(data, PeerError)]


def simple_shell(text: str) -> Script:
    """Reads lines of plain words with ; and | between commands; a $ makes them opaque."""
    parts = text.replace("|", ";").split(";")
    invocations = tuple(Invocation(tuple(part.split())) for part in parts if part.split())
    return Script(invocations, opaque="$" in text, why="variables" if "$" in text else "")


def no_content(*_: object) -> None:
    """A ContentFactory for channels that nothing decodes."""


class Play:
    """One connection of SSH, played."""

    def __init__(
        self,
        rule: Rule = allow_all,
        *,
        settings: dict[str, object] | None = None,
        permits: frozenset[str] = SSH_PERMITS,
        force_command: str | None = None,
        contents: ContentFactory = no_content,
        shell: ShellReader = simple_shell,
        limits: Limits | None = None,
        masker: FakeMasker | None = None,
    ) -> None:
        self.rule = rule
        self.gate = fake_gate(masker=masker or FakeMasker(), policy=_asked)
        self.tape = FakeTape()
        identities = self.gate.identities
        assert isinstance(identities, FakeIdentities)
        target = Target("box", "ssh", database="deploy", settings=settings or {})
        self.session = Session(self.gate, identities.identity, target, self.tape)
        self.conversation = Conversation(target, "deploy", shell, contents, permits, force_command, limits)
        self._user, self._target = Sink(), Sink()
        self._to_user = UserWriter(self._user, self.session)
        self._to_target = TargetWriter(self._target, self.session)
        self.undecided: dict[int, Command] = {}
        self._decisions: dict[int, Coroutine[Any, Verdict, Permit]] = {}
        self.commands: list[Command] = []
        self.actions: list[Action] = []
        self.records: list[Record] = []
        self.now = 0.0

    # -- what the sides say ---------------------------------------------------------------------------

    def user(self, *messages: wire.Message | bytes) -> Play:
        """The user says this."""
        for message in messages:
            payload = message if isinstance(message, bytes) else message.encode()
            self.carry_out(self.conversation.from_user(payload, self.now))
        return self

    def target(self, *messages: wire.Message | bytes) -> Play:
        """The target says this."""
        for message in messages:
            payload = message if isinstance(message, bytes) else message.encode()
            self.carry_out(self.conversation.from_target(payload, self.now))
        return self

    def at_target(self) -> list[wire.Message]:
        """What has reached the target since the last look."""
        run_now(self._to_target.flush())
        found, self._target.messages = self._target.messages, []
        return found

    def at_user(self) -> list[wire.Message]:
        """What has reached the user since the last look."""
        run_now(self._to_user.flush())
        found, self._user.messages = self._user.messages, []
        return found

    def texts(self) -> tuple[bytes, bytes]:
        """The data that have reached the user since the last look: (out, err)."""
        found = self.at_user()
        out = b"".join(each.data for each in found if isinstance(each, wire.Data))
        return out, b"".join(each.data for each in found if isinstance(each, wire.ExtendedData))

    # -- decisions ------------------------------------------------------------------------------------

    def decide(
        self, verdict: Allow | Deny, key: int | None = None, approval: str | None = None, withdrawn: bool = False
    ) -> Play:
        """Decide what was left undecided, the oldest first."""
        key = min(self.undecided) if key is None else key
        del self.undecided[key]
        decision = self._decisions.pop(key)
        try:
            decision.send(verdict)
        except StopIteration as stop:
            self.carry_out(self.conversation.allowed(key, stop.value, self.now))
        except Refused as refused:
            refused.approval, refused.withdrawn = approval, withdrawn
            self.carry_out(self.conversation.refused(key, refused, self.now))
        return self

    def hold(self, key: int | None = None, text: str = 'held by rule "x": approval 01ABC is pending') -> Play:
        """A human is asked."""
        key = min(self.undecided) if key is None else key
        self.carry_out(self.conversation.held(key, text, self.now))
        return self

    def _decide(self, key: int, command: Command) -> None:
        async def nobody(_: object) -> None: ...

        self.commands.append(command)
        self.undecided[key] = command
        self._decisions[key] = self.session.decide(command, nobody)
        self._decisions[key].send(None)  # up to the policy: the tape has the command
        verdict = self.rule(command)
        if isinstance(verdict, Hold):
            self.hold(key)
        elif verdict is not None:
            self.decide(verdict, key)

    # -- actions --------------------------------------------------------------------------------------

    def carry_out(self, actions: list[Action]) -> None:
        """Do what the relay does."""
        later = self._do(actions)
        while more := self.conversation.settle():
            later += self._do(more)
        for decide in later:  # the relay's tasks decide when the list was carried out
            self._decide(decide.key, decide.command)

    def _do(self, actions: list[Action]) -> list[Decide]:
        later: list[Decide] = []
        for action in actions:
            self.actions.append(action)
            match action:
                case Down():
                    revealed = self._to_user.send(action.permit, action.event)
                    if isinstance(action.event, Chunk) and action.event.data and not revealed:
                        self.conversation.withheld(action.event)
                case Up():
                    self._to_target.send(action.cargo)
                case Ignored():
                    self.session.ignored(action.data, action.flow)
                case Decide():
                    later.append(action)
                case Record():
                    self.session.result(action.permit, action.result)
                    self.records.append(action)
                case Mark():
                    self.session.mark(action.label, action.text)
                case Intent():
                    self.session.intent(action.text)
                case Forget():
                    self.session.forget_stream(action.flow)
                case Withdraw() | Alarm() | Disconnect():
                    pass
        return later

    def of(self, kind: type[T]) -> list[T]:
        """The actions of one type so far."""
        return [action for action in self.actions if isinstance(action, kind)]

    @property
    def resizes(self) -> list[Resize]:
        """The sizes of terminals that went onto the tape."""
        return [each.event for each in self.of(Down) if isinstance(each.event, Resize)]

    @property
    def marks(self) -> list[str]:
        """The labels of all remarks."""
        return [mark.label for mark in self.of(Mark)]

    # -- usual conversations --------------------------------------------------------------------------

    def opened(self, user: int = 0, target: int = 0, window: int = WINDOW, packet: int = PACKET) -> Play:
        """A session channel is open; nothing of it is to be looked at any more."""
        self.user(session(user, window, packet)).target(confirm(user, target, window, packet))
        self.at_user(), self.at_target()
        return self

    def started(
        self, text: str = "ls", user: int = 0, target: int = 0, window: int = WINDOW, packet: int = PACKET
    ) -> Play:
        """A program runs on a session channel."""
        self.opened(user, target, window, packet).user(execute(text, target)).target(wire.ChannelSuccess(user))
        self.at_user(), self.at_target()
        return self


def session(number: int = 0, window: int = WINDOW, packet: int = PACKET) -> wire.ChannelOpen:
    """The opening of a session."""
    return wire.ChannelOpen("session", number, window, packet)


def confirm(recipient: int = 0, sender: int = 0, window: int = WINDOW, packet: int = PACKET) -> wire.OpenConfirmation:
    """The confirmation of an opening."""
    return wire.OpenConfirmation(recipient, sender, window, packet)


def request(name: str, body: bytes = b"", recipient: int = 0, want_reply: bool = True) -> wire.ChannelRequest:
    """A channel request."""
    return wire.ChannelRequest(recipient, name, want_reply, body)


def execute(text: str, recipient: int = 0, want_reply: bool = True) -> wire.ChannelRequest:
    """An exec request."""
    return request("exec", Word(text).encode(), recipient, want_reply)


def pty(recipient: int = 0, columns: int = 80, rows: int = 24) -> wire.ChannelRequest:
    """A pty-req."""
    return request("pty-req", Pty("xterm", columns, rows).encode(), recipient)


def env(name: str, value: str, want_reply: bool = False, recipient: int = 0) -> wire.ChannelRequest:
    """An env request."""
    return request("env", Env(name, value).encode(), recipient, want_reply)


def exit_status(status: int, recipient: int = 0) -> wire.ChannelRequest:
    """The end of a program."""
    return request("exit-status", Number(status).encode(), recipient, want_reply=False)


def direct(number: int = 0, host: str = "db.internal", port: int = 5432) -> wire.ChannelOpen:
    """A direct-tcpip."""
    return wire.ChannelOpen("direct-tcpip", number, WINDOW, PACKET, Tcpip(host, port, "127.0.0.1", 40000).encode())


def forwarded(number: int = 0, host: str = "localhost", port: int = 8080) -> wire.ChannelOpen:
    """A forwarded-tcpip."""
    return wire.ChannelOpen("forwarded-tcpip", number, WINDOW, PACKET, Tcpip(host, port, "10.0.0.9", 50000).encode())


def listen(
    host: str = "localhost", port: int = 8080, want_reply: bool = True, name: str = "tcpip-forward"
) -> wire.GlobalRequest:
    """A tcpip-forward, or its cancel."""
    return wire.GlobalRequest(name, want_reply, Listen(host, port).encode())


def verbs(*globs: str, otherwise: Verdict | None = None) -> Rule:
    """Allow commands by their verbs."""

    def rule(command: Command) -> Verdict | None:
        return Allow("some") if any(fnmatch.fnmatchcase(command.verb, glob) for glob in globs) else otherwise

    return rule


DENY = Deny("no", "not here")
MASKS = (Mask("secrets", detectors=("word",)),)
