"""What a channel's opening and its requests ask for: the Command that is decided, or a refusal of the gate's own.

Facts of commands (what a rule's condition may ask): login, pty and env of exec, shell and subsystem; shell (the Script
that the command line was read into) and opaque of exec; opaque of a shell without a terminal, as nothing that comes on
its standard input is read; subsystem; original_command where a certificate's force-command stands in its place; host,
port, origin or path of a forward. decoded of exec and subsystem: "sftp" or "scp" where every file is decided on by
itself, else "". unmaskable of an exec: what it gives out passes no mask (proxy/masking/guard.py).

The kind of exec is transfer only where the line is certain to be one invocation of a known program and nothing else.

Left out: any decision. What the gate refuses by itself needs no policy: a NUL in an argv, what the login's certificate
does not permit, a shell where the target's exec_only is set.

Specification: RFC 4254 6, 7.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocols.ssh import wire
from protocols.ssh.channels import Channel
from protocols.ssh.contents import SFTP_SERVERS, Start, decoded
from protocols.ssh.verbs import KIND_OF
from protocols.ssh.wire_bodies import DirectStreamlocal, Env, ForwardedStreamlocal, Tcpip, Tun, Word, X11Request
from proxy.core.errors import PeerError, Refused
from proxy.core.events import Command, Kind
from proxy.core.gate import ShellReader
from proxy.core.parties import Target
from proxy.core.script import Script
from proxy.core.verdict import Deny
from proxy.terminal.content import Ask, Settings

PROGRAMS: Final = ("exec", "shell", "subsystem")

AGENT: Final = "auth-agent-req@openssh.com"
# Requests that pass without a decision: on a session, on any channel, and those of the target.
PLUMBING: Final = frozenset({"signal", "break", "xon-xoff", "eow@openssh.com", "keepalive@openssh.com"})
PLUMBING_ANYWHERE: Final = frozenset({"eow@openssh.com", "keepalive@openssh.com"})
TARGET_REQUESTS: Final = frozenset({"exit-status", "exit-signal", "xon-xoff"}) | PLUMBING_ANYWHERE
# PuTTY sends these to be answered with CHANNEL_FAILURE: it counts on it, so it is no remark.
PUTTY: Final = frozenset({"simple@putty.projects.tartarus.org", "winadj@putty.projects.tartarus.org"})

# What an OpenSSH server's AcceptEnv usually has, and the gateway's own.
DEFAULT_ENV: Final = ("LANG", "LC_*", "TERM", "COLORTERM", "GATECAST_*")
# A longer command line is more than a human reads, and more than the tape's COMMAND record holds (session.TEXT_LIMIT).
ARGV_LIMIT: Final = 256 * 1024
# A terminal's size is two unsigned shorts in the kernels (struct winsize, tty_ioctl(4)).
CELLS_LIMIT: Final = 65_535

_GIT: Final = frozenset({"git-upload-pack", "git-receive-pack", "git-upload-archive"})
_SERVER_FOLDERS: Final = ("/usr/lib/", "/usr/lib64/", "/usr/libexec/")  # where OpenSSH's builds put sftp-server
# A certificate's command that is the SFTP subsystem, with no options but those of sftp-server(8) about its log.
_SFTP_ONLY: Final = re.compile(r"internal-sftp(?:\s+(?:-e|-[lf]\s*\w+))*\s*", re.ASCII)
_SCP_OPTIONS: Final = frozenset("rpdvqtf")

# The certificate extension (OpenSSH's PROTOCOL.certkeys) that a verb needs.
PERMIT_OF: Final = {
    "pty": "permit-pty",
    "auth-agent": "permit-agent-forwarding",
    "x11": "permit-X11-forwarding",
    "direct-tcpip": "permit-port-forwarding",
    "direct-streamlocal": "permit-port-forwarding",
    "tcpip-forward": "permit-port-forwarding",
    "streamlocal-forward": "permit-port-forwarding",
    "tun": "permit-port-forwarding",
}


@dataclass(frozen=True, slots=True)
class Started:
    """What an exec, shell or subsystem request comes to: what starts (name: argv or subsystem), and its command."""

    start: Start
    name: str
    command: Command


@dataclass(slots=True)
class Asked:
    """Something of a channel that is being decided: a program, a request (agent, X11), a Content's command."""

    channel: Channel
    request: wire.ChannelRequest | None = None
    started: Started | None = None
    ask: Ask | None = None
    inline: bool = False  # the ask's data are in its command's wire
    held: bool = False
    withdrawn: bool = False


def own_refusal(why: str, text: str) -> Refused:
    """A refusal of the gate's own; why stands where a rule's name would."""
    return Refused(Deny(why, text))


def taken_back(rule: str) -> Refused:
    """The user took back what a human approved at the same moment."""
    return Refused(Deny(rule, "taken back"), withdrawn=True)


class Requests:
    """Reads requests for one connection."""

    def __init__(
        self, target: Target, login: str, shell: ShellReader, permits: frozenset[str], force_command: str | None
    ) -> None:
        self._target = target
        self._login = login
        self._shell = shell
        self._permits = permits
        self._force_command = force_command
        self._env = _words(target.settings.get("env", DEFAULT_ENV))
        self._exec_only = bool(target.settings.get("exec_only", False))

    def permits(self, verb: str) -> bool:
        """Whether the login as such allows the verb."""
        return verb not in PERMIT_OF or PERMIT_OF[verb] in self._permits

    def passes(self, env: Env) -> bool:
        """Whether a variable may be set at the target."""
        if not env.name or "=" in env.name or "\0" in env.name or "\0" in env.value:
            return False
        return any(fnmatch.fnmatchcase(env.name, glob) for glob in self._env)

    # -- programs -------------------------------------------------------------------------------------

    def start(self, channel: Channel, request: wire.ChannelRequest, error: type[PeerError]) -> Started | Refused:
        """Read an exec, shell or subsystem request."""
        name = "" if request.name == "shell" else Word.read(request.body, error).text
        start: Start = "shell" if request.name == "shell" else "exec" if request.name == "exec" else "subsystem"
        more: dict[str, Any] = {}
        if self._force_command is not None:
            # As sshd does: it takes the place of whatever was asked for; internal-sftp is no program but the subsystem.
            more["original_command"] = name
            start, name = "exec", self._force_command
            if _SFTP_ONLY.fullmatch(self._force_command):
                start, name = "subsystem", "sftp"
            elif self._force_command.split(None, 1)[:1] == ["internal-sftp"]:  # -R, -P, -d: what the holder may not do
                return own_refusal("ssh", "the certificate's options of internal-sftp cannot be kept here")
            body = Word(name).encode()
            request = wire.ChannelRequest(request.recipient, start, request.want_reply, body)
        if "\0" in name:
            return own_refusal("ssh", "a command line cannot hold a NUL byte")
        if len(name) > ARGV_LIMIT:
            return own_refusal("ssh", f"a command line of {len(name)} characters; {ARGV_LIMIT} are allowed")
        if self._exec_only and (start == "shell" or (start == "exec" and not name.strip())):
            return own_refusal("exec_only", "this target takes single commands only, no interactive shell")
        facts: dict[str, Any] = {"login": self._login, "pty": channel.pty, "env": dict(channel.env), **more}
        match start:
            case "exec":
                script = self._shell(name)
                kind = _kind(script)
                found = decoded(start, name, channel.pty, self._shell)
                facts |= {"shell": script, "opaque": script.opaque, "decoded": found}
                if _unmaskable(script, kind, found):
                    facts["unmaskable"] = True
                command = self._command("exec", name, channel.flow, request, facts, script.names, kind)
            case "shell":
                facts["opaque"] = not channel.pty
                command = self._command("shell", "shell", channel.flow, request, facts, (), KIND_OF["shell"])
            case "subsystem":
                facts |= {"subsystem": name, "decoded": decoded(start, name, channel.pty, self._shell)}
                kind = "transfer" if name == "sftp" else "execute"
                command = self._command("subsystem", name, channel.flow, request, facts, (name,), kind)
        return Started(start, name, command)

    def settings(self, channel: Channel) -> Settings:
        """What the Content of a channel may know."""
        return Settings(
            flow=channel.flow,
            target=self._target.name,
            login=self._login,
            record_contents=_words(self._target.settings.get("record_contents", ())),
            hold_when_unsure=bool(self._target.settings.get("hold_when_unsure", False)),
            columns=channel.columns,
            rows=channel.rows,
            env=dict(channel.env),
        )

    def agent(self, flow: int, request: wire.ChannelRequest) -> Command:
        """Read auth-agent-req@openssh.com."""
        text = "use the user's SSH agent at the target"
        return self._command("auth-agent", text, flow, request, {"opaque": True})

    def x11(self, flow: int, request: wire.ChannelRequest, error: type[PeerError]) -> Command:
        """Read x11-req. The cookie is a secret of the user's display: it is not in the text."""
        asked = X11Request.read(request.body, error)
        text = f"use the user's X11 display {asked.screen} at the target"
        return self._command("x11", text, flow, request, {"opaque": True})

    def _command(
        self,
        verb: str,
        text: str,
        flow: int,
        request: wire.ChannelRequest,
        facts: dict[str, Any],
        objects: tuple[str, ...] = (),
        kind: Kind | None = None,
    ) -> Command:
        facts.setdefault("login", self._login)
        framed = wire.frame(request.encode())
        return Command("ssh", verb, kind or KIND_OF[verb], text, framed, objects, facts, flow=flow)

    # -- forwards -------------------------------------------------------------------------------------

    def opens(self, flow: int, asked: wire.ChannelOpen, by_user: bool, error: type[PeerError]) -> Command:
        """Read a channel open that is decided. A target's leaves for the user, so its command has no bytes."""
        verb = asked.kind.removesuffix("@openssh.com")
        facts: dict[str, Any] = {"login": self._login}
        objects: tuple[str, ...] = ()
        match asked.kind:
            case "direct-tcpip" | "forwarded-tcpip":
                tcp = Tcpip.read(asked.body, error)
                facts |= {"host": tcp.host, "port": tcp.port, "origin": place(tcp.origin, tcp.origin_port)}
                text = place(tcp.host, tcp.port)
                objects = (text,)
            case "direct-streamlocal@openssh.com":
                text = DirectStreamlocal.read(asked.body, error).path
                facts["path"] = text
                objects = (text,)
            case "forwarded-streamlocal@openssh.com":
                text = ForwardedStreamlocal.read(asked.body, error).path
                facts["path"] = text
                objects = (text,)
            case _:
                tun = Tun.read(asked.body, error)
                unit = "any" if tun.unit == ANY_UNIT else str(tun.unit)
                text = f"tunnel of layer {3 if tun.mode == 1 else 2}, unit {unit}"
                facts["opaque"] = True
        framed = wire.frame(asked.encode()) if by_user else b""
        return Command("ssh", verb, KIND_OF[verb], text, framed, objects, facts, flow=flow)

    def listens(self, verb: str, request: wire.GlobalRequest, text: str, facts: dict[str, Any]) -> Command:
        """Make the command of a global request that lets the target listen."""
        framed = wire.frame(request.encode())
        facts = {"login": self._login, **facts}
        return Command("ssh", verb, KIND_OF[verb], text, framed, (text,), facts)


ANY_UNIT: Final = 0x7FFFFFFF  # OpenSSH's PROTOCOL 2.3, SSH_TUNID_ANY


def place(host: str, port: int) -> str:
    """Return host:port; an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def cells(columns: int, rows: int) -> tuple[int, int]:
    """Return a terminal's size, 80x24 where the user's has none (ssh -tt without a terminal)."""
    return min(columns, CELLS_LIMIT) or 80, min(rows, CELLS_LIMIT) or 24


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path


def _kind(script: Script) -> Kind:
    if script.opaque or len(script.invocations) != 1 or script.reads or script.writes:
        return "execute"
    words = script.invocations[0].words
    if not words or words[0] is None:
        return "execute"
    if words[0] in SFTP_SERVERS or (words[0].startswith(_SERVER_FOLDERS) and _last(words[0]) in SFTP_SERVERS):
        return "transfer"
    # A program outside of the system's folders has two names: who could put it there may have put anything there.
    return "transfer" if len(script.names) == 1 and _transfers(_last(words[0]), words[1:]) else "execute"


def _unmaskable(script: Script, kind: Kind, found: str) -> bool:
    """Whether what an exec gives out is neither text for a mask nor files that are decided on one by one.

    A decoded channel's output passes no mask, so under masks nothing but the decoded program may run on it.
    """
    if found:
        return kind != "transfer"
    if kind != "transfer":
        return False
    words = script.invocations[0].words
    program = _last(words[0] or "")
    return "--sender" in words or None in words if program == "rsync" else program != "git-receive-pack"


def _transfers(program: str, rest: Sequence[str | None]) -> bool:
    if program in _GIT:
        return True
    if program == "rsync":
        return rest[:1] == ("--server",) and "--daemon" not in rest
    # scp names its mode with options: scp -r -p -t path, or in one word. Any other option could start a program.
    options = [word for word in rest if word is not None and word.startswith("-") and word != "--"]
    known = all(set(word[1:]) <= _SCP_OPTIONS for word in options)
    return program == "scp" and known and any({"t", "f"} & set(word) for word in options)


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(str(each) for each in value) if isinstance(value, (tuple, list)) else ()
